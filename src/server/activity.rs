//! What each connection is doing and until when it may: published by the connection's task, read by the listener.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::server::clock::RunningClock;
use crate::server::options::ConnectionOptions;

/// Where the server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Serving,
    /// Not ready, still accepting: HTTP/2 connections receive GOAWAY.
    Draining,
    /// No longer accepting: idle connections are closed.
    Closing,
    /// The drain timeout is over: everything is closed.
    Aborted,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Serving, Self::Draining, Self::Closing, Self::Aborted];
}

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) options: ConnectionOptions,
    pub(crate) clock: RunningClock,
    stage: AtomicU8,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    closed: Notify,
}

impl Connections {
    pub(crate) fn new(options: ConnectionOptions) -> Self {
        let (stage, open) = (AtomicU8::new(Stage::Serving as u8), Mutex::default());
        Self { options, clock: RunningClock::new(), stage, open, closed: Notify::new() }
    }

    pub(crate) fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Ordering::Acquire))]
    }

    /// Enters a later stage, and wakes every connection to act on it.
    pub(crate) fn enter(&self, stage: Stage) {
        if self.stage.fetch_max(stage as u8, Ordering::AcqRel) < stage as u8 {
            for connection in self.open().values() {
                connection.waker.wake();
            }
        }
    }

    /// Resolves when no connection is left.
    pub(crate) async fn drained(&self) {
        loop {
            let closed = self.closed.notified();
            if self.open().is_empty() {
                return;
            }
            closed.await;
        }
    }
}

/// Removes a connection when its task ends, however it ends.
#[derive(Debug)]
pub(crate) struct OpenConnection(pub(crate) Arc<Connection>);

impl OpenConnection {
    pub(crate) fn new(connections: &Arc<Connections>, id: u64) -> Self {
        let connection = Arc::new(Connection::new(connections.clone(), id));
        connections.open().insert(id, connection.clone());
        Self(connection)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.open().remove(&self.0.id);
        self.0.connections.closed.notify_one();
    }
}

/// What a connection does while no request is active on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// Before the first request: a handshake, an incomplete head, or silence.
    New,
    /// Waiting for the first byte of the next request.
    Idle,
    /// The head of a further request has begun.
    ReadingHead,
    /// Answered for the last time: reading what the peer still sends.
    Lingering,
}

#[derive(Debug)]
struct Activity {
    state: ConnectionState,
    /// When `state` began, on the [`RunningClock`]. `None` until the connection's task has finished the poll in which it
    /// began: one reading of the clock per poll is enough.
    since: Option<Instant>,
    /// At most one, unless the connection speaks HTTP/2.
    active_requests: usize,
    /// When a write began to wait for its reader.
    write_blocked_since: Option<Instant>,
    /// When HTTP/2 was asked to send GOAWAY.
    goaway_since: Option<Instant>,
    /// Chosen to make room for another; a request that begins in time revokes it.
    is_evicted: bool,
}

impl Activity {
    fn is_busy(&self) -> bool {
        self.active_requests > 0 || self.write_blocked_since.is_some()
    }
}

/// One connection, as its task and the listener share it.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    connections: Arc<Connections>,
    activity: Mutex<Activity>,
    /// Speaks HTTP/2: several requests at once, and GOAWAY as its way to end.
    is_multiplexed: AtomicBool,
    waker: AtomicWaker,
}

