//! The task that drains the span queue, sends spans in chunks and retries with backoff while the collector is unavailable.
//!
//! The queue is bounded, so an unreachable collector costs spans, which are counted, and never a request.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Accepted, ExportError, Exporter, ExporterError, ResourceOptions, SpanSink};
use crate::telemetry::ids;
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::span_queue::{SpanBatch, SpanFate, SpanQueue};

/// How many spans one request carries at most.
const CHUNK: usize = 512;
/// The first pause before a retry; each further one is twice as long, up to [`MAX_BACKOFF`], with a fifth of jitter.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// The longest `Retry-After` that is obeyed: the queue would be full long before an hour is over.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// After so many attempts (about a minute) a chunk is dropped, so that younger spans can be sent.
const MAX_ATTEMPTS: u32 = 10;

/// The running exporter.
#[derive(Debug)]
struct Pipeline {
    queue: Arc<SpanQueue>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Pipeline {
    /// Starts the task that exports from `queue`, at least every `schedule_delay`.
    ///
    /// # Errors
    ///
    /// [`ExporterError`] when an endpoint or header cannot be used.
    fn start(
        exporter: Exporter,
        resource: ResourceOptions,
        queue: Arc<SpanQueue>,
        schedule_delay: Duration,
        console: &LineWriter,
    ) -> Result<Self, ExporterError> {
        let sink = SpanSink::new(exporter, resource, console)?;
        let (stop, stopped) = watch::channel(false);
        let task = ExportTask { sink, queue: queue.clone(), stopped, complaint: None };
        let task = tokio::spawn(task.run(schedule_delay));
        Ok(Self { queue, stop, task })
    }

    /// Exports what is queued, for at most `timeout`; returns how many spans were lost from the stop on.
    async fn finish(mut self, timeout: Duration) -> usize {
        let before = self.queue.counts().lost();
        let _ = self.stop.send(true);
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            self.task.abort();
            // Until it has ended it counts spans itself.
            let _ = self.task.await;
        }
        let left = usize::try_from(self.queue.counts().queued).unwrap_or(usize::MAX);
        self.queue.settle(left, SpanFate::Shutdown, None);
        usize::try_from(self.queue.counts().lost() - before).unwrap_or(usize::MAX)
    }
}

/// The running exporters of a hop. Each has a queue of its own: one that hangs keeps no span from another.
#[derive(Debug, Default)]
pub(crate) struct Pipelines(Vec<Pipeline>);

impl Pipelines {
    /// Starts every exporter, for spans of one resource.
    ///
    /// # Errors
    ///
    /// As of [`Pipeline::start`].
    pub(crate) fn start(
        (exporters, resource): (Vec<Exporter>, ResourceOptions),
        max_queue: usize,
        schedule_delay: Duration,
        console: &LineWriter,
    ) -> Result<Self, ExporterError> {
        let resource = resource.complete();
        let start = |exporter| {
            let queue = Arc::new(SpanQueue::new(max_queue));
            Pipeline::start(exporter, resource.clone(), queue, schedule_delay, console)
        };
        exporters.into_iter().map(start).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn queues(&self) -> Arc<[Arc<SpanQueue>]> {
        self.0.iter().map(|pipeline| pipeline.queue.clone()).collect()
    }

    /// As [`Pipeline::finish`], for all at the same time.
    pub(crate) async fn finish(self, timeout: Duration) -> usize {
        let lost = self.0.into_iter().map(|pipeline| pipeline.finish(timeout));
        futures_util::future::join_all(lost).await.iter().sum()
    }
}

struct ExportTask {
    sink: SpanSink,
    queue: Arc<SpanQueue>,
    stopped: watch::Receiver<bool>,
    /// What was logged last about the collector, until it accepts every span again.
    complaint: Option<String>,
}

impl ExportTask {
    async fn run(mut self, schedule_delay: Duration) {
        let mut spare = SpanBatch::default();
        loop {
            tokio::select! {
                () = sleep(schedule_delay) => {}
                () = self.queue.half_full() => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
            }
            // Read before the queue is emptied: spans that end after the stop are not waited for.
            let stopping = self.is_stopping();
            let mut batch = self.queue.take(spare);
            for range in batch.chunks(CHUNK) {
                let (spans, last) = (range.len(), batch.spans.get(range.end - 1));
                match self.deliver(&batch, range).await {
                    Ok(accepted) => {
                        let rejected = accepted.rejected.min(spans);
                        // Which of them were rejected is not known.
                        self.queue.settle(rejected, SpanFate::Rejected, last.filter(|_| rejected == spans));
                        self.queue.settle(spans - rejected, SpanFate::Exported, last.filter(|_| rejected == 0));
                    }
                    Err(fate) => self.queue.settle(spans, fate, last),
                }
            }
            batch.clear();
            spare = batch;
            if stopping {
                return;
            }
        }
    }

