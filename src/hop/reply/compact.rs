//! A validator of compact JSON: what hops write, which has no whitespace between its tokens.
//!
//! A hop finds the end of the replies that its next hop nested, and whether they are JSON, with it: `serde_json` takes 2.5 times
//! as many instructions, and a reply is read once by each hop above it. `ARCHITECTURE.md` has the price. `layout` uses its parts.

/// What stands behind the JSON object that `text` begins with. `None` when it is not JSON, is not compact, or when its objects
/// and arrays nest deeper than `limit`.
pub(super) fn skip_object(text: &[u8], limit: usize) -> Option<&[u8]> {
    match text {
        [b'{', inside @ ..] => members(inside, limit.checked_sub(1)?),
        _ => None,
    }
}

/// Skips the rest of an object whose brace was read; `limit` is for what is inside.
fn members(mut rest: &[u8], limit: usize) -> Option<&[u8]> {
    if let [b'}', after @ ..] = rest {
        return Some(after);
    }
    loop {
        let [b'"', name @ ..] = rest else { return None };
        let [b':', text @ ..] = string::<true>(name)? else { return None };
        match value(text, limit)? {
            [b',', after @ ..] => rest = after,
            [b'}', after @ ..] => return Some(after),
            _ => return None,
        }
    }
}

/// Skips the elements that an array still has.
fn elements(mut rest: &[u8], limit: usize) -> Option<&[u8]> {
    loop {
        match value(rest, limit)? {
            [b',', after @ ..] => rest = after,
            [b']', after @ ..] => return Some(after),
            _ => return None,
        }
    }
}

#[inline(always)]
fn value(text: &[u8], limit: usize) -> Option<&[u8]> {
    match text {
        [b'"', inside @ ..] => string::<true>(inside),
        [b'{', inside @ ..] => members(inside, limit.checked_sub(1)?),
        [b'[', inside @ ..] => {
            let limit = limit.checked_sub(1)?;
            match inside {
                [b']', after @ ..] => Some(after),
                // The values of a header: nearly always one.
                [b'"', text @ ..] => match string::<true>(text)? {
                    [b']', after @ ..] => Some(after),
                    [b',', after @ ..] => elements(after, limit),
                    _ => None,
                },
                _ => elements(inside, limit),
            }
        }
        [b'n', b'u', b'l', b'l', after @ ..]
        | [b't', b'r', b'u', b'e', after @ ..]
        | [b'f', b'a', b'l', b's', b'e', after @ ..] => Some(after),
        _ => number(text),
    }
}

/// Skips the rest of a string whose first quote was read. `NUMBERED`: characters may be escaped by their number.
#[inline(always)]
pub(super) fn string<const NUMBERED: bool>(mut rest: &[u8]) -> Option<&[u8]> {
    const EACH: u64 = u64::MAX / 0xff;
    const HIGH_BITS: u64 = EACH << 7;
    loop {
        // Eight bytes at a time, to the first that is a quote or below it, a backslash or no ASCII: subtracting sets its high
        // bit. Bytes behind it may be found too, by a borrow.
        while let Some((bytes, after)) = rest.split_first_chunk() {
            let bytes = u64::from_le_bytes(*bytes);
            let to_quote = bytes.wrapping_sub(EACH * (b'"' as u64 + 1));
            let backslash = (bytes ^ (EACH * b'\\' as u64)).wrapping_sub(EACH);
            let found = (to_quote | backslash) & HIGH_BITS;
            if found != 0 {
                rest = &rest[found.trailing_zeros() as usize / 8..];
                break;
            }
            rest = after;
        }
        rest = match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', b'u', ..] if !NUMBERED => return None,
            [b'\\', escape @ ..] => escaped(escape)?,
            [byte, after @ ..] if *byte >= b' ' => after,
            _ => return None,
        };
    }
}

#[cold]
fn escaped(text: &[u8]) -> Option<&[u8]> {
    match text {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', after @ ..] => Some(after),
        [b'u', a, b, c, d, after @ ..] if [a, b, c, d].into_iter().all(u8::is_ascii_hexdigit) => Some(after),
        _ => None,
    }
}

