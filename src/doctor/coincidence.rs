//! Whether something else than a call explains why roots lie inside spans: timers, monitors, pages.

use std::collections::HashSet;

use crate::doctor::begun::Search;
use crate::doctor::finding::MIN_COUNT;
use crate::doctor::timing::{Interval, Pair, come_with, contains, correlation, interval};

impl Search<'_> {
    /// Whether the roots come with those of other services that their hosts did not call: somebody outside, a monitor or a page, asks
    /// one service after the other.
    pub(super) fn are_asked_together(&self, callee: usize, pairs: &[Pair]) -> bool {
        let spans = &self.system.spans;
        let Some(caller) = pairs.first().map(|(_, outer)| spans[*outer].service) else { return false };
        let joins = |callee: usize| self.edges.get(&(caller, callee)).is_some_and(|edge| edge.joined > 0);
        let inner: Vec<Interval> = pairs.iter().map(|(root, _)| interval(&spans[*root])).collect();
        let hosts: Vec<Interval> = pairs.iter().map(|(_, outer)| interval(&spans[*outer])).collect();
        let traces: HashSet<usize> = pairs.iter().map(|(_, outer)| spans[*outer].trace).collect();
        let has_called = |callee: usize| {
            let without: HashSet<usize> = self.without_call(caller, Some(callee)).into_iter().collect();
            pairs.iter().filter(|(_, outer)| !without.contains(outer)).count() * 5 >= pairs.len() * 4
        };
        let (mut near, mut before) = (0, 0);
        for (&other, roots) in self.begun.iter().filter(|(service, _)| **service != callee && **service != caller) {
            let is_apart = |at: &&usize| !traces.contains(&spans[**at].trace);
            let starts: Vec<i64> = roots.iter().filter(is_apart).map(|at| spans[*at].start).collect();
            // Who loses the contexts of some calls loses them of all: nobody whom it never calls, or has called already, is one of those.
            let is_strange = joins(callee) && (!joins(other) || has_called(other));
            if let Some(share) = come_with(&inner, &hosts, starts, is_strange) {
                near += 1;
                before += usize::from(is_strange || share >= 0.5);
            }
        }
        near >= 2 || before > 0
    }

    /// Whether something else than a call explains these pairs: two timers that strike at a fixed distance (who waits for another takes
    /// the longer, the longer that one takes), two calls that somebody made at a time, or the outer ones' callees.
    pub(super) fn is_otherwise(&self, callee: usize, pairs: &[Pair]) -> bool {
        let system = self.system;
        let most = |count: usize| count * 2 > pairs.len();
        let times = |of: fn(&Pair) -> usize| pairs.iter().map(|pair| system.spans[of(pair)].took() as f64).collect::<Vec<_>>();
        let are_timers = most(pairs.iter().filter(|(root, outer)| self.is_timer(*root) && self.is_timer(*outer)).count());
        let is_lost = most(pairs.iter().filter(|(_, outer)| self.used.contains(outer)).count());
        let droppers = |at: &usize| self.edges.get(&(*at, callee)).is_some_and(|edge| edge.lost.len() >= MIN_COUNT);
        let by_callees =
            pairs.iter().filter(|(_, outer)| system.answers_below(*outer).any(|at| droppers(&system.spans[at].service)));
        // A few vary together by chance.
        let together = pairs.len() >= 20 && correlation(&times(|pair| pair.0), &times(|pair| pair.1)) >= 0.8;
        are_timers && !together || is_lost || most(by_callees.count()) || self.are_asked_together(callee, pairs)
    }

    /// Whether roots begin as long after the spans around them as calls that are continued do: another timer of the same period
    /// begins at a time of its own. Clocks that differ move both alike.
    pub(super) fn at_usual_time(&self, caller: usize, callee: usize, pairs: &[Pair]) -> bool {
        const LEAST_US: i64 = 2_000;
        let spans = &self.system.spans;
        let (mut delays, mut outside) = (Vec::new(), 0);
        let skew = self.skews.get(&(caller, callee)).copied().unwrap_or(0);
        for (entry, _) in self.work(caller).filter(|(_, callees)| callees.contains(&callee)) {
            for at in self.system.answers_below(*entry).filter(|at| spans[*at].service == callee) {
                delays.push(spans[at].start - spans[*entry].start);
                outside += usize::from(!contains(interval(&spans[*entry]), (spans[at].start - skew, spans[at].start - skew)));
            }
        }
        delays.sort_unstable();
        if delays.len() < 10 {
            return true;
        }
        // The clocks of instances differ from each other: times show nothing.
        if outside * 5 > delays.len() {
            return false;
        }
        let (low, high) = (delays[delays.len() / 20], delays[delays.len() * 19 / 20]);
        let more = LEAST_US.max((high - low) / 4);
        let is_usual = |(root, outer): &&Pair| (low - more..=high + more).contains(&(spans[*root].start - spans[*outer].start));
        pairs.iter().filter(is_usual).count() * 5 >= pairs.len() * 4
    }

    /// Whether roots of this service and name come at regular times.
    pub(super) fn is_timer(&self, at: usize) -> bool {
        let seen = &self.system.spans[at];
        seen.is_root() && self.timers.contains(&(seen.service, seen.span.name.as_deref()))
    }
}
