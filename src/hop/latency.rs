//! The delay that a hop adds to every request.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::telemetry::draws::{DrawPlace, Draws};
use crate::values::parse_duration;

/// The longest delay that is accepted: a typing error must not delay requests for days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(3600);

/// A delay that every request gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Latency {
    /// None.
    #[default]
    None,
    /// Always the same.
    Fixed(Duration),
    /// Uniform between two bounds.
    Uniform(Duration, Duration),
    /// A smooth quantile function through the given points, straight in the logarithm of time.
    Quantiles(Quantiles),
}

/// Points of a quantile function: share of requests (0 to 1) and the logarithm of seconds, both rising, with the ends added.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantiles(Vec<(f64, f64)>);

impl Latency {
    /// The delay of the next request.
    pub(crate) fn sample(&self, draws: Draws) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(delay) => *delay,
            Self::Uniform(low, high) => *low + (*high - *low).mul_f64(draws.unit(DrawPlace::Latency, 0)),
            Self::Quantiles(quantiles) => quantiles.at(draws.unit(DrawPlace::Latency, 0)),
        }
    }
}

impl Latency {
    /// The longest delay that it can draw.
    pub(crate) fn longest(&self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(delay) | Self::Uniform(_, delay) => *delay,
            Self::Quantiles(quantiles) => quantiles.at(1.0),
        }
    }
}

impl Quantiles {
    fn at(&self, share: f64) -> Duration {
        let above = self.0.iter().position(|(point, _)| *point > share).unwrap_or(self.0.len() - 1).max(1);
        let ((left, low), (right, high)) = (self.0[above - 1], self.0[above]);
        Duration::from_secs_f64((low + (high - low) * (share - left) / (right - left)).exp())
    }
}

impl FromStr for Latency {
    type Err = String;

    /// `20ms`, `10ms..2s` or `p50=20ms,p90=80ms,p99=400ms`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('p') {
            return parse_quantiles(text).map(Self::Quantiles);
        }
        match text.split_once("..") {
            Some((low, high)) => {
                let (low, high) = (parse_delay(low)?, parse_delay(high)?);
                if low > high {
                    return Err(format!("{low:?} is above {high:?}; a range is written low..high, as in 10ms..2s"));
                }
                Ok(Self::Uniform(low, high))
            }
            None => match parse_delay(text)? {
                Duration::ZERO => Ok(Self::None),
                delay => Ok(Self::Fixed(delay)),
            },
        }
    }
}

fn parse_quantiles(text: &str) -> Result<Quantiles, String> {
    const FORM: &str = "percentiles are written p50=20ms,p90=80ms,p99=400ms, rising";
    let mut points: Vec<(f64, f64)> = Vec::new();
    for part in text.split(',') {
        let (name, delay) = part.trim().split_once('=').ok_or_else(|| format!("'{part}' is no percentile; {FORM}"))?;
        let percent = name.strip_prefix('p').and_then(|percent| percent.parse::<f64>().ok());
        let share = percent.map(|percent| percent / 100.0).filter(|share| *share > 0.0 && *share < 1.0);
        let share = share.ok_or_else(|| format!("'{name}' is not between p0 and p100; {FORM}"))?;
        let delay = parse_delay(delay)?;
        if delay.is_zero() {
            return Err(format!("{name} must be longer than 0; {FORM}"));
        }
        let point = (share, delay.as_secs_f64().ln());
        if points.last().is_some_and(|last| last.0 >= point.0 || last.1 > point.1) {
            return Err(format!("'{part}' falls below the point before it; {FORM}"));
        }
        points.push(point);
    }
    let (first, last) = (points[0].1, points[points.len() - 1].1);
    points.insert(0, (0.0, first - std::f64::consts::LN_2));
    points.push((1.0, last + std::f64::consts::LN_2));
    Ok(Quantiles(points))
}

pub(crate) fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = parse_duration(text)?;
    if delay > MAX_DELAY { Err(format!("'{text}' is longer than an hour")) } else { Ok(delay) }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = |delay: &Duration| humantime::format_duration(*delay).to_string().replace(' ', "");
        match self {
            Self::None => f.write_str("0"),
            Self::Fixed(delay) => f.write_str(&written(delay)),
            Self::Uniform(low, high) => write!(f, "{}..{}", written(low), written(high)),
            Self::Quantiles(Quantiles(points)) => {
                let inner = points.get(1..points.len().saturating_sub(1)).unwrap_or_default();
                let written = |(share, log): &(f64, f64)| {
                    let nanos = (log.exp() * 1e6).round() * 1e3;
                    format!("p{}={}", (share * 1e8).round() / 1e6, written(&Duration::from_nanos(nanos as u64)))
                };
                f.write_str(&inner.iter().map(written).collect::<Vec<_>>().join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_read_in_its_three_forms() {
        assert_eq!("0".parse(), Ok(Latency::None));
        assert_eq!("20ms".parse(), Ok(Latency::Fixed(Duration::from_millis(20))));
        assert_eq!("10ms..2s".parse(), Ok(Latency::Uniform(Duration::from_millis(10), Duration::from_secs(2))));
        assert!(matches!("p50=20ms,p90=80ms,p99=400ms".parse(), Ok(Latency::Quantiles(_))));
    }

    #[test]
    fn bad_latency_says_what_is_accepted() {
        for bad in [
            "",
            "ten",
            "10",
            "2s..10ms",
            "10s..2s",
            "1h..2h",
            "p50",
            "p0=1ms",
            "p100=1ms",
            "p50=0",
            "p90=20ms,p50=10ms",
            "p50=20ms,p90=10ms",
            "p50=20ms,p50=20ms",
            "p50=20ms,",
            "-1s",
            "10ms..",
        ] {
            let error = bad.parse::<Latency>().unwrap_err();
            assert!(error.contains("written") || error.contains("unit") || error.contains("hour"), "{bad}: {error}");
        }
    }

    #[test]
    fn percentiles_are_met_by_a_smooth_distribution() {
        let latency: Latency = "p50=20ms,p90=80ms,p99=400ms".parse().unwrap();
        let mut drawn: Vec<f64> = (0..200_000).map(|_| latency.sample(Draws::random()).as_secs_f64() * 1e3).collect();
        drawn.sort_by(f64::total_cmp);
        let at = |share: f64| drawn[(share * drawn.len() as f64) as usize];
        // The figures' own standard error is below 0.5 % at p50 and below 3 % at p99.
        for (share, expected, tolerance) in [(0.5, 20.0, 0.03), (0.9, 80.0, 0.05), (0.99, 400.0, 0.15)] {
            assert!((at(share) / expected - 1.0).abs() < tolerance, "p{share}: {}", at(share));
        }
        // Not a step function: between the points the time goes up steadily.
        assert!((at(0.7) - 40.0).abs() < 2.0, "p70 is {} where the geometric mean is 40", at(0.7));
        assert!(drawn[0] >= 10.0 - 1e-6 && drawn[drawn.len() - 1] <= 800.0 + 1e-6);
        let distinct = drawn.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(distinct > 190_000, "only {distinct} different values");
    }

    #[test]
    fn a_latency_is_written_as_it_was_read() {
        for text in ["0", "20ms", "10ms..2s", "1s500ms", "p50=20ms,p90=80ms,p99.9=400ms"] {
            assert_eq!(text.parse::<Latency>().unwrap().to_string(), text);
        }
    }
}
