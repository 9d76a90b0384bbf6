//! Which spans lie inside which others in time, and whether that can be chance.

use crate::doctor::system::Seen;

/// Clocks of one host are read at slightly different moments, and some tracers cut microseconds off.
const TOLERANCE_US: i64 = 1_000;
/// Natural logarithm of how unlikely a coincidence has to be. Some hundred pairs of services are compared in a run.
const EVIDENCE: f64 = 12.0;
/// How far a span is moved to see how often it lies inside another by chance, in typical lengths of those.
const SHIFTS: [f64; 16] = [-9.0, -7.5, -6.0, -5.0, -4.0, -3.0, -2.2, -1.5, 1.5, 2.2, 3.0, 4.0, 5.0, 6.0, 7.5, 9.0];
/// How many earlier spans are compared; a mesh at full load has hundreds at a time.
const LOOK_BACK: usize = 512;

/// Beginning and end, microseconds.
pub(super) type Interval = (i64, i64);

/// Intervals in the order of their beginnings.
pub(super) struct Timeline {
    /// Beginning, end, and the caller's name for it.
    intervals: Vec<(i64, i64, usize)>,
    longest: i64,
    typical: i64,
}

/// An inner span and the outer one that it lies in.
pub(super) type Pair = (usize, usize);

/// What lies inside what.
#[derive(Debug, Default)]
pub(super) struct Matches {
    pub(super) pairs: Vec<Pair>,
    /// The share that would lie inside by chance.
    pub(super) chance: f64,
}

impl Timeline {
    pub(super) fn new(spans: impl IntoIterator<Item = (usize, Interval)>) -> Self {
        let mut intervals: Vec<_> =
            spans.into_iter().filter(|(_, (start, _))| *start > 0).map(|(at, (start, end))| (start, end, at)).collect();
        intervals.sort_unstable();
        let mut lengths: Vec<i64> = intervals.iter().map(|(start, end, _)| end - start).collect();
        lengths.sort_unstable();
        let longest = lengths.last().copied().unwrap_or(0);
        let typical = lengths.get(lengths.len() / 2).copied().unwrap_or(0).max(2 * TOLERANCE_US);
        Self { intervals, longest, typical }
    }

    pub(super) fn len(&self) -> usize {
        self.intervals.len()
    }

    /// The interval that begins last of those that contain this one.
    fn around(&self, (start, end): Interval) -> Option<usize> {
        let after = self.intervals.partition_point(|(outer, ..)| *outer <= start + TOLERANCE_US);
        let near = self.intervals[..after].iter().rev().take(LOOK_BACK);
        near.take_while(|(outer, ..)| *outer >= start - self.longest - TOLERANCE_US)
            .find(|(_, outer_end, _)| end <= outer_end + TOLERANCE_US)
            .map(|(.., at)| *at)
    }

    fn contained(&self, inner: &[(usize, Interval)], skew: i64) -> Vec<Pair> {
        let moved = |(start, end): Interval| (start - skew, end - skew);
        inner.iter().filter_map(|(at, interval)| Some((*at, self.around(moved(*interval))?))).collect()
    }

    /// How many of `inner` begin shortly before one of these, and inside none.
    fn just_before(&self, inner: &[(usize, Interval)], skew: i64) -> usize {
        let before = |(_, (start, end)): &&(usize, Interval)| {
            let at = self.intervals.partition_point(|(outer, ..)| *outer <= start - skew + TOLERANCE_US);
            let next = self.intervals.get(at).is_some_and(|(outer, ..)| outer - (start - skew) <= self.typical / 2);
            next && self.around((start - skew, end - skew)).is_none()
        };
        inner.iter().filter(before).count()
    }

    /// The share of `inner` that lies inside by chance, from where it would lie a little earlier and later.
    fn chance(&self, inner: &[(usize, Interval)], skew: i64) -> f64 {
        let hits: usize =
            SHIFTS.iter().map(|shift| self.contained(inner, skew + (shift * self.typical as f64) as i64).len()).sum();
        (hits as f64 + 0.5) / ((inner.len() * SHIFTS.len()) as f64 + 1.0)
    }

