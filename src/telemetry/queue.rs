//! The bounded queue between what records a signal and its exporter, and the counts of what became of it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use opentelemetry::trace::TraceId;
use tokio::sync::Notify;

/// The most items of a batch, which one request carries. As few as this stay in the processor's cache from their record to their
/// export.
pub(crate) const BATCH_ITEMS: usize = 512;

/// The text that an item may have on average, in bytes: usual spans have half of it. Without this bound a queue of long paths
/// would hold ten times the memory of a usual one.
pub(crate) const TEXT_OF_AN_ITEM: usize = 256;

/// Items of one signal on their way to an exporter.
pub(crate) trait Batch: Default + fmt::Debug + Send + Sync + 'static {
    /// How many items it has.
    fn len(&self) -> usize;

    /// The bytes of their texts.
    fn text_len(&self) -> usize;

    /// What an item counts as.
    fn counted(&self, item: usize) -> Counted;

    /// Empties it and gives back the memory that a usual batch does not need.
    fn clear(&mut self);
}

/// Byte range into a batch's text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TextRange {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// The texts of a batch's items, in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Texts(pub(crate) String);

impl Texts {
    /// Copies a text, cut at `max` bytes.
    pub(crate) fn copy(&mut self, text: &str, max: usize) -> TextRange {
        let start = self.0.len() as u32;
        // Half of a span's texts are empty.
        if !text.is_empty() {
            self.0.push_str(&text[..text.floor_char_boundary(max)]);
        }
        TextRange { start, end: self.0.len() as u32 }
    }

    pub(crate) fn get(&self, range: TextRange) -> &str {
        &self.0[range.start as usize..range.end as usize]
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(2 * BATCH_ITEMS * TEXT_OF_AN_ITEM);
    }
}

/// What became of items that were recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExportFate {
    /// The collector accepted them.
    Exported,
    /// The collector did not accept them, and would not later.
    Rejected,
    /// The collector was not reached, at the last attempt.
    Unreachable,
    /// The flush timeout was over.
    Shutdown,
}

/// Items since the start. Read under one lock, so that the parts are the whole at any time:
/// `recorded = queued + exported + rejected + unreachable + shutdown + queue_full`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) recorded: u64,
    pub(crate) exported: u64,
    pub(crate) rejected: u64,
    pub(crate) unreachable: u64,
    pub(crate) shutdown: u64,
    pub(crate) queue_full: u64,
    /// Waiting, or on their way to the collector.
    pub(crate) queued: u64,
    /// The latest item of each kind.
    pub(crate) latest: Latest,
}

/// An item that was counted: its trace, and when it began.
pub(crate) type Counted = Option<(TraceId, SystemTime)>;

/// The items that were counted last, as exemplars of the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Latest {
    pub(crate) recorded: Counted,
    pub(crate) exported: Counted,
    pub(crate) rejected: Counted,
    pub(crate) unreachable: Counted,
    pub(crate) shutdown: Counted,
    pub(crate) queue_full: Counted,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.recorded += other.recorded;
        self.exported += other.exported;
        self.rejected += other.rejected;
        self.unreachable += other.unreachable;
        self.shutdown += other.shutdown;
        self.queue_full += other.queue_full;
        self.queued += other.queued;
        let (latest, other) = (&mut self.latest, other.latest);
        latest.recorded = other.recorded.or(latest.recorded);
        latest.exported = other.exported.or(latest.exported);
        latest.rejected = other.rejected.or(latest.rejected);
        latest.unreachable = other.unreachable.or(latest.unreachable);
        latest.shutdown = other.shutdown.or(latest.shutdown);
        latest.queue_full = other.queue_full.or(latest.queue_full);
    }
}

impl Counts {
    /// Items that the exporter took from the queue and lost.
    pub(crate) fn lost(&self) -> u64 {
        self.rejected + self.unreachable + self.shutdown
    }
}

/// The bounded queue between the request path and an exporter.
#[derive(Debug)]
pub(crate) struct Queue<B> {
    waiting: Mutex<WaitingItems<B>>,
    /// The most items that may wait.
    max: usize,
    batch_full: Notify,
}

