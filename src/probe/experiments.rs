//! What is sent, one request after the other, and what is concluded from the calls that come.

use std::sync::{Mutex, PoisonError};

use http::HeaderMap;

use crate::probe::caller::{AppClient, AppOutcome, BACKGROUND, Wait};
use crate::probe::crosstalk;
use crate::probe::failures;
use crate::probe::findings::{self, OutcomeCounts};
use crate::probe::header_outcome::{self, written};
use crate::probe::listener::{Downstream, ListenerMode, lock};
use crate::probe::session::{Session, single_headers};
use crate::probe::{ProbeArgs, without_secrets};
use crate::report::{CheckId, Finding, Hint, Report};
use crate::telemetry::ids;
use crate::trace_context::{Context, Sampling, WireFormat};

/// Requests of one experiment: a single one could be the exception.
const REPEATS: usize = 3;

/// Runs all experiments and adds their findings to the report.
pub(super) async fn run(args: &ProbeArgs, caller: &AppClient, downstream: &Downstream, report: &mut Report) {
    let (passing, calls) = (Vec::new(), None);
    let (patience, failed, at_random) = (BACKGROUND, Mutex::default(), Mutex::default());
    let (status, request_id) = (0, false);
    let mut session = Session { args, caller, downstream, calls, patience, status, passing, request_id, failed, at_random };
    if !session.reach(report).await {
        return;
    }
    session.formats(report).await;
    session.headers(report).await;
    session.sampling(report).await;
    session.precedence(report).await;
    report.extend(failures::failed(session.failed.get_mut().unwrap_or_else(PoisonError::into_inner)));
    session.invalid(report).await;
    session.failures(report).await;
    report.extend(failures::at_random(*lock(&session.at_random)));
    report.extend(failures::late(&session));
    report.add(crosstalk::run(&session).await);
}

