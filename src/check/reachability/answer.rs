//! The answer of the first hop, or why there is none.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use crate::hop::reply::{Tree, embedded_replies};
use crate::text::causes;

/// The longest answer that is read, bytes.
pub(crate) const MAX_BODY: usize = 16 << 20;
/// The longest reply that is read, bytes: reading takes its length times its depth. A hop takes 1 MiB from each next hop.
const MAX_REPLY: usize = 8 << 20;
/// Header names of a message that are read; a hop takes 100.
const MAX_HEADERS: usize = 128;
/// Calls of one request that are read: twice as many as a hop lets one make by default.
const MAX_CALLS: usize = 2_000;

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct FrontAnswer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// From the connect to the last byte.
    pub(crate) took: Duration,
    /// From the connection, TLS included, to the last byte: a kept connection would have taken that.
    pub(crate) waited: Duration,
}

impl FrontAnswer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether a foreign app answered.
    pub(crate) fn is_foreign(&self) -> bool {
        Tree::parse(&self.body).is_err()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The reply of the chain, or the first one in the answer of a foreign app; `None` when nothing of a hop is there.
    pub(crate) fn tree(&self) -> Option<Tree> {
        let body = Some(&self.body).filter(|body| body.len() <= MAX_REPLY)?;
        let mut tree = match Tree::parse(body) {
            Ok(tree) => tree,
            Err(_) => Tree::parse(embedded_replies(body).first()?.as_bytes()).ok()?,
        };
        bound(&mut tree, &mut MAX_CALLS.clone());
        Some(tree)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestFailure {
    TimedOut,
    /// No connection.
    Connect(String),
    /// The connection ended before the answer did.
    Closed(String),
    /// What came is no HTTP.
    NotHttp(String),
    TooLarge,
}

impl std::fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no whole answer in time"),
            Self::Connect(why) => write!(f, "no connection: {why}"),
            Self::Closed(why) => write!(f, "connection closed before an answer ({why})"),
            Self::NotHttp(why) => write!(f, "the answer is no HTTP ({why})"),
            Self::TooLarge => write!(f, "the answer is longer than {} MiB", MAX_BODY >> 20),
        }
    }
}

impl RequestFailure {
    /// `error.type` of the request's span.
    pub(crate) fn error_type(&self) -> &'static str {
        match self {
            Self::TimedOut => "timeout",
            Self::Connect(_) => "connect",
            Self::Closed(_) => "closed",
            Self::NotHttp(_) => "broken_answer",
            Self::TooLarge => "too_large",
        }
    }

    pub(crate) fn of(error: &reqwest::Error) -> Self {
        let mut texts = Vec::new();
        let mut source: Option<&dyn std::error::Error> = Some(error);
        let mut reset = false;
        while let Some(inner) = source {
            texts.push(inner.to_string());
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                use std::io::ErrorKind;
                reset |= matches!(io.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe);
            }
            source = inner.source();
        }
        let last = texts.pop().unwrap_or_default();
        if error.is_timeout() {
            Self::TimedOut
        } else if error.is_connect() {
            Self::Connect(last)
        } else {
            Self::of_texts(&(texts.join(": ") + &last), last, reset)
        }
    }

    /// What ended a connection that was there.
    pub(crate) fn of_hyper(error: &hyper::Error) -> Self {
        let all = causes(error);
        Self::of_texts(&all, all.clone(), false)
    }

    fn of_texts(all: &str, last: String, reset: bool) -> Self {
        if reset || ["closed", "reset", "incomplete", "eof"].iter().any(|word| all.to_ascii_lowercase().contains(word)) {
            Self::Closed(last)
        } else {
            Self::NotHttp(last)
        }
    }
}

/// Cuts a reply to what real hops can have put into it, so that what is compared with each other stays few. `left`: hops.
fn bound(tree: &mut Tree, left: &mut usize) {
    tree.received.0.truncate(MAX_HEADERS);
    tree.upstreams.truncate(*left);
    *left -= tree.upstreams.len();
    for call in &mut tree.upstreams {
        call.sent.0.truncate(MAX_HEADERS);
        call.embedded.truncate(*left);
        *left -= call.embedded.len();
        call.reply.iter_mut().chain(&mut call.embedded).for_each(|reply| bound(reply, left));
    }
}
