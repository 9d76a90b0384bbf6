//! The task that drains the span queue, sends spans in chunks and retries with backoff while the collector is unavailable.
//!
//! The queue is bounded, so an unreachable collector costs spans, which are counted, and never a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Exporter, ExporterError, ResourceOptions, SpanSink};
use crate::telemetry::ids;
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::span_queue::{SpanBatch, SpanQueue};

/// How many spans one request carries at most.
const CHUNK: usize = 512;
/// The first pause before a retry; each further one is twice as long, up to [`MAX_BACKOFF`], with a fifth of jitter.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// The longest `Retry-After` that is respected: the queue would be full long before an hour is over.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// After so many attempts (about a minute) a chunk is dropped, so that younger spans can be sent.
const MAX_ATTEMPTS: u32 = 10;

/// The running exporter.
#[derive(Debug)]
pub(crate) struct Pipeline {
    queue: Arc<SpanQueue>,
    /// Spans taken from the queue that are neither exported nor dropped.
    in_flight: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Pipeline {
    /// Starts the task that exports from `queue`, at least every `schedule_delay`. `None` when the exporter is
    /// [`Exporter::None`].
    ///
    /// # Errors
    ///
    /// [`ExporterError`] when an endpoint or header cannot be used.
    pub(crate) fn start(
        exporter: Exporter,
        resource: ResourceOptions,
        queue: Arc<SpanQueue>,
        schedule_delay: Duration,
        metrics: Arc<Metrics>,
        console: &LineWriter,
    ) -> Result<Option<Self>, ExporterError> {
        let Some(sink) = SpanSink::new(exporter, resource, console)? else { return Ok(None) };
        let (stop, stopped) = watch::channel(false);
        let in_flight = Arc::new(AtomicUsize::new(0));
        let task = ExportTask { sink, queue: queue.clone(), in_flight: in_flight.clone(), metrics: metrics.clone(), stopped };
        let task = tokio::spawn(task.run(schedule_delay));
        Ok(Some(Self { queue, in_flight, metrics, stop, task }))
    }

    /// Exports what is queued, for at most `timeout`; returns how many spans were lost.
    pub(crate) async fn finish(mut self, timeout: Duration) -> usize {
        let _ = self.stop.send(true);
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            self.task.abort();
        }
        let lost = self.in_flight.load(Ordering::Relaxed) + self.queue.len();
        self.metrics.spans_dropped("shutdown", lost);
        lost
    }
}

struct ExportTask {
    sink: SpanSink,
    queue: Arc<SpanQueue>,
    in_flight: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
}

impl ExportTask {
    async fn run(mut self, schedule_delay: Duration) {
        let mut spare = SpanBatch::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(schedule_delay) => {}
                () = self.queue.half_full() => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
            }
            // Read before the queue is emptied: spans that end after the stop are not waited for.
            let stopping = *self.stopped.borrow();
            let mut batch = self.queue.take(spare);
            self.in_flight.store(batch.spans.len(), Ordering::Relaxed);
            for range in batch.chunks(CHUNK) {
                let spans = range.len();
                match self.deliver(&batch, range).await {
                    Ok(rejected) => {
                        self.metrics.spans_exported.inc_by(spans.saturating_sub(rejected) as u64);
                        self.metrics.spans_dropped("rejected", rejected.min(spans));
                    }
                    Err(reason) => self.metrics.spans_dropped(reason, spans),
                }
                self.in_flight.fetch_sub(spans, Ordering::Relaxed);
            }
            batch.clear();
            spare = batch;
            if stopping {
                return;
            }
        }
    }

    /// Sends one chunk, with retries, and returns how many of its spans were rejected. The error is the `reason` label under
    /// which the chunk was dropped.
    async fn deliver(&mut self, batch: &SpanBatch, range: std::ops::Range<usize>) -> Result<usize, &'static str> {
        let mut backoff = MIN_BACKOFF;
        for attempt in 1..=MAX_ATTEMPTS {
            let error = match self.sink.send(batch, &batch.spans[range.clone()]).await {
                Ok(rejected) => {
                    if attempt > 1 {
                        tracing::info!(attempt, "the span collector accepts spans again");
                    }
                    return Ok(rejected);
                }
                Err(error) => error,
            };
            if !error.is_retryable {
                tracing::warn!(spans = range.len(), reason = error.reason, "the span collector rejected spans; they are dropped");
                return Err("rejected");
            }
            if attempt == 1 {
                tracing::warn!(reason = error.reason, "the span collector is unavailable; retrying");
            }
            let pause = backoff.mul_f64(0.8 + 0.4 * ids::unit()).max(error.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
            // A stop ends the pause, not the attempts: the flush has a deadline of its own.
            let stopping = *self.stopped.borrow();
            tokio::select! {
                () = tokio::time::sleep(if stopping { MIN_BACKOFF.min(pause) } else { pause }) => {}
                _ = self.stopped.wait_for(|stopped| *stopped), if !stopping => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        tracing::warn!(spans = range.len(), attempts = MAX_ATTEMPTS, "the span collector stays unavailable; spans are dropped");
        Err("unreachable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::BuildInfo;
    use crate::telemetry::span_queue::{FinishedSpan, SpanKind};
    use crate::trace_context::{Context, Sampling};
    use opentelemetry::trace::SpanId;

    /// The clock is paused, so backoff takes no time.
    #[tokio::test(start_paused = true)]
    async fn a_chunk_is_dropped_and_counted_after_the_last_attempt() {
        let queue = Arc::new(SpanQueue::new(8));
        let metrics = Arc::new(Metrics::new(&BuildInfo { service: "a", service_version: "v1", lane: "base" }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/api/v2/spans", listener.local_addr().unwrap());
        // Nothing listens there any more: every attempt is refused.
        drop(listener);
        let (exporter, resource) = (Exporter::Zipkin { endpoint }, ResourceOptions::default());
        let console = LineWriter::stderr();
        let pipeline = Pipeline::start(exporter, resource, queue.clone(), Duration::from_secs(1), metrics.clone(), &console)
            .unwrap()
            .unwrap();
        let context = Context {
            trace_id: ids::trace_id(),
            short_trace_id: false,
            span_id: SpanId::from(1),
            parent_id: None,
            sampling: Sampling::Sample,
        };
        queue.push(&FinishedSpan {
            kind: SpanKind::Server,
            context: &context,
            start: std::time::SystemTime::now(),
            duration: Duration::ZERO,
            method: "GET",
            route: "/hello",
            status: 200,
            error: None,
            path: "/hello",
            client: None,
            server: None,
            request_id: "r",
        });
        let dropped =
            || metrics.render(false, &queue, None).contains("httpserver_spans_dropped_total{reason=\"unreachable\"} 1\n");
        while !dropped() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(pipeline.finish(Duration::from_secs(1)).await, 0);
    }
}
