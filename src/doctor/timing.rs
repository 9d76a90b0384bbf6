//! Which spans lie inside which others in time, and whether that can be chance.

use std::collections::HashSet;

use crate::doctor::system::SystemSpan;

/// Clocks of one host are read at slightly different moments, and some tracers cut microseconds off.
pub(super) const TOLERANCE_US: i64 = 1_000;
/// Natural logarithm of how unlikely a coincidence has to be. Some hundred pairs of services are compared in a run.
const EVIDENCE: f64 = 12.0;
/// How far a span is moved to see how often it lies inside another by chance, in typical lengths of those.
const SHIFTS: [f64; 16] = [-9.0, -7.5, -6.0, -5.0, -4.0, -3.0, -2.2, -1.5, 1.5, 2.2, 3.0, 4.0, 5.0, 6.0, 7.5, 9.0];
/// How many earlier spans are compared; a mesh at full load has hundreds at a time.
const LOOK_BACK: usize = 512;

/// Beginning and end, microseconds.
pub(super) type Interval = (i64, i64);

/// Intervals in the order of their beginnings.
#[derive(Clone)]
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

    /// The interval that begins last of those that contain this one, and whether it is as long.
    fn around(&self, (start, end): Interval) -> Option<(usize, bool)> {
        let after = self.intervals.partition_point(|(outer, ..)| *outer <= start + TOLERANCE_US);
        let near = self.intervals[..after].iter().rev().take(LOOK_BACK);
        near.take_while(|(outer, ..)| *outer >= start - self.longest - TOLERANCE_US)
            .find(|(_, outer_end, _)| end <= outer_end + TOLERANCE_US)
            .map(|(outer, outer_end, at)| (*at, end - start <= outer_end - outer))
    }

    fn contained(&self, inner: &[(usize, Interval)], skew: i64) -> Vec<(Pair, bool)> {
        let within = |(at, (start, end)): &(usize, Interval)| {
            let (outer, fits) = self.around((start - skew, end - skew))?;
            Some(((*at, outer), fits))
        };
        inner.iter().filter_map(within).collect()
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

    /// The share of `inner` that lies inside by chance, from where it would lie a little earlier and later. Before the first and after
    /// the last of these nothing can be inside.
    fn chance(&self, inner: &[(usize, Interval)], skew: i64) -> f64 {
        let first = self.intervals.first().map_or(0, |(start, ..)| *start);
        let last = self.intervals.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
        let (mut hits, mut tried) = (0.0, 0.0);
        for shift in SHIFTS {
            let skew = skew + (shift * self.typical as f64) as i64;
            for (_, (start, end)) in inner.iter().filter(|(_, (start, end))| start - skew >= first && end - skew <= last) {
                tried += 1.0;
                hits += f64::from(u8::from(self.around((start - skew, end - skew)).is_some()));
            }
        }
        (hits + 0.5) / (tried + 1.0)
    }

    /// Which of `inner` lie inside, when that is no chance. `skew` is how far the clock of `inner` is ahead.
    pub(super) fn matches(&self, inner: &[(usize, Interval)], skew: i64) -> Option<Matches> {
        self.matches_with(inner, skew, EVIDENCE)
    }

    /// Like [`matches`](Self::matches), where it is known from elsewhere that the outer ones' service made `inner`.
    pub(super) fn matches_known(&self, inner: &[(usize, Interval)], skew: i64) -> Option<Matches> {
        const LEAST: f64 = 3.0;
        self.matches_with(inner, skew, LEAST)
    }

    fn matches_with(&self, inner: &[(usize, Interval)], skew: i64, least: f64) -> Option<Matches> {
        let inner: Vec<_> = inner.iter().copied().filter(|(_, (start, _))| *start > 0).collect();
        if inner.is_empty() || self.intervals.is_empty() {
            return None;
        }
        let mut pairs = self.contained(&inner, skew);
        let chance = self.chance(&inner, skew);
        // Two timers that strike together begin in either order, and either lasts longer; a cause never begins second.
        let either_order = chance < 0.3 && self.just_before(&inner, skew) * 3 > pairs.len();
        let all = pairs.len();
        pairs.retain(|(_, fits)| *fits);
        let pairs: Vec<Pair> = pairs.into_iter().map(|(pair, _)| pair).collect();
        let either_length = (all - pairs.len()) * 5 > all;
        (pairs.len() >= 3 && !either_order && !either_length && evidence(pairs.len(), inner.len(), chance) >= least)
            .then_some(Matches { pairs, chance })
    }

    /// Like [`matches`](Self::matches), for hosts whose clocks were never compared: at the differences that occur most, one for each
    /// instance. `None` where these are few of all.
    pub(super) fn matches_at_any_skew(&self, inner: &[(usize, Interval)]) -> Option<Matches> {
        const FEWEST: usize = 8;
        const MOST_CLOCKS: usize = 8;
        let all = inner.len().min(self.len());
        let (mut found, mut inner, mut outer) = (Matches::default(), inner.to_vec(), self.clone());
        for _ in 0..MOST_CLOCKS {
            let Some(Matches { pairs, chance }) = outer.at_likeliest_skew(&inner) else { break };
            let (roots, hosts): (HashSet<usize>, HashSet<usize>) = pairs.iter().copied().unzip();
            inner.retain(|(at, _)| !roots.contains(at));
            outer.intervals.retain(|(.., at)| !hosts.contains(at));
            found.pairs.extend(pairs);
            found.chance = found.chance.max(chance);
        }
        (found.pairs.len() >= FEWEST && found.pairs.len() * 10 >= all * 7).then_some(found)
    }

    fn at_likeliest_skew(&self, inner: &[(usize, Interval)]) -> Option<Matches> {
        const FARTHEST_US: i64 = 60_000_000;
        /// So many differences are tried: the logarithm.
        const TRIED: f64 = 10.0;
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
        let near = &differences[best];
        let tried = [10, 25, 50, 75].map(|percent| near.get(near.len() * percent / 100).copied());
        let found = tried.into_iter().flatten().filter_map(|skew| self.matches_with(inner, skew, EVIDENCE + TRIED));
        found.max_by_key(|found| found.pairs.len())
    }
}

