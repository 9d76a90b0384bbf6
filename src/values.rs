//! The parsers of values that people write: in flags, in variables and on the demo's page.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Serialize;

/// The longest duration that is accepted.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// `NAME: VALUE` or `NAME:VALUE`.
pub(crate) fn header_pair(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

/// A header that `check` and `probe` do not send by themselves.
pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = header_pair(text).ok_or("accepted: `NAME: VALUE`")?;
    let own = ["traceparent", "tracestate", "b3", "x-request-id", "x-lane", "host", "connection", "content-length"];
    if own.contains(&name.as_str()) || name.as_str().starts_with("x-b3-") {
        return Err(format!("the command sends {name} itself; accepted: any other header"));
    }
    Ok((name, value))
}

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq)]
pub enum InvalidDuration {
    /// It is no number with a unit.
    Malformed(humantime::DurationError),
    /// Longer than a year.
    TooLong,
}

impl fmt::Display for InvalidDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "{error}; a duration is a number with a unit, as in 20ms, 2s, 5m, or 0"),
            Self::TooLong => f.write_str("longer than a year"),
        }
    }
}

impl std::error::Error for InvalidDuration {}

impl From<InvalidDuration> for String {
    fn from(error: InvalidDuration) -> Self {
        error.to_string()
    }
}

/// A duration with a unit (`20ms`, `2s`, `1m 30s`), or `0`.
///
/// # Errors
///
/// The text is no duration, or longer than a year.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let duration = match text.trim() {
        "0" => Duration::ZERO,
        text => humantime::parse_duration(text).map_err(InvalidDuration::Malformed)?,
    };
    // A deadline that the clock cannot represent would be a panic.
    if duration > MAX_DURATION { Err(InvalidDuration::TooLong) } else { Ok(duration) }
}

/// A duration above zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration.is_zero() { Err("must be longer than 0".to_owned()) } else { Ok(duration) }
}

/// The parser of a whole number.
pub(crate) fn whole<N: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<N, String> + Clone {
    move |text| {
        let number = text.trim().parse().ok().filter(|number| range.contains(number)).and_then(|number| N::try_from(number).ok());
        number.ok_or_else(|| format!("accepted: a whole number from {} to {}", range.start(), range.end()))
    }
}

/// A percentage (`10%`, `0.5%`) as a share from 0 to 1; `None` when it is not from 0 % to 100 %.
pub(crate) fn parse_percent(text: &str) -> Option<f64> {
    Some(percent_number(text.strip_suffix('%')?)? / 100.0)
}

/// The lane label of the baseline.
pub(crate) const BASE_LANE: &str = "base";

/// A DNS label (RFC 1123), as Kubernetes names many things.
pub(crate) fn is_label(text: &str) -> bool {
    const LONGEST: usize = 63;
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !text.is_empty()
        && text.len() <= LONGEST
        && text.bytes().all(|byte| inner(byte) || byte == b'-')
        && [text.bytes().next(), text.bytes().last()].into_iter().flatten().all(inner)
}

/// A number from 0 to 100, without a sign for percent.
pub(crate) fn percent_number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

/// A share of 0 to 100 percent, with or without `%`.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    percent_number(text.strip_suffix('%').unwrap_or(text)).ok_or_else(|| "accepted: a percentage from 0 to 100".to_owned())
}

/// Requests per second, above 0 and at most 10,000.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    const HIGHEST: f64 = 10_000.0;
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= HIGHEST => Ok(rate),
        _ => Err("accepted: requests per second, above 0 and at most 10000".to_owned()),
    }
}

/// A share as a percentage. Shares are halves, tenths and the like: what was 7 % must not come back as 7.000000000000001.
pub(crate) fn percent_text(share: f64) -> String {
    format!("{}%", (share * 1e8).round() / 1e6)
}

/// Something that applies to a share of the requests: `WHAT@RATE`, and without a rate to all.
#[derive(Debug, Clone, PartialEq)]
pub struct Rated<K> {
    /// What it does.
    pub kind: K,
    /// The share of requests, from 0 to 1.
    pub share: f64,
}

impl<K: FromStr<Err = String>> FromStr for Rated<K> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, share) = match text.trim().rsplit_once('@') {
            Some((kind, rate)) => (kind, parse_percent(rate)),
            None => (text.trim(), Some(1.0)),
        };
        let share = share.ok_or_else(|| format!("the rate of '{text}' is not from 0% to 100%; it is written @10%"))?;
        Ok(Self { kind: kind.parse()?, share })
    }
}

impl<K: fmt::Display> fmt::Display for Rated<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if self.share < 1.0 { write!(f, "@{}", percent_text(self.share)) } else { Ok(()) }
    }
}

/// A kind of fault or of break, for people and for the demo's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Form {
    /// As it begins.
    pub(crate) name: &'static str,
    /// As it is written, with a value where it has one.
    pub(crate) example: &'static str,
    pub(crate) about: &'static str,
}

/// The examples of all, in a sentence.
pub(crate) fn examples(forms: &[Form]) -> String {
    let examples: Vec<_> = forms.iter().map(|form| form.example).collect();
    format!("{}, each with an optional rate, as in @10%", examples.join(", "))
}

