//! What became of a call to a next hop.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use tonic::Code;

use crate::net::hosts::redacted_url;
use crate::rpc::status;
use crate::system::held::{Exhausted, Held, HeldKind};
use crate::trace_context::{BreakKind, HeaderPairs};

/// One call to a next hop, after it ended.
pub(crate) struct CallOutcome<'a> {
    /// Where the call went, as it is shown: without user, password and query.
    pub(crate) url: Cow<'a, str>,
    /// The status, also of an answer that did not arrive whole.
    pub(crate) status: Option<StatusCode>,
    /// As the reply shows it; `None` without an answer.
    pub(crate) protocol: Option<&'static str>,
    pub(crate) duration: Duration,
    /// `None` for a whole answer with a status of 2xx.
    pub(crate) failure: Option<CallError>,
    /// The carried headers as they were written.
    pub(crate) sent: HeaderPairs,
    /// What was broken on purpose in it.
    pub(crate) broke: Vec<BreakKind>,
    /// It failed and was repeated: the next one counts.
    pub(crate) repeated: bool,
    /// The whole answer; `None` when it did not arrive.
    pub(crate) answer: Option<Answer>,
}

impl<'a> CallOutcome<'a> {
    /// Of a call that nothing came of.
    pub(crate) fn not_called(url: Cow<'a, str>, failure: Option<CallError>) -> Self {
        Self {
            url,
            status: None,
            protocol: None,
            duration: Duration::ZERO,
            failure,
            sent: HeaderPairs::new(),
            broke: Vec::new(),
            repeated: false,
            answer: None,
        }
    }

    /// Whether another attempt may go better: there was no answer, or one of 5xx that is no loop.
    pub(crate) fn may_be_repeated(&self) -> bool {
        match &self.failure {
            None | Some(CallError::NoBudget(_) | CallError::Exhausted(_) | CallError::TooLarge) => false,
            Some(_) => self.status.is_none_or(|status| status.is_server_error() && status != StatusCode::LOOP_DETECTED),
        }
    }

    /// Which budget was used up when the answer was read.
    pub(crate) fn exhausted(&self) -> Option<HeldKind> {
        match self.failure {
            Some(CallError::Exhausted(Exhausted(kind))) => Some(kind),
            _ => None,
        }
    }
}

/// A whole answer of a next hop.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Of a gRPC call: the body is a message, and the status what its code means over HTTP.
    pub(crate) rpc: Option<RpcAnswer>,
    /// The body counts until it is dropped.
    pub(crate) held: Held,
}

/// The status of a gRPC call.
#[derive(Debug, Clone)]
pub(crate) struct RpcAnswer {
    pub(crate) code: Code,
    /// On one line.
    pub(crate) message: String,
}

/// Why a call failed. The sources have the details; [`causes`](crate::text::causes) writes all of them.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The whole answer was not there in time.
    Timeout(Duration),
    /// The next hop cannot be reached.
    Connect(Box<dyn StdError + Send + Sync>),
    /// The connection broke, or what came was not HTTP.
    Broken(Box<dyn StdError + Send + Sync>),
    /// More than [`MAX_ANSWER`](super::MAX_ANSWER).
    TooLarge,
    /// Not made, because `x-call-budget` was used up at the hop of this name.
    NoBudget(String),
    /// The answers of next hops together have as many bytes as the memory limit allows.
    Exhausted(Exhausted),
    /// Redirects are not followed: a hop makes the calls that it was configured to make. With the location, without its query.
    Redirect(StatusCode, String),
    /// Any other status outside 2xx.
    Status(StatusCode),
    /// Any other code of gRPC than OK, with its message.
    Rpc(Code, String),
    /// An answer to a gRPC call that is none.
    NotGrpc(&'static str),
}

const TIMEOUT: &str = "no whole answer within";
const CONNECT: &str = "cannot connect";
const BROKEN: &str = "broken answer";

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(limit) => write!(f, "{TIMEOUT} {limit:?}"),
            Self::Connect(_) => f.write_str(CONNECT),
            Self::Broken(_) => f.write_str(BROKEN),
            Self::TooLarge => f.write_str("too large"),
            Self::Exhausted(_) => f.write_str("no memory for the answer"),
            Self::NoBudget(hop) => {
                write!(f, "not called: {hop} has no call left for this request (x-call-budget, at most --max-calls)")
            }
            Self::Redirect(status, to) => write!(f, "redirect {} to {to} is not followed", status.as_u16()),
            Self::Status(status) => write!(f, "answered {status}"),
            Self::Rpc(code, message) if message.is_empty() => write!(f, "answered {}", status::name(*code)),
            Self::Rpc(code, message) => write!(f, "answered {}: {message}", status::name(*code)),
            Self::NotGrpc(why) => write!(f, "the answer is no answer of gRPC: {why}"),
        }
    }
}

impl StdError for CallError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Connect(source) | Self::Broken(source) => Some(&**source),
            _ => None,
        }
    }
}

impl CallError {
    /// Why a whole answer is a failure; `None` when it is none.
    pub(super) fn of(answer: &Answer) -> Option<Self> {
        let status = answer.status;
        if let Some(RpcAnswer { code, message }) = answer.rpc.as_ref().filter(|rpc| rpc.code != Code::Ok) {
            return Some(Self::Rpc(*code, message.clone()));
        }
        match answer.headers.get(header::LOCATION) {
            _ if status.is_success() => None,
            Some(to) if status.is_redirection() => {
                Some(Self::Redirect(status, redacted_url(&String::from_utf8_lossy(to.as_bytes()))))
            }
            _ => Some(Self::Status(status)),
        }
    }

    /// [`Self::kind`] of an error that a reply shows, for the kinds that its readers tell apart.
    pub(crate) fn kind_of(text: &str) -> Option<&'static str> {
        let kinds = [(TIMEOUT, "timeout"), (CONNECT, "connect"), (BROKEN, "broken_answer")];
        kinds.iter().find_map(|(beginning, kind)| text.starts_with(beginning).then_some(*kind))
    }

    /// `error.type`, where the status does not say it.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Timeout(_) => Some("timeout"),
            Self::Connect(_) => Some("connect"),
            Self::Broken(_) => Some("broken_answer"),
            Self::TooLarge => Some("too_large"),
            Self::NoBudget(_) => Some("call_budget"),
            Self::Exhausted(_) => Some("overload"),
            Self::Redirect(..) => Some("redirect"),
            Self::Rpc(code, _) => Some(status::name(*code)),
            Self::NotGrpc(_) => Some("not_grpc"),
            Self::Status(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::causes;

    #[test]
    fn the_kind_of_an_error_is_read_back_from_a_reply() {
        let read = ["timeout", "connect", "broken_answer"];
        for error in [
            CallError::Timeout(Duration::from_millis(300)),
            CallError::Connect("connection refused".into()),
            CallError::Broken("timed out".into()),
            CallError::TooLarge,
            CallError::NoBudget("cannot connect".to_owned()),
            CallError::Exhausted(Exhausted(HeldKind::Answer)),
            CallError::Redirect(StatusCode::FOUND, "http://timeout/".to_owned()),
            CallError::Status(StatusCode::GATEWAY_TIMEOUT),
            CallError::Rpc(Code::DeadlineExceeded, "no whole answer within 1s".to_owned()),
            CallError::NotGrpc("broken answer"),
        ] {
            assert_eq!(CallError::kind_of(&causes(&error)), error.kind().filter(|kind| read.contains(kind)), "{error}");
        }
    }
}