impl Session<'_> {
    /// Requests without any of the headers: does the app answer, and does it call?
    async fn reach(&mut self, report: &mut Report) -> bool {
        let mut outcomes = self.first_requests().await;
        // Now it is known how late calls come.
        if self.caller.sent().strays > 0 {
            outcomes = self.first_requests().await;
        }
        // Of an app that fails at times the others count.
        let (whole, failed): (Vec<AppOutcome>, Vec<AppOutcome>) =
            outcomes.into_iter().partition(|outcome| !outcome.has_failed(0));
        let outcomes = if whole.is_empty() { failed } else { whole };
        let last = outcomes.last().expect("there are several");
        let status = match &last.status {
            Ok(status) => *status,
            Err(why) => {
                let url = without_secrets(&self.args.app_url);
                let text = format!("{} {url} has no answer: {why}", self.args.method);
                report.add(Finding::fail(CheckId::ProbeReach, text, Hint::new("the app does not run there, or does not answer")));
                return false;
            }
        };
        self.status = status;
        report.add(findings::reached(self.args, last, status));
        // The first request may have done more than the others: connections, caches, tokens.
        let counts: Vec<usize> = outcomes.iter().skip(1).map(|outcome| outcome.calls.len()).collect();
        let usual = counts.first().copied().filter(|first| *first > 0 && counts.iter().all(|count| count == first));
        self.calls = usual;
        report.extend(findings::calls(self.args, &self.downstream.addresses, &outcomes));
        outcomes.iter().any(|outcome| !outcome.calls.is_empty())
    }

    async fn first_requests(&mut self) -> Vec<AppOutcome> {
        let mut outcomes: Vec<AppOutcome> = Vec::new();
        let is_whole = |outcomes: &[AppOutcome]| outcomes.iter().filter(|outcome| !outcome.has_failed(0)).count() == REPEATS;
        while outcomes.len() < REPEATS || (outcomes.len() < 2 * REPEATS && !is_whole(&outcomes) && is_at_times(&outcomes)) {
            let outcome = self.caller.ask(self.downstream, &HeaderMap::new(), Wait::First).await;
            self.patience = self.patience.max(BACKGROUND + 2 * outcome.late);
            outcomes.push(outcome);
        }
        outcomes
    }

    /// Each format alone.
    async fn formats(&mut self, report: &mut Report) {
        let mut results = Vec::new();
        for format in WireFormat::ALL {
            let mut seen = OutcomeCounts::default();
            for _ in 0..REPEATS {
                let sent = header_outcome::fresh();
                for call in self.ask_about(format.title(), &written(&[(format, sent)])).await.calls {
                    let outcome = header_outcome::of_context(format, &sent, &call.headers);
                    let others = WireFormat::ALL.into_iter().filter(|other| *other != format);
                    seen.converted
                        .extend(others.filter(|other| header_outcome::of_context(*other, &sent, &call.headers).is_on()));
                    seen.add(call.to, outcome);
                }
            }
            results.push((format, seen));
        }
        // What an app keeps of an earlier request shows where a request brings nothing.
        for _ in 0..REPEATS {
            self.ask(&HeaderMap::new()).await;
        }
        self.passing = results.iter().filter(|(_, seen)| seen.passes()).map(|(format, _)| *format).collect();
        for (format, seen) in &results {
            report.add(findings::format(self, *format, seen));
        }
        report.add(self.short_ids().await);
        report.add(findings::context(self, &results));
    }

    /// A trace id of 64 bits, which B3 permits.
    async fn short_ids(&self) -> Finding {
        let mut seen = Vec::new();
        for &format in self.passing.iter().filter(|format| **format != WireFormat::TraceContext) {
            let sent = header_outcome::fresh_short();
            for call in self.ask_about("B3 with a trace id of 64 bits", &written(&[(format, sent)])).await.calls {
                seen.push((format, header_outcome::of_short_id(format, &sent, &call.headers)));
            }
        }
        findings::short_ids(&seen)
    }

    /// What else is carried, beside a context.
    async fn headers(&mut self, report: &mut Report) {
        let names: Vec<&str> = single_headers().collect();
        let mut seen: Vec<OutcomeCounts> = names.iter().map(|_| OutcomeCounts::default()).collect();
        for _ in 0..REPEATS {
            let (context, id) = (header_outcome::fresh(), ids::span_id());
            let mut headers = written(&[(WireFormat::TraceContext, context)]);
            let values: Vec<String> = names.iter().map(|name| value_for(name, &context, &id.to_string())).collect();
            for (name, value) in names.iter().zip(&values) {
                if let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), value.parse()) {
                    headers.insert(name, value);
                }
            }
            let what = "W3C (traceparent), x-request-id, baggage, tracestate and other carried headers";
            for call in self.ask_about(what, &headers).await.calls {
                for ((name, value), seen) in names.iter().zip(&values).zip(&mut seen) {
                    seen.add(call.to, header_outcome::of_value(name, value, &call.headers));
                }
            }
        }
        self.request_id = seen[0].passes();
        let ids = [CheckId::ProbeRequestId, CheckId::ProbeBaggage, CheckId::ProbeTracestate];
        for ((id, name), seen) in ids.into_iter().zip(&names).zip(&seen) {
            report.add(findings::header(self, id, name, seen));
        }
        report.add(findings::carried(self, &names[3..], &seen[3..]));
    }

    /// Each decision in each format that goes on.
    async fn sampling(&mut self, report: &mut Report) {
        let mut turned = Vec::new();
        let mut tried = Vec::new();
        for &format in &self.passing {
            let decisions = match format {
                WireFormat::TraceContext => &[Sampling::Sample, Sampling::Drop][..],
                WireFormat::B3Multi | WireFormat::B3 => &[Sampling::Sample, Sampling::Drop, Sampling::Debug],
            };
            for &decision in decisions {
                let (mut kept, mut of) = (0, 0);
                for _ in 0..2 {
                    let headers = written(&[(format, Context { sampling: decision, ..header_outcome::fresh() })]);
                    for call in self.ask_about("another sampling decision", &headers).await.calls {
                        of += 1;
                        let found = header_outcome::decision_of(format, &call.headers);
                        let sampled_as_asked = decision == Sampling::Debug && found == Some(Sampling::Sample);
                        if found == Some(decision) || sampled_as_asked {
                            kept += 1;
                        } else {
                            turned.push((format, decision, found));
                        }
                    }
                }
                tried.push((format, decision, kept, of));
            }
        }
        report.add(findings::sampling(&tried, &turned));
    }

    /// All formats in one request: with one trace, and with three that disagree.
    async fn precedence(&mut self, report: &mut Report) {
        let one = header_outcome::fresh();
        let together =
            self.ask_about("all formats of trace context", &written(&WireFormat::ALL.map(|format| (format, one)))).await;
        report.add(findings::together(&one, &together.calls));
        let several = WireFormat::ALL.map(|format| (format, header_outcome::fresh()));
        let outcome = self.ask_about("all formats of trace context", &written(&several)).await;
        report.add(findings::precedence(&several, &outcome.calls));
    }

    /// Contexts that are not valid, one by one.
    async fn invalid(&mut self, report: &mut Report) {
        let mut results = Vec::new();
        for (name, headers) in invalid_contexts() {
            let (outcome, is_blamed) = self.ask_again(&headers).await;
            results.push((name, headers, outcome, is_blamed));
        }
        report.add(failures::invalid(&results));
    }

    /// What the app makes of a next hop that fails.
    async fn failures(&mut self, report: &mut Report) {
        let (mut results, mut without) = (Vec::new(), 0);
        // One for all: a call that is repeated late comes in the time of the next request.
        let sent = header_outcome::fresh();
        let contexts: Vec<(WireFormat, Context)> = self.passing.iter().map(|format| (*format, sent)).collect();
        for mode in [ListenerMode::Unavailable, ListenerMode::Reset, ListenerMode::Hang] {
            self.downstream.set(mode);
            let wait = Wait::For { calls: None, patience: self.patience, usual: self.status };
            let mut outcome = self.caller.ask(self.downstream, &written(&contexts), wait).await;
            for _ in 0..2 {
                if outcome.calls.is_empty() && outcome.took < self.args.client.timeout {
                    outcome = self.caller.ask(self.downstream, &written(&contexts), wait).await;
                }
            }
            without += outcome
                .calls
                .iter()
                .filter(|call| !contexts.is_empty() && !header_outcome::goes_on(&sent, &call.headers))
                .count();
            results.push((mode, outcome));
        }
        self.downstream.set(ListenerMode::Answer);
        report.add(failures::failures(self, &results, without));
    }
}

