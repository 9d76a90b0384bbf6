//! Numbers, durations and addresses, appended to a byte buffer. The request path writes many of them for each request.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderValue;

/// The value that a share `q` (0 to 1) of the sorted `values` does not exceed; `None` without values.
pub(crate) fn percentile<T: Copy>(values: &[T], q: f64) -> Option<T> {
    let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len().max(1));
    values.get(rank - 1).copied()
}

/// Appends an unsigned number.
pub(crate) fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The numbers below 1,000, each with three digits.
static DIGITS: [u8; 3000] = {
    let mut digits = [b'0'; 3000];
    let mut at = 0;
    while at < 3000 {
        let n = at / 3;
        (digits[at], digits[at + 1], digits[at + 2]) =
            (b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8);
        at += 3;
    }
    digits
};

/// A number as the value of a header. One below 1,000 needs no memory of its own, and so none of four allocations.
pub(crate) fn header_value(number: u32) -> HeaderValue {
    let place = number as usize * 3;
    let leading = usize::from(number < 100) + usize::from(number < 10);
    match DIGITS.get(place + leading..place + 3).map(str::from_utf8) {
        Some(Ok(digits)) => HeaderValue::from_static(digits),
        _ => number.into(),
    }
}

/// Appends milliseconds with three decimals.
pub(crate) fn push_milliseconds(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    push_number(out, micros / 1000);
    let digit = |divisor: u64| b'0' + (micros / divisor % 10) as u8;
    out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
}

/// Appends an address.
pub(crate) fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        // The formatter pads and measures; four numbers need neither.
        IpAddr::V4(v4) => {
            let (mut text, mut end) = ([0; 16], 0);
            for octet in v4.octets() {
                let leading = usize::from(octet < 100) + usize::from(octet < 10);
                let first = usize::from(octet) * 3 + leading;
                // Three bytes whatever the number's length: what is too much is overwritten.
                text[end..end + 3].copy_from_slice(&DIGITS[first..first + 3]);
                end += 3 - leading;
                text[end] = b'.';
                end += 1;
            }
            out.extend_from_slice(&text[..end - 1]);
        }
        IpAddr::V6(v6) => {
            let _ = write!(out, "{v6}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(percentile(&[7.0], 0.5), Some(7.0));
        assert_eq!(percentile::<f64>(&[], 0.5), None);
    }

    #[test]
    fn numbers_and_addresses_are_written_as_the_formatter_writes_them() {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        for number in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            assert_eq!(written(&|out| push_number(out, number)), number.to_string());
        }
        for number in (0..1010).chain([12_345, u32::MAX]) {
            assert_eq!(header_value(number), number.to_string());
        }
        for (micros, text) in [(0, "0.000"), (12_345, "12.345"), (1_000_007, "1000.007")] {
            assert_eq!(written(&|out| push_milliseconds(out, Duration::from_micros(micros))), text);
        }
        for text in ["0.0.0.0", "10.20.30.255", "255.255.255.255", "9.99.100.1", "::1", "2001:db8::1"] {
            assert_eq!(written(&|out| push_address(out, text.parse().unwrap())), text);
        }
    }
}
