//! The validation of a next hop's answer before it is nested.

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::layout::is_usual;
use super::{MAX_HOPS, Reply, Representation};

/// A hop nests its next hop's reply three JSON levels deeper: in an object, in an array, in the reply. The last reply's calls may
/// have no reply, and nest two levels deeper than its own headers: the headers that were sent.
const MAX_DEPTH: usize = 3 * (MAX_HOPS as usize - 1) + 2;

/// How deep a nested reply may be where the depth of the whole answer is not counted.
const NESTED_DEPTH: usize = MAX_DEPTH / 2;

/// The text of a valid reply, to be written verbatim.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NestedReply<'a> {
    /// Without padding and what stands behind it, so that padding does not add up along a chain.
    text: &'a str,
    is_open: bool,
}

/// Why an answer is not nested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotNested {
    /// The answer is not the reply of a hop.
    NotAReply,
    /// It is one, with more replies below it than [`MAX_HOPS`] allows.
    TooDeep,
}

impl<'a> NestedReply<'a> {
    /// Validates an answer: every field of a reply is there once and has its type. A reply further down was validated by the
    /// hop that nested it; here it need only be a JSON object.
    ///
    /// # Errors
    ///
    /// [`NotNested`] when the answer is not a reply, or nests deeper than readers read.
    pub(crate) fn check(answer: &'a [u8]) -> Result<Self, NotNested> {
        // Validated here once, so that serde_json need not validate each string.
        let text = std::str::from_utf8(answer).map_err(|_| NotNested::NotAReply)?;
        let nested = Self::unpadded(text);
        if nested.is_usual() {
            return Ok(nested);
        }
        serde_json::from_str::<Reply<Checked>>(text).map_err(|_| NotNested::NotAReply)?;
        if nests_deeper(text, MAX_DEPTH) { Err(NotNested::TooDeep) } else { Ok(nested) }
    }

    /// Whether it is a reply that needs no parser to be recognised.
    fn is_usual(self) -> bool {
        let but_brace = if self.is_open { Some(self.text) } else { self.text.strip_suffix('}') };
        but_brace.is_some_and(|text| is_usual(text, NESTED_DEPTH))
    }

    fn unpadded(text: &'a str) -> Self {
        let padding = text.strip_suffix("\"}").map(|rest| rest.trim_end_matches(PADDING));
        match padding.and_then(|rest| rest.strip_suffix(PADDING_KEY)) {
            Some(text) => Self { text, is_open: true },
            None => Self { text, is_open: false },
        }
    }

    pub(crate) fn len(self) -> usize {
        self.text.len() + usize::from(self.is_open)
    }

    /// Appends the reply.
    pub(crate) fn push(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.text.as_bytes());
        if self.is_open {
            out.push(b'}');
        }
    }
}

const PADDING: char = 'x';
/// The field is no [`Reply`]'s: who reads it skips it.
const PADDING_KEY: &str = ",\"padding\":\"";

/// Makes a compact reply as long as `size`, where it is shorter.
pub(crate) fn pad(json: &mut Vec<u8>, size: usize) {
    const END: &[u8] = b"\"}";
    if let Some(missing) = size.checked_sub(json.len() - 1 + PADDING_KEY.len() + END.len()).filter(|_| json.pop().is_some()) {
        json.reserve_exact(PADDING_KEY.len() + missing + END.len());
        json.extend_from_slice(PADDING_KEY.as_bytes());
        json.resize(json.len() + missing, PADDING as u8);
        json.extend_from_slice(END);
    }
}

/// Whether arrays and objects of a valid JSON text nest deeper than `limit`.
fn nests_deeper(text: &str, limit: usize) -> bool {
    // A text does not nest deeper than it has brackets that open. For a short chain this bound, counted in pieces that the
    // compiler vectorises, is the whole answer.
    let opening = |piece: &[u8]| usize::from(piece.iter().map(|byte| u8::from(byte & !0x20 == b'[')).sum::<u8>());
    if text.as_bytes().chunks(128).map(opening).sum::<usize>() <= limit {
        return false;
    }
    let (mut depth, mut in_string) = (0_usize, false);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' => _ = bytes.next(),
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The [`Representation`] of a reply that is only validated: nothing is stored.
#[derive(Debug, Clone)]
enum Checked {}

impl Representation for Checked {
    type Text = AnyText;
    type Headers = AnyHeaders;
    type Nested = AnyObject;
}

#[derive(Debug, Clone)]
struct AnyText;

impl<'de> Deserialize<'de> for AnyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IsText;
        impl Visitor<'_> for IsText {
            type Value = AnyText;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E>(self, _: &str) -> Result<AnyText, E> {
                Ok(AnyText)
            }
        }
        deserializer.deserialize_str(IsText)
    }
}

#[derive(Debug, Clone)]
struct AnyHeaders;

