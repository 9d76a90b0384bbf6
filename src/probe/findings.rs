//! What the experiments mean, in the words of the report.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use opentelemetry::trace::{SpanId, TraceId};

use crate::probe::caller::AppOutcome;
use crate::probe::header_outcome::{self, HeaderOutcome};
use crate::probe::listener::AppCall;
use crate::probe::session::{Session, option_name};
use crate::probe::{ProbeArgs, without_secrets};
use crate::report::{CheckId, Finding, Hint};
use crate::text::{counted, quoted};
use crate::trace_context::{Context, Mangling, Sampling, WireFormat};

/// What became of one header in all calls of an experiment.
#[derive(Debug, Default)]
pub(super) struct OutcomeCounts {
    outcomes: BTreeMap<HeaderOutcome, usize>,
    /// The same for each address that was called.
    by_address: BTreeMap<SocketAddr, BTreeMap<HeaderOutcome, usize>>,
    /// Formats in which the trace goes on although it was sent in another.
    pub(super) converted: BTreeSet<WireFormat>,
}

impl OutcomeCounts {
    pub(super) fn add(&mut self, to: SocketAddr, outcome: HeaderOutcome) {
        *self.by_address.entry(to).or_default().entry(outcome.clone()).or_default() += 1;
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// A line for each address, where they differ.
    fn lines(&self) -> Vec<String> {
        let kinds: BTreeSet<Vec<&HeaderOutcome>> = self.by_address.values().map(|outcomes| outcomes.keys().collect()).collect();
        if kinds.len() < 2 {
            return Vec::new();
        }
        self.by_address.iter().map(|(address, outcomes)| format!("{address}: {}", text(outcomes))).collect()
    }

    fn calls(&self) -> usize {
        self.outcomes.values().sum()
    }

    fn count(&self, outcome: &HeaderOutcome) -> usize {
        self.outcomes.get(outcome).copied().unwrap_or(0)
    }

    fn mangling(&self) -> Option<&Mangling> {
        self.outcomes.keys().find_map(|outcome| if let HeaderOutcome::Mangled(how) = outcome { Some(how) } else { None })
    }

    /// Every call goes on with what was sent, in this format or in another.
    pub(super) fn passes(&self) -> bool {
        let on = [HeaderOutcome::Untouched, HeaderOutcome::Continued, HeaderOutcome::EmptyMember]
            .iter()
            .map(|outcome| self.count(outcome))
            .sum::<usize>();
        let converted = !self.converted.is_empty() && on + self.count(&HeaderOutcome::Dropped) == self.calls();
        self.calls() > 0 && (on == self.calls() || converted)
    }

    fn text(&self) -> String {
        text(&self.outcomes)
    }
}

/// "1 call", or "all 3 calls".
fn all(calls: usize) -> String {
    if calls == 1 { "the 1 call".to_owned() } else { format!("all {calls} calls") }
}

fn text(outcomes: &BTreeMap<HeaderOutcome, usize>) -> String {
    let parts = outcomes.iter().map(|(outcome, count)| format!("{} in {count}", word(outcome)));
    parts.collect::<Vec<_>>().join(", ")
}

fn word(outcome: &HeaderOutcome) -> &'static str {
    match outcome {
        HeaderOutcome::Untouched => "forwarded untouched",
        HeaderOutcome::Continued => "continued",
        HeaderOutcome::EmptyMember => "forwarded with an empty list member",
        HeaderOutcome::NewTrace => "another value",
        HeaderOutcome::Dropped => "absent",
        HeaderOutcome::Mangled(_) => "damaged",
    }
}

pub(super) fn reached(args: &ProbeArgs, outcome: &AppOutcome, status: u16) -> Finding {
    let text = format!("{} {} answers {status} in {} ms", args.method, without_secrets(&args.app_url), outcome.took.as_millis());
    let finding = Finding::pass(CheckId::ProbeReach, text);
    match (&outcome.location, status) {
        (Some(location), 300..=399) => finding.line(format!("a redirect to {location}, which is not followed: probe that URL")),
        (_, 400..) if outcome.calls.is_empty() => finding.line("an error: is this the URL that makes the app call its next hop?"),
        (_, 400..) => finding.line(
            "an error, although the next hop answered: the app may need another answer (--downstream-reply, --downstream-status)",
        ),
        _ => finding,
    }
}

