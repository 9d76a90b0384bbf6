//! What keeps a connection busy, and what it waits for meanwhile: each lasts as long as its value.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::server::activity::{BEGUN, Connection, ConnectionState, UNKNOWN_BODY};

/// Marks a connection as busy from a request's head until the end of its answer was written.
#[derive(Debug)]
pub(crate) struct ActiveRequest(Arc<Connection>);

impl ActiveRequest {
    /// `body`: the length of the request's body, if it is known.
    pub(crate) fn new(connection: &Arc<Connection>, body: Option<u64>) -> Self {
        let mut activity = connection.activity();
        if activity.active_requests == 0 {
            activity.surplus = body.map_or(UNKNOWN_BODY, |body| activity.surplus.saturating_sub_unsigned(body));
        }
        activity.active_requests += 1;
        activity.evicted = None;
        Self(connection.clone())
    }

    pub(crate) fn is_write_blocked(&self) -> bool {
        self.0.is_write_blocked()
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.active_requests -= 1;
        activity.forget_slow();
        // The next head has begun when more came than this request.
        activity.state = if activity.surplus > 0 { ConnectionState::ReadingHead } else { ConnectionState::Idle };
        activity.since = None;
        let is_idle = activity.active_requests == 0;
        drop(activity);
        // Over HTTP/1.1 it ends in a poll of the connection's task, which arms the timer before it returns.
        if is_idle && (self.0.is_half_closed.load(Ordering::Relaxed) || self.0.is_multiplexed()) {
            self.0.waker.wake();
        }
    }
}

/// An active request waits for the rest of its body, until that is there or the request is answered without.
#[derive(Debug)]
pub(crate) struct BodyWait(Arc<Connection>, AtomicBool);

impl BodyWait {
    pub(crate) fn new(connection: &Arc<Connection>) -> Arc<Self> {
        let mut activity = connection.activity();
        activity.bodies += 1;
        activity.bodies_since.get_or_insert_with(|| connection.connections.clock.now());
        Arc::new(Self(connection.clone(), AtomicBool::new(false)))
    }

    pub(crate) fn end(&self) {
        if !self.1.swap(true, Ordering::Relaxed) {
            let mut activity = self.0.activity();
            activity.bodies -= 1;
            activity.evicted = None;
            if activity.bodies == 0 {
                activity.bodies_since = None;
            }
        }
    }
}

impl Drop for BodyWait {
    fn drop(&mut self) {
        self.end();
    }
}

/// An answer waits for an HTTP/2 window: from when it first had to until its end.
#[derive(Debug)]
pub(crate) struct WindowWait(Arc<Connection>);

impl WindowWait {
    /// How long it has waited by then: most answers never do for as long.
    pub(crate) const AFTER: Duration = BEGUN;

    pub(crate) fn new(connection: &Arc<Connection>) -> Self {
        let mut activity = connection.activity();
        activity.windows += 1;
        activity.slow_since.get_or_insert_with(|| connection.connections.clock.now() - Self::AFTER);
        Self(connection.clone())
    }
}

impl Drop for WindowWait {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.windows -= 1;
        activity.forget_slow();
    }
}
