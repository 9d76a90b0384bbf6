//! What every experiment needs.

use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use http::HeaderMap;

use crate::probe::ProbeArgs;
use crate::probe::caller::{AppClient, AppOutcome, Wait};
use crate::probe::listener::{Downstream, lock};
use crate::trace_context::{WireFormat, carried_names, is_trace_context};

/// Something that `--expect` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected(pub(super) String);

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.trim().to_ascii_lowercase();
        let formats = WireFormat::ALL.map(option_name);
        let known = formats.contains(&name.as_str()) || single_headers().any(|header| header == name);
        let accepted = "accepted: w3c, b3, b3-single, x-request-id, baggage, tracestate, or another carried header that is no part of these formats";
        if known { Ok(Self(name)) } else { Err(accepted.to_owned()) }
    }
}

/// The carried headers that are examined one by one: those that are no part of a format; `tracestate` is, and has a value of its own.
pub(super) fn single_headers() -> impl Iterator<Item = &'static str> {
    let first = ["x-request-id", "baggage", "tracestate"];
    first.into_iter().chain(carried_names().filter(move |name| !is_trace_context(name) && !first.contains(name)))
}

/// The name of a format in `--expect`.
pub(super) fn option_name(format: WireFormat) -> &'static str {
    match format {
        WireFormat::TraceContext => "w3c",
        WireFormat::B3Multi => "b3",
        WireFormat::B3 => "b3-single",
    }
}

/// One run against one app.
pub(super) struct Session<'a> {
    pub(super) args: &'a ProbeArgs,
    pub(super) caller: &'a AppClient,
    pub(super) downstream: &'a Downstream,
    /// Calls that each request leads to, where it is always the same number.
    pub(super) calls: Option<usize>,
    /// How long after an answer calls may still come.
    pub(super) patience: Duration,
    /// The status of the app's answer to a plain request.
    pub(super) status: u16,
    /// Formats whose trace goes on.
    pub(super) passing: Vec<WireFormat>,
    /// The request id arrives as it was sent.
    pub(super) request_id: bool,
    /// Requests of experiments on headers that the app failed: what they had, and how it answered.
    pub(super) failed: Mutex<Vec<(&'static str, String)>>,
    /// Requests that the app failed whatever they had.
    pub(super) at_random: Mutex<usize>,
}

/// Requests of one kind until one leads to a call, and until one is no failure.
const CALL_TRIES: usize = 3;
const FAILURE_TRIES: usize = 6;
/// The same where each takes the whole time.
const SLOW_TRIES: usize = 2;
/// Requests without headers, beside those that fail.
const PLAIN_TRIES: usize = 3;

impl Session<'_> {
    /// Sends one request and waits for its calls. Where it is known how many come, a late one ends the wait, so that it may be long.
    pub(super) async fn ask(&self, headers: &HeaderMap) -> AppOutcome {
        let wait = Wait::For { calls: self.calls, patience: self.patience, usual: self.status };
        self.caller.ask(self.downstream, headers, wait).await
    }

    /// The same, again where the app makes no call that it makes at other times.
    pub(super) async fn ask_until_called(&self, headers: &HeaderMap) -> AppOutcome {
        let mut outcome = self.ask(headers).await;
        for _ in 1..CALL_TRIES {
            if self.calls.is_some() || !outcome.calls.is_empty() || outcome.has_failed(self.status) {
                break;
            }
            outcome = self.ask(headers).await;
        }
        outcome
    }

    /// A request that the app fails is sent again, and one without headers: it may fail at random. Returns whether its headers are to blame.
    pub(super) async fn ask_again(&self, headers: &HeaderMap) -> (AppOutcome, bool) {
        let mut outcome = self.ask_until_called(headers).await;
        let mut tries = 1;
        // What gives no answer in time would take that long each time.
        let is_slow = |outcome: &AppOutcome| outcome.took >= self.args.client.timeout;
        while outcome.has_failed(self.status) && tries < if is_slow(&outcome) { SLOW_TRIES } else { FAILURE_TRIES } {
            outcome = self.ask(headers).await;
            tries += 1;
        }
        let mut is_blamed = outcome.has_failed(self.status);
        for _ in 0..PLAIN_TRIES {
            if !is_blamed {
                break;
            }
            is_blamed = !self.ask(&HeaderMap::new()).await.has_failed(self.status);
        }
        if tries > 1 && !is_blamed {
            *lock(&self.at_random) += 1;
        }
        (outcome, is_blamed)
    }

    /// The same of an experiment on headers. A request that the app fails shows nothing of them: its calls do not count.
    pub(super) async fn ask_about(&self, what: &'static str, headers: &HeaderMap) -> AppOutcome {
        if lock(&self.failed).iter().any(|(known, _)| *known == what) {
            return self.failed_once(what, self.ask(headers).await);
        }
        match self.ask_again(headers).await {
            (outcome, true) => self.failed_once(what, outcome),
            (mut outcome, false) => {
                if outcome.has_failed(self.status) {
                    outcome.calls.clear();
                }
                outcome
            }
        }
    }

    fn failed_once(&self, what: &'static str, mut outcome: AppOutcome) -> AppOutcome {
        if outcome.has_failed(self.status) {
            outcome.calls.clear();
            lock(&self.failed).push((what, outcome.failure()));
        }
        outcome
    }

    /// Whether the app failed a request because of what it brought.
    pub(super) fn failed_before(&self) -> bool {
        !lock(&self.failed).is_empty()
    }

    pub(super) fn expects(&self, name: &str) -> bool {
        self.args.expect.iter().any(|expected| expected.0 == name)
    }
}