/// Why an app that answers so calls nobody.
fn calls_nobody(args: &ProbeArgs, outcome: &AppOutcome, addresses: &str) -> Hint {
    let setting =
        format!("its next hop has to be {addresses}, and it has to reach that: in a container this host is not 127.0.0.1");
    let headers: String =
        args.client.headers.iter().map(|(name, _)| format!(" -H {}", quoted(&format!("{name}: VALUE")))).collect();
    let body = args.body.as_ref().map_or_else(String::new, |body| format!(" --data-raw {}", quoted(body)));
    let url = quoted(&without_secrets(&args.app_url));
    let asked = format!("curl -sv -X {}{headers}{body} {url}  # look for what the answer says", args.method);
    match (&outcome.status, &outcome.location) {
        (Ok(300..=399), Some(location)) => {
            let hint = Hint::new(format!(
                "the app redirects to {location} (a login page, https, a path with / at its end), and probe follows no redirect: a session or a token may be missing (-H)"
            ));
            let next = args.app_url.join(location).ok();
            next.map_or(hint.clone(), |next| hint.run(args.again(&next, "")))
        }
        (Ok(status @ 400..=499), _) => Hint::new(format!(
            "the app refuses the request with {status} before it calls: another path or method (-X), a token (-H) or a body (--body) is needed"
        ))
        .run(asked),
        (Ok(status @ 500..), _) => Hint::new(format!(
            "the app fails with {status} before its call comes here: it cannot connect to its next hop, whose setting does not point at this address, or an error of its own, which its log names; {setting}"
        ))
        .run(asked),
        _ => Hint::new(format!(
            "the app's setting for its next hop does not point at this address, this URL makes no call, or the app answers from a cache; {setting}"
        )),
    }
}

/// Whether the app calls, and whom.
pub(super) fn calls(args: &ProbeArgs, addresses: &[SocketAddr], outcomes: &[AppOutcome]) -> Vec<Finding> {
    // The first request may lead to more calls than the others, or to none: connections, caches, tokens.
    let (cold, usual) = (outcomes[0].calls.len(), outcomes.get(1..).filter(|more| !more.is_empty()).unwrap_or(outcomes));
    let counts: Vec<usize> = usual.iter().map(|outcome| outcome.calls.len()).collect();
    let Some(first) = outcomes.iter().flat_map(|outcome| &outcome.calls).next() else {
        let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let status = outcomes.last().and_then(|outcome| outcome.status.as_ref().ok().copied()).filter(|status| *status >= 300);
        let with = status.map_or_else(String::new, |status| format!(" with {status}"));
        let text = format!(
            "The app answers {} {}{with} and calls nobody at {addresses} ({} requests)",
            args.method,
            without_secrets(&args.app_url),
            outcomes.len()
        );
        let last = outcomes.last().map_or_else(Hint::default, |outcome| calls_nobody(args, outcome, &addresses));
        return vec![Finding::fail(CheckId::ProbeCalls, text, last)];
    };
    let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    let number = if least == most { counted(*least, "call") } else { format!("{least} to {most} calls") };
    let text = format!("It makes {number} a request: {} {}", first.method, first.uri.path());
    let mut finding = Finding::pass(CheckId::ProbeCalls, text);
    if cold != *least && cold != *most {
        finding = finding
            .line(format!("the first request led to {}", if cold == 0 { "none".to_owned() } else { counted(cold, "call") }));
    }
    let mut out = vec![match outcomes.iter().map(|outcome| outcome.late.as_millis()).max() {
        Some(late @ 20..) => finding.line(format!("up to {late} ms after its answer")),
        _ => finding,
    }];
    let is_called = |address: &SocketAddr| outcomes.iter().flat_map(|outcome| &outcome.calls).any(|call| call.to == *address);
    out.extend(addresses.iter().filter(|address| !is_called(address)).map(|address| {
        let text = format!("{address} is never called ({} requests): what the app sends there is not checked", outcomes.len());
        Finding::skip(CheckId::ProbeCalls, text)
    }));
    out
}

fn uncalled(id: CheckId, what: &str) -> Finding {
    Finding::skip(id, format!("{what}: not checked, because no call came of requests that have it"))
}

