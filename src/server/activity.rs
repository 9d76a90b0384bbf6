//! What each connection is doing and until when it may: published by the connection's task, read by the listener.

pub(crate) mod active;
mod cut;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::server::clock::RunningClock;
use crate::server::frames::{RequestHeads, Unfinished};
use crate::server::options::ConnectionOptions;
use crate::server::shutdown::Stage;

pub(crate) use cut::Cut;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) options: ConnectionOptions,
    pub(crate) clock: RunningClock,
    /// Places of HTTP/2 streams beyond the first ones of each connection.
    pub(crate) streams: Arc<Semaphore>,
    stage: AtomicU8,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    pub(crate) closed: Notify,
}

impl Connections {
    pub(crate) fn new(options: ConnectionOptions) -> Self {
        let (stage, open) = (AtomicU8::new(Stage::Serving as u8), Mutex::default());
        let streams = Arc::new(Semaphore::new(options.max_streams()));
        Self { options, clock: RunningClock::new(), streams, stage, open, closed: Notify::new() }
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

/// How long a connection may do nothing before it can be closed to make room: it may be about to do something.
const BEGUN: Duration = Duration::from_millis(100);

/// The surplus of a request of which only its end tells how long its body is. No other begins on its connection.
const UNKNOWN_BODY: i64 = i64::MIN / 2;

#[derive(Debug)]
struct Activity {
    state: ConnectionState,
    /// When `state` began, on the [`RunningClock`]. `None` until the connection's task has finished the poll in which it
    /// began: one reading of the clock per poll is enough.
    since: Option<Instant>,
    active_requests: usize,
    /// How many of them wait for the rest of their bodies, and since when one does.
    bodies: usize,
    bodies_since: Option<Instant>,
    /// How many of them have answers that wait for an HTTP/2 window.
    windows: usize,
    /// When an answer first waited for its reader, as long as one does; later by what its reader has taken since.
    slow_since: Option<Instant>,
    /// HTTP/1: how many bytes came after the request that is active, if more than its body; below 0, what its body lacks.
    surplus: i64,
    /// HTTP/2: the requests that came.
    requests: RequestHeads,
    /// HTTP/2: what has begun to arrive, its number and since when.
    unfinished: Option<(Unfinished, u64, Instant)>,
    /// Why the server closes the connection.
    cut: Option<Cut>,
    /// When a write began to wait for its reader.
    write_blocked_since: Option<Instant>,
    /// When HTTP/2 was asked to send GOAWAY.
    goaway_since: Option<Instant>,
    /// Chosen to make room for another, for what it has done since then; a request that begins or becomes whole in time revokes it.
    evicted: Option<Instant>,
}

/// What a connection that may be closed to make room for another has done, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Waiting {
    /// For more than a moment before its request was whole: the first to be closed.
    Unfinished(Instant),
    /// For its next request, or for the rest of one that has just begun.
    Idle(Instant),
    /// Its answers wait for their reader.
    Slow(Instant),
}

impl Waiting {
    pub(crate) fn since(self) -> Instant {
        match self {
            Self::Unfinished(since) | Self::Idle(since) | Self::Slow(since) => since,
        }
    }
}

impl Activity {
    fn is_busy(&self) -> bool {
        self.active_requests > 0 || self.write_blocked_since.is_some()
    }

    /// `None` while a request is worked on, and while one has just begun: in a flood of connections that do not go on the next
    /// one may be about to.
    fn waiting(&self, now: Instant) -> Option<Waiting> {
        const MOMENT: Duration = Duration::from_secs(1);
        let has_begun = |since: Instant| now.saturating_duration_since(since) >= BEGUN;
        let unfinished = |since| match now.saturating_duration_since(since) {
            age if age < BEGUN => None,
            age if age > MOMENT => Some(Waiting::Unfinished(since)),
            _ => Some(Waiting::Idle(since)),
        };
        if self.evicted.is_some() {
            return None;
        }
        if !self.is_busy() {
            let since = self.since.unwrap_or(now);
            let is_new = matches!(self.state, ConnectionState::New | ConnectionState::Lingering);
            return if is_new { unfinished(since) } else { Some(Waiting::Idle(since)) };
        }
        let all_wait = self.active_requests == self.bodies + self.windows;
        if self.write_blocked_since.is_some() || all_wait && self.windows > 0 {
            return self.slow_since.filter(|since| has_begun(*since)).map(Waiting::Slow);
        }
        self.bodies_since.filter(|_| all_wait).and_then(unfinished)
    }

