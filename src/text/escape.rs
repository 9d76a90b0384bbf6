//! Text from elsewhere in log lines, in JSON strings and on terminals: it can neither end a line nor forge another one.

use std::borrow::Cow;
use std::io::Write as _;

/// Whether every byte is printable ASCII and neither quote nor backslash. Nearly all text is.
pub(crate) fn is_plain(text: &[u8]) -> bool {
    is_printable_without(text, *b"\"\\")
}

/// Whether every byte is printable ASCII and none of these.
pub(crate) fn is_printable_without<const OTHERS: usize>(text: &[u8], others: [u8; OTHERS]) -> bool {
    // Branch-free on pieces of a fixed size, so that the compiler vectorises it.
    let odd = |byte: u8| {
        others.iter().fold(u8::from(byte.wrapping_sub(b' ') > b'~' - b' '), |odd, other| odd | u8::from(byte == *other))
    };
    fn any<const N: usize>(bytes: &[u8; N], odd: impl Fn(u8) -> u8) -> u8 {
        bytes.iter().fold(0, |any, byte| any | odd(*byte))
    }
    // The last piece overlaps those before: testing a byte twice costs less than a loop over the rest.
    let found = if let Some(last) = text.last_chunk::<16>() {
        text.as_chunks::<16>().0.iter().fold(any(last, odd), |found, piece| found | any(piece, odd))
    } else if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        any(first, odd) | any(last, odd)
    } else {
        text.iter().fold(0, |found, byte| found | odd(*byte))
    };
    found == 0
}

/// Whether a character could end a line, forge another one, move a terminal's cursor or turn the direction of reading.
pub(crate) fn misleads(c: char) -> bool {
    // U+2028 and U+2029 end a line for some readers; C1 controls move some terminals' cursors.
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character takes no room on a terminal, so that two names that differ look alike. The joiners U+200C and U+200D, which
/// scripts and emoji need, are none of them.
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c), 0xad | 0x61c | 0x180e | 0x200b | 0x2060..=0x206f | 0xfeff | 0xfff0..=0xfffb | 0xe0000..=0xe0fff)
}

/// Whether a character is escaped on a terminal.
pub(crate) fn is_unsafe(c: char) -> bool {
    misleads(c) || is_invisible(c)
}

/// Appends a text as a JSON string's inside, and so that a line stays one line: what could end it, forge another one or move a
/// terminal's cursor is escaped, and so are quotes and backslashes. What is not UTF-8 is replaced.
pub(crate) fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        out.extend_from_slice(text);
        return;
    }
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            c if misleads(c) => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Appends a JSON string.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    push_escaped(out, text);
    out.push(b'"');
}

/// A text from elsewhere for a terminal: characters that could mislead its reader are escaped.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// At most `max` characters of a text from outside, escaped where it could mislead a reader.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == max {
            out.push('…');
            break;
        }
        if is_unsafe(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_text_cannot_end_its_line_and_is_json() {
        let mut out = Vec::new();
        push_escaped(&mut out, "a\r\nb\"c\\d\u{1b}[31m\u{9b}\u{2028}\u{202e}ü".as_bytes());
        let text = String::from_utf8(out).unwrap();
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{2028}'), "{text}");
        let json: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        assert_eq!(json, "a\r\nb\"c\\d\u{1b}[31m\u{9b}\u{2028}\u{202e}ü");
    }

    #[test]
    fn what_a_terminal_does_not_show_is_escaped() {
        for c in ['\u{ad}', '\u{61c}', '\u{180e}', '\u{200b}', '\u{2060}', '\u{feff}', '\u{e0041}', '\u{202e}', '\u{1b}', '\n'] {
            assert_eq!(plain(&format!("service{c}1")), format!("service{}1", c.escape_default()));
        }
        assert_eq!(plain("ü 👩\u{200d}💻"), "ü 👩\u{200d}💻");
    }

    #[test]
    fn every_byte_is_seen_wherever_it_stands() {
        for length in 0..40 {
            for place in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    text[place] = byte;
                    let plain = matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
                    assert_eq!(is_plain(&text), plain, "{byte:#x} at {place} of {length}");
                    assert_eq!(is_printable_without(&text, *b"\"\\@."), plain && !b"@.".contains(&byte), "{byte:#x} at {place}");
                }
            }
        }
    }
}
