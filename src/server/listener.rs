//! Accepts connections up to the cap, and drains them at the end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior};

use crate::server::activity::{Connections, OpenConnection, Waiting};
use crate::server::clock::HEARTBEAT;
use crate::server::connection::Protocols;
use crate::server::options::ConnectionOptions;
use crate::server::service::{HttpService, OnRefused};
use crate::server::shutdown::{Phase, Stage};
use crate::server::tls::ServerTls;

/// Eviction candidates per scan. Scanning all connections for every accept would make a connection flood quadratic.
const EVICTION_BATCH: usize = 256;
/// How long a failing accept is not repeated: it would fail again at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);
/// How long a connection waits for a place: until readers that take nothing count as slow.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long connections that were aborted have to drop their requests, which are counted and logged then.
const ABORT_GRACE: Duration = Duration::from_millis(250);

/// What [`serve`] runs on.
pub(crate) struct ServerConfig {
    pub(crate) listener: TcpListener,
    pub(crate) options: ConnectionOptions,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<ServerTls>,
    /// While it drains, HTTP/2 connections receive GOAWAY.
    pub(crate) phase: Phase,
    pub(crate) on_refused: OnRefused,
}

impl ServerConfig {
    /// Plain HTTP with every default.
    pub(crate) fn plain(listener: TcpListener) -> Self {
        let (options, phase) = (ConnectionOptions::default(), Phase::default());
        Self { listener, options, tls: None, phase, on_refused: Arc::new(|_| {}) }
    }
}

/// Serves until `shutdown` resolves, then finishes what is in flight for at most `drain_timeout`. Returns how many requests
/// were cut off.
pub(crate) async fn serve<S: HttpService>(
    config: ServerConfig,
    service: S,
    shutdown: impl Future<Output = ()>,
    drain_timeout: Duration,
) -> usize {
    let ServerConfig { listener, options, tls, phase, on_refused } = config;
    let connections = Arc::new(Connections::new(options));
    let acceptor = Acceptor {
        connections: connections.clone(),
        service: TowerToHyperService::new(service),
        tls,
        on_refused,
        next_id: 0,
        evictions: EvictionQueue::default(),
        full_since: None,
    };
    let serving = async {
        acceptor.accept_until(listener, shutdown).await;
        drain(&connections, drain_timeout).await
    };
    tokio::select! {
        requests_cut = serving => requests_cut,
        never = heartbeat(&connections, &phase) => match never {},
    }
}

/// Follows the phase, and notices when the process was stopped.
async fn heartbeat(connections: &Connections, phase: &Phase) -> Infallible {
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        connections.clock.update();
        if phase.is_draining() {
            connections.enter(Stage::Draining);
        }
    }
}

/// Closes idle connections and waits for the others. Returns how many requests were cut off.
async fn drain(connections: &Connections, timeout: Duration) -> usize {
    connections.enter(Stage::Closing);
    if tokio::time::timeout(timeout, connections.drained()).await.is_ok() {
        return 0;
    }
    let requests_cut = connections.open().values().map(|connection| connection.requests_in_flight()).sum();
    connections.enter(Stage::Aborted);
    let _ = tokio::time::timeout(ABORT_GRACE, connections.drained()).await;
    requests_cut
}

struct Acceptor<S> {
    connections: Arc<Connections>,
    service: TowerToHyperService<S>,
    tls: Option<ServerTls>,
    on_refused: OnRefused,
    next_id: u64,
    evictions: EvictionQueue,
    /// Since when none could be closed.
    full_since: Option<Instant>,
}

