//! Many requests at a time: does a call carry the context of another request? So fail thread-locals and contexts of tasks.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use opentelemetry::trace::TraceId;

use crate::probe::caller::AppOutcome;
use crate::probe::header_outcome::{self, written};
use crate::probe::listener::AppCall;
use crate::probe::session::Session;
use crate::report::{CheckId, Finding, Hint};
use crate::telemetry::ids;
use crate::text::counted;
use crate::trace_context::{Context, WireFormat};

/// After the last answer or call, so much longer than one at a time may calls in the background come.
const BACKGROUND: Duration = Duration::from_secs(2);

/// How to know whose a call is.
const NONCE: &str = "put {nonce} into the URL or --body where the app passes it on";

/// One request, recognisable by everything that it sent.
struct CrosstalkRequest {
    context: Context,
    request_id: String,
    nonce: String,
    outcome: AppOutcome,
}

/// Whose calls carried what.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    calls: usize,
    /// Carried another request's trace or id.
    crossed: usize,
    /// Carried no trace that was sent.
    without: usize,
    /// Whose they are is known from the call itself.
    matched: usize,
}

/// Sends `--count` requests, `--concurrency` at a time.
pub(super) async fn run(session: &Session<'_>) -> Finding {
    let count = session.args.count.unwrap_or(200) as usize;
    if let Some(leaked) = leaked(session) {
        return leaked;
    }
    if count == 0 {
        return Finding::skip(CheckId::ProbeCrossTalk, "Cross-talk: not checked (--count 0)");
    }
    let has_context = !session.passing.is_empty();
    if !has_context && !session.caller.has_nonce() {
        let text = "Cross-talk: not checked, because no trace context passes";
        return Finding::skip(CheckId::ProbeCrossTalk, text).line(NONCE);
    }
    session.downstream.take();
    let send = |_| async {
        let (context, nonce) = (header_outcome::fresh(), ids::span_id().to_string());
        // An app that passes none of them may still mix them up under load.
        let formats = if has_context { &session.passing[..] } else { &WireFormat::ALL };
        let formats: Vec<(WireFormat, Context)> = formats.iter().map(|format| (*format, context)).collect();
        let mut headers = written(&formats);
        let request_id = ids::request_id();
        headers.insert("x-request-id", request_id.clone());
        let outcome = session.caller.send(&headers, &nonce).await;
        let request_id = String::from_utf8_lossy(request_id.as_bytes()).into_owned();
        CrosstalkRequest { context, request_id, nonce, outcome }
    };
    let requests: Vec<CrosstalkRequest> =
        stream::iter(0..count).map(send).buffer_unordered(session.args.concurrency as usize).collect().await;
    let due = session.calls.unwrap_or(1) * count;
    let (mut seen, mut since) = (session.downstream.count(|_| true), Instant::now());
    while seen < due && since.elapsed() < BACKGROUND + session.patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let count = session.downstream.count(|_| true);
        if count != seen {
            (seen, since) = (count, Instant::now());
        }
    }
    let calls = session.downstream.take();
    let failed = requests.iter().filter(|request| request.outcome.status.as_ref().map_or(true, |status| *status >= 500)).count();
    let tally = tally(&requests, &calls, session);
    finding(session, count, failed, &tally)
}

fn tally(requests: &[CrosstalkRequest], calls: &[AppCall], session: &Session<'_>) -> Tally {
    let index = |key: fn(&CrosstalkRequest) -> &str| -> HashMap<&str, usize> {
        requests.iter().enumerate().map(|(n, request)| (key(request), n)).collect()
    };
    let by_trace: HashMap<TraceId, usize> =
        requests.iter().enumerate().map(|(n, request)| (request.context.trace_id, n)).collect();
    let by_id = index(|request| &request.request_id);
    let by_nonce = index(|request| &request.nonce);
    let has_nonce = session.caller.has_nonce();
    let mut tally = Tally { calls: calls.len(), ..Tally::default() };
    let mut of_trace = vec![0; requests.len()];
    for call in calls {
        let carried = trace_of(call).and_then(|trace| by_trace.get(&trace).copied());
        let nonce = has_nonce.then(|| call.find(|word| by_nonce.get(word).copied())).flatten();
        let id = session.request_id.then(|| header_outcome::values(&call.headers, "x-request-id").pop()).flatten();
        let owner = nonce.or_else(|| by_id.get(id?.as_str()).copied());
        tally.matched += usize::from(owner.is_some());
        let sent_by = header_outcome::values(&call.headers, "x-request-id").pop().and_then(|id| by_id.get(id.as_str()).copied());
        if nonce.is_some() && sent_by.is_some() && sent_by != nonce {
            tally.crossed += 1;
            continue;
        }
        let is_earlier = || trace_of(call).is_some_and(|trace| session.caller.sent().has(trace));
        match (carried, owner) {
            (None, _) if is_earlier() => tally.crossed += 1,
            (None, _) => tally.without += 1,
            (Some(carried), Some(owner)) if carried != owner => tally.crossed += 1,
            (Some(carried), _) => of_trace[carried] += 1,
        }
    }
    // A trace that is in more calls than each request makes has taken those of others.
    if let Some(each) = session.calls {
        let lent: usize = of_trace.iter().map(|count: &usize| count.saturating_sub(each)).sum();
        tally.crossed = tally.crossed.max(lent);
    }
    tally
}

