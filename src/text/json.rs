//! JSON on the request path: texts are written, and what a next hop answered is checked, without building anything.
//!
//! `serde_json` reads and writes everything else. Here it would be a quarter of what a hop of the chain does
//! (`ARCHITECTURE.md`, "What is deliberately not here"); the tests hold both to the same results.

use std::io::Write as _;

/// How deep arrays and objects may nest. One less than `serde_json` allows whoever reads the answer.
const MAX_DEPTH: u32 = 126;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Looks at eight bytes at once: marks, by its high bit, each byte that cannot stand in a JSON string as it is: a control
/// character, a quote or a backslash. The lowest mark is exact; above it there may be marks too many.
fn special(eight: [u8; 8]) -> u64 {
    let word = u64::from_le_bytes(eight);
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word;
    let equals = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | equals(b'"') | equals(b'\\')) & HIGH
}

/// Whether every byte is printable ASCII and neither quote nor backslash. Nearly all text is.
fn is_plain(text: &[u8]) -> bool {
    // Numbers instead of truth, pieces of a known length and no stop at the first is what the compiler makes vectors of.
    let odd = |byte: u8| u8::from(byte.wrapping_sub(b' ') > b'~' - b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\');
    fn any<const N: usize>(bytes: &[u8; N], odd: impl Fn(u8) -> u8) -> u8 {
        bytes.iter().fold(0, |any, byte| any | odd(*byte))
    }
    // The last piece overlaps those before: looking at a byte twice costs less than a loop over the rest.
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

/// Appends a JSON string, or null.
pub(crate) fn push_optional(out: &mut Vec<u8>, text: Option<&[u8]>) {
    match text {
        Some(text) => push_text(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// Visits the members of `text`, which must be one JSON object (RFC 8259) in UTF-8: each name as it is written, escapes
/// included, and the value's text. `None` when it is none, nests too deep, or `visit` wants no more.
pub(crate) fn members<'a>(text: &'a [u8], mut visit: impl FnMut(&'a [u8], &'a [u8]) -> Option<()>) -> Option<()> {
    std::str::from_utf8(text).ok()?;
    let mut reader = Reader { text, at: 0 };
    reader.expect(b'{')?;
    if reader.peek()? == b'}' {
        reader.at += 1;
    } else {
        loop {
            let name = reader.name()?;
            reader.space();
            let start = reader.at;
            reader.value()?;
            visit(name, &text[start..reader.at])?;
            match reader.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
    }
    reader.space();
    (reader.at == text.len()).then_some(())
}

/// A place in a text that is read as JSON. Every method leaves it behind what it took.
struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// The next byte, space or not.
    fn take(&mut self) -> Option<u8> {
        let byte = self.text.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// A member's name and the colon behind it.
    fn name(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let name = self.string()?;
        self.expect(b':')?;
        Some(name)
    }

    /// The inside of a string whose first quote is taken.
    fn string(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        loop {
            match self.text[self.at..].first_chunk::<8>() {
                Some(eight) => match special(*eight) {
                    0 => {
                        self.at += 8;
                        continue;
                    }
                    marks => self.at += marks.trailing_zeros() as usize / 8,
                },
                None => self.at += self.text[self.at..].iter().position(|byte| matches!(byte, 0..0x20 | b'"' | b'\\'))?,
            }
            match self.take()? {
                b'"' => return Some(&self.text[start..self.at - 1]),
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Option<()> {
        match self.take()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => match self.hex()? {
                // Half of a pair alone is no character.
                0xdc00..=0xdfff => None,
                0xd800..=0xdbff => {
                    self.text[self.at..].starts_with(b"\\u").then_some(())?;
                    self.at += 2;
                    matches!(self.hex()?, 0xdc00..=0xdfff).then_some(())
                }
                _ => Some(()),
            },
            _ => None,
        }
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text[self.at..].first_chunk::<4>()?;
        self.at += 4;
        digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
    }

    fn digits(&mut self) -> usize {
        let count = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        count
    }

    /// A number whose first byte is taken.
    fn number(&mut self, first: u8) -> Option<()> {
        let start = self.at - 1;
        let first = if first == b'-' { self.take()? } else { first };
        match first {
            b'0' => {}
            b'1'..=b'9' => _ = self.digits(),
            _ => return None,
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            (self.digits() > 0).then_some(())?;
        }
        let exponent = matches!(self.text.get(self.at), Some(b'e' | b'E'));
        if exponent {
            self.at += 1;
            self.at += usize::from(matches!(self.text.get(self.at), Some(b'+' | b'-')));
            (self.digits() > 0).then_some(())?;
        }
        // Only such a number can be larger than whoever reads it can hold.
        if exponent || self.at - start > 300 {
            let number = std::str::from_utf8(&self.text[start..self.at]).ok()?;
            number.parse().is_ok_and(f64::is_finite).then_some(())?;
        }
        Some(())
    }

    fn rest_of(&mut self, literal: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(literal).then_some(())?;
        self.at += literal.len();
        Some(())
    }

    /// A whole value, whatever it holds. Not by recursion: what is nested comes from the network.
    fn value(&mut self) -> Option<()> {
        // One bit for each container that is open: 1 for an object.
        let (mut depth, mut objects) = (0, 0_u128);
        loop {
            match self.next()? {
                b'"' => _ = self.string()?,
                open @ (b'{' | b'[') => {
                    depth += 1;
                    objects = objects << 1 | u128::from(open == b'{');
                    if depth >= MAX_DEPTH {
                        return None;
                    }
                    match (self.peek()?, open) {
                        (b'}', b'{') | (b']', b'[') => {}
                        (_, b'{') => {
                            self.name()?;
                            continue;
                        }
                        _ => continue,
                    }
                }
                b't' => self.rest_of(b"rue")?,
                b'f' => self.rest_of(b"alse")?,
                b'n' => self.rest_of(b"ull")?,
                first => self.number(first)?,
            }
            // A value has ended; what it stands in goes on or ends with it.
            loop {
                if depth == 0 {
                    return Some(());
                }
                match (self.next()?, objects & 1) {
                    (b',', 1) => {
                        self.name()?;
                        break;
                    }
                    (b',', _) => break,
                    (b'}', 1) | (b']', 0) => {
                        depth -= 1;
                        objects >>= 1;
                    }
                    _ => return None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_object(text: &[u8]) -> bool {
        members(text, |_, _| Some(())).is_some()
    }

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
    fn every_byte_is_seen_wherever_it_stands() {
        for length in 0..40 {
            for place in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    text[place] = byte;
                    let plain = matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
                    assert_eq!(is_plain(&text), plain, "{byte:#x} at {place} of {length}");
                }
            }
        }
    }

    #[test]
    fn an_object_is_what_serde_takes_for_one() {
        for (text, ok) in [
            ("{}", true),
            (" { } ", true),
            (r#"{"a":1,"b":[],"c":{},"d":[1,{"e":null}],"f":"x"}"#, true),
            (r#"{ "a" : [ 1 , true , false , null , "\u00e9\ud83d\ude00\n" ] }"#, true),
            (r#"{"a":-0.5e+10,"b":0,"c":10E-2}"#, true),
            (r#"{"a":01}"#, false),
            (r#"{"a":-}"#, false),
            (r#"{"a":1.}"#, false),
            (r#"{"a":.5}"#, false),
            (r#"{"a":1e}"#, false),
            (r#"{"a":+1}"#, false),
            (r#"{"a":tru}"#, false),
            (r#"{"a":"\x"}"#, false),
            (r#"{"a":"\ud83d"}"#, false),
            (r#"{"a":"\ude00"}"#, false),
            (r#"{"a":"\u00g0"}"#, false),
            (r#"{"a":[1,]}"#, false),
            (r#"{"a":[,]}"#, false),
            (r#"{"a":{"b"}}"#, false),
            (r#"{"a":{"b":1,}}"#, false),
            (r#"{"a":[}}"#, false),
            (r#"{"a":{]}"#, false),
            (r#"{"a":1,}"#, false),
            (r#"{"a":1 "b":2}"#, false),
            (r#"{"a" 1}"#, false),
            (r#"{a:1}"#, false),
            (r#"{"a":1"#, false),
            (r#"{"a":1}}"#, false),
            (r#"{"a":1} x"#, false),
            ("{\"a\":\"\n\"}", false),
            ("{\"a\":\"\t12345678\"}", false),
            ("", false),
            ("[]", false),
            ("1", false),
        ] {
            assert_eq!(is_object(text.as_bytes()), ok, "{text}");
            let serde = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text);
            assert_eq!(serde.is_ok(), ok, "{text}");
        }
        assert!(!is_object(b"{\"a\":\"\xff\"}"));
    }

    #[test]
    fn what_is_damaged_is_judged_as_serde_judges_it() {
        let whole = r#"{"s":"a\"b\\c\u00e9","n":[-1.5e3,0,12],"o":{"t":true,"f":false,"z":null,"e":[],"d":{}},"u":"é😀"}"#;
        let mut both = [0, 0];
        for at in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut text = whole.as_bytes().to_vec();
                text[at] = byte;
                for text in [&text[..], &text[..at], &[&text[..at], &text[at + 1..]].concat()] {
                    let serde = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(text).is_ok();
                    assert_eq!(is_object(text), serde, "{}", String::from_utf8_lossy(text));
                    both[usize::from(serde)] += 1;
                }
            }
        }
        assert!(both[0] > 10_000 && both[1] > 1_000, "{both:?}");
    }

    #[test]
    fn deep_nesting_ends_before_a_reader_that_recurses_gives_up() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(is_object(nested(125).as_bytes()));
        assert!(serde_json::from_str::<serde_json::Value>(&nested(125)).is_ok());
        for depth in [126, 127, 128, 129, 200, 100_000] {
            assert!(!is_object(nested(depth).as_bytes()), "{depth}");
        }
    }

    #[test]
    fn members_are_named_as_they_are_written() {
        let mut seen = Vec::new();
        members(br#" {"a" : [1, 2] ,"b\n":"x"} "#, |name, value| {
            seen.push((String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
            Some(())
        });
        assert_eq!(seen, [("a".into(), "[1, 2]".into()), (r"b\n".into(), "\"x\"".into())]);
        assert!(members(b"{\"a\":1,\"b\":2}", |name, _| (name == b"a").then_some(())).is_none());
    }
}
