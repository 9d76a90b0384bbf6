//! Connections: accept, keep a list, close those that do nothing for too long, drain.
//!
//! `axum::serve` has no header timeout, no connection cap and no drain deadline, and hyper's own header timeout also closes
//! kept-alive idle connections, which Envoy's pool answers with a 503. So every connection tells in a word what it is doing
//! (see `connection`), and a sweep four times a second closes those that do it for too long.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::server::connection::{self, Connection, Doing};
use crate::server::shutdown::Phase;
use crate::server::tls::ServerTls;
use crate::server::{HttpService, OnRefused, ServerConfig};

/// How often connections are looked at. Every timeout here is late by at most twice this, and never early.
const SWEEP: Duration = Duration::from_millis(250);
/// How long an answer waits for its reader to take another byte.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// How long a refused caller may go on sending.
const LINGER: Duration = Duration::from_secs(2);
/// How long a head that is on its way when the hop stops accepting may take; and how long HTTP/2 may take to say goodbye.
const LAST_HEAD: Duration = Duration::from_millis(500);
/// After how many milliseconds without a first request a connection counts as silent.
const SILENT_MS: u64 = 1000;
/// How many connections are picked at once to make room: looking at all of them for each newcomer would let a flood of
/// newcomers cost more than it sends.
const PICKED: usize = 256;

/// How many connections there may be, and how long they may do nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// At the cap the connection idle for longest is closed first, those that never asked anything before the others.
    pub max_connections: usize,
    /// A request head must be whole this long after its first byte; after the connect, for the first.
    pub header_timeout: Duration,
    /// How long a kept-alive connection may wait for its next request.
    pub idle_timeout: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self { max_connections: 10_000, header_timeout: Duration::from_secs(10), idle_timeout: Duration::from_secs(65 * 60) }
    }
}

/// Serves until `stop` resolves, then finishes what is in flight for at most `drain`. Returns how many connections were cut
/// off in a request.
pub(crate) async fn serve<S: HttpService>(
    config: ServerConfig,
    service: S,
    stop: impl Future<Output = ()>,
    drain: Duration,
) -> usize {
    let ServerConfig { listener, options, tls, phase, on_refused } = config;
    let connections = Arc::new(Connections::new(options));
    let sweep = tokio::spawn(connections.clone().sweep(phase));
    let mut room = Room::default();
    let mut start = |(stream, peer)| {
        connections.clone().start(stream, peer, &mut room, tls.as_ref(), service.clone(), on_refused.clone());
    };
    let mut complaints = Complaints::default();
    {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => start(accepted),
                    Err(error) if is_callers(&error) => {}
                    Err(error) => {
                        // Out of file descriptors, most likely: room is made, and a moment is waited, because accept would
                        // fail again at once.
                        complaints.say(&error);
                        connections.make_room(&mut Room::default());
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                },
            }
        }
    }
    // Whoever waits in the listener's queue believes to be connected, and may have sent a request already.
    while let Some(Ok(accepted)) = listener.accept().now_or_never() {
        start(accepted);
    }
    drop(listener);
    connections.ending.store(true, Ordering::Release);
    connections.look(true, true);
    let drained = tokio::time::timeout(drain, connections.drained()).await;
    let cut = if drained.is_ok() { 0 } else { connections.lock().values().filter(|connection| connection.is_busy()).count() };
    for connection in connections.lock().values() {
        connection.cut();
    }
    // Requests that are cut off are counted and logged when they are dropped, a moment from now.
    let _ = tokio::time::timeout(SWEEP, connections.drained()).await;
    sweep.abort();
    cut
}

/// The caller hung up before it was accepted.
fn is_callers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

/// Says the same thing once a second at most.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn say(&mut self, error: &io::Error) {
        if self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(%error, before = self.unsaid, "cannot accept connections");
        *self = Self { last: Some(Instant::now()), unsaid: 0 };
    }
}

/// The connections that go next when there are too many, worst first, each in the state in which it was picked.
#[derive(Default)]
struct Room(VecDeque<(u64, u64)>);

/// Every open connection.
#[derive(Debug)]
struct Connections {
    options: ConnectionOptions,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    /// Milliseconds that the sweep has seen pass. Starts above 0, which means "never" elsewhere.
    clock: Arc<AtomicU64>,
    /// No longer accepting: what is idle is closed.
    ending: AtomicBool,
    /// Told when a connection closes.
    closed: Notify,
}