/// One format. That none of them passes is a finding of its own.
pub(super) fn format(session: &Session<'_>, format: WireFormat, seen: &OutcomeCounts) -> Finding {
    let id = match format {
        WireFormat::TraceContext => CheckId::ProbeW3c,
        WireFormat::B3Multi => CheckId::ProbeB3,
        WireFormat::B3 => CheckId::ProbeB3Single,
    };
    let (title, calls) = (format.title(), seen.calls());
    if calls == 0 {
        return uncalled(id, title);
    }
    if let Some(how) = seen.mangling() {
        let text = format!("{title}: the app {} ({calls} calls)", how.text());
        return Finding::fail(id, text, Hint::new(how.cause()));
    }
    if seen.passes() {
        let (all, converted) = (all(calls), seen.converted.iter().map(|format| format.title()).collect::<Vec<_>>());
        let text = if seen.count(&HeaderOutcome::Dropped) > 0 {
            format!("{title}: the trace goes on, written as {}", converted.join(" and "))
        } else if seen.count(&HeaderOutcome::Untouched) == calls {
            format!("{title}: forwarded untouched in {all}")
        } else if seen.count(&HeaderOutcome::Continued) == calls {
            format!("{title}: continued with own span ids in {all}")
        } else {
            format!("{title}: the trace goes on in {all} ({})", seen.text())
        };
        return Finding::pass(id, text);
    }
    let partly = seen.count(&HeaderOutcome::Untouched) + seen.count(&HeaderOutcome::Continued) > 0;
    let text = format!("{title}: {} of {}", seen.text().replace("another value", "another trace"), counted(calls, "call"));
    let hint = Hint::new(if session.caller.sent().leaked > 0 {
        "the app sends the context of an earlier request: see probe.cross-talk"
    } else if partly {
        "some calls are made by a client that passes the context on, and some by one that does not"
    } else if seen.count(&HeaderOutcome::NewTrace) > 0 {
        "the app traces, and does not read this format (OTEL_PROPAGATORS does not name it) or loses it before the call"
    } else {
        "the app does not read this format, or its HTTP client is not instrumented"
    });
    let finding = Finding::fail(id, text, hint).lines(seen.lines());
    if partly || session.expects(option_name(format)) { finding } else { finding.into_informational() }
}

/// Trace ids of 64 bits, which older Zipkin libraries make.
pub(super) fn short_ids(seen: &[(WireFormat, HeaderOutcome)]) -> Finding {
    let id = CheckId::ProbeShortIds;
    if seen.is_empty() {
        return Finding::skip(id, "Trace ids of 64 bits: not checked, because no B3 passes");
    }
    let lost = seen.iter().find(|(_, outcome)| !outcome.is_on());
    let Some((format, outcome)) = lost else {
        return Finding::pass(id, format!("Trace ids of 64 bits go on in {}", counted(seen.len(), "call")));
    };
    let text = |what: &str| format!("{} with a trace id of 64 bits: {what}", format.title());
    if let HeaderOutcome::Mangled(how) = outcome {
        return Finding::fail(id, text(&format!("the app {}", how.text())), Hint::new(how.cause()));
    }
    let cause = "the app reads trace ids of 128 bits alone: a caller with an older Zipkin library loses its trace here";
    Finding::fail(id, text(&word(outcome).replace("value", "trace")), Hint::new(cause)).into_informational()
}

/// Whether a trace goes on at all.
pub(super) fn context(session: &Session<'_>, results: &[(WireFormat, OutcomeCounts)]) -> Finding {
    if results.iter().all(|(_, seen)| seen.calls() == 0) {
        return uncalled(CheckId::ProbeContext, "A trace context");
    }
    if session.passing.is_empty() {
        let anew = results.iter().any(|(_, seen)| seen.count(&HeaderOutcome::NewTrace) > 0);
        let damaged = results.iter().any(|(_, seen)| seen.mangling().is_some());
        let cause = if session.caller.sent().leaked > 0 {
            "the app sends the context of an earlier request: see probe.cross-talk"
        } else if damaged {
            "what the app passes on is damaged, so the next hop begins a trace: see above"
        } else if anew {
            "the app makes a trace of its own for each call: its server is not instrumented, or the context does not reach the client (another thread, a client made by hand)"
        } else {
            "the app passes no trace context on: copy the headers from the request that it serves to the calls that it makes, or instrument its HTTP client"
        };
        return Finding::fail(
            CheckId::ProbeContext,
            "The trace ends at this app: no format goes on in every call",
            Hint::new(cause),
        );
    }
    let names: Vec<&str> = session.passing.iter().map(|format| format.title()).collect();
    Finding::pass(CheckId::ProbeContext, format!("The trace goes on: {}", names.join(", ")))
}

