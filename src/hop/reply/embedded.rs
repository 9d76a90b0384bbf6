//! Replies of hops in the answer of a foreign app, which calls hops and puts what they answered into JSON of its own.

use std::collections::{BTreeMap, VecDeque};

use serde_json::value::RawValue;

use super::NestedReply;

/// Replies that are taken from one answer.
const MAX_REPLIES: usize = 16;
/// How deep in the answer they are looked for; each level reads what is inside once more.
const MAX_DEPTH: usize = 24;
/// Objects and arrays that are looked into.
const MAX_VALUES: usize = 20_000;
/// A reply has more bytes than this.
const SHORTEST: usize = 200;

/// The replies in a JSON text that is no reply itself, wherever they stand in it, the outermost ones first. A text within the JSON that is JSON
/// itself counts, too: some apps quote what they got.
pub(crate) fn embedded_replies(answer: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(text) = std::str::from_utf8(answer) else { return found };
    let mut unread = VecDeque::from([(text.to_owned(), 0)]);
    let mut values = 0;
    while let Some((text, depth)) = unread.pop_front() {
        if found.len() == MAX_REPLIES || values == MAX_VALUES {
            break;
        }
        values += 1;
        if depth > 0 && text.starts_with('{') && NestedReply::check(text.as_bytes()).is_ok() {
            found.push(text);
        } else if depth < MAX_DEPTH {
            let inside = inside(&text);
            unread.extend(inside.into_iter().map(|text| (text, depth + 1)));
        }
    }
    found
}

/// The values of an object or an array that may be replies, or have some inside.
fn inside(text: &str) -> Vec<String> {
    let text = text.trim_start();
    let values: Vec<&RawValue> = match text.as_bytes().first() {
        // Of a name that stands there twice the last value counts, as for most readers.
        Some(b'{') => serde_json::from_str::<BTreeMap<String, &RawValue>>(text).unwrap_or_default().into_values().collect(),
        Some(b'[') => serde_json::from_str(text).unwrap_or_default(),
        _ => return Vec::new(),
    };
    let values = values.into_iter().map(RawValue::get).filter(|value| value.len() > SHORTEST);
    values
        .filter_map(|value| match value.as_bytes()[0] {
            b'{' | b'[' => Some(value.to_owned()),
            b'"' => serde_json::from_str::<String>(value).ok().filter(|text| text.trim_start().starts_with(['{', '['])),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::reply::Tree;
    use crate::hop::reply::tests::LEAF;

    fn services(answer: &str) -> Vec<String> {
        embedded_replies(answer.as_bytes()).iter().map(|text| Tree::parse(text.as_bytes()).unwrap().service).collect()
    }

    #[test]
    fn replies_are_found_wherever_they_stand() {
        let named = |name: &str| LEAF.replacen("service2", name, 1);
        let sorted: BTreeMap<String, serde_json::Value> = serde_json::from_str(LEAF).unwrap();
        let sorted = serde_json::to_string_pretty(&sorted).unwrap();
        let quoted = serde_json::to_string(LEAF).unwrap();
        let cases = [
            (format!(r#"{{"from":"catalog","downstream":{LEAF}}}"#), vec!["service2"]),
            (format!(r#" {{"a":[1,{{"b":{{"c":{sorted}}}}}]}}"#), vec!["service2"]),
            (format!("[{},{}]", named("one"), named("two")), vec!["one", "two"]),
            (format!(r#"{{"body":{quoted}}}"#), vec!["service2"]),
            (format!(r#"{{"body":{}}}"#, serde_json::to_string(&format!(r#"{{"body":{quoted}}}"#)).unwrap()), vec!["service2"]),
            (format!("<xml>{LEAF}</xml>"), vec![]),
            (LEAF.to_owned(), vec![]),
            (format!(r#"{{"downstream":{}}}"#, &LEAF[..LEAF.len() - 1]), vec![]),
            (format!(r#"{{"downstream":{}}}"#, LEAF.replacen("\"status\":200", "\"status\":\"200\"", 1)), vec![]),
            ("{}".to_owned(), vec![]),
            (String::new(), vec![]),
        ];
        for (answer, expected) in cases {
            assert_eq!(services(&answer), expected, "{answer}");
        }
    }

    #[test]
    fn a_hostile_answer_costs_little() {
        let many = format!("[{}{LEAF}]", format!("{LEAF},").repeat(1_000));
        assert_eq!(services(&many).len(), MAX_REPLIES);
        let deep = |levels: usize| format!("{}{LEAF}{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert_eq!((services(&deep(MAX_DEPTH)).len(), services(&deep(MAX_DEPTH + 1)).len()), (1, 0));
        for hostile in ["[".repeat(1 << 20), "{\"a\":".repeat(200_000), format!("[{}]", "[],".repeat(300_000))] {
            assert!(services(&hostile).is_empty());
        }
        let wide = format!("[{}1]", format!("[{}],", "1,".repeat(200) + "1").repeat(2_000));
        assert!(services(&wide).is_empty());
    }
}
