//! The task of an exporter, and its end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::telemetry::queue::{Batch, ExportFate, Queue};

/// The task of a running exporter.
#[derive(Debug)]
pub(super) struct ExportTask {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ExportTask {
    pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(watch::Receiver<bool>) -> F) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { stop, task: tokio::spawn(run(stopped)) }
    }

    /// Ends the task, in at most `timeout`; returns how many of the items that `queue` counts were lost from then on.
    pub(super) async fn finish<B: Batch>(mut self, queue: &Queue<B>, timeout: Duration) -> usize {
        let before = queue.counts().lost();
        let _ = self.stop.send(true);
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            self.task.abort();
            // Until it has ended it counts items itself.
            let _ = self.task.await;
        }
        let left = usize::try_from(queue.counts().queued).unwrap_or(usize::MAX);
        queue.settle(left, ExportFate::Shutdown, None);
        usize::try_from(queue.counts().lost() - before).unwrap_or(usize::MAX)
    }
}
