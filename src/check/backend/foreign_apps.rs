//! Foreign apps whose answers show nothing of what they call: whether the trace goes on behind them, by the backend's word.
//!
//! It goes on where somebody behind the app reports into the request's own trace. It is broken where another trace begins behind the app: one
//! with the request id of the request, or one that begins at the same service within the time of the call, request after request, and so
//! rarely at other times that this is no chance. An app may do now one and now the other, so several requests are looked at.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::check::backend::access::BackendRefusal;
use crate::check::backend::client::Backend;
use crate::check::backend::other_traces::{CHANCE, CallTime, OtherTraces, beginner};
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

/// Requests that are sent beside the first one; of those that take long only the least, and as many again where that leaves it to chance.
const REQUESTS: usize = 9;
const LEAST: usize = 5;
const LONG: Duration = Duration::from_millis(300);
const ROUNDS: usize = 3;
/// How long spans are on their way: Envoy and OpenTelemetry's SDKs report every five seconds.
const REPORTED: Duration = Duration::from_secs(8);
/// So long is waited before more requests are sent to tell from chance.
const SETTLED: Duration = Duration::from_secs(2);

/// A call to a foreign app whose answer has no reply of a hop.
#[derive(Debug, Clone)]
struct Unseen {
    caller: String,
    foreign_app: ForeignApp,
    sent: Headers,
    /// The time in which the caller had the request, since 1970 by its own clock.
    time: CallTime,
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
            time: (from, to),
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

/// What the backend has of one app in one request.
#[derive(Debug, Clone)]
enum RequestOutcome {
    /// This service reports below the call, behind the app.
    GoesOn(String),
    /// Another trace, which this service begins, with the request's own id.
    SameRequest(String, TraceId),
    /// There is no app: the caller's proxy answered.
    ByProxy,
}

/// What the backend has of one app in all requests.
enum AppEvidence {
    /// This service reports below the call in each of so many requests.
    GoesOn(String, usize),
    ByProxy,
    /// This service begins other traces, known by the request's id or by the time, in some of so many requests.
    Broken {
        service: String,
        traces: Vec<TraceId>,
        by_id: bool,
        of: usize,
        is_open: bool,
    },
    /// Nothing behind the app is reported in so many of so many requests.
    Silent(usize, usize),
    /// This service begins a trace in the time of so many requests, and that often at other times, too.
    Chance(String, usize),
}

impl AppEvidence {
    fn is_certain(&self) -> bool {
        !matches!(self, Self::Silent(..) | Self::Chance(..))
    }

    fn is_chance(&self) -> bool {
        matches!(self, Self::Chance(..))
    }

    /// Whether more may come.
    fn is_open(&self) -> bool {
        !self.is_certain() || matches!(self, Self::Broken { is_open: true, .. })
    }
}

/// One request and its traces.
struct TracedRequest {
    tree: Tree,
    ids: Vec<TraceId>,
    calls: Vec<Unseen>,
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
        let calls = unseen(&tree);
        Self { tree, ids, calls }
    }