impl Connection {
    fn new(connections: Arc<Connections>, id: u64) -> Self {
        let activity = Mutex::new(Activity {
            state: ConnectionState::New,
            since: Some(connections.clock.now()),
            active_requests: 0,
            write_blocked_since: None,
            goaway_since: None,
            is_evicted: false,
        });
        Self { id, connections, activity, is_multiplexed: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_multiplexed(&self) -> bool {
        self.is_multiplexed.load(Ordering::Relaxed)
    }

    /// The handshake is done. From here on only requests count: frames that are no request (PING, WINDOW_UPDATE) arrive at
    /// any time.
    pub(crate) fn set_multiplexed(&self) {
        self.is_multiplexed.store(true, Ordering::Relaxed);
        self.begin(ConnectionState::Idle);
    }

    pub(crate) fn begin(&self, state: ConnectionState) {
        let mut activity = self.activity();
        activity.state = state;
        activity.since = None;
    }

    /// HTTP/1.1 received bytes.
    pub(crate) fn bytes_read(&self) {
        let mut activity = self.activity();
        if activity.state == ConnectionState::Idle && activity.active_requests == 0 {
            activity.state = ConnectionState::ReadingHead;
            activity.since = None;
        }
    }

    /// A write has to wait for its reader, or no longer has to.
    pub(crate) fn set_write_blocked(&self, is_blocked: bool) {
        self.activity().write_blocked_since = is_blocked.then(|| self.connections.clock.now());
    }

    /// HTTP/2 has to send GOAWAY.
    pub(crate) fn must_go_away(&self) -> bool {
        self.activity().goaway_since.is_some()
    }

    /// How many requests are lost when the connection is closed now.
    pub(crate) fn requests_in_flight(&self) -> usize {
        let activity = self.activity();
        activity.active_requests.max(usize::from(activity.write_blocked_since.is_some()))
    }

    /// The order in which connections are closed to make room: those that never sent a request, but not at once, because a
    /// new connection is about to send one; then those idle for longest. `None` while a request is active.
    pub(crate) fn eviction_rank(&self, now: Instant) -> Option<(bool, Instant)> {
        const SILENT: Duration = Duration::from_secs(1);
        let activity = self.activity();
        let since = activity.since.unwrap_or(now);
        let is_new = matches!(activity.state, ConnectionState::New | ConnectionState::Lingering);
        let is_silent = is_new && now.saturating_duration_since(since) > SILENT;
        (!activity.is_busy() && !activity.is_evicted).then_some((!is_silent, since))
    }

    /// Closes the connection if it still does what it did at `since`.
    pub(crate) fn evict_if_unchanged(&self, since: Instant) -> bool {
        let mut activity = self.activity();
        if activity.is_busy() || activity.is_evicted || activity.since != Some(since) {
            return false;
        }
        activity.is_evicted = true;
        self.waker.wake();
        true
    }

    /// Runs the connection's future until it ends, a deadline passes, or the server closes the connection.
    pub(crate) async fn run(&self, serving: impl Future<Output = ()>) {
        let mut serving = pin!(serving);
        let mut sleep = pin!(tokio::time::sleep(self.connections.options.header_timeout));
        std::future::poll_fn(|cx| {
            loop {
                self.waker.register(cx.waker());
                let stage = self.connections.stage();
                if stage == Stage::Aborted {
                    return Poll::Ready(());
                }
                if stage >= Stage::Draining && self.is_multiplexed() {
                    self.activity().goaway_since.get_or_insert_with(|| self.connections.clock.now());
                }
                // First of all, because a request may have arrived since the deadline passed.
                if serving.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let Some(deadline) = self.deadline(&mut self.activity(), stage) else { return Poll::Pending };
                // A timer that fires too early is armed again then: most deadlines are replaced before they pass.
                let deadline = self.connections.clock.to_tokio(deadline);
                if sleep.is_elapsed() || deadline < sleep.deadline() {
                    sleep.as_mut().reset(deadline);
                }
                ready!(sleep.as_mut().poll(cx));
                if self.close_if_overdue(stage) {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }

    /// Until when the connection may do what it is doing; `None` while a request is active.
    fn deadline(&self, activity: &mut Activity, stage: Stage) -> Option<Instant> {
        let options = &self.connections.options;
        if let Some(since) = activity.write_blocked_since {
            return Some(since + options.write_timeout);
        }
        if activity.active_requests > 0 {
            return None;
        }
        let since = *activity.since.get_or_insert_with(|| self.connections.clock.now());
        if activity.is_evicted {
            return Some(since);
        }
        let is_closing = stage >= Stage::Closing;
        Some(match (activity.state, activity.goaway_since) {
            // A head on its way when the server stops accepting may still arrive.
            (ConnectionState::New | ConnectionState::ReadingHead, _) if is_closing => {
                since + options.last_head_timeout.min(options.header_timeout)
            }
            (ConnectionState::New | ConnectionState::ReadingHead, _) => since + options.header_timeout,
            (ConnectionState::Lingering, _) if is_closing => since + options.last_head_timeout.min(options.linger_timeout),
            (ConnectionState::Lingering, _) => since + options.linger_timeout,
            (ConnectionState::Idle, Some(goaway)) if stage != Stage::Draining => goaway.max(since) + options.last_head_timeout,
            (ConnectionState::Idle, None) if is_closing => since,
            (ConnectionState::Idle, _) => since + options.idle_timeout,
        })
    }

    /// Checks the deadline again, by a clock that excludes the time for which the process was stopped. An idle HTTP/2 connection
    /// receives GOAWAY first.
    fn close_if_overdue(&self, stage: Stage) -> bool {
        let now = self.connections.clock.update();
        let mut activity = self.activity();
        if self.deadline(&mut activity, stage).is_none_or(|deadline| deadline > now) {
            return false;
        }
        let is_told = activity.goaway_since.is_some() || activity.is_busy() || activity.is_evicted;
        if self.is_multiplexed() && !is_told {
            activity.goaway_since = Some(now);
            return false;
        }
        true
    }
}

/// Marks a connection as busy from a request's head to the end of its answer.
#[derive(Debug)]
pub(crate) struct ActiveRequest(Arc<Connection>);

impl ActiveRequest {
    pub(crate) fn new(connection: &Arc<Connection>) -> Self {
        let mut activity = connection.activity();
        activity.active_requests += 1;
        activity.is_evicted = false;
        Self(connection.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.active_requests -= 1;
        activity.state = ConnectionState::Idle;
        activity.since = None;
        let is_idle = activity.active_requests == 0;
        drop(activity);
        // Over HTTP/1.1 it ends in a poll of the connection's task, which arms the timer before it returns.
        if is_idle && self.0.is_multiplexed() {
            self.0.waker.wake();
        }
    }
}
