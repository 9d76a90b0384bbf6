//! What makes the app fail, and what it does when its next hop fails, in the words of the report.

use std::collections::{BTreeMap, BTreeSet};

use http::HeaderMap;

use crate::probe::caller::AppOutcome;
use crate::probe::header_outcome;
use crate::probe::listener::ListenerMode;
use crate::probe::session::Session;
use crate::report::{CheckId, Finding, Hint};
use crate::text::counted;
use crate::trace_context::HeaderFamily;

/// Calls that came in the time of another request.
pub(super) fn late(session: &Session<'_>) -> Option<Finding> {
    let strays = session.caller.sent().strays;
    let text =
        format!("{} came so late after the answer that another request had been sent: not checked", counted(strays, "call"));
    (strays > 0).then(|| Finding::skip(CheckId::ProbeCalls, text))
}

/// Requests that the app failed, and not again, or also without headers.
pub(super) fn at_random(failed: usize) -> Option<Finding> {
    let text = format!(
        "The app fails at times whatever a request brings: {} of this run passed when sent again, or failed without headers, too",
        counted(failed, "request")
    );
    (failed > 0).then(|| Finding::skip(CheckId::ProbeReach, text))
}

/// Requests that the app failed: what it makes of their headers is not known.
pub(super) fn failed(failed: &[(&'static str, String)]) -> Option<Finding> {
    let (first, answer) = failed.first()?;
    let mut what: Vec<&str> = Vec::new();
    for (had, _) in failed {
        if !what.contains(had) {
            what.push(had);
        }
    }
    let requests = counted(failed.len(), "request");
    let text = format!("The app fails {requests} because of what they bring: it {answer} to {first}");
    let hint = Hint::new("the code that reads these headers fails, and its log says why; without them it answers");
    Some(Finding::fail(CheckId::ProbeReach, text, hint).lines(what.into_iter().map(str::to_owned)))
}

/// What became of an invalid context in a call.
fn of_invalid(headers: &HeaderMap, call: &HeaderMap) -> &'static str {
    let header = headers.keys().next().map_or("", http::HeaderName::as_str);
    let (before, after) = (header_outcome::values(headers, header), header_outcome::values(call, header));
    if after.is_empty() {
        "dropped"
    } else if before == after {
        "forwarded as it came"
    } else if HeaderFamily::ALL.iter().any(|family| family.has(header) && family.read(call).is_some()) {
        "replaced by a valid one"
    } else {
        "changed"
    }
}

/// Contexts that are not valid must harm nobody. With each: what was sent, what came of it, and whether it makes the app fail.
pub(super) fn invalid(results: &[(&'static str, HeaderMap, AppOutcome, bool)]) -> Finding {
    let id = CheckId::ProbeInvalid;
    let broken: Vec<&str> = results.iter().filter(|(.., is_blamed)| *is_blamed).map(|(name, ..)| *name).collect();
    let mut outcomes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, headers, outcome, _) in results {
        let whats: BTreeSet<&str> = outcome.calls.iter().map(|call| of_invalid(headers, &call.headers)).collect();
        let whats: Vec<&str> = if whats.is_empty() { vec!["no call"] } else { whats.into_iter().collect() };
        outcomes.entry(whats.join(" or ")).or_default().push(name);
    }
    let lines = outcomes.iter().map(|(what, names)| format!("{what}: {}", names.join("; ")));
    if broken.is_empty() {
        let summary: Vec<String> = outcomes.iter().map(|(what, names)| format!("{} {what}", names.len())).collect();
        let text = format!("{} invalid contexts make no request fail: {}", results.len(), summary.join(", "));
        return Finding::pass(id, text).lines(lines);
    }
    let text = format!("{} of {} invalid contexts make the app fail: {}", broken.len(), results.len(), broken.join("; "));
    Finding::fail(id, text, Hint::new("the code that reads the header does not expect an invalid one")).lines(lines)
}

/// What a failing next hop does to the answer, which is neither right nor wrong, and to the trace.
/// `without`: calls that do not go on with the trace, as repeated ones may.
pub(super) fn failures(session: &Session<'_>, results: &[(ListenerMode, AppOutcome)], without: usize) -> Finding {
    let lines = results.iter().map(|(mode, outcome)| {
        let what = match mode {
            ListenerMode::Answer => "answers",
            ListenerMode::Unavailable => "answers 503",
            ListenerMode::Reset => "resets the connection",
            ListenerMode::Hang => "never answers",
        };
        let calls = outcome.calls.len();
        let more = session.calls.is_some_and(|usual| calls > usual);
        let repeated = if more { format!(", {calls} calls: it repeats") } else { String::new() };
        let answer = match &outcome.status {
            Ok(status) => format!("the app answers {status} after {} ms", outcome.took.as_millis()),
            Err(_) if outcome.took >= session.args.client.timeout => {
                format!("no answer within {:?}: the app's client has no shorter timeout", session.args.client.timeout)
            }
            Err(why) => format!("the app gives no answer after {} ms ({why}): its handler fails", outcome.took.as_millis()),
        };
        let repeated = if calls == 0 { ", and makes no call" } else { &repeated };
        format!("it {what}: {answer}{repeated}")
    });
    if without > 0 {
        let calls: usize = results.iter().map(|(_, outcome)| outcome.calls.len()).sum();
        let text = format!("When its next hop fails, {without} of {calls} calls do not go on with the trace");
        let cause = "the code that repeats a call, or calls another hop instead, makes it without the headers of the first";
        return Finding::fail(CheckId::ProbeFailures, text, Hint::new(cause)).lines(lines);
    }
    Finding::pass(CheckId::ProbeFailures, "When its next hop fails").lines(lines)
}
