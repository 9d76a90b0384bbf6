//! Lower-case hex digits.

/// Writes two digits per byte. `digits` has twice the length of `bytes`. `format!` goes by way of `u128`, at ten times the price.
pub(crate) fn encode(bytes: &[u8], digits: &mut [u8]) {
    // An id is one piece or two, and without a table the compiler vectorises a piece of a fixed size.
    let (pieces, rest) = bytes.as_chunks::<8>();
    let (whole, tail) = digits.split_at_mut(16 * pieces.len());
    for (piece, digits) in pieces.iter().zip(whole.as_chunks_mut::<16>().0) {
        write_pairs(piece, digits);
    }
    write_pairs(rest, tail);
}

#[inline]
fn write_pairs(bytes: &[u8], digits: &mut [u8]) {
    let digit = |value: u8| value + if value < 10 { b'0' } else { b'a' - 10 };
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
}

/// Appends two digits per byte.
pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + 2 * bytes.len(), 0);
    encode(bytes, &mut out[start..]);
}

/// The number of 16 digits of either case.
pub(crate) fn parse(digits: &[u8; 16]) -> Option<u64> {
    /// What no digit is worth.
    const NONE: u8 = 16;
    static VALUES: [u8; 256] = {
        let mut values = [NONE; 256];
        let mut value = 0;
        while value < 16 {
            let digit = b"0123456789abcdef"[value as usize];
            values[digit as usize] = value;
            values[digit.to_ascii_uppercase() as usize] = value;
            value += 1;
        }
        values
    };
    let (mut number, mut all) = (0_u64, 0);
    for digit in digits {
        let value = VALUES[usize::from(*digit)];
        (number, all) = (number << 4 | u64::from(value), all | value);
    }
    (all < NONE).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_formatter_at_every_length() {
        for length in 0..40_u8 {
            for first in [0, 9, 90, 0x9f, 0xf0] {
                let bytes: Vec<_> = (0..length).map(|i| i.wrapping_mul(29).wrapping_add(first)).collect();
                let mut out = b"-".to_vec();
                push_hex(&mut out, &bytes);
                let expected: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(String::from_utf8(out).unwrap(), format!("-{expected}"));
            }
        }
    }

    #[test]
    fn a_number_is_sixteen_digits_of_either_case_and_nothing_else() {
        for byte in 0..=u8::MAX {
            for place in 0..16 {
                let mut digits = *b"0123456789abCDEF";
                digits[place] = byte;
                let expected = str::from_utf8(&digits).ok().filter(|text| text.bytes().all(|digit| digit.is_ascii_hexdigit()));
                assert_eq!(parse(&digits), expected.map(|text| u64::from_str_radix(text, 16).unwrap()), "{byte:#x} at {place}");
            }
        }
    }
}
