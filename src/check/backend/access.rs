//! What is sent to the trace backend, and how it may refuse.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use reqwest::Url;

use crate::check::reachability::client::MAX_BODY;
use crate::net::client::{builder, read_bounded};
use crate::net::hosts::redacted_url;
use crate::net::trust::Trust;
use crate::text::root_cause;
use crate::values::header_pair;

/// A header for the backend, whose value is never shown, also where it cannot be read.
#[derive(Clone)]
pub struct SecretHeader(String);

impl std::fmt::Debug for SecretHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretHeader(***)")
    }
}

impl From<String> for SecretHeader {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl SecretHeader {
    /// The headers of all options.
    ///
    /// # Errors
    /// One line that names the flag and what is accepted.
    pub(crate) fn map(options: &[Self]) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for Self(text) in options {
            let (name, mut value) =
                header_pair(text).ok_or("--traces-header ***: accepted: a name and a value, `Authorization: Bearer TOKEN`")?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok(headers)
    }
}

/// Why the backend gives no traces. Each reads on from "the backend".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackendRefusal {
    Status(u16),
    /// Not followed: it would lead to a login page, or to a host that nobody named.
    Redirect(u16, String),
    /// Jaeger's own, in an answer of 200.
    Errors(String),
    TimedOut,
    /// No connection.
    Unreachable(String),
    /// There is no TLS, or none that is trusted.
    Tls(String),
    /// A connection that ended before an answer.
    Closed(String),
    /// An answer that ended early, of so many bytes.
    Cut(u16, Option<u64>),
    /// Compressed, which nobody asked for.
    Encoded(String),
    /// An answer of 200 to the first question, which neither API gives.
    Foreign(&'static str),
    TooLong,
    /// An answer that the API does not have.
    Unreadable(String),
}

impl std::fmt::Display for BackendRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(401) => f.write_str("answers 401: it asks for credentials"),
            Self::Status(403) => f.write_str("answers 403: it does not let this caller read"),
            Self::Status(429) => f.write_str("answers 429: it limits requests"),
            Self::Status(status @ 500..) => write!(f, "answers {status}: it fails itself"),
            Self::Status(status) => write!(f, "answers {status}"),
            Self::Redirect(status, to) => write!(f, "redirects ({status}) to {to}, which is not followed"),
            Self::Errors(message) => write!(f, "answers 200 with errors: {message}"),
            Self::TimedOut => f.write_str("gives no answer in time"),
            Self::Unreachable(why) | Self::Tls(why) => write!(f, "cannot be reached: {why}"),
            Self::Closed(why) => write!(f, "closes the connection without an answer: {why}"),
            Self::Cut(status, None) => write!(f, "answers {status} and ends the answer in the middle"),
            Self::Cut(status, Some(of)) => write!(f, "answers {status} and ends the answer before its {of} bytes are there"),
            Self::Encoded(how) => write!(f, "answers with content-encoding {how}, which was not asked for"),
            Self::Foreign(what) => write!(f, "answers 200 with {what}"),
            Self::TooLong => write!(f, "gives an answer that is longer than {} MiB", MAX_BODY >> 20),
            Self::Unreadable(why) => write!(f, "gives an answer that is not what the API says: {why}"),
        }
    }
}

