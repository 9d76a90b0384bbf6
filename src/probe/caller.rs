//! The app's caller: sends a request with exactly these headers, and collects the calls that the app makes meanwhile.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use reqwest::Url;

use crate::net::client::{builder, read_bounded};
use crate::net::trust::Trust;
use crate::probe::ProbeArgs;
use crate::probe::listener::{AppCall, Downstream, lock};
use crate::probe::sent::RunLog;
use crate::telemetry::ids;
use crate::text::causes;

/// After an answer, calls that the app makes in the background may still come.
pub(super) const BACKGROUND: Duration = Duration::from_millis(400);
/// So long is waited for a call that is certain or likely to come: a busy machine starts the app's own threads late.
const FIRST: Duration = Duration::from_secs(3);
/// Between two looks at the calls.
const POLL: Duration = Duration::from_millis(10);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 1 << 20;

/// A client of the app.
pub(super) struct AppClient {
    http: reqwest::Client,
    url: Url,
    method: Method,
    body: Option<String>,
    headers: HeaderMap,
    sent: Mutex<RunLog>,
}

/// What one request led to.
#[derive(Debug)]
pub(super) struct AppOutcome {
    /// The status of the app's answer, or why there is none.
    pub(super) status: Result<u16, String>,
    /// Where a redirect points.
    pub(super) location: Option<String>,
    pub(super) calls: Vec<AppCall>,
    pub(super) took: Duration,
    /// How long after the answer the last call came.
    pub(super) late: Duration,
}

impl AppOutcome {
    /// Whether the app gave no answer, or one of 5xx where `usual` is none.
    pub(super) fn has_failed(&self, usual: u16) -> bool {
        self.status.as_ref().map_or(true, |status| *status >= 500 && usual < 500)
    }

    /// How a request failed, after "it".
    pub(super) fn failure(&self) -> String {
        match &self.status {
            Ok(status) => format!("answers {status}"),
            Err(why) => format!("gives no answer ({why})"),
        }
    }
}

impl AppClient {
    /// # Errors
    ///
    /// The client cannot be built with the certificates of `--cacert`.
    pub(super) fn new(args: &ProbeArgs, trust: &Trust) -> Result<Self, String> {
        let tls = trust.config().map_err(|error| format!("--cacert: {error}"))?.0;
        let http = builder(tls).timeout(args.client.timeout).build().map_err(|error| causes(&error))?;
        let headers = args.client.headers.iter().cloned().collect();
        let (url, method, body) = (args.app_url.clone(), args.method.clone(), args.body.clone());
        Ok(Self { http, url, method, body, headers, sent: Mutex::default() })
    }

    /// Whether a nonce has a place in the URL or the body.
    pub(super) fn has_nonce(&self) -> bool {
        let decoded = self.url.as_str().replace("%7B", "{").replace("%7D", "}");
        decoded.contains("{nonce}") || self.body.as_deref().is_some_and(|body| body.contains("{nonce}"))
    }

    /// Sends one request. Does not wait for calls.
    pub(super) async fn send(&self, headers: &HeaderMap, nonce: &str) -> AppOutcome {
        let started = Instant::now();
        let url = self.url.as_str().replace("%7Bnonce%7D", nonce).replace("{nonce}", nonce);
        let mut request = self.http.request(self.method.clone(), url).headers(self.headers.clone());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(body) = &self.body {
            request = request.body(body.replace("{nonce}", nonce));
        }
        let mut location = None;
        let status = match request.send().await {
            Ok(mut answer) => {
                let found = answer.headers().get(http::header::LOCATION);
                location = found.and_then(|location| location.to_str().ok()).map(|to| to.replace(nonce, "{nonce}"));
                let status = answer.status().as_u16();
                read_bounded(&mut answer, MAX_ANSWER).await.map(|_| status).map_err(|error| causes(&error))
            }
            Err(error) => Err(causes(&error.without_url())),
        };
        AppOutcome { status, location, calls: Vec::new(), took: started.elapsed(), late: Duration::ZERO }
    }

    /// Sends one request and waits until the calls that it led to are there.
    pub(super) async fn ask(&self, downstream: &Downstream, headers: &HeaderMap, wait: Wait) -> AppOutcome {
        downstream.take();
        let nonce = ids::span_id().to_string();
        let mut outcome = self.send(headers, &nonce).await;
        let answered = Instant::now();
        let is_own = |call: &AppCall| !self.sent().is_of_another(call, &nonce);
        let expected = match wait {
            Wait::First => {
                let latest = self.sent().latest;
                until(downstream, 1, FIRST.max(latest + BACKGROUND), is_own).await;
                tokio::time::sleep(BACKGROUND).await;
                1
            }
            Wait::For { calls: Some(calls), patience, usual } => {
                // An app that answers otherwise than usual may have made no call at all.
                let is_usual = outcome.status.as_ref().is_ok_and(|status| *status == usual);
                until(downstream, calls, if is_usual { patience.max(FIRST) } else { patience }, is_own).await;
                if is_usual { calls } else { 0 }
            }
            Wait::For { calls: None, patience, .. } => {
                until(downstream, usize::MAX, patience, is_own).await;
                0
            }
        };
        let calls = downstream.take();
        outcome.calls = self.sent().take(headers, (&nonce, answered), expected, calls);
        outcome.late = outcome.calls.last().map_or(Duration::ZERO, |call| call.at.saturating_duration_since(answered));
        outcome
    }

    /// What was sent until now.
    pub(super) fn sent(&self) -> MutexGuard<'_, RunLog> {
        lock(&self.sent)
    }
}

/// Which calls a request is expected to lead to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// Nothing is known of the app yet.
    First,
    /// So many, or all that come in that time. `usual`: the status of answers to requests that lead to these calls.
    For { calls: Option<usize>, patience: Duration, usual: u16 },
}

async fn until(downstream: &Downstream, calls: usize, patience: Duration, is_own: impl Fn(&AppCall) -> bool) {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline && downstream.count(&is_own) < calls {
        tokio::time::sleep(POLL).await;
    }
}
