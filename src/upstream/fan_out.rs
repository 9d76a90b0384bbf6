//! Several next hops: how many are called at once, and how they share the request's call budget.

use std::fmt;
use std::str::FromStr;

/// `--fan-out`: how several next hops are called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FanOut {
    /// All at once.
    #[default]
    Parallel,
    /// So many at once: `parallel=4`.
    AtMost(usize),
    /// One after the other, in the configured order.
    Sequential,
}

impl FromStr for FanOut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number| (1..=1000).contains(number));
        match text {
            "parallel" => Ok(Self::Parallel),
            "sequential" => Ok(Self::Sequential),
            _ => text
                .strip_prefix("parallel=")
                .and_then(number)
                .map(Self::AtMost)
                .ok_or_else(|| "accepted are parallel, sequential, and parallel=N with N from 1 to 1000".to_owned()),
        }
    }
}

impl fmt::Display for FanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parallel => f.write_str("parallel"),
            Self::AtMost(number) => write!(f, "parallel={number}"),
            Self::Sequential => f.write_str("sequential"),
        }
    }
}

/// Divides a budget among `calls` calls: each call that is made costs one, and what is left is split evenly between them, the
/// remainder one each to the first. A call does not return what it leaves unused, because the others are under way by then.
pub(super) fn divided(budget: u32, calls: usize) -> impl Iterator<Item = Option<u32>> {
    let made = budget.min(u32::try_from(calls).unwrap_or(u32::MAX));
    let left = budget - made;
    let share = move |call| left / made + u32::from(call < left % made);
    (0..made).map(move |call| Some(share(call))).chain(std::iter::repeat(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_shares_are_the_budget_and_no_more() {
        for budget in [0, 1, 2, 9, 10, 11, 999, 1000, u32::MAX] {
            for calls in [0_usize, 1, 2, 3, 7, 10, 50] {
                let shares: Vec<_> = divided(budget, calls).take(calls).collect();
                let made: Vec<u32> = shares.iter().flatten().copied().collect();
                assert_eq!(made.len(), calls.min(budget as usize), "{budget} {calls}");
                assert!(shares[..made.len()].iter().all(Option::is_some), "the first are made: {shares:?}");
                if calls > 0 {
                    assert_eq!(made.iter().sum::<u32>() + made.len() as u32, budget, "{budget} {calls}: {made:?}");
                    assert!(made.iter().max().unwrap_or(&0) - made.iter().min().unwrap_or(&0) <= 1, "{made:?}");
                }
            }
        }
    }
}
