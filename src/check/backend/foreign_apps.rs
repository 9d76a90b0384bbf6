//! Foreign apps whose answers show nothing of what they call: whether the trace goes on behind them, by the backend's word.
//!
//! It goes on where somebody behind the app reports into the request's own trace. It is broken where another trace begins behind the app: one
//! with the request id of the request, or one that begins at the same service within the time of the call, request after request, and so
//! rarely at other times that this is no chance.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::check::backend::access::BackendRefusal;
use crate::check::backend::client::Backend;
use crate::check::backend::{CheckedRequest, pause};
use crate::check::chain::evidence::ForeignApp;
use crate::check::chain::expect::is_named;
use crate::check::chain::probe::{Probe, short};
use crate::check::envoy::spans::RequestSpans;
use crate::hop::reply::{Headers, Tree};
use crate::report::{CheckId, Finding, Hint, ProgressLine};
use crate::text::quoted;
use crate::trace_context::HeaderFamily;
use crate::traces::ids::parse_trace_id;
use crate::traces::{Kind, Span, SpanId, Trace, TraceId};

/// Requests in whose time the traces are counted.
const REQUESTS: usize = 5;
/// How probable it may be that traces of others begin in the time of every one of them.
const CHANCE: f64 = 1e-4;
/// How long spans are on their way: Envoy and OpenTelemetry's SDKs report every five seconds.
const REPORTED: Duration = Duration::from_secs(8);

/// A call to a foreign app whose answer has no reply of a hop.
#[derive(Debug, Clone)]
struct Unseen {
    caller: String,
    foreign_app: ForeignApp,
    sent: Headers,
    /// The time in which the caller had the request, since 1970 by its own clock.
    from: Duration,
    to: Duration,
}

fn unseen(tree: &Tree) -> Vec<Unseen> {
    let mut out = Vec::new();
    for (hop, _) in tree.hops("") {
        let began = humantime::parse_rfc3339(&hop.started_at).ok();
        let from = began.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        let to = from + Duration::from_secs_f64(hop.duration_ms.clamp(0.0, 1e6) / 1e3);
        let calls = hop.upstreams.iter().filter(|call| call.is_foreign() && call.embedded.is_empty());
        out.extend(calls.map(|call| Unseen {
            caller: hop.service.clone(),
            foreign_app: ForeignApp::at(&call.url),
            sent: call.sent.clone(),
            from,
            to,
        }));
    }
    out
}

/// The foreign apps behind which a reply shows nothing.
pub(crate) fn unseen_names(tree: &Tree) -> Vec<String> {
    let mut names: Vec<String> = unseen(tree).into_iter().map(|unseen| unseen.foreign_app.name).collect();
    names.sort();
    names.dedup();
    names
}

/// What the backend has of one app.
enum AppEvidence {
    /// This service reports below the call, behind the app.
    GoesOn(String),
    /// Another trace, which this service begins, with the request's own id.
    SameRequest(String, TraceId),
    /// Other traces that this service begins, one in the time of each request.
    SameTime(String, Vec<TraceId>),
    /// There is no app: the caller's proxy answered.
    ByProxy,
}

/// One request and its traces.
struct TracedRequest {
    tree: Tree,
    ids: Vec<TraceId>,
}

impl TracedRequest {
    fn of(probe: &Probe, tree: Tree) -> Self {
        let mut ids: Vec<TraceId> = HeaderFamily::read_all(&probe.headers).iter().map(|(_, context)| context.trace_id).collect();
        for (hop, _) in tree.hops("") {
            ids.extend(hop.trace_id.as_deref().and_then(|id| parse_trace_id(id).ok()));
            for headers in hop.upstreams.iter().map(|call| &call.sent).chain([&hop.received]) {
                ids.extend(HeaderFamily::read_all(headers).iter().map(|(_, context)| context.trace_id));
            }
        }
        Self { tree, ids }
    }
}

/// What became known of the apps behind which replies show nothing.
#[derive(Default)]
pub(crate) struct ExaminedApps {
    pub(crate) findings: Vec<Finding>,
    /// The names of those that were examined.
    pub(crate) names: HashSet<String>,
    /// Calls that were multiplied on the way, a line each.
    pub(crate) more_calls: Vec<String>,
}

