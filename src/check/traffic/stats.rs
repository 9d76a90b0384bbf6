//! The statistics of the traffic checks: exact tests. Pure.

/// Natural logarithms of the factorials 0! to n!.
struct Factorials(Vec<f64>);

impl Factorials {
    fn up_to(n: u64) -> Self {
        let mut logs = Vec::with_capacity(n as usize + 1);
        logs.push(0.0);
        let mut sum = 0.0;
        for k in 1..=n {
            sum += (k as f64).ln();
            logs.push(sum);
        }
        Self(logs)
    }

    /// The chance of `k` hits in `n` tries at rate `p`.
    fn chance(&self, k: u64, n: u64, p: f64) -> f64 {
        if p <= 0.0 {
            return if k == 0 { 1.0 } else { 0.0 };
        }
        if p >= 1.0 {
            return if k == n { 1.0 } else { 0.0 };
        }
        let ways = self.0[n as usize] - self.0[k as usize] - self.0[(n - k) as usize];
        (ways + k as f64 * p.ln() + (n - k) as f64 * (-p).ln_1p()).exp()
    }
}

/// The exact two-sided binomial test: the chance, at rate `p`, of a count that is no likelier than `hits` of `tries`.
pub(crate) fn binomial(hits: u64, tries: u64, p: f64) -> f64 {
    // Counts whose chance is equal but for rounding belong to the tail too.
    const SLACK: f64 = 1.0 + 1e-7;
    let logs = Factorials::up_to(tries);
    let limit = logs.chance(hits.min(tries), tries, p) * SLACK;
    (0..=tries).map(|k| logs.chance(k, tries, p)).filter(|chance| *chance <= limit).sum::<f64>().min(1.0)
}

/// The smallest shift of a rate `p`, as a fraction, that the test at `alpha` would notice half the time in `tries` requests,
/// whichever way it goes. 1 when no shift would be noticed.
pub(crate) fn detectable(tries: u64, p: f64, alpha: f64) -> f64 {
    const HALF: f64 = 0.5;
    if tries == 0 {
        return 1.0;
    }
    let logs = Factorials::up_to(tries);
    let chances: Vec<f64> = (0..=tries).map(|k| logs.chance(k, tries, p)).collect();
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let mut rejected = vec![false; chances.len()];
    let mut tail = 0.0;
    for k in order {
        tail += chances[k];
        if tail >= alpha {
            break;
        }
        rejected[k] = true;
    }
    let power = |rate: f64| {
        rejected.iter().enumerate().filter(|(_, out)| **out).map(|(k, _)| logs.chance(k as u64, tries, rate)).sum::<f64>()
    };
    let reach = |limit: f64| {
        let full = (limit - p).abs();
        if full <= 0.0 || power(limit) < HALF {
            return if full <= 0.0 { 0.0 } else { 1.0 };
        }
        const STEPS: u32 = 40;
        let (mut low, mut high) = (0.0, full);
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            let rate = p + middle * (limit - p).signum();
            if power(rate) >= HALF { high = middle } else { low = middle }
        }
        high
    };
    reach(0.0).max(reach(1.0))
}

/// These values in order, for [`percentile`](crate::text::number::percentile).
pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// How sure a test must be before it says that a rate is wrong: one false alarm in 100,000 runs.
pub(crate) const ALPHA: f64 = 1e-5;

/// The largest shift (a fraction) that a test may need to detect a wrong rate; beyond it the requests are too few for a verdict.
pub(crate) const MIN_DETECTABLE_SHIFT: f64 = 0.05;

/// The end of the sentence when the requests are too few. `points`: the shift that they detect, percentage points.
pub(crate) fn too_few(points: f64) -> String {
    format!("too few requests to tell (a shift of {points:.1} points would be seen half the time; raise --count)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binomial_test_is_the_exact_one() {
        // By hand: 10 throws of a fair coin, 9 heads: 2 * (10 + 1) / 1024.
        assert!((binomial(9, 10, 0.5) - 22.0 / 1024.0).abs() < 1e-12);
        assert!((binomial(5, 10, 0.5) - 1.0).abs() < 1e-12);
        assert_eq!(binomial(1, 10, 0.0), 0.0);
        assert_eq!(binomial(0, 10, 0.0), 1.0);
    }

    #[test]
    fn an_80_20_split_fails_where_90_10_was_promised_and_89_11_passes() {
        assert!(binomial(200, 1000, 0.10) < ALPHA);
        assert!(binomial(110, 1000, 0.10) > 0.1);
        assert!(binomial(890, 1000, 0.90) > 0.1);
    }

    #[test]
    fn a_thousand_requests_notice_4_5_points_at_90_10_and_a_hundred_tell_too_little() {
        let shift = detectable(1000, 0.1, ALPHA) * 100.0;
        assert!((4.3..4.7).contains(&shift), "{shift}");
        assert_eq!(format!("{shift:.1}"), "4.5");
        assert!((detectable(1000, 0.9, ALPHA) * 100.0 - shift).abs() < 1e-6);
        assert!(detectable(100, 0.1, ALPHA) > MIN_DETECTABLE_SHIFT);
        assert!(detectable(5, 0.5, ALPHA) >= 0.5);
    }

    #[test]
    fn a_rate_of_100_notices_the_first_exception() {
        // One request in a hundred is enough to prove it wrong: half the time that needs 0.7 % of the traffic.
        assert!(detectable(100, 1.0, ALPHA) < 0.008);
    }
}
