//! `grpc-timeout`: how long the caller of a gRPC method waits.

use std::time::Duration;

/// At most eight digits and a unit.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// In the finest unit that has no more than eight digits.
pub(crate) fn format(timeout: Duration) -> String {
    const MOST: u128 = 99_999_999;
    match (timeout.as_micros(), timeout.as_millis()) {
        (micros, _) if micros <= MOST => format!("{micros}u"),
        (_, millis) if millis <= MOST => format!("{millis}m"),
        _ => format!("{}S", timeout.as_secs().min(MOST as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_as_it_is_written() {
        for (text, timeout) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("5m", Duration::from_millis(5)),
            ("0u", Duration::ZERO),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(parse(text), Some(timeout), "{text}");
        }
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", " 1S", "1é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for timeout in [0, 1, 99_999_999, 100_000_000, 3_600_000_000, 400_000_000_000_u64].map(Duration::from_micros) {
            let text = format(timeout);
            assert!(text.len() <= 9 && parse(&text).is_some_and(|read| timeout - read < Duration::from_secs(1)), "{text}");
        }
    }
}