/// Whether something begins near most of `inner` and outside of the spans around them (or `anywhere`), more often than by chance; the
/// share that begins before those.
pub(super) fn come_with(inner: &[Interval], hosts: &[Interval], mut others: Vec<i64>, anywhere: bool) -> Option<f64> {
    const LEAST: f64 = 8.0;
    const FARTHEST_US: i64 = 5_000_000;
    others.sort_unstable();
    let outside = |at: &&i64, host: &Interval| anywhere || !(host.0 - TOLERANCE_US..=host.1 + TOLERANCE_US).contains(*at);
    let nearest = |(inner, host): (&Interval, &Interval)| {
        let after = others.partition_point(|at| *at < inner.0);
        let earlier = others[..after].iter().rev().take(LOOK_BACK).find(|at| outside(at, host));
        let later = others[after..].iter().take(LOOK_BACK).find(|at| outside(at, host));
        let distance = |at: &&i64| (**at - inner.0).abs();
        earlier.into_iter().chain(later).min_by_key(distance).map(|at| (distance(&at), *at < host.0))
    };
    let mut near: Vec<(i64, bool)> = inner.iter().zip(hosts).filter_map(nearest).collect();
    near.sort_unstable();
    let most = (inner.len() * 4).div_ceil(5);
    let reach = near.get(most.checked_sub(1)?)?.0.max(TOLERANCE_US);
    let around = Timeline::new(others.iter().enumerate().map(|(n, at)| (n, (at - reach, at + reach))));
    let points: Vec<(usize, Interval)> = inner.iter().enumerate().map(|(n, (start, _))| (n, (*start, *start))).collect();
    let chance = around.chance(&points, 0);
    let are_close = reach <= FARTHEST_US && chance < 0.25 && evidence(most, inner.len(), chance) >= LEAST;
    near.truncate(most);
    are_close.then(|| near.iter().filter(|(_, before)| *before).count() as f64 / most as f64)
}

