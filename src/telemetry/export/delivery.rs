//! One request to a collector: retries with backoff while it is unavailable, and what is logged of it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Accepted, ExportError, Signal};
use crate::telemetry::ids;
use crate::telemetry::queue::ExportFate;

/// The first pause before a retry; each further one is twice as long, up to [`MAX_BACKOFF`], with a fifth of jitter.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// The longest `Retry-After` that is obeyed: the queue would be full long before an hour is over.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// After so many attempts (about a minute) a chunk is dropped, so that younger items can be sent.
const MAX_ATTEMPTS: u32 = 10;

/// Hands requests of one signal over to one collector.
pub(super) struct Delivery {
    signal: Signal,
    stopped: watch::Receiver<bool>,
    /// What was logged last about the collector, until it accepts every item again.
    complaint: Option<String>,
}

impl Delivery {
    pub(super) fn new(signal: Signal, stopped: watch::Receiver<bool>) -> Self {
        Self { signal, stopped, complaint: None }
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Resolves when the exporter is to end.
    pub(super) async fn stopped(&mut self) {
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }

    /// Sends a request of so many items, with retries, for at most `limit`; `send` gets what is left of it. The error is what
    /// became of all of them.
    pub(super) async fn deliver<F: Future<Output = Result<Accepted, ExportError>>>(
        &mut self,
        items: usize,
        limit: Duration,
        send: impl Fn(Duration) -> F,
    ) -> Result<Accepted, ExportFate> {
        let (collector, what) = (self.signal.collector(), self.signal.items());
        let (mut backoff, begun) = (MIN_BACKOFF, Instant::now());
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match send(limit.saturating_sub(begun.elapsed())).await {
                Ok(accepted) => {
                    self.log_accepted(&accepted);
                    return Ok(accepted);
                }
                Err(error) => error,
            };
            if !error.is_retryable {
                if self.complains_anew(&error.reason) {
                    tracing::warn!(items, reason = error.reason, "the {collector} rejected {what}; they are dropped");
                }
                return Err(ExportFate::Rejected);
            }
            if self.complains_anew(&error.reason) {
                tracing::warn!(reason = error.reason, "the {collector} is unavailable; retrying");
            }
            // The flush has a deadline of its own.
            let wait = error.retry_after.unwrap_or_default().max(backoff);
            let is_last = attempts >= MAX_ATTEMPTS && !self.is_stopping();
            if is_last || wait >= limit.saturating_sub(begun.elapsed()) {
                break;
            }
            self.pause(backoff, &error).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        tracing::warn!(items, attempts, "the {collector} stays unavailable; {what} are dropped");
        Err(ExportFate::Unreachable)
    }

    /// Waits before the next attempt: as long as the collector asks for, and for the backoff, which a stop ends.
    async fn pause(&mut self, backoff: Duration, error: &ExportError) {
        let begun = Instant::now();
        let backoff = backoff.mul_f64(0.8 + 0.4 * ids::unit());
        let stopping = self.is_stopping();
        tokio::select! {
            () = sleep(if stopping { MIN_BACKOFF } else { backoff }) => {}
            () = self.stopped(), if !stopping => {}
        }
        if let Some(retry_after) = error.retry_after {
            sleep_until(begun + retry_after.min(MAX_RETRY_AFTER)).await;
        }
    }

    fn log_accepted(&mut self, accepted: &Accepted) {
        let (collector, what) = (self.signal.collector(), self.signal.items());
        match &accepted.message {
            Some(message) if accepted.rejected > 0 => {
                if self.complains_anew(message) {
                    let rejected = accepted.rejected;
                    tracing::warn!(rejected, reason = message, "the {collector} accepted a part of the {what}");
                }
            }
            Some(message) => {
                if self.complains_anew(message) {
                    tracing::warn!(warning = message, "the {collector} accepted the {what} with a warning");
                }
            }
            None => {
                if self.complaint.take().is_some() {
                    tracing::info!("the {collector} accepts {what} again");
                }
            }
        }
    }

    /// Whether a complaint is another one than the last: a collector that fails at every export is logged once.
    fn complains_anew(&mut self, reason: &str) -> bool {
        let is_new = self.complaint.as_deref() != Some(reason);
        if is_new {
            self.complaint = Some(reason.to_owned());
        }
        is_new
    }
}