/// Examines the foreign apps of one request, whose reply is `tree`.
pub(super) async fn examine(
    backend: &Backend,
    request: &CheckedRequest<'_>,
    (probe, tree): (&Probe, &Tree),
    wait: Duration,
    stop: &mut watch::Receiver<bool>,
    progress: &ProgressLine,
) -> ExaminedApps {
    let calls = unseen(tree);
    let mut examined = ExaminedApps::default();
    if calls.is_empty() || *stop.borrow() {
        return examined;
    }
    let first = TracedRequest::of(probe, tree.clone());
    let more = tokio::select! {
        more = ask_again(request, tree) => more,
        _ = stop.wait_for(|stop| *stop) => return examined,
    };
    let started = Instant::now();
    let mut evidence: Vec<Option<AppEvidence>> = calls.iter().map(|_| None).collect();
    let limit = wait.min(REPORTED);
    let trouble = loop {
        let trouble = tokio::select! {
            collected = collect_evidence(backend, &calls, &first, &more, &mut evidence) => collected.err(),
            _ = stop.wait_for(|stop| *stop) => break None,
        };
        if evidence.iter().all(Option::is_some) || started.elapsed() >= limit {
            break trouble;
        }
        if pause("seconds, waiting for what is reported behind the apps that are not httpserver", started, limit, stop, progress)
            .await
        {
            break None;
        }
    };
    progress.clear();
    for (call, evidence) in calls.iter().zip(evidence) {
        if evidence.is_some() {
            examined.names.insert(call.foreign_app.name.clone());
        }
        let finding = finding(backend, call, evidence, trouble.as_ref());
        if !examined.findings.iter().any(|known| known.text == finding.text) {
            examined.findings.push(finding);
        }
    }
    examined
}

/// Sends the request a few times, with pauses in which others may begin traces.
async fn ask_again(request: &CheckedRequest<'_>, tree: &Tree) -> Vec<TracedRequest> {
    let pause = Duration::from_secs_f64((3.0 * tree.duration_ms / 1e3).clamp(0.1, 1.0));
    let mut sent = Vec::new();
    for _ in 0..REQUESTS {
        let probe = Probe::ordinary();
        if let Some(tree) = request.client.get(&probe.headers).await.ok().and_then(|answer| answer.tree()) {
            sent.push(TracedRequest::of(&probe, tree));
        }
        tokio::time::sleep(pause).await;
    }
    sent
}

/// Looks for evidence that is not there yet.
async fn collect_evidence(
    backend: &Backend,
    calls: &[Unseen],
    first: &TracedRequest,
    more: &[TracedRequest],
    evidence: &mut [Option<AppEvidence>],
) -> Result<(), BackendRefusal> {
    let mut own = Vec::new();
    for id in first.ids.iter().collect::<HashSet<_>>() {
        own.extend(backend.trace(*id).await?);
    }
    let spans = RequestSpans::of(&own);
    for (call, found) in calls.iter().zip(&mut *evidence).filter(|(_, found)| found.is_none()) {
        if spans.call(&call.sent, &call.foreign_app.url).is_answered_by_proxy() {
            *found = Some(AppEvidence::ByProxy);
            continue;
        }
        *found = goes_on(&own, call, &first.tree).map(AppEvidence::GoesOn);
        if found.is_none() {
            *found = same_request(backend, call, first).await?;
        }
    }
    if evidence.iter().any(Option::is_none) {
        let begun = begun_by_others(backend, first, more).await?;
        for (call, found) in calls.iter().zip(evidence).filter(|(_, found)| found.is_none()) {
            *found = same_time(&begun, call, more);
        }
    }
    Ok(())
}

