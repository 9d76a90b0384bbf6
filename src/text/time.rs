//! Times as text.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Appends a time: RFC 3339, UTC, microseconds. A clock before 1970 is written as 1970.
pub(crate) fn push_time(out: &mut Vec<u8>, time: SystemTime) {
    let _ = write!(out, "{}", humantime::format_rfc3339_micros(time.max(UNIX_EPOCH)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_time_is_utc_with_microseconds() {
        let written = |time| {
            let mut out = Vec::new();
            push_time(&mut out, time);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901)), "2026-01-02T03:04:05.678901Z");
        assert_eq!(written(UNIX_EPOCH + Duration::from_secs(951_782_399)), "2000-02-28T23:59:59.000000Z");
        assert_eq!(written(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000000Z");
    }
}
