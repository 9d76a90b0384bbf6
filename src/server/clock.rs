//! A clock that stops while the process is stopped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often [`RunningClock::update`] is called at least.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);

/// Tokio's clock without the time in which this process did not run (SIGSTOP, a paused container, a starved node): during
/// that time no peer was idle, because no request could be served.
#[derive(Debug)]
pub(crate) struct RunningClock {
    /// Nanoseconds that the process did not run.
    stopped: AtomicU64,
    last_update: Mutex<Instant>,
}

impl RunningClock {
    pub(crate) fn new() -> Self {
        Self { stopped: AtomicU64::new(0), last_update: Mutex::new(Instant::now()) }
    }

    fn stopped(&self) -> Duration {
        Duration::from_nanos(self.stopped.load(Ordering::Relaxed))
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::now() - self.stopped()
    }

    /// Counts a gap since the last heartbeat as time in which the process did not run, and returns the time.
    pub(crate) fn update(&self) -> Instant {
        let mut last = self.last_update.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gap = now.duration_since(*last);
        *last = now;
        if gap > 2 * HEARTBEAT {
            self.stopped.fetch_add((gap - HEARTBEAT).as_nanos() as u64, Ordering::Relaxed);
        }
        now - self.stopped()
    }

    /// When tokio's clock shows this time, if the process does not stop again.
    pub(crate) fn to_tokio(&self, running: Instant) -> Instant {
        running + self.stopped()
    }
}
