//! The bytes that the process holds on behalf of others, bounded in total for each kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What bytes are held for. The kinds have a part of the budget each, so that one that is used up does not stop the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldKind {
    /// Answers of next hops: from their first byte until the reply around them is written.
    UpstreamAnswer,
    /// Answers of this hop until they were sent.
    Answer,
    /// Scrapes until they were sent.
    Scrape,
    /// Bodies of requests that go on to the next hops.
    RequestBody,
}

impl HeldKind {
    pub(crate) const ALL: [Self; 4] = [Self::UpstreamAnswer, Self::Answer, Self::Scrape, Self::RequestBody];

    /// The `kind` label of the metric, and the `reason` of what is shed.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::UpstreamAnswer => "upstream_answer",
            Self::Answer => "answer",
            Self::Scrape => "scrape",
            Self::RequestBody => "request_body",
        }
    }
}

/// The budgets.
#[derive(Debug)]
pub(crate) struct HeldBudgets([Budget; 4]);

#[derive(Debug, Default)]
struct Budget {
    max: usize,
    held: AtomicUsize,
}

impl HeldBudgets {
    /// What one item may have without being counted: it is part of what a request in flight costs. So a usual answer is never
    /// refused because others are large.
    pub(crate) const FREE: usize = 8 << 10;

    /// The most bytes of each kind, in the order of [`HeldKind::ALL`].
    pub(crate) fn new(max: [usize; 4]) -> Arc<Self> {
        Arc::new(Self(max.map(|max| Budget { max, held: AtomicUsize::new(0) })))
    }

    /// Holds nothing yet.
    pub(crate) fn empty(self: &Arc<Self>, kind: HeldKind) -> Held {
        Held { budgets: self.clone(), kind, bytes: 0, counted: 0 }
    }

    /// How many bytes are held.
    pub(crate) fn of(&self, kind: HeldKind) -> usize {
        self.0[kind as usize].held.load(Ordering::Relaxed)
    }
}

/// The budget of a kind is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted(pub(crate) HeldKind);

/// Bytes that count until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budgets: Arc<HeldBudgets>,
    kind: HeldKind,
    /// All of the item, and those beyond [`HeldBudgets::FREE`].
    bytes: usize,
    counted: usize,
}

impl Held {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds bytes.
    ///
    /// # Errors
    ///
    /// The budget has not so many left; nothing is added.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let all = self.bytes.saturating_add(bytes);
        let more = all.saturating_sub(HeldBudgets::FREE) - self.counted;
        if more > 0 {
            let budget = &self.budgets.0[self.kind as usize];
            // May be above the limit for a moment, in which others are refused that would just fit.
            if budget.held.fetch_add(more, Ordering::Relaxed).saturating_add(more) > budget.max {
                budget.held.fetch_sub(more, Ordering::Relaxed);
                return Err(Exhausted(self.kind));
            }
        }
        self.bytes = all;
        self.counted += more;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.counted > 0 {
            self.budgets.0[self.kind as usize].held.fetch_sub(self.counted, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: usize = HeldBudgets::FREE;

    #[test]
    fn bytes_beyond_the_free_ones_count_until_they_are_dropped() {
        let budgets = HeldBudgets::new([100, 1, 0, 0]);
        let mut one = budgets.empty(HeldKind::UpstreamAnswer);
        for _ in 0..2 {
            one.add(FREE / 2).unwrap();
        }
        assert_eq!(budgets.of(HeldKind::UpstreamAnswer), 0);
        one.add(60).unwrap();
        let mut two = budgets.empty(HeldKind::UpstreamAnswer);
        two.add(FREE + 40).unwrap();
        assert_eq!(budgets.of(HeldKind::UpstreamAnswer), 100);
        assert_eq!(one.add(1), Err(Exhausted(HeldKind::UpstreamAnswer)));
        assert_eq!((one.bytes(), budgets.of(HeldKind::UpstreamAnswer)), (FREE + 60, 100), "nothing was added");
        budgets.empty(HeldKind::Answer).add(FREE + 1).unwrap();
        drop(two);
        one.add(40).unwrap();
        drop(one);
        assert!(HeldKind::ALL.iter().all(|kind| budgets.of(*kind) == 0));
        assert!(budgets.empty(HeldKind::Scrape).add(FREE).is_ok());
        assert!(budgets.empty(HeldKind::Scrape).add(usize::MAX).is_err());
    }

    #[test]
    fn threads_never_hold_more_than_the_budget() {
        let budgets = HeldBudgets::new([1000; 4]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let mut held = budgets.empty(HeldKind::Answer);
                        let _ = held.add(FREE + 300);
                    }
                });
            }
        });
        assert_eq!(budgets.of(HeldKind::Answer), 0);
    }
}