    /// Which of `inner` lie inside, when that is no chance. `skew` is how far the clock of `inner` is ahead.
    pub(super) fn matches(&self, inner: &[(usize, Interval)], skew: i64) -> Option<Matches> {
        let inner: Vec<_> = inner.iter().copied().filter(|(_, (start, _))| *start > 0).collect();
        if inner.is_empty() || self.intervals.is_empty() {
            return None;
        }
        let pairs = self.contained(&inner, skew);
        let chance = self.chance(&inner, skew);
        // Two timers that strike together begin in either order; a cause never begins second.
        let either_order = chance < 0.3 && self.just_before(&inner, skew) * 3 > pairs.len();
        (pairs.len() >= 3 && !either_order && evidence(pairs.len(), inner.len(), chance) >= EVIDENCE)
            .then_some(Matches { pairs, chance })
    }

    /// Like [`matches`](Self::matches), for hosts whose clocks were never compared: tries the differences that occur most.
    pub(super) fn matches_at_any_skew(&self, inner: &[(usize, Interval)]) -> Option<Matches> {
        const FARTHEST_US: i64 = 60_000_000;
        const FEWEST: usize = 8;
        let mut differences = Vec::new();
        for (_, (start, _)) in inner {
            let from = self.intervals.partition_point(|(outer, ..)| *outer < start - FARTHEST_US);
            let near = self.intervals[from..].iter().take_while(|(outer, ..)| *outer <= start + FARTHEST_US);
            differences.extend(near.take(LOOK_BACK).map(|(outer, ..)| start - outer));
        }
        differences.sort_unstable();
        // The answer begins a network's delay after the call: all true differences are close to each other.
        let width = (self.typical / 4).clamp(2_000, 50_000);
        let (mut best, mut low) = (0..0, 0);
        for high in 0..differences.len() {
            while differences[high] - differences[low] > width {
                low += 1;
            }
            if high + 1 - low > best.len() {
                best = low..high + 1;
            }
        }
        if best.len() < FEWEST || best.len() * 10 < inner.len().min(self.len()) * 7 {
            return None;
        }
        let near = &differences[best];
        let tried = [10, 25, 50, 75].map(|percent| near[near.len() * percent / 100]);
        tried.into_iter().filter_map(|skew| self.matches(inner, skew)).max_by_key(|found| found.pairs.len())
    }
}

/// The Chernoff bound of finding `hits` of `n` where a share of `chance` is expected: minus its natural logarithm.
fn evidence(hits: usize, n: usize, chance: f64) -> f64 {
    let (share, n) = (hits as f64 / n as f64, n as f64);
    if share <= chance {
        return 0.0;
    }
    let term = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a * (a / b).ln() };
    n * (term(share, chance) + term(1.0 - share, 1.0 - chance))
}

/// Whether one interval lies inside another, as exactly as clocks are read.
pub(super) fn contains(outer: Interval, inner: Interval) -> bool {
    outer.0 <= inner.0 + TOLERANCE_US && inner.1 <= outer.1 + TOLERANCE_US
}

/// The interval of a span.
pub(super) fn interval(span: &Seen) -> Interval {
    (span.start, span.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(n: i64, every: i64, from: i64, long: i64) -> Vec<(usize, Interval)> {
        (0..n).map(|i| (i as usize, (from + i * every, from + i * every + long))).collect()
    }

    #[test]
    fn what_lies_inside_each_time_is_no_chance_and_what_is_near_is() {
        let outer = Timeline::new(spans(50, 1_000_000, 1_000_000_000, 100_000));
        assert_eq!(outer.matches(&spans(50, 1_000_000, 1_000_020_000, 30_000), 0).unwrap().pairs.len(), 50);
        assert!(outer.matches(&spans(50, 1_000_000, 1_000_500_000, 30_000), 0).is_none());
        assert!(outer.matches(&spans(2, 1_000_000, 1_000_020_000, 30_000), 0).is_none());
        assert!(outer.matches(&spans(50, 1_010_101, 1_000_020_000, 30_000), 0).is_none());
    }

    #[test]
    fn a_clock_that_is_ahead_is_found() {
        let spaced = |from: i64, long: i64| -> Vec<(usize, Interval)> {
            (0..40).map(|i: i64| (i as usize, (from + i * i * 700_000, from + i * i * 700_000 + long))).collect()
        };
        let outer = Timeline::new(spaced(1_000_000_000, 100_000));
        let inner = spaced(1_003_050_000, 20_000);
        assert!(outer.matches(&inner, 0).is_none_or(|found| found.pairs.len() < 10));
        let found = outer.matches_at_any_skew(&inner).unwrap().pairs;
        assert!(found.len() >= 38 && found.iter().all(|(inner, outer)| inner == outer), "{found:?}");
    }
}