/// A size in bytes: `65536`, `64KiB`, `1MiB`.
pub(crate) fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// A size as it is written.
pub(crate) fn size_text(bytes: usize) -> String {
    match bytes {
        bytes if bytes > 0 && bytes % (1 << 20) == 0 => format!("{}MiB", bytes >> 20),
        bytes if bytes > 0 && bytes % (1 << 10) == 0 => format!("{}KiB", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

/// A size of at most `MAX` bytes, or one drawn for each use between two: `10KiB`, `1KiB..1MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeRange<const MAX: usize> {
    low: usize,
    high: usize,
}

impl<const MAX: usize> SizeRange<MAX> {
    /// The size at `share` of the range, from 0 to 1.
    pub(crate) fn at(self, share: f64) -> usize {
        self.low + ((self.high - self.low) as f64 * share).round() as usize
    }
}

impl<const MAX: usize> fmt::Display for SizeRange<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&size_text(self.low))?;
        if self.low < self.high { write!(f, "..{}", size_text(self.high)) } else { Ok(()) }
    }
}

impl<const MAX: usize> FromStr for SizeRange<MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let bounds = parse_size(low).zip(parse_size(high)).filter(|(low, high)| low <= high && *high <= MAX);
        let (low, high) = bounds.ok_or_else(|| {
            format!("a size up to {}KiB is accepted, as in 10KiB, or a range, as in 1KiB..{}KiB", MAX >> 10, MAX >> 10)
        })?;
        Ok(Self { low, high })
    }
}

/// A label of an instance (name, version, lane): it goes into headers, logs and metrics.
pub(crate) fn parse_label(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if fits { Ok(text.to_owned()) } else { Err("1 to 128 printable ASCII characters are accepted".into()) }
}

/// A whole number from 1 on.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n >= 1).ok_or_else(|| "a whole number from 1 on is accepted".to_owned())
}

/// The name of a header.
pub(crate) fn header_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.trim().as_bytes()).map_err(|_| "not a header name".to_owned())
}

/// The largest N of `service<N>`.
pub(crate) const MAX_SERVICE_NUMBER: u16 = 9999;

/// The N of `service<N>`: 0 to 9999 without leading zeros.
pub(crate) fn service_number(digits: &str) -> Option<u16> {
    let canonical = digits == "0" || !digits.starts_with(['0', '+']);
    digits.parse().ok().filter(|n| canonical && *n <= MAX_SERVICE_NUMBER)
}

/// The address of a listener, as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// `None`: every address.
    pub host: Option<IpAddr>,
    /// 0 picks one.
    pub port: u16,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "accepted: :8080, 127.0.0.1:8080, [::]:8080";
        if let Some(port) = text.strip_prefix(':') {
            return port.parse().map(|port| Self { host: None, port }).map_err(|_| format!("'{port}' is not a port; {FORM}"));
        }
        let addr: SocketAddr = text.parse().map_err(|_| format!("not an address with a port; {FORM}"))?;
        Ok(Self { host: Some(addr.ip()), port: addr.port() })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(host) => SocketAddr::new(host, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_and_rates_have_bounds() {
        assert_eq!((percent("50"), percent("50%"), percent("50 %")), (Ok(50.0), Ok(50.0), Ok(50.0)));
        assert!(percent("50%%").is_err() && percent("%").is_err() && percent("101").is_err());
        assert!(rate("0").is_err() && rate("nan").is_err() && rate("-1").is_err() && rate("50").is_ok());
    }

    #[test]
    fn the_number_of_a_service_is_0_to_9999_without_leading_zeros() {
        assert_eq!(["0", "1", "9999"].map(service_number), [Some(0), Some(1), Some(9999)]);
        for bad in ["", "00", "01", "10000", "+1", "-1", "X", "1 "] {
            assert_eq!(service_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_duration_has_units_and_bounds() {
        for (text, seconds) in [("1m 30s", 90.0), ("1m30s", 90.0), ("250ms", 0.25), ("1.5s", 1.5)] {
            assert_eq!(positive_duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for bad in ["", "60", "s", "0", "0s", "-1s", "1x", "9999999h", "1.2.3s"] {
            assert!(positive_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_percentage_is_from_0_to_100() {
        assert_eq!(["0%", "2.5%", "100 %"].map(parse_percent), [Some(0.0), Some(0.025), Some(1.0)]);
        for bad in ["", "%", "10", "101%", "-1%", "NaN%"] {
            assert_eq!(parse_percent(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_size_has_a_unit_and_a_bound() {
        let at = |text: &str, share: f64| text.parse::<SizeRange<{ 64 << 10 }>>().map(|size| size.at(share));
        assert_eq!((at("0", 0.5), at("100", 0.0), at("64KiB", 1.0)), (Ok(0), Ok(100), Ok(64 << 10)));
        for text in ["0", "100", "64KiB", "1KiB..3000"] {
            assert_eq!(text.parse::<SizeRange<{ 64 << 10 }>>().unwrap().to_string(), text);
        }
        assert_eq!((at("1KiB..3KiB", 0.0), at("1KiB..3KiB", 0.5), at("1KiB..3KiB", 1.0)), (Ok(1024), Ok(2048), Ok(3072)));
        for bad in ["", "KiB", "1 KB", "-1", "1.5KiB", "65KiB", "1MiB", "3KiB..1KiB", "..", "1KiB..", "99999999999999999999"] {
            assert!(at(bad, 0.0).unwrap_err().contains("up to 64KiB"), "{bad}");
        }
    }
}
