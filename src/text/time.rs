//! Times as text.

use std::cell::Cell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// As long as `2026-01-02T03:04:05Z`.
const LENGTH: usize = 20;

thread_local! {
    /// The second that this thread has written last, and its text: a busy hop writes thousands of times in one second.
    static WRITTEN: Cell<(u64, [u8; LENGTH])> = const { Cell::new((u64::MAX, [0; LENGTH])) };
}

/// Appends a time: RFC 3339, UTC, microseconds. A clock before 1970 is written as 1970.
pub(crate) fn push_time(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (second, mut text) = WRITTEN.get();
    if second != since.as_secs() {
        let _ = write!(&mut text[..], "{}", humantime::format_rfc3339_seconds(time.max(UNIX_EPOCH)));
        WRITTEN.set((since.as_secs(), text));
    }
    let mut micros = since.subsec_micros();
    let mut fraction = *b".000000Z";
    for digit in fraction[1..7].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    out.extend_from_slice(&text[..LENGTH - 1]);
    out.extend_from_slice(&fraction);
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
        // Another second, and other microseconds of one.
        assert_eq!(written(UNIX_EPOCH + Duration::from_secs(951_782_399)), "2000-02-28T23:59:59.000000Z");
        for micros in [1, 10, 999_999, 123_456, 0] {
            let time = UNIX_EPOCH + Duration::new(951_782_400, micros * 1000 + 999);
            assert_eq!(written(time), humantime::format_rfc3339_micros(time).to_string());
        }
        assert_eq!(written(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000000Z");
    }
}