/// Whether some of these failed and some did not.
fn is_at_times(outcomes: &[AppOutcome]) -> bool {
    outcomes.iter().any(|outcome| outcome.has_failed(0)) && !outcomes.iter().all(|outcome| outcome.has_failed(0))
}

/// A value that a tracer of that kind would accept.
fn value_for(name: &str, context: &Context, id: &str) -> String {
    let (trace, span) = (context.trace_id.to_string(), context.span_id);
    match name {
        "x-request-id" => String::from_utf8_lossy(ids::request_id().as_bytes()).into_owned(),
        "baggage" | "tracestate" => format!("probe={id}"),
        "uber-trace-id" => format!("{trace}:{span}:0:1"),
        "x-amzn-trace-id" => format!("Root=1-{}-{};Parent={span};Sampled=1", &trace[..8], &trace[8..]),
        "x-cloud-trace-context" => format!("{trace}/1;o=1"),
        "x-datadog-sampling-priority" => "1".to_owned(),
        name if name.starts_with("x-datadog-") && name.ends_with("-id") => u64::from_str_radix(id, 16).unwrap_or(1).to_string(),
        _ => format!("probe-{id}"),
    }
}

/// Contexts that W3C and B3 call invalid, with a name for the report. From the specifications' rules.
fn invalid_contexts() -> Vec<(&'static str, HeaderMap)> {
    let (t, s) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let w3c = |name, value: String| (name, vec![("traceparent", value)]);
    let cases = vec![
        w3c("traceparent: version ff", format!("ff-{t}-{s}-01")),
        w3c("traceparent: trace id of zeros", format!("00-{}-{s}-01", "0".repeat(32))),
        w3c("traceparent: parent id of zeros", format!("00-{t}-{}-01", "0".repeat(16))),
        w3c("traceparent: trace id too short", format!("00-{}-{s}-01", &t[..31])),
        w3c("traceparent: trace id too long", format!("00-{t}a-{s}-01")),
        w3c("traceparent: parent id too short", format!("00-{t}-{}-01", &s[..15])),
        w3c("traceparent: upper case", format!("00-{}-{s}-01", t.to_uppercase())),
        w3c("traceparent: no hex digit", format!("00-{}z-{s}-01", &t[..31])),
        w3c("traceparent: flags of one digit", format!("00-{t}-{s}-1")),
        w3c("traceparent: flags no hex", format!("00-{t}-{s}-zz")),
        w3c("traceparent: more behind version 00", format!("00-{t}-{s}-01-extra")),
        w3c("traceparent: version of one digit", format!("0-{t}-{s}-01")),
        w3c("traceparent: dots for dashes", format!("00.{t}.{s}.01")),
        w3c("traceparent: empty", String::new()),
        w3c("traceparent: 10,000 characters", "0".repeat(10_000)),
        ("traceparent: twice", vec![("traceparent", format!("00-{t}-{s}-01")), ("traceparent", format!("00-{t}-{s}-01"))]),
        ("tracestate alone", vec![("tracestate", "a=1".to_owned())]),
        ("tracestate: malformed", vec![("traceparent", format!("00-{t}-{s}-01")), ("tracestate", "a==,=b,@@".to_owned())]),
        ("tracestate: 33 members", {
            let members: Vec<String> = (0..33).map(|n| format!("k{n}=1")).collect();
            vec![("traceparent", format!("00-{t}-{s}-01")), ("tracestate", members.join(","))]
        }),
        ("b3: garbage", vec![("b3", "not-a-context".to_owned())]),
        ("b3: trace id of zeros", vec![("b3", format!("{}-{s}-1", "0".repeat(32)))]),
        ("x-b3-traceid: 17 digits", vec![("x-b3-traceid", t[..17].to_owned()), ("x-b3-spanid", s.to_owned())]),
        ("x-b3-traceid without x-b3-spanid", vec![("x-b3-traceid", t.to_owned())]),
        ("baggage: malformed", vec![("baggage", "=,;==,%%%".to_owned())]),
    ];
    let map = |(name, headers): (&'static str, Vec<(&'static str, String)>)| {
        let mut map = HeaderMap::new();
        headers.into_iter().for_each(|(header, value)| {
            if let Ok(value) = value.parse() {
                map.append(header, value);
            }
        });
        (name, map)
    };
    cases.into_iter().map(map).collect()
}