    fn is_stopping(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Sends one chunk, with retries. The error is what became of the whole chunk.
    async fn deliver(&mut self, batch: &SpanBatch, range: std::ops::Range<usize>) -> Result<Accepted, SpanFate> {
        let spans = range.len();
        let mut backoff = MIN_BACKOFF;
        for attempt in 1.. {
            let error = match self.sink.send(batch, &batch.spans[range.clone()]).await {
                Ok(accepted) => {
                    self.log_accepted(&accepted);
                    return Ok(accepted);
                }
                Err(error) => error,
            };
            if !error.is_retryable {
                if self.complains_anew(&error.reason) {
                    tracing::warn!(spans, reason = error.reason, "the span collector rejected spans; they are dropped");
                }
                return Err(SpanFate::Rejected);
            }
            if self.complains_anew(&error.reason) {
                tracing::warn!(reason = error.reason, "the span collector is unavailable; retrying");
            }
            // The flush has a deadline of its own.
            if attempt >= MAX_ATTEMPTS && !self.is_stopping() {
                break;
            }
            self.pause(backoff, &error).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        tracing::warn!(spans, attempts = MAX_ATTEMPTS, "the span collector stays unavailable; spans are dropped");
        Err(SpanFate::Unreachable)
    }

    /// Waits before the next attempt: as long as the collector asks for, and for the backoff, which a stop ends.
    async fn pause(&mut self, backoff: Duration, error: &ExportError) {
        let begun = Instant::now();
        let backoff = backoff.mul_f64(0.8 + 0.4 * ids::unit());
        let stopping = self.is_stopping();
        tokio::select! {
            () = sleep(if stopping { MIN_BACKOFF } else { backoff }) => {}
            _ = self.stopped.wait_for(|stopped| *stopped), if !stopping => {}
        }
        if let Some(retry_after) = error.retry_after {
            sleep_until(begun + retry_after.min(MAX_RETRY_AFTER)).await;
        }
    }

    fn log_accepted(&mut self, accepted: &Accepted) {
        match &accepted.message {
            Some(message) if accepted.rejected > 0 => {
                if self.complains_anew(message) {
                    let rejected = accepted.rejected;
                    tracing::warn!(rejected, reason = message, "the span collector accepted a part of the spans");
                }
            }
            Some(message) => {
                if self.complains_anew(message) {
                    tracing::warn!(warning = message, "the span collector accepted the spans with a warning");
                }
            }
            None => {
                if self.complaint.take().is_some() {
                    tracing::info!("the span collector accepts spans again");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::span_queue::FinishedSpan;
    use crate::trace_context::{Context, Sampling};
    use opentelemetry::trace::SpanId;

    /// The clock is paused, so backoff takes no time.
    #[tokio::test(start_paused = true)]
    async fn a_chunk_is_dropped_and_counted_after_the_last_attempt() {
        let queue = Arc::new(SpanQueue::new(8));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/api/v2/spans", listener.local_addr().unwrap());
        // Nothing listens there any more: every attempt is refused.
        drop(listener);
        let (exporter, resource) = (Exporter::Zipkin { endpoint }, ResourceOptions::default());
        let console = LineWriter::stderr();
        let pipeline = Pipeline::start(exporter, resource, queue.clone(), Duration::from_secs(1), &console).unwrap();
        let context = Context {
            trace_id: ids::trace_id(),
            short_trace_id: false,
            random: false,
            span_id: SpanId::from(1),
            parent_id: None,
            sampling: Sampling::Sample,
        };
        queue.push(&FinishedSpan::for_tests(&context));
        while queue.counts().unreachable == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(pipeline.finish(Duration::from_secs(1)).await, 0);
    }
}