/// The service that reports into the request's trace from behind the app.
fn goes_on(traces: &[Trace], call: &Unseen, tree: &Tree) -> Option<String> {
    let sent: HashSet<SpanId> = HeaderFamily::read_all(&call.sent).iter().map(|(_, context)| context.span_id).collect();
    let mut known = HashSet::new();
    let mut names = Vec::new();
    for (hop, _) in tree.hops("") {
        names.push(hop.service.clone());
        known.extend(hop.span_id.clone());
        known.extend(
            hop.upstreams
                .iter()
                .flat_map(|call| HeaderFamily::read_all(&call.sent))
                .map(|(_, context)| context.span_id.to_string()),
        );
    }
    let is_of_hop = |span: &Span| {
        let service = span.service().unwrap_or_default();
        known.contains(&span.id.to_string()) || names.iter().any(|name| is_named(service, name))
    };
    let mut foreign: Vec<&str> = Vec::new();
    for trace in traces {
        let rows = trace.rows();
        let is_below = |row: usize| {
            let mut at = Some(row);
            while let Some(index) = at {
                let span = &rows[index].span;
                if index != row && sent.contains(&span.id) || span.parent_id.is_some_and(|parent| sent.contains(&parent)) {
                    return true;
                }
                at = rows[index].parent;
            }
            false
        };
        for span in rows.iter().enumerate().filter(|(row, _)| is_below(*row)).map(|(_, row)| &*row.span) {
            let service = span.service().unwrap_or_default();
            // A hop of ours that no reply shows, or the app's own proxy where it sends the next call.
            let is_ours = span.tag("request.id").is_some() && span.tag("lane").is_some();
            let leaves_app = span.is_proxy() && span.kind == Some(Kind::Client) && is_named(service, &call.foreign_app.name);
            if !is_of_hop(span) && (is_ours || leaves_app) {
                return Some(service.to_owned());
            }
            if !is_of_hop(span) && !span.is_proxy() && !foreign.contains(&service) {
                foreign.push(service);
            }
        }
    }
    // The first is the app itself.
    foreign.get(1).map(|service| (*service).to_owned())
}

/// Another trace in which a span has the request id that was sent to the app.
async fn same_request(backend: &Backend, call: &Unseen, first: &TracedRequest) -> Result<Option<AppEvidence>, BackendRefusal> {
    let Some(id) = call.sent.first("x-request-id") else { return Ok(None) };
    for other in backend.traces_of(id).await? {
        if first.ids.contains(&other) {
            continue;
        }
        let service = backend.trace(other).await?.and_then(|trace| beginner(trace.rows().iter().map(|row| &*row.span)));
        if let Some((service, _)) = service {
            return Ok(Some(AppEvidence::SameRequest(service, other)));
        }
    }
    Ok(None)
}

/// The service whose span is the first, and when it began.
fn beginner<'a>(spans: impl Iterator<Item = &'a Span>) -> Option<(String, Duration)> {
    let first = spans.filter(|span| span.timestamp.is_some()).min_by_key(|span| (span.timestamp, span.parent_id.is_some()))?;
    Some((first.service()?.to_owned(), Duration::from_micros(first.timestamp?)))
}

/// When which service began a trace that is none of the requests', while they were sent.
async fn begun_by_others(
    backend: &Backend,
    first: &TracedRequest,
    more: &[TracedRequest],
) -> Result<BTreeMap<String, Vec<(Duration, TraceId)>>, BackendRefusal> {
    const MARGIN: Duration = Duration::from_secs(1);
    let times: Vec<(Duration, Duration)> =
        more.iter().flat_map(|sent| unseen(&sent.tree)).map(|call| (call.from, call.to)).collect();
    let (Some(from), Some(to)) = (times.iter().map(|time| time.0).min(), times.iter().map(|time| time.1).max()) else {
        return Ok(BTreeMap::new());
    };
    let spans = backend.between(from.saturating_sub(MARGIN), to + MARGIN).await?;
    let own: HashSet<TraceId> = more.iter().chain([first]).flat_map(|sent| &sent.ids).copied().collect();
    let mut traces: HashMap<TraceId, Vec<&Span>> = HashMap::new();
    for span in spans.iter().filter(|span| !own.contains(&span.trace_id)) {
        traces.entry(span.trace_id).or_default().push(span);
    }
    let mut begun: BTreeMap<String, Vec<(Duration, TraceId)>> = BTreeMap::new();
    for (id, spans) in traces {
        if let Some((service, at)) = beginner(spans.into_iter()) {
            begun.entry(service).or_default().push((at, id));
        }
    }
    begun.retain(|service, _| !first.tree.hops("").any(|(hop, _)| is_named(service, &hop.service)));
    Ok(begun)
}