pub(super) fn number(text: &[u8]) -> Option<&[u8]> {
    let mut rest = match text.strip_prefix(b"-").unwrap_or(text) {
        [b'0', after @ ..] => after,
        whole => digits(whole)?,
    };
    if let [b'.', fraction @ ..] = rest {
        rest = digits(fraction)?;
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        rest = digits(exponent.strip_prefix(b"-").or(exponent.strip_prefix(b"+")).unwrap_or(exponent))?;
    }
    Some(rest)
}

fn digits(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text;
    while let [b'0'..=b'9', after @ ..] = rest {
        rest = after;
    }
    (rest.len() < text.len()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use super::*;
    use crate::hop::reply::Tree;
    use crate::hop::reply::tests::LEAF;

    /// How many bytes the object at the begin of a text has.
    fn length(text: &str) -> Option<usize> {
        skip_object(text.as_bytes(), 100).map(|rest| text.len() - rest.len())
    }

    #[test]
    fn an_object_ends_where_serde_says() {
        let values = [
            "\"\"",
            "\"a\"",
            "\"1234567\"",
            "\"12345678\"",
            "\"123456789\"",
            r#""a \"quoted\" text, and more""#,
            r#""\\""#,
            r#""\u00e9\ud800\n""#,
            "\"é! 漢字\u{202e}\u{7f}\"",
            "0",
            "-0",
            "10",
            "1.5",
            "-1.25e-3",
            "1E+9",
            "null",
            "true",
            "false",
            "[]",
            "{}",
            "[1]",
            "[\"a\"]",
            "[\"a\",\"b\"]",
            "[\"a\",1,[],{}]",
            "[[\"a\"],\"b\"]",
            "{\"a\":1,\"b\":[{\"c\":null}]}",
        ];
        for value in values {
            for text in [format!("{{\"a\":{value}}}"), format!("{{\"a\":[{value},1],\"b\":{value}}}")] {
                assert!(serde_json::from_str::<IgnoredAny>(&text).is_ok(), "{text}");
                assert_eq!(length(&text), Some(text.len()), "{text}");
                assert_eq!(length(&format!("{text}}}]rest")), Some(text.len()), "{text}");
                // No text that is cut is whole.
                for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
                    assert_eq!(length(&text[..end]), None, "{}", &text[..end]);
                }
            }
        }
        let compact = serde_json::to_string(&Tree::parse(LEAF.as_bytes()).unwrap()).unwrap();
        assert_eq!(length(&compact), Some(compact.len()));
    }

    #[test]
    fn what_serde_refuses_is_no_object() {
        let values = [
            "",
            "a",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "1e",
            "1e+",
            "0x1",
            "nul",
            "True",
            "NaN",
            "'a'",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u123",
            "\"tab\there\"",
            "\"line\nend\"",
            "\"12345678\u{1f}\"",
            "[",
            "[1",
            "[1,]",
            "[,]",
            "[\"a\",]",
            "[\"a\"}",
            "]",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":1]",
            "{1:2}",
            "1 2",
            "\"a\"\"b\"",
        ];
        for value in values {
            for text in [format!("{{\"a\":{value}}}"), format!("{{\"b\":[{value}],\"a\":1}}")] {
                assert_eq!(serde_json::from_str::<IgnoredAny>(&text).is_ok(), length(&text) == Some(text.len()), "{text}");
            }
            assert_eq!(length(value), None, "{value}");
        }
        // Whitespace is left to serde.
        for text in ["{ }", "{\"a\": 1}", "{\"a\":1 }", " {}", "{\"a\":[1, 2]}"] {
            assert_eq!(length(text), None, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[1,", "]"), ("[\"a\",", "]")] {
            let nested = |levels: usize| format!("{{\"deep\":{}0{}}}", open.repeat(levels), close.repeat(levels));
            assert!(length(&nested(99)).is_some(), "{open}");
            for levels in [100, 100_000] {
                assert_eq!(length(&nested(levels)), None, "{open}");
            }
        }
        assert_eq!(skip_object(b"{}", 0), None);
        assert_eq!(skip_object(br#"{"a":[],"b":["c"]}"#, 1), None);
        assert_eq!(skip_object(br#"{"a":[],"b":["c"]}"#, 2), Some(&b""[..]));
    }
}