impl<S: HttpService> Acceptor<S> {
    async fn accept_until(mut self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let mut warning = RateLimitedWarning::default();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let has_room = tokio::select! {
                            biased;
                            has_room = self.room() => has_room,
                            () = &mut shutdown => {
                                self.start(stream, peer);
                                break;
                            }
                        };
                        // If every connection is in a request, the new one is closed: it has sent none yet.
                        if has_room {
                            self.start(stream, peer);
                        }
                    }
                    Err(error) if is_peers(&error) => {}
                    Err(error) => {
                        // Out of file descriptors, most likely.
                        warning.log(&error);
                        self.evictions = EvictionQueue::default();
                        self.evictions.evict_one(&self.connections);
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        }
        // Peers in the accept queue have completed the TCP handshake and may have sent a request already.
        // Unconstrained, because a long queue would use up the task's budget, and look empty.
        loop {
            match tokio::task::unconstrained(listener.accept()).now_or_never() {
                Some(Ok((stream, peer))) => {
                    let is_full = self.connections.open().len() >= self.connections.options.max_connections;
                    if !is_full || self.evictions.evict_one(&self.connections) {
                        self.start(stream, peer);
                    }
                }
                Some(Err(error)) if is_peers(&error) => {}
                _ => break,
            }
        }
    }

    /// Waits until one more connection may be open; false when every one has been worked on for so long that the new one is not to
    /// wait. One that was chosen to be closed counts until it is: it may have begun a request before it noticed.
    async fn room(&mut self) -> bool {
        loop {
            let closed = self.connections.closed.notified();
            if self.connections.open().len() < self.connections.options.max_connections {
                self.full_since = None;
                return true;
            }
            if !self.evictions.evict_one(&self.connections)
                && self.full_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE
            {
                return false;
            }
            let _ = tokio::time::timeout(ACCEPT_RETRY, closed).await;
        }
    }

    fn start(&mut self, stream: TcpStream, peer: SocketAddr) {
        // Answers are small and complete: waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);
        let open = OpenConnection::new(&self.connections, self.next_id);
        self.next_id += 1;
        let protocols = Protocols {
            connection: open.0.clone(),
            peer,
            is_tls: self.tls.is_some(),
            service: self.service.clone(),
            on_refused: self.on_refused.clone(),
            streams: self.connections.streams.clone(),
        };
        let tls = self.tls.as_ref().map(ServerTls::current);
        tokio::spawn(async move {
            protocols.serve(stream, tls).await;
            drop(open);
        });
    }
}

/// The peer hung up before it was accepted.
fn is_peers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

/// Warns at most once a second.
#[derive(Default)]
struct RateLimitedWarning {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimitedWarning {
    fn log(&mut self, error: &io::Error) {
        if self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.suppressed += 1;
            return;
        }
        tracing::warn!(%error, suppressed = self.suppressed, "cannot accept connections");
        *self = Self { last: Some(Instant::now()), suppressed: 0 };
    }
}

/// The connections to close next when there are too many, each with the time since when it does what it does.
#[derive(Default)]
struct EvictionQueue(VecDeque<(u64, Instant)>);

impl EvictionQueue {
    /// Closes the connection that has waited for its peer for longest; false when each one is in a request.
    fn evict_one(&mut self, connections: &Connections) -> bool {
        self.pop(connections) || {
            self.fill(connections);
            self.pop(connections)
        }
    }

    fn pop(&mut self, connections: &Connections) -> bool {
        let open = connections.open();
        while let Some((id, since)) = self.0.pop_front() {
            if open.get(&id).is_some_and(|connection| connection.evict_if_unchanged(since)) {
                return true;
            }
        }
        false
    }

    fn fill(&mut self, connections: &Connections) {
        let now = connections.clock.now();
        let open = connections.open();
        let mut waiting: Vec<_> = open.iter().filter_map(|(id, connection)| Some((connection.waiting(now)?, *id))).collect();
        let is_slow = |(waiting, _): &(Waiting, u64)| matches!(waiting, Waiting::Slow(_));
        // A few slow readers are answered to the end; many of them leave no place for others.
        if waiting.iter().filter(|waiting| is_slow(waiting)).count() < connections.options.many() {
            waiting.retain(|waiting| !is_slow(waiting));
        }
        if waiting.len() > EVICTION_BATCH {
            waiting.select_nth_unstable(EVICTION_BATCH);
            waiting.truncate(EVICTION_BATCH);
        }
        waiting.sort_unstable();
        self.0 = waiting.into_iter().map(|(waiting, id)| (id, waiting.since())).collect();
    }
}