impl<'de> Deserialize<'de> for AnyHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IsHeaders;
        impl<'de> Visitor<'de> for IsHeaders {
            type Value = AnyHeaders;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of header names with arrays of values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AnyHeaders, A::Error> {
                // A vector of values without size allocates nothing.
                while map.next_entry::<AnyText, Vec<AnyText>>()?.is_some() {}
                Ok(AnyHeaders)
            }
        }
        deserializer.deserialize_map(IsHeaders)
    }
}

#[derive(Debug, Clone)]
struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // `serde_json` skips a raw value without recursion, however deep it nests.
        let text = <&RawValue>::deserialize(deserializer)?;
        if text.get().starts_with('{') { Ok(Self) } else { Err(de::Error::custom("a reply is an object")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::reply::Tree;
    use crate::hop::reply::tests::LEAF;

    fn is_reply(text: &str) -> bool {
        NestedReply::check(text.as_bytes()).is_ok()
    }

    #[test]
    fn only_a_whole_reply_is_one() {
        let leaf: serde_json::Value = serde_json::from_str(LEAF).unwrap();
        assert!(is_reply(LEAF));
        let fields: Vec<_> = leaf.as_object().unwrap().keys().collect();
        assert_eq!(fields.len(), 26);
        // Hops of version 0.1 do not write these.
        let added = ["protocol", "request_bytes", "node", "zone", "region", "cluster"];
        for field in fields {
            let mut other = leaf.clone();
            other.as_object_mut().unwrap().remove(field);
            assert_eq!(is_reply(&other.to_string()), added.contains(&field.as_str()), "without {field}");
            let twice = LEAF.replacen('{', &format!("{{\"{field}\":{},", leaf[field]), 1);
            assert!(!is_reply(&twice), "{field} twice");
            for value in [
                "null",
                "true",
                "1",
                "-1",
                "1.5",
                "70000",
                "5000000000",
                "1e999",
                "\"x\"",
                "\"forward\"",
                "\"\\ud800\"",
                "[]",
                "{}",
                "[1]",
                "[{}]",
                "{\"delay_ms\":\"x\"}",
                "{\"a\":1}",
                "{\"a\":[1]}",
                "{\"ip\":\"1\"}",
            ] {
                let valid = leaf[field].to_string();
                let old = format!("{field:?}:{valid}");
                let compact = leaf.to_string();
                let other = compact.replacen(&old, &format!("{field:?}:{value}"), 1);
                assert!(other != compact || valid == value, "{field}: {value}");
                assert_eq!(is_reply(&other), Tree::parse(other.as_bytes()).is_ok(), "{field}: {value}");
            }
        }
        assert!(is_reply(&LEAF.replacen('{', "{\"new\":[1],", 1)), "a field of a newer version");
        for other in ["hello", "{}", "[]", "null", "{\"service\":\"x\"}", &LEAF[1..], &LEAF[..LEAF.len() - 1]] {
            assert!(!is_reply(other), "{other}");
        }
        let not_utf8 = LEAF.replacen("service2", "service\u{1}", 1).into_bytes();
        assert!(
            NestedReply::check(&not_utf8.iter().map(|byte| if *byte == 1 { 0xff } else { *byte }).collect::<Vec<_>>()).is_err()
        );
    }

    #[test]
    fn a_call_below_has_every_field_and_its_type() {
        let call = r#"{"url":"http://a","status":null,"duration_ms":1.0,"error":null,"sent":{},"reply":null}"#;
        let with = |call: &str| is_reply(&LEAF.replacen("\"upstreams\":[]", &format!("\"upstreams\":[{call}]"), 1));
        assert!(with(call));
        for field in ["\"url\":\"http://a\",", "\"status\":null,", "\"duration_ms\":1.0,", "\"error\":null,", "\"sent\":{},"] {
            assert!(!with(&call.replacen(field, "", 1)), "without {field}");
        }
        assert!(!with(&call.replacen(",\"reply\":null", "", 1)));
        for reply in ["1", "\"x\"", "[]", "true"] {
            assert!(!with(&call.replacen("\"reply\":null", &format!("\"reply\":{reply}"), 1)), "{reply}");
        }
        assert!(with(&call.replacen("\"reply\":null", "\"reply\":{\"a\":[1e999]}", 1)), "validated by the hop that nested it");
    }

    /// A compact reply of so many hops, one below the other, and at each hop a second call whose reply is a leaf.
    fn compact(hops: usize) -> String {
        let leaf = serde_json::to_string(&Tree::parse(LEAF.as_bytes()).unwrap()).unwrap();
        (1..hops).fold(leaf.clone(), |below, _| {
            let call = |reply: &str| {
                format!(
                    r#"{{"url":"http://a","protocol":null,"status":200,"duration_ms":1.0,"error":null,"sent":{{"b3":["0"]}},"reply":{reply}}}"#
                )
            };
            leaf.replacen("\"upstreams\":[]", &format!("\"upstreams\":[{},{}]", call(&below), call(&leaf)), 1)
        })
    }

    #[test]
    fn replies_are_recognised_and_checked_as_serde_would() {
        let serde = |text: &str| serde_json::from_str::<Reply<Checked>>(text).is_ok();
        let is_usual = |text: &str| NestedReply::unpadded(text).is_usual();
        let numbered = compact(2);
        let whole = numbered.replace("\\u001b[31m", "\\\"\\n");
        assert!(is_reply(&numbered) && !is_usual(&numbered), "{numbered}");
        assert!(is_reply(&whole) && is_usual(&whole), "{whole}");
        // Whatever becomes of a single byte, the verdict is that of serde.
        for at in 0..whole.len() {
            for byte in ["", "\"", "]", " ", "\\", "0", "-"] {
                let text = [&whole[..at], byte, &whole[at + 1..]].concat();
                assert_eq!(is_reply(&text), serde(&text), "{byte:?} at {at}");
            }
        }
        // Values of every type, and of every size, in every field.
        let values =
            ["null", "true", "0", "00", "-1", "1.5", "9999", "65536", "4294967296", "99999999999999999999", "1e9", "1e999"];
        let texts = r#""forward" "\ud800" "\/" "\x" [] {} [{}] {"b3":[]} {"b3":[1]} {"delay_ms":1} {"delay_ms":"1"}"#.split(' ');
        let leaf: serde_json::Value = serde_json::from_str(LEAF).unwrap();
        for (field, value) in leaf.as_object().unwrap() {
            for other in values.into_iter().chain(texts.clone()) {
                let text = whole.replacen(&format!("{field:?}:{value}"), &format!("{field:?}:{other}"), 1);
                assert_eq!(is_reply(&text), serde(&text), "{field}: {other}");
            }
        }
        // A name or a text that looks like the begin of a nested reply.
        for field in [
            r#""x":"\"reply\":{""#,
            r#""x":"\"reply\":{}""#,
            r#""x\"reply":{}"#,
            r#""x\"reply":{"a":[1]}"#,
            r#""x\\"reply":{}"#,
            r#""x":{"reply":{"reply":{}}}"#,
            r#""x":"reply":{}"#,
            r#""reply":{},"reply":{}"#,
        ] {
            let text = whole.replacen('{', &format!("{{{field},"), 1);
            assert_eq!(is_reply(&text), serde(&text), "{field}");
        }
    }

    #[test]
    fn padding_makes_a_reply_as_long_as_asked_and_is_not_nested() {
        let leaf = compact(1);
        for size in [0, leaf.len(), leaf.len() + 13, leaf.len() + 14, leaf.len() + 15, 10_000, 1 << 20] {
            let mut padded = leaf.clone().into_bytes();
            pad(&mut padded, size);
            let is_padded = size >= leaf.len() + 13;
            assert_eq!(padded.len(), if is_padded { size } else { leaf.len() }, "{size}");
            assert_eq!(Tree::parse(&padded).unwrap().service, "service2");
            let (nested, mut written) = (NestedReply::check(&padded).unwrap(), Vec::new());
            nested.push(&mut written);
            assert_eq!((written.len(), written), (nested.len(), leaf.clone().into_bytes()), "{size}");
        }
    }

    #[test]
    fn an_answer_that_nests_deeper_than_readers_read_is_too_deep() {
        let nested = |levels: usize| {
            let deep = format!("{{\"brackets\":\"\\\"[[[[\",\"deep\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
            let call = format!(r#"{{"url":"http://a","status":200,"duration_ms":1.0,"error":null,"sent":{{}},"reply":{deep}}}"#);
            LEAF.replacen("\"upstreams\":[]", &format!("\"upstreams\":[{call}]"), 1)
        };
        // The reply, its calls, the call and the nested object are four levels.
        assert!(is_reply(&nested(MAX_DEPTH - 4)));
        for levels in [MAX_DEPTH - 3, MAX_DEPTH, 10_000, 400_000] {
            assert_eq!(NestedReply::check(nested(levels).as_bytes()).unwrap_err(), NotNested::TooDeep, "{levels}");
        }
        // Below the first hop of the longest chain stand all others, and the last of them may have called in vain.
        let call = |reply: &str| {
            format!(r#"{{"url":"http://a","status":null,"duration_ms":1.0,"error":null,"sent":{{"b3":["0"]}},"reply":{reply}}}"#)
        };
        let chain = |hops: u32| {
            (0..hops).fold("null".to_owned(), |reply, _| {
                LEAF.replacen("\"upstreams\":[]", &format!("\"upstreams\":[{}]", call(&reply)), 1)
            })
        };
        assert!(is_reply(&chain(MAX_HOPS - 1)));
        assert_eq!(NestedReply::check(chain(MAX_HOPS).as_bytes()).unwrap_err(), NotNested::TooDeep);
        // Wide is not deep.
        let wide = LEAF.replacen("{", &format!("{{\"wide\":[{}0],", "[],".repeat(10_000)), 1);
        assert!(is_reply(&wide));
        for hostile in ["[".repeat(1 << 20), "{\"a\":".repeat(200_000), "{\"service\":[".repeat(80_000)] {
            assert_eq!(NestedReply::check(hostile.as_bytes()).unwrap_err(), NotNested::NotAReply);
        }
    }
}