fn trace_of(call: &AppCall) -> Option<TraceId> {
    header_outcome::trace_ids(&call.headers).first().copied()
}

/// Calls that carry the trace of an earlier request although one request was sent at a time.
fn leaked(session: &Session<'_>) -> Option<Finding> {
    let sent = session.caller.sent();
    let text = format!(
        "{} of {} calls carry the trace of an earlier request, although one request was sent at a time",
        sent.leaked, sent.calls
    );
    let cause = "the context is in a thread-local, a global or a client made once, and stays there when its request has ended";
    (sent.leaked > 0).then(|| Finding::fail(CheckId::ProbeCrossTalk, text, Hint::new(cause)))
}

fn finding(session: &Session<'_>, count: usize, failed: usize, tally: &Tally) -> Finding {
    let at_a_time = session.args.concurrency.min(u32::try_from(count).unwrap_or(u32::MAX));
    let sent = format!("{}, {at_a_time} at a time", counted(count, "request"));
    let failures = if failed == 0 { String::new() } else { format!("; {failed} failed or answered 5xx") };
    let Tally { calls, crossed, without, matched } = *tally;
    if calls == 0 {
        let text = format!("Cross-talk: {sent}: no call came{failures}");
        if session.failed_before() {
            return Finding::fail(CheckId::ProbeCrossTalk, text, Hint::default()).following(CheckId::ProbeReach);
        }
        return Finding::fail(CheckId::ProbeCrossTalk, text, Hint::new("the app does not stand so many requests at a time"));
    }
    if crossed > 0 {
        let text = format!("{crossed} of {calls} calls carry the trace of another request, or its id ({sent}{failures})");
        let cause = "the context is in a thread-local or a global that several requests share, or is not handed over when the work \
                     goes on in another thread or task";
        let alone = session.args.again(&session.args.app_url, " --concurrency 1  # passes where requests share the context");
        return Finding::fail(CheckId::ProbeCrossTalk, text, Hint::new(cause).run(alone));
    }
    if session.passing.is_empty() {
        if matched < calls {
            let text = format!(
                "Cross-talk: not checked, because no trace context passes, and the nonce comes in {matched} of {calls} calls"
            );
            return Finding::skip(CheckId::ProbeCrossTalk, text).line(NONCE);
        }
        let text = format!(
            "No cross-talk: {sent}, {calls} calls, each known by its request, none with a trace of another one{failures}"
        );
        return Finding::pass(CheckId::ProbeCrossTalk, text);
    }
    if without > 0 {
        let text = format!("{without} of {calls} calls carry no trace that was sent ({sent}{failures})");
        let cause = "under load the work goes on in another thread or task, and the context is not handed over";
        return Finding::fail(CheckId::ProbeCrossTalk, text, Hint::new(cause));
    }
    if matched == 0 && session.calls.is_none() {
        let text = format!("Cross-talk: not checked: {calls} calls, and nothing in them tells whose they are");
        return Finding::skip(CheckId::ProbeCrossTalk, text).line(NONCE);
    }
    let how = if matched == calls { "each known by its request" } else { "by the number of calls of each trace" };
    Finding::pass(CheckId::ProbeCrossTalk, format!("No cross-talk: {sent}, {calls} calls, {how}{failures}"))
}
