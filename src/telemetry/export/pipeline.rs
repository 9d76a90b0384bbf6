//! The task that drains a queue and sends its batches, and the exporters of a hop together.
//!
//! The queue is bounded, so an unreachable collector costs items, which are counted, and never a request.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{OptionFuture, join, join_all};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::delivery::Delivery;
use super::metrics::MetricPipeline;
use super::otlp::{LogEncoder, OtlpCollector};
use super::task::ExportTask;
use super::{Accepted, ExportError, ExportOptions, ExporterError, Signal, SpanSink};
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::log_queue::{LogBatch, LogQueue};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::queue::{Batch, ExportFate, Queue};
use crate::telemetry::span_queue::{SpanBatch, SpanQueue};

/// Where the items of a queue go.
trait ExportSink: Send + Sync + 'static {
    type Batch: Batch;
    const SIGNAL: Signal;

    fn send(&self, batch: &Self::Batch) -> impl Future<Output = Result<Accepted, ExportError>> + Send;
}

impl ExportSink for SpanSink {
    type Batch = SpanBatch;
    const SIGNAL: Signal = Signal::Traces;

    async fn send(&self, batch: &SpanBatch) -> Result<Accepted, ExportError> {
        self.export(batch).await
    }
}

/// Log records as OTLP.
struct LogSink {
    collector: OtlpCollector,
    encoder: LogEncoder,
}

impl ExportSink for LogSink {
    type Batch = LogBatch;
    const SIGNAL: Signal = Signal::Logs;

    async fn send(&self, batch: &LogBatch) -> Result<Accepted, ExportError> {
        self.collector.export(self.encoder.encode(batch), Duration::MAX).await
    }
}

/// A running exporter.
#[derive(Debug)]
struct Pipeline<B> {
    queue: Arc<Queue<B>>,
    task: ExportTask,
}

impl<B: Batch> Pipeline<B> {
    /// Starts the task that exports from `queue`, at least every `schedule_delay`.
    fn start(sink: impl ExportSink<Batch = B>, queue: Arc<Queue<B>>, schedule_delay: Duration) -> Self {
        let exported = queue.clone();
        let task = ExportTask::spawn(|stopped| drain(sink, exported, stopped, schedule_delay));
        Self { queue, task }
    }

    /// Exports what is queued, for at most `timeout`; returns how many items were lost from the stop on.
    async fn finish(self, timeout: Duration) -> usize {
        self.task.finish(&self.queue, timeout).await
    }
}

/// Exports what is queued until the stop.
async fn drain<S: ExportSink>(sink: S, queue: Arc<Queue<S::Batch>>, stopped: watch::Receiver<bool>, schedule_delay: Duration) {
    let mut delivery = Delivery::new(S::SIGNAL, stopped);
    loop {
        let all = tokio::select! {
            () = sleep(schedule_delay) => true,
            () = queue.batch_full() => false,
            () = delivery.stopped() => true,
        };
        // Read before the queue is emptied: items that are recorded after the stop are not waited for.
        let stopping = delivery.is_stopping();
        for batch in queue.take(all || stopping) {
            let (items, last) = (batch.len(), batch.counted(batch.len() - 1));
            match delivery.deliver(items, Duration::MAX, |_| sink.send(&batch)).await {
                Ok(accepted) => {
                    let rejected = accepted.rejected.min(items);
                    // Which of them were rejected is not known.
                    queue.settle(rejected, ExportFate::Rejected, last.filter(|_| rejected == items));
                    queue.settle(items - rejected, ExportFate::Exported, last.filter(|_| rejected == 0));
                }
                Err(fate) => queue.settle(items, fate, last),
            }
            queue.reuse(batch);
        }
        if stopping {
            return;
        }
    }
}

/// What was not handed over at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) spans: usize,
    pub(crate) data_points: usize,
    pub(crate) log_records: usize,
}

/// The running exporters of a hop. Each has a queue of its own: one that hangs keeps nothing from another.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    spans: Vec<Pipeline<SpanBatch>>,
    logs: Option<Pipeline<LogBatch>>,
    metrics: Option<MetricPipeline>,
}

impl Pipelines {
    /// Starts every exporter, for one resource.
    ///
    /// # Errors
    ///
    /// [`ExporterError`] when an endpoint or header cannot be used.
    pub(crate) fn start(options: ExportOptions, metrics: &Arc<Metrics>, console: &LineWriter) -> Result<Self, ExporterError> {
        let resource = options.resource.complete();
        let start = |exporter| {
            let sink = SpanSink::new(exporter, resource.clone(), console)?;
            Ok(Pipeline::start(sink, Arc::new(SpanQueue::new(options.span_queue)), options.schedule_delay))
        };
        let spans = options.spans.into_iter().map(start).collect::<Result<_, _>>()?;
        let logs = options.logs.map(|logs| {
            let sink =
                LogSink { collector: OtlpCollector::new(Signal::Logs, logs.otlp)?, encoder: LogEncoder::new(resource.clone()) };
            Ok(Pipeline::start(sink, Arc::new(LogQueue::new(logs.queue)), logs.schedule_delay))
        });
        let metrics = options.metrics.map(|options| MetricPipeline::start(options, resource.clone(), metrics.clone()));
        Ok(Self { spans, logs: logs.transpose()?, metrics: metrics.transpose()? })
    }

    pub(crate) fn span_queues(&self) -> Arc<[Arc<SpanQueue>]> {
        self.spans.iter().map(|pipeline| pipeline.queue.clone()).collect()
    }

    /// `None`: no log records are exported.
    pub(crate) fn log_queue(&self) -> Option<Arc<LogQueue>> {
        self.logs.as_ref().map(|pipeline| pipeline.queue.clone())
    }

    /// The counts of data points; `None`: no metrics are exported.
    pub(crate) fn data_points(&self) -> Option<Arc<Queue<()>>> {
        self.metrics.as_ref().map(MetricPipeline::counts)
    }

    /// Exports what is left, for at most `timeout`: spans and metrics at the same time, and at last the log records, with what
    /// `last_words` logs about the others. Log records have what is left of the time, a quarter at least.
    pub(crate) async fn finish(self, timeout: Duration, last_words: impl FnOnce(Lost)) -> Lost {
        let begun = Instant::now();
        let first = if self.logs.is_some() { timeout.mul_f64(0.75) } else { timeout };
        let spans = join_all(self.spans.into_iter().map(|pipeline| pipeline.finish(first)));
        let metrics = OptionFuture::from(self.metrics.map(|metrics| metrics.finish(first)));
        let (spans, data_points) = join(spans, metrics).await;
        let mut lost = Lost { spans: spans.iter().sum(), data_points: data_points.unwrap_or(0), log_records: 0 };
        last_words(lost);
        if let Some(logs) = self.logs {
            lost.log_records = logs.finish(timeout.saturating_sub(begun.elapsed())).await;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::export::{Exporter, ResourceOptions};
    use crate::telemetry::ids;
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
        let sink = SpanSink::new(Exporter::Zipkin { endpoint }, ResourceOptions::default(), &LineWriter::stderr()).unwrap();
        let pipeline = Pipeline::start(sink, queue.clone(), Duration::from_secs(1));
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