impl BackendRefusal {
    /// How much it tells, where several were met.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Unreachable(_) | Self::Tls(_) => 0,
            Self::TimedOut => 1,
            Self::Status(404) => 2,
            Self::Foreign(_) => 3,
            _ => Self::DECISIVE,
        }
    }

    /// The rank of what a backend says itself.
    pub(super) const DECISIVE: u8 = 4;

    fn of(error: &reqwest::Error) -> Self {
        let why = root_cause(error);
        match () {
            () if error.is_timeout() => Self::TimedOut,
            () if error.is_connect() && is_of_tls(error) => Self::Tls(why),
            () if error.is_connect() => Self::Unreachable(why),
            () => Self::Closed(why),
        }
    }

    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::Status(401) => {
                "It wants a token or a password: --traces-header 'Authorization: Bearer TOKEN', or user and password in the URL"
            }
            Self::Status(403) => {
                "The credentials of --traces-header or of the URL have no right to read traces, or a proxy refuses this caller"
            }
            Self::Status(429) => {
                "It, or a gateway before it, limits how often it may be asked: ask again later, or at another address of it"
            }
            Self::Status(500..) => "The backend, its storage or the gateway before it fails: its log says why",
            Self::Redirect(..) => {
                "A login page stands before it, or it is at that other URL: ask it inside the cluster, send what the login gives by --traces-header, or give the URL"
            }
            Self::Errors(_) => "Its storage fails: its log says why",
            Self::TimedOut => "It is slower than --traces-wait, or a firewall drops the connection",
            Self::Unreachable(_) => "Nothing listens there: the name, the port or the port-forward is wrong",
            Self::Tls(_) => {
                "It has no TLS on this port, and the URL should begin with http, or its certificate is not trusted here"
            }
            Self::Closed(_) => {
                "It, or a proxy before it, ends connections, and its log says why; or it has TLS on this port, and the URL should begin with https"
            }
            Self::Cut(..) => "It, or a proxy before it, fails while it answers or limits how long answers are: its log says why",
            Self::Encoded(_) => "A gateway before it compresses each answer: switch that off there, or ask the backend itself",
            Self::Foreign(_) => "A login page, or something else than a Jaeger query API or a Zipkin v2 API",
            Self::TooLong => {
                "One trace has far more spans than one request makes, or what answers is no Jaeger query API and no Zipkin v2 API"
            }
            Self::Status(_) | Self::Unreadable(_) => "What answers there is no Jaeger query API and no Zipkin v2 API",
        }
    }
}

/// Whether a failure of rustls is below this error, or within one of those there.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || within.is_some_and(|error| is_of_tls(error)) || error.source().is_some_and(is_of_tls)
}

/// Asks the backend.
pub(super) struct Http {
    client: reqwest::Client,
    headers: HeaderMap,
    /// From the URL.
    user: Option<(String, Option<String>)>,
}

impl Http {
    /// A client for the backend at `url`, whose user and password it sends.
    ///
    /// # Errors
    ///
    /// rustls's and reqwest's, about the setup.
    pub(super) fn new(url: &Url, trust: &Trust, headers: HeaderMap, wait: Duration) -> Result<Self, String> {
        let client = builder(trust.config()?.0).timeout(wait).build().map_err(|error| error.to_string())?;
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = Some(decoded(url.username())).filter(|user| !user.is_empty() || url.password().is_some());
        Ok(Self { client, headers, user: user.map(|user| (user, url.password().map(decoded))) })
    }

    /// The body at a URL; `None` where there is nothing (404).
    pub(super) async fn fetch(&self, url: &str) -> Result<Option<Bytes>, BackendRefusal> {
        let mut request = self.client.get(url).header(http::header::ACCEPT, "application/json");
        if let Some((user, password)) = &self.user {
            request = request.basic_auth(user, password.as_ref());
        }
        let mut answer = request.headers(self.headers.clone()).send().await.map_err(|error| BackendRefusal::of(&error))?;
        let status = answer.status();
        if let Some(to) = answer.headers().get(http::header::LOCATION).filter(|_| status.is_redirection()) {
            let to = redacted_url(&String::from_utf8_lossy(to.as_bytes()));
            return Err(BackendRefusal::Redirect(status.as_u16(), to.escape_debug().to_string()));
        }
        if status == http::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(BackendRefusal::Status(status.as_u16()));
        }
        let encoding = answer.headers().get(http::header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity");
        if let Some(encoding) = encoding {
            return Err(BackendRefusal::Encoded(String::from_utf8_lossy(encoding.as_bytes()).escape_debug().to_string()));
        }
        let length = answer.content_length();
        let body = read_bounded(&mut answer, MAX_BODY).await.map_err(|error| match error.is_timeout() {
            true => BackendRefusal::TimedOut,
            false => BackendRefusal::Cut(status.as_u16(), length),
        })?;
        body.map(Some).ok_or(BackendRefusal::TooLong)
    }
}
