//! The phase that `/readyz` shows, the stages of a server, the signals that end a process, and the deadlines of its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Where a hop is in its life. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Phase(Arc<PhaseState>);

#[derive(Debug, Default)]
struct PhaseState {
    phase: AtomicU8,
    /// Set when the hop no longer accepts: until when what is in flight has time.
    closing: watch::Sender<Option<Instant>>,
}

/// Bits: a hop may be ordered not to be ready before it is, and while it drains.
const READY: u8 = 1;
const DRAINING: u8 = 2;
const ORDERED: u8 = 4;

impl Phase {
    pub(crate) fn set_ready(&self) {
        self.0.phase.fetch_or(READY, Ordering::AcqRel);
    }

    pub(crate) fn set_draining(&self) {
        self.0.phase.fetch_or(DRAINING, Ordering::AcqRel);
    }

    /// Ready, or not, by order.
    pub(crate) fn order(&self, is_ready: bool) {
        if is_ready {
            self.0.phase.fetch_and(!ORDERED, Ordering::AcqRel)
        } else {
            self.0.phase.fetch_or(ORDERED, Ordering::AcqRel)
        };
    }

    /// Becomes ready after a slow start. The handle is that of the wait.
    pub(crate) fn set_ready_after(self, delay: Duration) -> Option<tokio::task::AbortHandle> {
        if delay.is_zero() {
            self.set_ready();
            return None;
        }
        let starting = async move {
            tokio::time::sleep(delay).await;
            self.set_ready();
        };
        Some(tokio::spawn(starting).abort_handle())
    }

    /// What is in flight has time until then.
    pub(crate) fn set_closing(&self, until: Instant) {
        self.0.closing.send_replace(Some(until));
    }

    /// Resolves when the hop no longer accepts, with the time until which it waits for what is in flight.
    pub(crate) async fn closing(&self) -> Instant {
        let mut closing = self.0.closing.subscribe();
        match closing.wait_for(Option::is_some).await.map(|until| *until) {
            Ok(Some(until)) => until,
            _ => std::future::pending().await,
        }
    }

    /// From the first signal on every answer asks its caller to connect elsewhere (`connection: close`).
    pub(crate) fn is_draining(&self) -> bool {
        self.0.phase.load(Ordering::Relaxed) & DRAINING != 0
    }

    /// # Errors
    ///
    /// Why the hop should receive no traffic.
    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        match self.0.phase.load(Ordering::Acquire) {
            phase if phase & DRAINING != 0 => Err("draining"),
            phase if phase & ORDERED != 0 => Err("not ready by order"),
            READY => Ok(()),
            _ => Err("starting"),
        }
    }
}

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
    pub(super) const ALL: [Self; 4] = [Self::Serving, Self::Draining, Self::Closing, Self::Aborted];
}

/// How a running hop is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: continue to serve for the drain delay, so that endpoints and proxies learn of it first.
    Graceful,
    /// SIGINT, a person at a terminal: no delay.
    Now,
}

/// The time limits of the steps of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainOptions {
    /// Not ready, still serving.
    pub delay: Duration,
    /// No longer accepting, finishing what is in flight.
    pub timeout: Duration,
    /// Exporting the last spans and writing the last log lines.
    pub flush_timeout: Duration,
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self { delay: Duration::from_secs(5), timeout: Duration::from_secs(20), flush_timeout: Duration::from_secs(3) }
    }
}

/// The signals that end this process. Listens from its creation on; made before a server starts, it misses none.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
}

impl Signals {
    /// # Errors
    ///
    /// The operating system's, when no signal handler can be installed.
    #[cfg(unix)]
    pub(crate) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the next signal.
    #[cfg(unix)]
    pub(crate) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.term.recv() => Stop::Graceful,
            _ = self.int.recv() => Stop::Now,
        }
    }

    /// # Errors
    ///
    /// None on this system.
    #[cfg(not(unix))]
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Resolves at the next Ctrl-C.
    #[cfg(not(unix))]
    pub(crate) async fn next(&mut self) -> Stop {
        let _ = tokio::signal::ctrl_c().await;
        Stop::Now
    }
}