    /// The same call in this request.
    fn call(&self, call: &Unseen) -> Option<&Unseen> {
        self.calls.iter().find(|other| other.caller == call.caller && other.foreign_app == call.foreign_app)
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
    let mut requests = vec![TracedRequest::of(probe, tree.clone())];
    let mut outcomes: Vec<Outcomes> = calls.iter().map(|_| HashMap::new()).collect();
    let mut round = 0;
    let (evidence, trouble) = loop {
        tokio::select! {
            more = ask_again(request, tree) => requests.extend(more),
            _ = stop.wait_for(|stop| *stop) => return examined,
        };
        round += 1;
        let limits = [if round < ROUNDS { SETTLED } else { REPORTED }, REPORTED].map(|limit| wait.min(limit));
        let settled = settle(backend, (&calls, &requests), &mut outcomes, limits, stop, progress).await;
        if !settled.0.iter().any(AppEvidence::is_chance) || round >= ROUNDS || *stop.borrow() {
            break settled;
        }
    };
    progress.clear();
    for (call, evidence) in calls.iter().zip(evidence) {
        if evidence.is_certain() {
            examined.names.insert(call.foreign_app.name.clone());
        }
        let finding = finding(backend, call, evidence, trouble.as_ref());
        if !examined.findings.iter().any(|known| known.text == finding.text) {
            examined.findings.push(finding);
        }
    }
    examined
}

/// Asks the backend until every app is examined, or for the second limit; for the first one where it is open whether something is chance.
async fn settle(
    backend: &Backend,
    (calls, requests): (&[Unseen], &[TracedRequest]),
    outcomes: &mut [Outcomes],
    limits: [Duration; 2],
    stop: &mut watch::Receiver<bool>,
    progress: &ProgressLine,
) -> (Vec<AppEvidence>, Option<BackendRefusal>) {
    let started = Instant::now();
    let mut begun = OtherTraces::default();
    loop {
        let trouble = tokio::select! {
            collected = collect_evidence(backend, calls, requests, outcomes) => match collected {
                Ok(others) => {
                    begun = others;
                    None
                }
                Err(refusal) => Some(refusal),
            },
            _ = stop.wait_for(|stop| *stop) => None,
            // A backend that is slow with each of the traces does not prolong the wait.
            () = tokio::time::sleep_until(started + limits[1]) => None,
        };
        let evidence: Vec<AppEvidence> =
            calls.iter().zip(&*outcomes).map(|(call, outcomes)| AppEvidence::of(call, requests, outcomes, &begun)).collect();
        let limit = limits[usize::from(!evidence.iter().any(AppEvidence::is_chance))];
        if !evidence.iter().any(AppEvidence::is_open) || started.elapsed() >= limit || *stop.borrow() {
            return (evidence, trouble);
        }
        pause("seconds, waiting for what is reported behind the apps that are not httpserver", started, limit, stop, progress)
            .await;
    }
}

/// Sends the request a few times, with pauses in which others may begin traces.
async fn ask_again(request: &CheckedRequest<'_>, tree: &Tree) -> Vec<TracedRequest> {
    let pause = Duration::from_secs_f64((3.0 * tree.duration_ms / 1e3).clamp(0.1, 1.0));
    let is_long = tree.duration_ms > LONG.as_secs_f64() * 1e3;
    let mut sent = Vec::new();
    for _ in 0..if is_long { LEAST } else { REQUESTS } {
        let probe = Probe::ordinary();
        if let Some(tree) = request.client.get(&probe.headers).await.ok().and_then(|answer| answer.tree()) {
            sent.push(TracedRequest::of(&probe, tree));
        }
        tokio::time::sleep(pause).await;
    }
    sent
}

/// By the number of the request.
type Outcomes = HashMap<usize, RequestOutcome>;

/// Whether nothing is to be learned of an app from the request of this number: it is known, or the request made no such call.
fn is_settled(n: usize, request: &TracedRequest, call: &Unseen, outcomes: &Outcomes) -> bool {
    outcomes.contains_key(&n) || request.call(call).is_none()
}

/// Looks for evidence that is not there yet. Returns the traces that others began meanwhile.
async fn collect_evidence(
    backend: &Backend,
    calls: &[Unseen],
    requests: &[TracedRequest],
    outcomes: &mut [Outcomes],
) -> Result<OtherTraces, BackendRefusal> {
    for (n, request) in requests.iter().enumerate() {
        if calls.iter().zip(&*outcomes).all(|(call, outcomes)| is_settled(n, request, call, outcomes)) {
            continue;
        }
        let mut own = Vec::new();
        for id in request.ids.iter().collect::<HashSet<_>>() {
            own.extend(backend.trace(*id).await?);
        }
        let spans = RequestSpans::of(&own);
        for (call, outcomes) in calls.iter().zip(&mut *outcomes).filter(|(_, outcomes)| !outcomes.contains_key(&n)) {
            let Some(call) = request.call(call) else { continue };
            let outcome = match spans.call(&call.sent, &call.foreign_app.url).is_answered_by_proxy() {
                true => Some(RequestOutcome::ByProxy),
                false => goes_on(&own, call, &request.tree).map(RequestOutcome::GoesOn),
            };
            outcomes.extend(outcome.map(|outcome| (n, outcome)));
        }
    }
    let settled = |(n, request)| calls.iter().zip(&*outcomes).all(|(call, outcomes)| is_settled(n, request, call, outcomes));
    if requests.iter().enumerate().all(settled) {
        return Ok(OtherTraces::default());
    }
    // From the second request on: the first may have been sent long before.
    let times: Vec<CallTime> = requests.iter().skip(1).flat_map(|sent| &sent.calls).map(|call| call.time).collect();
    let own = requests.iter().flat_map(|sent| &sent.ids).copied().collect();
    let is_hop = |service: &str| requests[0].tree.hops("").any(|(hop, _)| is_named(service, &hop.service));
    // What the request's own id shows does not need the others.
    let (others, refusal) = match OtherTraces::read(backend, &times, &own, is_hop).await {
        Ok(others) => (others, None),
        Err(refusal) => (OtherTraces::default(), Some(refusal)),
    };
    for (n, request) in requests.iter().enumerate() {
        for (call, outcomes) in calls.iter().zip(&mut *outcomes).filter(|(_, outcomes)| !outcomes.contains_key(&n)) {
            let Some(call) = request.call(call) else { continue };
            let known = call.sent.first("x-request-id").and_then(|id| others.of_request(id));
            let outcome = match known.map(|(service, id)| RequestOutcome::SameRequest(service, id)) {
                None if n == 0 => same_request(backend, call, request).await?,
                known => known,
            };
            outcomes.extend(outcome.map(|outcome| (n, outcome)));
        }
    }
    refusal.map_or(Ok(others), Err)
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
    let second = foreign.get(1).map(|service| (*service).to_owned());
    second.or_else(|| Some(traces.iter().flat_map(|trace| missing_in_between(trace, tree)).next()?.2))
}

/// The spans that a foreign app must have in this trace and nobody reported: others hang below them. With each the service of the
/// span below. Only where one app can be meant.
pub(super) fn missing_in_between(trace: &Trace, tree: &Tree) -> Vec<(ForeignApp, SpanId, String)> {
    let apps = tree.hops("").flat_map(|(hop, _)| &hop.upstreams).filter(|call| call.is_foreign()).count();
    let unseen = unseen(tree);
    let [app] = unseen.as_slice() else { return Vec::new() };
    let is_hop = |service: &str| tree.hops("").any(|(hop, _)| is_named(service, &hop.service));
    let is_known = |service: &str| is_named(service, &app.foreign_app.name) || is_hop(service);
    if apps > 1 || trace.services().iter().any(|service| is_named(service, &app.foreign_app.name)) {
        return Vec::new();
    }
    let rows = trace.rows().iter().filter(|row| row.parent.is_none() && !row.span.is_proxy());
    let orphans = rows.filter_map(|row| Some((row.span.service()?, row.span.parent_id?)));
    let behind = orphans.filter(|(service, _)| !is_known(service));
    behind.map(|(service, parent)| (app.foreign_app.clone(), parent, service.to_owned())).collect()
}

/// Another trace in which a span has the request id that was sent to the app.
async fn same_request(
    backend: &Backend,
    call: &Unseen,
    request: &TracedRequest,
) -> Result<Option<RequestOutcome>, BackendRefusal> {
    let Some(id) = call.sent.first("x-request-id") else { return Ok(None) };
    for other in backend.traces_of(id).await? {
        if request.ids.contains(&other) {
            continue;
        }
        let service = backend.trace(other).await?.and_then(|trace| beginner(trace.rows().iter().map(|row| &*row.span)));
        if let Some((service, _)) = service {
            return Ok(Some(RequestOutcome::SameRequest(service, other)));
        }
    }
    Ok(None)
}

impl AppEvidence {
    fn of(call: &Unseen, requests: &[TracedRequest], outcomes: &Outcomes, others: &OtherTraces) -> Self {
        let made: Vec<(usize, &Unseen)> =
            requests.iter().enumerate().filter_map(|(n, request)| Some((n, request.call(call)?))).collect();
        let (mut on, mut broken) = (Vec::new(), Vec::new());
        for outcome in made.iter().filter_map(|(n, _)| outcomes.get(n)) {
            match outcome {
                RequestOutcome::ByProxy => return Self::ByProxy,
                RequestOutcome::GoesOn(service) => on.push(service),
                RequestOutcome::SameRequest(service, id) => broken.push((service, *id)),
            }
        }
        let of = made.len();
        let open: Vec<usize> = made.iter().map(|(n, _)| *n).filter(|n| !outcomes.contains_key(n)).collect();
        let timed = |wanted: &dyn Fn(usize) -> bool| -> Vec<CallTime> {
            made.iter().filter(|(n, _)| *n > 0 && wanted(*n)).map(|(_, call)| call.time).collect()
        };
        if let Some((service, _)) = broken.first() {
            let traces: Vec<TraceId> = broken.iter().map(|(_, id)| *id).collect();
            let (is_open, of) = (!open.is_empty(), if open.is_empty() { of } else { traces.len() });
            return Self::Broken { service: (*service).clone(), traces, by_id: true, of, is_open };
        }
        if let Some(service) = on.first().filter(|_| open.is_empty()) {
            return Self::GoesOn((*service).clone(), of);
        }
        let (silent, timed) = (timed(&|n| open.contains(&n)), timed(&|_| true));
        match others.in_time_of(&silent, &timed) {
            Some((service, traces, chance)) if chance < CHANCE && (silent.len() >= LEAST || !on.is_empty()) => {
                Self::Broken { service, traces, by_id: false, of: timed.len(), is_open: false }
            }
            Some((service, ..)) => Self::Chance(service, silent.len()),
            None => Self::Silent(open.len(), of),
        }
    }
}

fn finding(backend: &Backend, call: &Unseen, evidence: AppEvidence, trouble: Option<&BackendRefusal>) -> Finding {
    const ID: CheckId = CheckId::TracesForeignApp;
    let (name, caller) = (&call.foreign_app.name, &call.caller);
    let unknown = |why: String| Finding::skip(ID, format!("What is behind {name}: not checked, because {why}")).hop(name);
    let (text, traces, service) = match evidence {
        AppEvidence::GoesOn(service, of) => {
            let requests =
                if of == 1 { "the 1 request that was".to_owned() } else { format!("each of the {of} requests that were") };
            let text = format!(
                "{name} is no hop of this chain, and passes the trace on: {service} reports below it in {requests} looked at"
            );
            return Finding::pass(ID, text).hop(name);
        }
        AppEvidence::Silent(..) | AppEvidence::Chance(..) if trouble.is_some() => {
            return unknown(format!("the backend {}", trouble.map(ToString::to_string).unwrap_or_default()));
        }
        AppEvidence::Silent(open, of) if open < of => {
            return unknown(format!(
                "in {open} of {of} requests the trace backend has no span from there; in the others the trace goes on"
            ));
        }
        AppEvidence::Silent(..) => {
            return unknown("the trace backend has no span from there that shows whose trace it is in".to_owned());
        }
        AppEvidence::Chance(service, of) => {
            return unknown(format!(
                "{service} begins a trace in the time of each of {of} requests, and so often at other times that this may be chance"
            ));
        }
        AppEvidence::ByProxy => {
            let text = format!("The proxy of {caller} answers calls to {name} itself, and {name} is not reached");
            let hint =
                Hint::new("A route there answers in its place: directResponse of a VirtualService, direct_response in Envoy")
                    .run("kubectl get virtualservice -A -o yaml | grep -A4 -E 'directResponse:|redirect:'");
            return Finding::fail(ID, text, hint).seam(caller, name, None).hop(name);
        }
        AppEvidence::Broken { service, traces, by_id, of, .. } => {
            let share = if traces.len() < of { format!(" in {} of {of} requests", traces.len()) } else { String::new() };
            let text = match (by_id, traces.first()) {
                (true, Some(id)) => format!(
                    "Trace broke behind {name}{share}: {service} begins another trace, {}, for the same request id",
                    short(&id.to_string())
                ),
                _ => format!(
                    "Trace broke behind {name}{share}: {service} begins a trace of its own in the time of each of {} requests, while {caller} waits for {name}",
                    traces.len()
                ),
            };
            (text, traces, service)
        }
    };
    let hint = Hint::new(format!("{name}, an app that is not httpserver, does not pass the trace headers on: its HTTP client is not instrumented, or it does not copy them")).run(format!(
        "httpserver probe {} --downstream 127.0.0.1:9001  # with the next hop of {name} set to that address",
        quoted(&call.foreign_app.url)
    ));
    const SHOWN: usize = 5;
    let pages = traces.iter().take(SHOWN).map(|id| backend.page(*id));
    Finding::fail(ID, text, hint).lines(pages).seam(caller, &service, None).hop(name)
}
