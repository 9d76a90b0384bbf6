//! The group of findings about traces: one request's trace as the trace backend has it.
//!
//! [`client`] reads it, [`expected`] is what the reply says must be there, the [`Verdict`] compares the two, [`proxies`] is what the
//! proxies reported, [`calls`] what became of each call, [`findings`] words what is wrong, and [`foreign_apps`] examines what no reply shows.

mod access;
mod calls;
mod client;
mod expected;
mod findings;
mod foreign_apps;
mod other_traces;
mod proxies;
mod recent;
pub(crate) mod trace;

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::check::chain::breaks;
use crate::check::chain::evidence::Xray;
use crate::check::chain::expect::{ChosenTrace, Expect};
use crate::check::chain::probe::{Probe, chosen_or_deepest};
use crate::check::chain::xray::examine_behind;
use crate::check::envoy::gateway::front_key;
use crate::check::envoy::spans::{CallSpans, RequestSpans};
use crate::check::envoy::suggestions::HintContext;
use crate::check::reachability::client::CheckClient;
use crate::hop::reply::{Headers, Tree};
use crate::report::{CheckId, Finding, ProgressLine};
use crate::trace_context::HeaderFamily;
use crate::traces::{Caller, ExpectedTrace, Trace, TraceId, Verdict};

use access::BackendRefusal;
pub use access::SecretHeader;
pub(crate) use client::{Backend, open, open_traces};
use expected::{HopSpan, expected_spans, trace_ids};
use findings::Arrived;
use foreign_apps::examine;
pub(crate) use foreign_apps::{ExaminedApps, unseen_names};
use proxies::Proxies;

/// Where the request goes, and what is expected of it.
pub(crate) struct CheckedRequest<'a> {
    pub(crate) client: &'a CheckClient,
    pub(crate) expect: Option<&'a Expect>,
    /// Of the request.
    pub(crate) trace_id: Option<&'a ChosenTrace>,
    pub(crate) hints: &'a HintContext,
}

/// Sends an ordinary request and compares its trace with its reply.
pub(crate) async fn check_trace(
    backend: &Backend,
    request: &CheckedRequest<'_>,
    wait: Duration,
    stop: &mut watch::Receiver<bool>,
    progress: &ProgressLine,
) -> ExaminedApps {
    let &CheckedRequest { client, trace_id, hints, .. } = request;
    let only = |finding: Finding| ExaminedApps { findings: vec![finding], ..ExaminedApps::default() };
    let Some((probe, tree)) = chosen_or_deepest(client, trace_id).await else {
        return only(Finding::skip(CheckId::TracesArrived, "Trace: skipped, because no request brought the chain's reply"));
    };
    let xray = examine_behind(hints.evidence.is_front_foreign, &probe, &tree, &hints.url);
    if tree.sampled == Some(false) {
        return only(Finding::skip(
            CheckId::TracesArrived,
            "Trace: skipped, because the request arrived as \"not sampled\" although it asked to be: see the sampling rate below, or Propagation",
        ));
    }
    let expected = expected_spans(&tree, &hints.url, Some(&xray));
    let answer = (&probe, &tree);
    let (mut findings, more_calls) = match trace_ids(&expected).as_slice() {
        [] => {
            let mut examined = examine(backend, request, answer, wait, stop, progress).await;
            if examined.names.is_empty() {
                examined.findings.insert(0, findings::nobody_reports(&xray, hints));
            }
            return examined;
        }
        ids => one_trace(backend, request, answer, (&xray, expected, ids), wait, stop, progress).await,
    };
    let is_refused = findings.iter().any(|finding| finding.id == CheckId::TracesBackend);
    let mut examined =
        if is_refused { ExaminedApps::default() } else { examine(backend, request, answer, wait, stop, progress).await };
    findings.append(&mut examined.findings);
    ExaminedApps { findings, more_calls, ..examined }
}

/// The trace in which the request begins.
async fn one_trace(
    backend: &Backend,
    &CheckedRequest { expect, hints, .. }: &CheckedRequest<'_>,
    (probe, tree): (&Probe, &Tree),
    (xray, expected, ids): (&Xray, Vec<HopSpan>, &[TraceId]),
    wait: Duration,
    stop: &mut watch::Receiver<bool>,
    progress: &ProgressLine,
) -> (Vec<Finding>, Vec<String>) {
    let Some(&id) = ids.first() else { return Default::default() };
    let here: Vec<HopSpan> = expected.into_iter().filter(|expected| expected.span.trace_id == id).map(HopSpan::by_ids).collect();
    // The spans of `check` itself, which reports none.
    let own = HeaderFamily::ALL.into_iter().filter_map(|family| Some(family.read(&probe.headers)?.span_id)).collect();
    let expectation = ExpectedTrace {
        caller: Caller::Known(own),
        required: here.iter().map(|expected| expected.span.clone()).collect(),
        ..ExpectedTrace::default()
    };
    let started = Instant::now();
    let (trace, verdict, trouble) = arrival(backend, id, &expectation, wait, stop, progress).await;
    if *stop.borrow() && (trace.is_none() || !verdict.missing.is_empty()) {
        let text = "Trace: not checked, because the run ended before it arrived";
        return (vec![Finding::skip(CheckId::TracesArrived, text)], Vec::new());
    }
    if let Some(trouble) = trouble {
        let text = format!("The trace of one request: not checked, because the backend {trouble}");
        return (vec![backend.refuses(&trouble), Finding::skip(CheckId::TracesArrived, text)], Vec::new());
    }
    let mut proxies = Proxies::of(RequestSpans::of(trace.as_slice()), &probe.headers, tree, xray, &hints.url);
    let missing = trace.iter().flat_map(|trace| foreign_apps::missing_in_between(trace, tree));
    proxies.lost_by(missing.map(|(app, id, _)| (app, id)));
    let arrived = Arrived { tree, xray, ids, expected: &here, trace: trace.as_ref(), verdict: &verdict, proxies: &proxies };
    let mut findings = arrived.findings(expect, hints, started.elapsed());
    if let Some(first) = findings.first_mut().filter(|_| trace.is_some()) {
        first.detail.push(backend.page(id));
    }
    (findings, trace.map_or_else(Vec::new, |trace| calls::multiplied(tree, &trace)))
}