#[derive(Debug, Default)]
struct WaitingItems<B> {
    /// The oldest first.
    full: Vec<B>,
    /// The items and the bytes of text in the full ones.
    full_items: usize,
    full_text: usize,
    /// Not full yet.
    batch: B,
    /// An empty one, whose memory the next batch uses.
    spare: Option<B>,
    counts: Counts,
}

impl<B: Batch> WaitingItems<B> {
    fn close_batch(&mut self) {
        self.full_items += self.batch.len();
        self.full_text += self.batch.text_len();
        let next = self.spare.take().unwrap_or_default();
        self.full.push(std::mem::replace(&mut self.batch, next));
    }
}

impl<B: Batch> Queue<B> {
    pub(crate) fn new(max: usize) -> Self {
        Self { waiting: Mutex::default(), max, batch_full: Notify::new() }
    }

    /// The most items of a batch: a queue of few has two.
    fn batch_items(&self) -> usize {
        BATCH_ITEMS.min(self.max.div_ceil(2))
    }

    fn lock(&self) -> MutexGuard<'_, WaitingItems<B>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `write` append an item; one that does not fit is dropped and counted.
    pub(crate) fn push_with(&self, counted: Counted, write: impl FnOnce(&mut B)) {
        let mut guard = self.lock();
        let waiting = &mut *guard;
        waiting.counts.recorded += 1;
        waiting.counts.latest.recorded = counted;
        let (items, text) = (waiting.full_items + waiting.batch.len(), waiting.full_text + waiting.batch.text_len());
        if items >= self.max || text >= self.max.saturating_mul(TEXT_OF_AN_ITEM) {
            waiting.counts.queue_full += 1;
            waiting.counts.latest.queue_full = counted;
            return;
        }
        waiting.counts.queued += 1;
        write(&mut waiting.batch);
        let max = self.batch_items();
        let is_full = waiting.batch.len() >= max || waiting.batch.text_len() >= max * TEXT_OF_AN_ITEM;
        if is_full {
            waiting.close_batch();
        }
        drop(guard);
        if is_full {
            self.batch_full.notify_one();
        }
    }

    /// Removes the full batches, and with `all` the one that is not full yet. Their items count as queued until they are settled.
    pub(crate) fn take(&self, all: bool) -> Vec<B> {
        let waiting = &mut *self.lock();
        if all && waiting.batch.len() > 0 {
            waiting.close_batch();
        }
        (waiting.full_items, waiting.full_text) = (0, 0);
        std::mem::take(&mut waiting.full)
    }

    /// Keeps the memory of a batch that was exported for the next one.
    pub(crate) fn reuse(&self, mut batch: B) {
        batch.clear();
        self.lock().spare = Some(batch);
    }

    /// Counts items that do not wait, and are on their way at once.
    pub(crate) fn record(&self, items: usize) {
        let counts = &mut self.lock().counts;
        counts.recorded += items as u64;
        counts.queued += items as u64;
    }

    /// Counts what became of items that were queued; `latest` is the last of them, where it is known.
    pub(crate) fn settle(&self, items: usize, fate: ExportFate, latest: Counted) {
        let counts = &mut self.lock().counts;
        let items = (items as u64).min(counts.queued);
        counts.queued -= items;
        let (count, exemplar) = match fate {
            ExportFate::Exported => (&mut counts.exported, &mut counts.latest.exported),
            ExportFate::Rejected => (&mut counts.rejected, &mut counts.latest.rejected),
            ExportFate::Unreachable => (&mut counts.unreachable, &mut counts.latest.unreachable),
            ExportFate::Shutdown => (&mut counts.shutdown, &mut counts.latest.shutdown),
        };
        *count += items;
        if latest.is_some() && items > 0 {
            *exemplar = latest;
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Resolves when a batch is full, so that the exporter need not wait for its schedule.
    pub(crate) async fn batch_full(&self) {
        self.batch_full.notified().await;
    }
}

/// Items that are counted and never wait: the data points of metrics.
impl Batch for () {
    fn len(&self) -> usize {
        0
    }

    fn text_len(&self) -> usize {
        0
    }

    fn counted(&self, _: usize) -> Counted {
        None
    }

    fn clear(&mut self) {}
}