    fn forget_slow(&mut self) {
        // A reader that takes a byte now and then is one and the same slow reader until the end of its answer.
        if self.windows == 0 && !self.is_busy() {
            self.slow_since = None;
        }
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
    /// Its HPACK table may hold more memory than its share.
    pins_much: AtomicBool,
    /// The peer closed its side.
    pub(crate) is_half_closed: AtomicBool,
    /// Injected faults: the peer gets a reset when the connection is closed, and that happens under its next request.
    resets: AtomicBool,
    closes_next: AtomicBool,
    waker: AtomicWaker,
}

impl Connection {
    fn new(connections: Arc<Connections>, id: u64) -> Self {
        let activity = Mutex::new(Activity {
            state: ConnectionState::New,
            since: Some(connections.clock.now()),
            active_requests: 0,
            bodies: 0,
            bodies_since: None,
            windows: 0,
            slow_since: None,
            surplus: 0,
            requests: RequestHeads::default(),
            unfinished: None,
            cut: None,
            write_blocked_since: None,
            goaway_since: None,
            evicted: None,
        });
        let no = || AtomicBool::new(false);
        let (is_multiplexed, pins_much, is_half_closed, resets, closes_next) = (no(), no(), no(), no(), no());
        let waker = AtomicWaker::new();
        Self { id, connections, activity, is_multiplexed, pins_much, is_half_closed, resets, closes_next, waker }
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_multiplexed(&self) -> bool {
        self.is_multiplexed.load(Ordering::Relaxed)
    }

    pub(crate) fn clock(&self) -> &RunningClock {
        &self.connections.clock
    }

    pub(crate) fn options(&self) -> &ConnectionOptions {
        &self.connections.options
    }

    /// The connection speaks HTTP/2.
    pub(crate) fn set_multiplexed(&self) {
        self.is_multiplexed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin(&self, state: ConnectionState) {
        let mut activity = self.activity();
        activity.state = state;
        activity.since = None;
    }

    /// The peer gets a reset when the connection is closed.
    pub(crate) fn reset_on_close(&self) {
        self.resets.store(true, Ordering::Relaxed);
    }

    pub(crate) fn resets(&self) -> bool {
        self.resets.load(Ordering::Relaxed)
    }

    /// The connection is reset when the next request begins to arrive.
    pub(crate) fn close_at_next_request(&self) {
        self.reset_on_close();
        self.closes_next.store(true, Ordering::Relaxed);
    }

    /// A request begins, and the connection is to be closed under it.
    pub(crate) fn closes_under_request(&self) -> bool {
        self.closes_next.load(Ordering::Relaxed) && self.activity().active_requests == 0
    }

    /// HTTP/1 received bytes, and so many of them come after the end of a head; `None`: no head ends among them.
    pub(crate) fn read_http1(&self, length: usize, after_head: Option<usize>) {
        let mut activity = self.activity();
        let length = length as i64;
        if activity.active_requests == 0 {
            activity.surplus = after_head.map_or(length, |after| after as i64);
            if activity.state == ConnectionState::Idle {
                activity.state = ConnectionState::ReadingHead;
                activity.since = None;
            }
        } else if after_head == Some(0) && activity.surplus >= 0 {
            activity.surplus = 0;
        } else {
            activity.surplus += length;
        }
    }

    /// HTTP/2 received bytes, the last of which belong to something unfinished.
    pub(crate) fn read_http2(&self, unfinished: Option<(Unfinished, u64)>, requests: RequestHeads) {
        let mut activity = self.activity();
        activity.requests = requests;
        activity.unfinished = unfinished.map(|(kind, number)| match activity.unfinished {
            Some((_, known, since)) if known == number => (kind, number, since),
            _ => (kind, number, self.connections.clock.now()),
        });
    }

    /// HTTP/2: the requests that came, and whether what reads them waits for a write.
    pub(crate) fn requests_read(&self) -> (RequestHeads, bool) {
        let activity = self.activity();
        (activity.requests, activity.write_blocked_since.is_some())
    }

    pub(crate) fn set_half_closed(&self) {
        self.is_half_closed.store(true, Ordering::Relaxed);
    }

    /// A request arrived whole and was not answered to the end.
    pub(crate) fn awaits_answer(&self) -> bool {
        let activity = self.activity();
        activity.active_requests > 0 && (activity.surplus >= 0 || activity.surplus < UNKNOWN_BODY / 2)
    }

    /// Why a request that is not answered to the end is not.
    pub(crate) fn cut(&self) -> Cut {
        self.activity().cut.unwrap_or(Cut::Client)
    }

    /// A write has to wait for its reader, or no longer has to.
    pub(crate) fn set_write_blocked(&self, is_blocked: bool) {
        let mut activity = self.activity();
        activity.write_blocked_since = is_blocked.then(|| self.connections.clock.now());
        match activity.write_blocked_since {
            Some(now) => activity.slow_since = activity.slow_since.or(Some(now)),
            None => activity.forget_slow(),
        }
    }

    /// The reader of an answer that had to wait took so many bytes: who takes enough of them has not stalled.
    pub(crate) fn taken(&self, bytes: usize) {
        /// For a reader who is slower than this each second counts in part only.
        const BYTES_PER_SECOND: f64 = 16.0 * 1024.0;
        let mut activity = self.activity();
        if let Some(since) = activity.slow_since {
            let worth = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
            activity.slow_since = Some((since + worth).min(self.connections.clock.now()));
        }
    }

    /// What is written now waits for the peer.
    pub(crate) fn is_write_blocked(&self) -> bool {
        self.activity().write_blocked_since.is_some()
    }

    /// HTTP/2 has to send GOAWAY.
    pub(crate) fn must_go_away(&self) -> bool {
        self.activity().goaway_since.is_some() || self.pins_much.load(Ordering::Relaxed)
    }

    /// Whether the connection's HPACK table may keep so many bytes of input alive. Above its share of what all may, the connection
    /// is to be replaced by another, without the loss of a request; beyond that it is closed.
    pub(crate) fn may_pin(&self, bytes: usize) -> bool {
        /// What is reserved for each connection has room for so much beside its own buffers.
        const OF_EACH: usize = 20 << 10;
        const LEAST: usize = 24 << 10;
        if bytes <= LEAST {
            return true;
        }
        let all = self.connections.options.max_connections.saturating_mul(OF_EACH);
        let share = (all / self.connections.open().len().max(1)).max(LEAST);
        if bytes > share {
            self.pins_much.store(true, Ordering::Relaxed);
        }
        bytes <= share + (16 << 10)
    }

    /// How many requests are lost when the connection is closed now.
    pub(crate) fn requests_in_flight(&self) -> usize {
        let activity = self.activity();
        activity.active_requests.max(usize::from(activity.write_blocked_since.is_some()))
    }

    /// What the connection waits for, as far as it may be closed to make room; the least is closed first.
    pub(crate) fn waiting(&self, now: Instant) -> Option<Waiting> {
        self.activity().waiting(now)
    }

    /// Closes the connection if it still waits for what it waited for.
    pub(crate) fn evict_if_unchanged(&self, since: Instant) -> bool {
        let mut activity = self.activity();
        let is_same = activity.waiting(self.connections.clock.now()).is_some_and(|waiting| waiting.since() == since);
        // Without a time it has just done something.
        if !is_same || !activity.is_busy() && activity.since.is_none() {
            return false;
        }
        activity.evicted = Some(since);
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
                    self.activity().cut = Some(Cut::DrainTimeout);
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
        if activity.evicted.is_some() {
            return activity.evicted;
        }
        if let Some(since) = activity.write_blocked_since {
            return Some(since + options.write_timeout);
        }
        if let Some((kind, _, since)) = activity.unfinished {
            if activity.active_requests == 0 {
                return Some(since + self.head_timeout(stage));
            }
            if kind == Unfinished::Head {
                // HTTP/2 has no other frame until it ends, so no request goes on.
                return Some(since + options.header_timeout);
            }
        }
        if activity.active_requests > 0 {
            return None;
        }
        let since = *activity.since.get_or_insert_with(|| self.connections.clock.now());
        let is_closing = stage >= Stage::Closing;
        Some(match (activity.state, activity.goaway_since) {
            (ConnectionState::New | ConnectionState::Idle, Some(goaway)) if stage != Stage::Draining => {
                goaway.max(since) + options.last_head_timeout
            }
            (ConnectionState::New | ConnectionState::ReadingHead, _) => since + self.head_timeout(stage),
            (ConnectionState::Lingering, _) if is_closing => since + options.last_head_timeout.min(options.linger_timeout),
            (ConnectionState::Lingering, _) => since + options.linger_timeout,
            (ConnectionState::Idle, None) if is_closing => since,
            (ConnectionState::Idle, _) => since + options.idle_timeout,
        })
    }

    /// A head on its way when the server stops accepting may still arrive.
    fn head_timeout(&self, stage: Stage) -> Duration {
        let options = self.options();
        if stage >= Stage::Closing { options.last_head_timeout.min(options.header_timeout) } else { options.header_timeout }
    }

    /// Checks the deadline again, by a clock that excludes the time for which the process was stopped. An idle HTTP/2 connection
    /// receives GOAWAY first.
    fn close_if_overdue(&self, stage: Stage) -> bool {
        let now = self.connections.clock.update();
        let mut activity = self.activity();
        if self.deadline(&mut activity, stage).is_none_or(|deadline| deadline > now) {
            return false;
        }
        let is_told = activity.goaway_since.is_some() || activity.is_busy() || activity.evicted.is_some();
        if self.is_multiplexed() && !is_told && activity.unfinished.is_none() {
            activity.goaway_since = Some(now);
            return false;
        }
        activity.cut = match activity.evicted {
            Some(_) => Some(Cut::ConnectionLimit),
            None => activity.write_blocked_since.map(|_| Cut::WriteTimeout),
        };
        true
    }
}