/// A request that failed: what it brought, and what came back.
pub(crate) struct Failed<'a> {
    pub(crate) sent: &'a Headers,
    /// 0 without an answer.
    pub(crate) status: u16,
    pub(crate) tree: Option<&'a Tree>,
    pub(crate) url: &'a str,
}

impl Failed<'_> {
    fn ids(&self) -> Vec<TraceId> {
        let mut ids: Vec<TraceId> = Vec::new();
        let mut add = |headers: &Headers| {
            for (_, context) in HeaderFamily::read_all(headers) {
                if !ids.contains(&context.trace_id) && ids.len() < MAX_TRACES {
                    ids.push(context.trace_id);
                }
            }
        };
        add(self.sent);
        if let Some(tree) = self.tree {
            tree.hops("").flat_map(|(hop, _)| &hop.upstreams).for_each(|call| add(&call.sent));
        }
        ids
    }

    /// What the proxies reported, by the kind of the failure.
    fn evidence(&self, traces: &[Trace]) -> HashMap<String, CallSpans> {
        let spans = RequestSpans::of(traces);
        let Some(tree) = self.tree else { return HashMap::from([(front_key(self.status), spans.front(self.sent))]) };
        let mut found = HashMap::new();
        let breaks = breaks(tree, self.url);
        for (hop, call) in tree.hops("").flat_map(|(hop, _)| hop.upstreams.iter().map(move |call| (hop, call))) {
            for broken in breaks.iter().filter(|broken| broken.from.name == hop.service && broken.to.url == call.url) {
                found.insert(broken.kind(), spans.call(&call.sent, &call.url));
            }
        }
        found
    }
}

/// Traces of one request that are read at most.
const MAX_TRACES: usize = 4;

/// Shows how long is waited, and waits until the backend is asked again. Returns whether the run is stopped.
async fn pause(what: &str, started: Instant, limit: Duration, stop: &mut watch::Receiver<bool>, progress: &ProgressLine) -> bool {
    const POLL: Duration = Duration::from_millis(500);
    progress.show(what, started.elapsed().as_secs(), limit.as_secs());
    tokio::time::timeout(POLL, stop.wait_for(|stop| *stop)).await.is_ok()
}

/// What the proxies report of a request that failed, once they have: Envoy sends its spans every five seconds.
pub(crate) async fn evidence(
    backend: &Backend,
    failed: &Failed<'_>,
    wait: Duration,
    stop: &mut watch::Receiver<bool>,
    progress: &ProgressLine,
) -> HashMap<String, CallSpans> {
    const REPORTED: Duration = Duration::from_secs(7);
    let started = Instant::now();
    let mut found = HashMap::new();
    loop {
        let load = async {
            let mut traces = Vec::new();
            for id in failed.ids() {
                traces.extend(backend.trace(id).await.ok().flatten());
            }
            traces
        };
        let traces = tokio::select! {
            traces = load => traces,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let before = std::mem::replace(&mut found, failed.evidence(&traces));
        let is_late = started.elapsed() >= REPORTED && before == found;
        if is_late || started.elapsed() >= wait || *stop.borrow() {
            break;
        }
        pause("seconds, waiting for what proxies report", started, REPORTED, stop, progress).await;
    }
    progress.clear();
    found
}

/// Asks the backend until the trace is complete, `wait` is over or the run is stopped. Also returns why it gave nothing when it was asked last.
async fn arrival(
    backend: &Backend,
    id: TraceId,
    expectation: &ExpectedTrace,
    wait: Duration,
    stop: &mut watch::Receiver<bool>,
    progress: &ProgressLine,
) -> (Option<Trace>, Verdict, Option<BackendRefusal>) {
    let started = Instant::now();
    let (mut trace, mut trouble) = (None, None);
    let verdict = loop {
        tokio::select! {
            answer = backend.trace(id) => match answer {
                Ok(found) => (trace, trouble) = (found, None),
                Err(refusal) => trouble = Some(refusal),
            },
            _ = stop.wait_for(|stop| *stop) => {}
        }
        let verdict = Verdict::of(trace.as_slice(), expectation);
        let complete = trouble.is_none() && verdict.missing.is_empty() && verdict.orphans.is_empty();
        if complete || started.elapsed() >= wait || *stop.borrow() {
            break verdict;
        }
        pause("seconds, waiting for the trace", started, wait, stop, progress).await;
    };
    progress.clear();
    (trace, verdict, trouble)
}