impl Connections {
    fn new(options: ConnectionOptions) -> Self {
        Self {
            options,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            clock: Arc::new(AtomicU64::new(1)),
            ending: AtomicBool::new(false),
            closed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has been idle for longest; false when each one is in a request.
    fn make_room(&self, room: &mut Room) -> bool {
        let open = self.lock();
        let close_next = |room: &mut Room| {
            while let Some((id, state)) = room.0.pop_front() {
                if let Some(connection) = open.get(&id).filter(|known| !known.is_busy() && known.state() == state) {
                    connection.judge(state);
                    return true;
                }
            }
            false
        };
        if close_next(room) {
            return true;
        }
        let idle = open.iter().filter(|(_, connection)| !connection.is_busy());
        let mut idle: Vec<_> = idle.map(|(id, connection)| (*id, connection.state())).collect();
        let now = self.clock.load(Ordering::Relaxed);
        // Who never asked anything goes before who did, but not at once: a newcomer is about to ask.
        let silent = |doing, since| matches!(doing, Doing::New | Doing::Lingering) && now.saturating_sub(since) > SILENT_MS;
        let rank = |&(id, state): &(u64, u64)| {
            let (doing, since) = Connection::read_state(state);
            (!silent(doing, since), since, id)
        };
        if idle.len() > PICKED {
            idle.select_nth_unstable_by_key(PICKED, rank);
            idle.truncate(PICKED);
        }
        idle.sort_unstable_by_key(rank);
        room.0 = idle.into();
        close_next(room)
    }

    fn start<S: HttpService>(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        room: &mut Room,
        tls: Option<&ServerTls>,
        service: S,
        on_refused: OnRefused,
    ) {
        // Where every connection is in a request, the newcomer is the one to go: it has nothing to lose yet.
        if self.lock().len() >= self.options.max_connections && !self.make_room(room) {
            return;
        }
        // Answers are small and whole: waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);
        let connection = Arc::new(Connection::new(self.clock.clone()));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection.clone());
        let entry = Entry { connections: self, id };
        let tls = tls.map(ServerTls::current);
        tokio::spawn(async move {
            connection::serve(connection, stream, peer.ip(), tls, service, on_refused).await;
            drop(entry);
        });
    }

    /// Looks at every connection, four times a second.
    async fn sweep(self: Arc<Self>, phase: Phase) {
        let mut turns = tokio::time::interval(SWEEP);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            turns.tick().await;
            // Time in which this process did not run (a paused container, a starved node) is nobody's idleness.
            let passed = last.elapsed().min(SWEEP * 2);
            last = Instant::now();
            self.clock.fetch_add(passed.as_millis() as u64, Ordering::Relaxed);
            self.look(phase.is_draining(), self.ending.load(Ordering::Acquire));
        }
    }

    /// Closes what has been doing the same thing for too long.
    fn look(&self, draining: bool, ending: bool) {
        let now = self.clock.load(Ordering::Relaxed);
        // The clock is coarse: what began just after a turn looks a turn older than it is.
        let over = |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) > (limit + SWEEP).as_millis();
        for connection in self.lock().values() {
            // HTTP/1.1 learns it from `connection: close` on its next answer.
            if draining && connection.is_multiplexed() && !connection.is_retired() {
                connection.retire();
                continue;
            }
            if connection.is_busy() {
                if connection.stalled_since().is_some_and(|since| over(since, WRITE_STALL)) {
                    connection.cut();
                }
                continue;
            }
            let state = connection.state();
            let (doing, since) = Connection::read_state(state);
            let close = match doing {
                Doing::Idle if connection.is_multiplexed() => {
                    let idle = over(since, self.options.idle_timeout);
                    if idle && !connection.is_retired() {
                        connection.retire();
                    }
                    // It was told, and its peer does not answer.
                    (ending && over(since, LAST_HEAD)) || (idle && over(since, self.options.idle_timeout + LAST_HEAD))
                }
                Doing::Idle => ending || over(since, self.options.idle_timeout),
                // A head on its way when the end came may still arrive; who only connected has nothing to lose.
                Doing::New | Doing::Head if ending => over(since, LAST_HEAD.min(self.options.header_timeout)),
                Doing::New | Doing::Head => over(since, self.options.header_timeout),
                Doing::Lingering => ending || over(since, LINGER),
            };
            if close {
                connection.judge(state);
            }
        }
    }

    /// Resolves when no connection is left.
    async fn drained(&self) {
        loop {
            let closed = self.closed.notified();
            if self.lock().is_empty() {
                return;
            }
            closed.await;
        }
    }
}

/// Takes a connection off the list when its task ends, however it ends.
struct Entry {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
        self.connections.closed.notify_one();
    }
}