/// A service that begins a trace in the time of each call, and hardly at other times.
fn same_time(begun: &BTreeMap<String, Vec<(Duration, TraceId)>>, call: &Unseen, more: &[TracedRequest]) -> Option<AppEvidence> {
    let same = |other: &Unseen| other.caller == call.caller && other.foreign_app == call.foreign_app;
    let windows: Vec<Unseen> = more.iter().filter_map(|sent| unseen(&sent.tree).into_iter().find(same)).collect();
    if windows.len() < REQUESTS {
        return None;
    }
    let (from, to) = (windows.first()?.from, windows.last()?.to);
    let inside: f64 = windows.iter().map(|window| (window.to - window.from).as_secs_f64()).sum();
    let outside = (to.saturating_sub(from).as_secs_f64() - inside).max(0.001);
    let is_within = |at: Duration, window: &Unseen| window.from <= at && at <= window.to;
    let candidates = begun.iter().filter_map(|(service, traces)| {
        let hits: Vec<TraceId> =
            windows.iter().filter_map(|window| traces.iter().find(|(at, _)| is_within(*at, window)).map(|(_, id)| *id)).collect();
        let others =
            traces.iter().filter(|(at, _)| from <= *at && *at <= to && !windows.iter().any(|window| is_within(*at, window)));
        let rate = (others.count() + 1) as f64 / outside;
        let chance: f64 = windows.iter().map(|window| 1.0 - (-rate * (window.to - window.from).as_secs_f64()).exp()).product();
        let first = traces.iter().map(|(at, _)| *at).min()?;
        (hits.len() == windows.len() && chance < CHANCE).then(|| (first, service.clone(), hits))
    });
    // Of several the first one is where the trace broke.
    let (_, service, hits) = candidates.min_by_key(|(first, ..)| *first)?;
    Some(AppEvidence::SameTime(service, hits))
}

fn finding(backend: &Backend, call: &Unseen, evidence: Option<AppEvidence>, trouble: Option<&BackendRefusal>) -> Finding {
    const ID: CheckId = CheckId::TracesForeignApp;
    let (name, caller) = (&call.foreign_app.name, &call.caller);
    let (text, pages, service) = match evidence {
        Some(AppEvidence::GoesOn(service)) => {
            let text = format!("{name} is no hop of this chain, and passes the trace on: {service} reports below it");
            return Finding::pass(ID, text).hop(name);
        }
        None => {
            let why = match trouble {
                Some(trouble) => format!("the backend {trouble}"),
                None => "the trace backend has no span from there that shows whose trace it is in".to_owned(),
            };
            return Finding::skip(ID, format!("What is behind {name}: not checked, because {why}")).hop(name);
        }
        Some(AppEvidence::ByProxy) => {
            let text = format!("The proxy of {caller} answers calls to {name} itself, and {name} is not reached");
            let hint =
                Hint::new("A route there answers in its place: directResponse of a VirtualService, direct_response in Envoy")
                    .run("kubectl get virtualservice -A -o yaml | grep -A4 -E 'directResponse:|redirect:'");
            return Finding::fail(ID, text, hint).seam(caller, name, None).hop(name);
        }
        Some(AppEvidence::SameRequest(service, id)) => (
            format!(
                "Trace broke behind {name}: {service} begins another trace, {}, for the same request id",
                short(&id.to_string())
            ),
            vec![id],
            service,
        ),
        Some(AppEvidence::SameTime(service, ids)) => (
            format!(
                "Trace broke behind {name}: {service} begins a trace of its own in the time of each of {} requests, while {caller} waits for {name}",
                ids.len()
            ),
            ids,
            service,
        ),
    };
    let hint = Hint::new(format!("{name}, an app that is not httpserver, does not pass the trace headers on: its HTTP client is not instrumented, or it does not copy them")).run(format!(
        "httpserver probe {} --downstream 127.0.0.1:9001  # with the next hop of {name} set to that address",
        quoted(&call.foreign_app.url)
    ));
    Finding::fail(ID, text, hint).lines(pages.iter().map(|id| backend.page(*id))).seam(caller, &service, None).hop(name)
}
