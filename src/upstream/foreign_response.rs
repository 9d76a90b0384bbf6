//! What a failed answer says that is no hop's reply: a proxy's own words, or a hop's problem document. It goes into the `error` of the
//! call, so that the front shows it, and `check` reads it from there again.

use std::fmt;

use http::{HeaderMap, header};

use crate::hop::error::PROBLEM_JSON;
use crate::text::json::misleads;

/// Longer texts are pages and dumps, and could repeat what somebody sent; Envoy's own sentences are shorter.
const MAX_WORDS: usize = 400;

/// The longest name of a server that is shown, in characters.
const MAX_SERVER: usize = 40;

/// Who answered, and what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stranger {
    /// What the header `server` says; empty without one.
    pub(crate) server: String,
    /// A short plain text, or the detail of a problem document, on one line; empty for an empty body. None for anything else.
    pub(crate) words: Option<String>,
}

impl Stranger {
    /// Of a failed answer with these headers and this body.
    pub(crate) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let server = text(header::SERVER).chars().filter(|c| c.is_ascii_alphanumeric() || "-_./ ()".contains(*c));
        let kind = text(header::CONTENT_TYPE);
        let words = if kind.starts_with(PROBLEM_JSON) {
            detail(body)
        } else if body.is_empty() || kind.starts_with("text/plain") {
            std::str::from_utf8(body).ok().map(str::to_owned)
        } else {
            None
        };
        let words = words.filter(|words| words.len() <= MAX_WORDS).map(|words| one_line(&words));
        let server: String = server.take(MAX_SERVER).collect();
        Self { server: server.trim().to_owned(), words }
    }

    /// What [`Display`](fmt::Display) wrote at the end of `error`, after the status.
    pub(crate) fn told(error: &str) -> Self {
        let (rest, server) = match error.strip_suffix(']').and_then(|rest| rest.rsplit_once(SERVER)) {
            Some((rest, server)) => (rest, server.to_owned()),
            None => (error, String::new()),
        };
        let words = match rest.split_once(": ") {
            Some((_, words)) => Some(words.to_owned()),
            None => rest.ends_with(EMPTY).then(String::new),
        };
        Self { server, words }
    }
}

const SERVER: &str = " [server ";
const EMPTY: &str = ", empty body";

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words.as_deref() {
            Some("") => f.write_str(EMPTY)?,
            Some(words) => write!(f, ": {words}")?,
            None => {}
        }
        if self.server.is_empty() { Ok(()) } else { write!(f, "{SERVER}{}]", self.server) }
    }
}

/// The detail of a problem document (RFC 9457), or its title.
pub(crate) fn detail(body: &[u8]) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    problem.get("detail").or_else(|| problem.get("title"))?.as_str().map(str::to_owned)
}

/// What could mislead a reader, and runs of spaces, are one space each.
fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|c| if misleads(c) { ' ' } else { c }).collect();
    printable.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(kind: &'static str, server: &'static str, body: &str) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::CONTENT_TYPE, kind), (header::SERVER, server)] {
            if !value.is_empty() {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        let stranger = Stranger::read(&headers, body.as_bytes());
        let text = format!("answered 503 Service Unavailable{stranger}");
        assert_eq!(Stranger::told(&text), stranger, "{text}");
        text
    }

    #[test]
    fn short_plain_texts_and_problems_are_quoted_and_read_back() {
        let says = |kind, server, body, end: &str| {
            assert_eq!(read(kind, server, body), format!("answered 503 Service Unavailable{end}"))
        };
        says("text/plain", "envoy", "no healthy upstream", ": no healthy upstream [server envoy]");
        says("text/plain", "", "no healthy upstream", ": no healthy upstream");
        says("", "istio-envoy", "", ", empty body [server istio-envoy]");
        says("", "", "", ", empty body");
        says(
            "application/problem+json",
            "",
            r#"{"title":"Service Unavailable","detail":"Too much: wait."}"#,
            ": Too much: wait.",
        );
        says("application/problem+json", "", r#"{"title":"Service Unavailable"}"#, ": Service Unavailable");
        says("text/plain; charset=utf-8", "", "two\r\n  lines\u{1b}[31m\u{202e}\n", ": two lines [31m");
    }

    #[test]
    fn pages_dumps_and_long_texts_are_not() {
        for (kind, body) in [
            ("text/html", "<script>alert(1)</script>"),
            ("application/json", r#"{"authorization":"Bearer x"}"#),
            ("application/problem+json", "no JSON"),
            ("", "of no type"),
            ("text/plain", &"x".repeat(401)),
        ] {
            assert_eq!(read(kind, "nginx/1.2", body), "answered 503 Service Unavailable [server nginx/1.2]", "{kind}");
        }
        assert_eq!(read("text/html", "]: <b>\"no", ""), "answered 503 Service Unavailable, empty body [server bno]");
    }
}
