//! Lower-case hex digits.

/// Writes two digits per byte. `digits` has twice the length of `bytes`. `format!` goes by way of `u128`, at ten times the price.
pub(crate) fn encode(bytes: &[u8], digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let (pairs, _) = digits.as_chunks_mut();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

/// Appends two digits per byte.
pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + 2 * bytes.len(), 0);
    encode(bytes, &mut out[start..]);
}