/// The Chernoff bound of finding `hits` of `n` where a share of `chance` is expected: minus its natural logarithm.
pub(super) fn evidence(hits: usize, n: usize, chance: f64) -> f64 {
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

/// How many inner intervals lie inside one of their outer ones: clocks being equal or, with `any_skew`, at the one difference at which
/// most do.
pub(super) fn nested(pairs: &[(Interval, Vec<Interval>)], any_skew: bool) -> usize {
    let inside = |skew: i64| {
        let at = |(inner, outers): &&(Interval, Vec<Interval>)| {
            outers.iter().any(|outer| contains(*outer, (inner.0 - skew, inner.1 - skew)))
        };
        pairs.iter().filter(at).count()
    };
    if !any_skew {
        return inside(0);
    }
    // For each pair the differences at which it nests.
    let mut ends = Vec::new();
    for (inner, outers) in pairs {
        for outer in outers.iter().filter(|outer| inner.1 - inner.0 <= outer.1 - outer.0 + 2 * TOLERANCE_US) {
            ends.extend([(inner.1 - outer.1 - TOLERANCE_US, -1), (inner.0 - outer.0 + TOLERANCE_US, 1)]);
        }
    }
    ends.sort_unstable();
    let (mut depth, mut best) = (0, (0, 0));
    for (skew, end) in ends {
        depth -= end;
        best = best.max((depth, skew));
    }
    inside(best.1).max(inside(0))
}

/// Whether these times are those of a timer, of which some may be missing: most distances are multiples of a short one.
pub(super) fn is_regular(mut starts: Vec<i64>) -> bool {
    starts.sort_unstable();
    // Several instances strike together.
    starts.dedup_by(|later, earlier| *later - *earlier < 50_000);
    let mut gaps: Vec<i64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    let Some(period) = gaps.get(gaps.len() / 10).copied() else { return true };
    let is_multiple = |gap: &&i64| {
        let off = **gap % period;
        off.min(period - off) * 20 <= period
    };
    gaps.iter().filter(is_multiple).count() * 10 >= gaps.len() * 6
}

/// How much two series vary together, -1 to 1; 1 where one does not vary.
pub(super) fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |of: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| of(a - mean_a, b - mean_b)).sum::<f64>();
    let (both, of_a, of_b) = (sum(&|a, b| a * b), sum(&|a, _| a * a), sum(&|_, b| b * b));
    if of_a * of_b > 0.0 { both / (of_a * of_b).sqrt() } else { 1.0 }
}

/// The middle one of these values.
pub(super) fn median(mut values: Vec<i64>) -> Option<i64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// The interval of a span.
pub(super) fn interval(span: &SystemSpan) -> Interval {
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

    #[test]
    fn each_instance_may_have_a_clock_of_its_own() {
        let begin = |i: i64| 1_000_000_000 + i * i * 700_000;
        let outer = Timeline::new((0..90).map(|i: i64| (i as usize, (begin(i), begin(i) + 100_000))));
        let ahead = |i: i64| [3_050_000, -1_200_000, 400_000][i as usize % 3];
        let inner: Vec<_> = (0..90).map(|i: i64| (i as usize, (begin(i) + ahead(i), begin(i) + ahead(i) + 20_000))).collect();
        let found = outer.matches_at_any_skew(&inner).unwrap().pairs;
        assert!(found.len() >= 80, "{}", found.len());
    }

    #[test]
    fn spans_nest_at_one_difference_of_clocks_or_not_at_all() {
        let at = |n: i64, inner: (i64, i64), skew: i64| {
            let outer = 1_000_000_000 + n * 1_000_000;
            ((outer + inner.0 + skew, outer + inner.1 + skew), vec![(outer, outer + 10_000)])
        };
        let all = |skew: &dyn Fn(i64) -> i64| (0..20).map(|n| at(n, (2_000 + n, 8_000), skew(n))).collect::<Vec<_>>();
        assert_eq!(nested(&all(&|_| 0), false), 20);
        assert_eq!((nested(&all(&|_| 400_000), false), nested(&all(&|_| 400_000), true)), (0, 20));
        assert!(nested(&all(&|n| n * n * 3_000), true) < 4, "no difference of clocks explains it: they come later");
    }
}
