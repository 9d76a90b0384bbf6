//! Error responses that are not a hop's reply: a proxy's message, or a problem document. They go into the `error` of the call, so
//! that the front of the chain shows them, and `check` parses them from there.

use std::fmt;

use http::{HeaderMap, header};

use crate::net::hosts::redacted_input;
use crate::text::PROBLEM_JSON;
use crate::text::misleads;

/// Longer texts, in bytes, are pages and dumps, and could echo a request; Envoy's own messages are shorter.
const MAX_MESSAGE: usize = 400;

/// The longest name of a server that is shown, in characters.
const MAX_SERVER: usize = 40;

/// Who sent an error response, and its message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ForeignResponse {
    /// The header `server`; empty without one.
    pub(crate) server: String,
    /// A short plain text, or the detail of a problem document, on one line; empty for an empty body. None for anything else.
    pub(crate) message: Option<String>,
}

impl ForeignResponse {
    /// Of a failed answer with these headers and this body.
    pub(crate) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let server = text(header::SERVER).chars().filter(|c| c.is_ascii_alphanumeric() || "-_./ ()".contains(*c));
        let kind = text(header::CONTENT_TYPE);
        let message = if kind.starts_with(PROBLEM_JSON) {
            detail(body)
        } else if body.is_empty() || kind.starts_with("text/plain") {
            std::str::from_utf8(body).ok().map(str::to_owned)
        } else {
            None
        };
        let message = message.filter(|message| message.len() <= MAX_MESSAGE).map(|message| one_line(&message));
        let server: String = server.take(MAX_SERVER).collect();
        Self { server: server.trim().to_owned(), message }
    }

    /// Reads back what [`Display`](fmt::Display) wrote at the end of `error`, after the status.
    pub(crate) fn parse(error: &str) -> Self {
        let (rest, server) = match error.strip_suffix(']').and_then(|rest| rest.rsplit_once(SERVER)) {
            Some((rest, server)) => (rest, server.to_owned()),
            None => (error, String::new()),
        };
        let message = match rest.split_once(": ") {
            Some((_, message)) => Some(message.to_owned()),
            None => rest.ends_with(EMPTY).then(String::new),
        };
        Self { server, message }
    }
}

const SERVER: &str = " [server ";
const EMPTY: &str = ", empty body";

impl fmt::Display for ForeignResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_deref() {
            Some("") => f.write_str(EMPTY)?,
            Some(message) => write!(f, ": {message}")?,
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

/// A message of another server on one line, cut where it is long.
pub(crate) fn quoted(message: &str) -> String {
    one_line(&message[..message.floor_char_boundary(MAX_MESSAGE)])
}

/// Replaces what could mislead a reader, and each run of spaces, by one space; URLs lose user, password and query.
fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|c| if misleads(c) { ' ' } else { c }).collect();
    let words = printable.split_whitespace().map(|word| if word.contains("://") { redacted_input(word) } else { word.into() });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_quoted_message_shows_no_secret_of_a_url() {
        let line = one_line("GET https://u:secret@h.example/a?token=secret failed, see http://h.example/b?code=secret");
        assert_eq!(line, "GET https://***@h.example/a failed, see http://h.example/b");
    }

    fn read(kind: &'static str, server: &'static str, body: &str) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::CONTENT_TYPE, kind), (header::SERVER, server)] {
            if !value.is_empty() {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        let response = ForeignResponse::read(&headers, body.as_bytes());
        let text = format!("answered 503 Service Unavailable{response}");
        assert_eq!(ForeignResponse::parse(&text), response, "{text}");
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
