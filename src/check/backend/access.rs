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
    Unreachable(String),
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
            Self::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Self::TooLong => write!(f, "gives an answer that is longer than {} MiB", MAX_BODY >> 20),
            Self::Unreadable(why) => write!(f, "gives an answer that is not what the API says: {why}"),
        }
    }
}

impl BackendRefusal {
    /// How much it tells, where several were met.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Unreachable(_) => 0,
            Self::TimedOut => 1,
            Self::Status(404) => 2,
            _ => 3,
        }
    }

    fn of(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::TimedOut;
        }
        Self::Unreachable(root_cause(error))
    }

    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Status(401) => {
                "It wants a token or a password: --traces-header 'Authorization: Bearer TOKEN', or user and password in the URL"
            }
            Self::Status(403) => {
                "The credentials of --traces-header or of the URL have no right to read traces, or a proxy refuses this caller"
            }
            Self::Status(429) => {
                "It, or a gateway before it, limits how often it may be asked: run check again later, or at another address of it"
            }
            Self::Status(500..) => "The backend, its storage or the gateway before it fails: its log says why",
            Self::Redirect(..) => {
                "A login page stands before it: ask it inside the cluster, or send what the login gives by --traces-header"
            }
            Self::Errors(_) => "Its storage fails: its log says why",
            Self::TimedOut => "It is slower than --traces-wait, or a firewall drops the connection",
            Self::Unreachable(_) => "Nothing listens there",
            Self::TooLong => {
                "A trace with far more spans than one request makes, or it is no Jaeger query API and no Zipkin v2 API"
            }
            Self::Status(_) | Self::Unreadable(_) => "What answers there is no Jaeger query API and no Zipkin v2 API",
        }
    }
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
        let body = read_bounded(&mut answer, MAX_BODY).await.map_err(|error| BackendRefusal::of(&error))?;
        body.map(Some).ok_or(BackendRefusal::TooLong)
    }
}