/// A header without ids of spans.
pub(super) fn header(session: &Session<'_>, id: CheckId, name: &str, seen: &OutcomeCounts) -> Finding {
    let calls = seen.calls();
    if calls == 0 {
        return uncalled(id, name);
    }
    if let Some(how) = seen.mangling() {
        return Finding::fail(id, format!("{name}: the app {} ({calls} calls)", how.text()), Hint::new(how.cause()));
    }
    if seen.passes() {
        let added = if seen.count(&HeaderOutcome::EmptyMember) > 0 {
            ", with list members that are empty, which W3C permits and some parsers refuse"
        } else if seen.count(&HeaderOutcome::Continued) > 0 {
            ", with members of the app's own"
        } else {
            ""
        };
        return Finding::pass(id, format!("{name}: forwarded in {}{added}", all(calls)));
    }
    let text = format!("{name}: {} of {}", seen.text(), counted(calls, "call"));
    let cause = match seen.count(&HeaderOutcome::NewTrace) {
        0 => "the app does not copy it",
        _ => "the app makes one of its own, and does not copy it",
    };
    let finding = Finding::fail(id, text, Hint::new(cause)).lines(seen.lines());
    if session.expects(name) { finding } else { finding.into_informational() }
}

/// The other headers of the table, in one finding.
pub(super) fn carried(session: &Session<'_>, names: &[&str], seen: &[OutcomeCounts]) -> Finding {
    if seen.iter().all(|seen| seen.calls() == 0) {
        return uncalled(CheckId::ProbeCarried, "Other headers");
    }
    let of = |wanted: fn(&OutcomeCounts) -> bool| -> Vec<&str> {
        names.iter().zip(seen).filter(|(_, seen)| wanted(seen)).map(|(name, _)| *name).collect()
    };
    let damaged = of(|seen| seen.mangling().is_some());
    let forwarded = of(OutcomeCounts::passes);
    let missed: Vec<&str> = names.iter().copied().filter(|name| session.expects(name) && !forwarded.contains(name)).collect();
    if !damaged.is_empty() {
        let text = format!("Other headers: the app damages {}", damaged.join(", "));
        return Finding::fail(CheckId::ProbeCarried, text, Hint::new("two parts of the app write it"));
    }
    if !missed.is_empty() {
        let text = format!("Other headers: {} did not arrive", missed.join(", "));
        return Finding::fail(CheckId::ProbeCarried, text, Hint::new("the app does not copy it"));
    }
    if forwarded.is_empty() {
        return Finding::skip(CheckId::ProbeCarried, format!("Other headers: none of {} is forwarded", names.len()));
    }
    let text = format!("Other headers: {} of {} forwarded", forwarded.len(), names.len());
    Finding::pass(CheckId::ProbeCarried, text).line(forwarded.join(", "))
}

fn decision(sampling: Sampling) -> &'static str {
    match sampling {
        Sampling::Sample => "sampled",
        Sampling::Drop => "not sampled",
        Sampling::Debug => "debug",
        Sampling::Deferred => "left open",
    }
}

