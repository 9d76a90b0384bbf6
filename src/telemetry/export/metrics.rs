//! The task that exports the families of the registry as OTLP, at intervals and once more at the stop.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::delivery::Delivery;
use super::otlp::{MetricEncoder, OtlpCollector};
use super::task::ExportTask;
use super::{Accepted, ExporterError, MetricOptions, ResourceOptions, Signal};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::queue::{ExportFate, Queue};

/// The running exporter of metrics.
#[derive(Debug)]
pub(super) struct MetricPipeline {
    counts: Arc<Queue<()>>,
    task: ExportTask,
}

impl MetricPipeline {
    /// # Errors
    ///
    /// [`ExporterError`] when the endpoint or a header cannot be used.
    pub(super) fn start(options: MetricOptions, resource: ResourceOptions, metrics: Arc<Metrics>) -> Result<Self, ExporterError> {
        let counts = Arc::new(Queue::new(0));
        let exporter = MetricExporter {
            collector: OtlpCollector::new(Signal::Metrics, options.otlp)?,
            encoder: MetricEncoder::new(resource, options.temporality),
            metrics,
            counts: counts.clone(),
            timeout: options.timeout,
        };
        let task = ExportTask::spawn(|stopped| exporter.run(options.interval, stopped));
        Ok(Self { counts, task })
    }

    pub(super) fn counts(&self) -> Arc<Queue<()>> {
        self.counts.clone()
    }

    /// Exports once more, in at most `timeout`; returns how many data points were lost from the stop on.
    pub(super) async fn finish(self, timeout: Duration) -> usize {
        self.task.finish(&self.counts, timeout).await
    }
}

struct MetricExporter {
    collector: OtlpCollector,
    encoder: MetricEncoder,
    metrics: Arc<Metrics>,
    counts: Arc<Queue<()>>,
    timeout: Duration,
}

impl MetricExporter {
    async fn run(mut self, interval: Duration, stopped: watch::Receiver<bool>) {
        let mut delivery = Delivery::new(Signal::Metrics, stopped);
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = delivery.stopped() => {}
            }
            let stopping = delivery.is_stopping();
            self.export(&mut delivery).await;
            if stopping {
                return;
            }
        }
    }

    async fn export(&mut self, delivery: &mut Delivery) {
        let (families, latest) = self.metrics.gather();
        let request = self.encoder.encode(&families, &self.metrics.histograms(), &latest, SystemTime::now());
        let points = request.points;
        self.counts.record(points);
        let send = |left| self.collector.export(request.body.clone(), left);
        match delivery.deliver(points, self.timeout, send).await {
            Ok(Accepted { rejected, .. }) => {
                let rejected = rejected.min(points);
                self.counts.settle(rejected, ExportFate::Rejected, None);
                self.counts.settle(points - rejected, ExportFate::Exported, None);
                self.encoder.accepted(request);
            }
            // Differences are taken from what was accepted last, so the next export has them.
            Err(fate) => self.counts.settle(points, fate, None),
        }
    }
}
