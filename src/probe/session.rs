//! What every experiment needs.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;

use crate::probe::ProbeArgs;
use crate::probe::caller::{AppClient, AppOutcome, Wait};
use crate::probe::listener::Downstream;
use crate::trace_context::{WireFormat, is_carried};

/// Something that `--expect` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected(pub(super) String);

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.trim().to_ascii_lowercase();
        let formats = WireFormat::ALL.map(option_name);
        let known = formats.contains(&name.as_str()) || is_carried(&name);
        let accepted = "accepted: w3c, b3, b3-single, x-request-id, baggage, tracestate, or another carried header";
        if known { Ok(Self(name)) } else { Err(accepted.to_owned()) }
    }
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
}

impl Session<'_> {
    /// Sends one request and waits for its calls. Where it is known how many come, a late one ends the wait, so that it may be long.
    pub(super) async fn ask(&self, headers: &HeaderMap) -> AppOutcome {
        let wait = Wait::For { calls: self.calls, patience: self.patience, usual: self.status };
        self.caller.ask(self.downstream, headers, wait).await
    }

    /// The same of an experiment on headers. A request that the app fails shows nothing of them: its calls do not count.
    pub(super) async fn ask_about(&self, what: &'static str, headers: &HeaderMap) -> AppOutcome {
        let mut outcome = self.ask(headers).await;
        let answer = match &outcome.status {
            Ok(status) if *status >= 500 && self.status < 500 => format!("answers {status}"),
            Ok(_) => return outcome,
            Err(why) => format!("gives no answer ({why})"),
        };
        outcome.calls.clear();
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push((what, answer));
        outcome
    }

    /// Whether the app failed a request because of what it brought.
    pub(super) fn failed_before(&self) -> bool {
        !self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn expects(&self, name: &str) -> bool {
        self.args.expect.iter().any(|expected| expected.0 == name)
    }
}