/// `tried`: format, decision, calls that kept it, calls. `turned`: the others, with what they have.
pub(super) fn sampling(
    tried: &[(WireFormat, Sampling, usize, usize)],
    turned: &[(WireFormat, Sampling, Option<Sampling>)],
) -> Finding {
    let id = CheckId::ProbeSampling;
    if tried.iter().all(|(.., of)| *of == 0) {
        return Finding::skip(id, "Sampling: not checked, because no trace context passes");
    }
    let Some((format, sent, found)) = turned.first() else {
        let kept: Vec<String> =
            tried.iter().map(|(format, sent, ..)| format!("{} ({})", decision(*sent), option_name(*format))).collect();
        return Finding::pass(id, format!("The sampling decision is kept: {}", kept.join(", ")));
    };
    let total: usize = tried.iter().map(|(.., of)| of).sum();
    let what = found.map_or("no decision at all", decision);
    let text = format!("\"{}\" in {} arrives as {what} ({} of {total} calls)", decision(*sent), format.title(), turned.len());
    let cause = match found {
        Some(Sampling::Deferred) => "the app passes the ids on and leaves the decision out, so the next hop decides anew",
        None if *sent == Sampling::Drop => {
            "the app passes no context on when a request is not sampled, so the next hop decides anew"
        }
        None => "the app passes no context on in some of the requests, so the next hop decides anew",
        _ => {
            "the app's sampler is not parent-based: it decides by itself (OTEL_TRACES_SAMPLER), or its code writes the decision anew"
        }
    };
    Finding::fail(id, text, Hint::new(cause))
}

/// All formats with one trace: what the call has must agree.
pub(super) fn together(sent: &Context, calls: &[AppCall]) -> Finding {
    let id = CheckId::ProbeAgreement;
    let found: Vec<Vec<(WireFormat, TraceId, SpanId)>> =
        calls.iter().map(|call| header_outcome::traces_of(&call.headers)).collect();
    if found.iter().all(Vec::is_empty) {
        return Finding::skip(id, "A request with one trace in all formats: not checked, because no call has a context");
    }
    let split = found.iter().find(|contexts| contexts.iter().any(|(_, trace, _)| *trace != contexts[0].1));
    if let Some(contexts) = split {
        let lost: Vec<&str> =
            contexts.iter().filter(|(_, trace, _)| *trace != sent.trace_id).map(|(format, ..)| format.title()).collect();
        let text =
            format!("A request with one trace in all formats: the call has two traces, for {} has another", lost.join(", "));
        let cause = "the app continues one format and begins a trace in another, so the next hop's reading order decides";
        return Finding::fail(id, text, Hint::new(cause));
    }
    let stale = found.iter().find(|contexts| contexts.iter().any(|(.., span)| *span != contexts[0].2));
    if let Some(contexts) = stale {
        let own: Vec<&str> =
            contexts.iter().filter(|(.., span)| *span != sent.span_id).map(|(format, ..)| format.title()).collect();
        let text = format!(
            "One trace in all formats stays one; {} has the app's own span, the others still its caller's",
            own.join(", ")
        );
        let cause = "the app's tracer writes one format and its code copies the others: a next hop that reads those hangs beside this app instead of below it";
        return Finding::fail(id, text, Hint::new(cause)).into_informational();
    }
    Finding::pass(id, "A request with one trace in all formats: what the call has agrees")
}

/// Three formats with three traces: which one does the app follow?
pub(super) fn precedence(sent: &[(WireFormat, Context); 3], calls: &[AppCall]) -> Finding {
    let id = CheckId::ProbePrecedence;
    let Some(call) = calls.first() else { return Finding::skip(id, "When formats disagree: not checked, no call came") };
    let contexts = header_outcome::traces_of(&call.headers);
    let owner = |trace: &TraceId| sent.iter().find(|(_, sent)| sent.trace_id == *trace).map(|(format, _)| *format);
    let own = contexts.iter().filter(|(format, trace, _)| owner(trace) == Some(*format)).count();
    if contexts.is_empty() {
        return Finding::skip(id, "When formats disagree: no context goes on");
    }
    if own == contexts.len() && contexts.len() > 1 {
        return Finding::pass(id, "When formats disagree, each is passed on as it came: the app follows none");
    }
    let lines = contexts.iter().map(|(format, trace, _)| {
        let from = owner(trace).map_or("a new trace", WireFormat::title);
        format!("{}: {from}", format.title())
    });
    let winners: BTreeSet<Option<WireFormat>> = contexts.iter().map(|(_, trace, _)| owner(trace)).collect();
    let text = match (winners.len(), winners.first()) {
        (1, Some(Some(winner))) => format!("When formats disagree, {} wins", winner.title()),
        (1, _) => "When formats disagree, the app begins a new trace".to_owned(),
        _ => "When formats disagree, the call has several traces".to_owned(),
    };
    Finding::pass(id, text).lines(lines)
}
