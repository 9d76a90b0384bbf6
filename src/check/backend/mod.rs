//! The trace backend: Jaeger's query API and Zipkin's v2 API told apart, and one request's trace judged span by span.
//!
//! What must be there is known exactly: a hop that continues the trace tells its own span's id and its calls' in the reply, and
//! where a proxy wrote its span into the headers, that id arrived at the hop. Every further span is somebody's parent.

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::hop::reply::{Propagation, Tree};

use crate::check::chain::evidence::Xray;
use crate::check::chain::expect::{Expect, is_named};
use crate::check::chain::probe::{Probe, short};
use crate::check::chain::xray::examine;
use crate::check::envoy::hints::{Hop, Place, Runner, quoted};
use crate::check::reachability::client::Client;
use crate::check::reachability::tls::Trust;
use crate::check::report::{CheckId, Finding, Hint, Progress};
use crate::trace_context::HeaderFamily;
use crate::traces::ids::{parse_span_id, parse_trace_id};

/// A span as both backends have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// 16 hex digits.
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) service: String,
    pub(crate) name: String,
}

/// Which API answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zipkin,
    Jaeger,
}

/// A backend that answered.
pub(crate) struct Backend {
    http: reqwest::Client,
    base: String,
    kind: Kind,
}

/// Finds out what answers at `url`. Errors: the finding that says why nothing does.
pub(crate) async fn open(url: &Url, trust: &Trust) -> Result<(Backend, Finding), Box<Finding>> {
    const LIMIT: Duration = Duration::from_secs(5);
    let unreachable = |why: String| {
        let hint = Hint::new("Nothing listens there, or it is no Jaeger query API and no Zipkin v2 API")
            .run("kubectl port-forward -n istio-system svc/tracing 16686:80  # then --traces http://localhost:16686")
            .run(format!("curl -s {}/api/services", quoted(url.as_str().trim_end_matches('/'))))
            .run(format!("curl -s {}/api/v2/services", quoted(url.as_str().trim_end_matches('/'))));
        Box::new(Finding::fail(CheckId::TracesBackend, format!("No trace backend at {url}: {why}"), hint))
    };
    let tls = trust.config().map_err(&unreachable)?.0;
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(LIMIT)
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|error| unreachable(error.to_string()))?;
    let mut why = "no API answers".to_owned();
    for base in bases(url) {
        for (kind, path) in [(Kind::Zipkin, "/api/v2/services"), (Kind::Jaeger, "/api/services")] {
            match fetch(&http, &format!("{base}{path}")).await {
                Ok(Some(json))
                    if kind == Kind::Zipkin && json.is_array() || kind == Kind::Jaeger && json.get("data").is_some() =>
                {
                    let name = match kind {
                        Kind::Zipkin => "Zipkin v2 API",
                        Kind::Jaeger => "Jaeger query API",
                    };
                    let finding = Finding::pass(CheckId::TracesBackend, format!("{name} at {base}"));
                    return Ok((Backend { http, base, kind }, finding));
                }
                Ok(_) => {}
                Err(error) => why = error,
            }
        }
    }
    Err(unreachable(why))
}

/// Where an API may be, from what people paste: the page's URL, with or without its path.
fn bases(url: &Url) -> Vec<String> {
    let origin = url.origin().ascii_serialization();
    let path = url.path().trim_end_matches('/');
    let mut bases = vec![format!("{origin}{path}")];
    if let Some((above, _)) = path.rsplit_once('/') {
        bases.push(format!("{origin}{above}"));
    }
    bases.push(origin.clone());
    bases.push(format!("{origin}/jaeger"));
    let mut seen: Vec<String> = Vec::new();
    bases.retain(|base| {
        let new = !seen.contains(base);
        seen.push(base.clone());
        new
    });
    bases
}

/// JSON at a URL; `None` when there is none: another status, or a page.
async fn fetch(http: &reqwest::Client, url: &str) -> Result<Option<serde_json::Value>, String> {
    let answer = http.get(url).header(http::header::ACCEPT, "application/json").send().await.map_err(|error| cause(&error))?;
    if !answer.status().is_success() {
        return Ok(None);
    }
    let body = answer.bytes().await.map_err(|error| cause(&error))?;
    Ok(serde_json::from_slice(&body).ok())
}

fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

impl Backend {
    /// The spans of a trace; empty while it has not arrived.
    async fn trace(&self, id: &str) -> Result<Vec<Span>, String> {
        let path = match self.kind {
            Kind::Zipkin => "/api/v2/trace/",
            Kind::Jaeger => "/api/traces/",
        };
        let Some(json) = fetch(&self.http, &format!("{}{path}{id}", self.base)).await? else { return Ok(Vec::new()) };
        let spans = match self.kind {
            Kind::Zipkin => zipkin(json),
            Kind::Jaeger => jaeger(json),
        };
        spans.map_err(|error| format!("its answer is not what the API says: {error}"))
    }

    /// Where a person looks at the trace.
    fn page(&self, id: &str) -> String {
        match self.kind {
            Kind::Zipkin => format!("{}/api/v2/trace/{id}", self.base),
            Kind::Jaeger => format!("{}/trace/{id}", self.base),
        }
    }
}

fn padded(id: &str) -> String {
    format!("{:0>16}", id.to_ascii_lowercase())
}

fn zipkin(json: serde_json::Value) -> serde_json::Result<Vec<Span>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        id: String,
        parent_id: Option<String>,
        name: Option<String>,
        local_endpoint: Option<Endpoint>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Endpoint {
        service_name: Option<String>,
    }
    let raw: Vec<Raw> = serde_json::from_value(json)?;
    Ok(raw
        .into_iter()
        .map(|span| Span {
            id: padded(&span.id),
            parent: span.parent_id.map(|id| padded(&id)),
            service: span.local_endpoint.and_then(|endpoint| endpoint.service_name).unwrap_or_default(),
            name: span.name.unwrap_or_default(),
        })
        .collect())
}

fn jaeger(json: serde_json::Value) -> serde_json::Result<Vec<Span>> {
    #[derive(Deserialize)]
    struct Answer {
        data: Option<Vec<Trace>>,
    }
    #[derive(Deserialize)]
    struct Trace {
        spans: Vec<Raw>,
        processes: std::collections::HashMap<String, Process>,
    }
    #[derive(Deserialize)]
    struct Process {
        #[serde(rename = "serviceName")]
        service: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        #[serde(rename = "spanID")]
        id: String,
        operation_name: String,
        #[serde(default)]
        references: Vec<Reference>,
        #[serde(rename = "processID")]
        process: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Reference {
        ref_type: String,
        #[serde(rename = "spanID")]
        span: String,
    }
    let answer: Answer = serde_json::from_value(json)?;
    let mut spans = Vec::new();
    for trace in answer.data.unwrap_or_default() {
        for raw in trace.spans {
            spans.push(Span {
                id: padded(&raw.id),
                parent: raw
                    .references
                    .iter()
                    .find(|reference| reference.ref_type == "CHILD_OF")
                    .map(|reference| padded(&reference.span)),
                service: trace.processes.get(&raw.process).map(|process| process.service.clone()).unwrap_or_default(),
                name: raw.operation_name,
            });
        }
    }
    Ok(spans)
}

/// A span that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Must {
    /// The trace that it belongs to.
    trace: String,
    id: String,
    /// `None`: whatever the reporter says.
    parent: Option<String>,
    hop: Hop,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Server,
    Call,
    /// Of the proxy in front of the hop.
    Proxy,
}

/// What the reply says must be in the backend.
fn musts(tree: &Tree, url: &str, xray: &Xray) -> Vec<Must> {
    let mut out = Vec::new();
    let mut rows = xray.rows.iter();
    walk(tree, url, &mut rows, &mut out);
    out
}

fn walk<'a>(
    tree: &Tree,
    url: &str,
    rows: &mut impl Iterator<Item = &'a crate::check::chain::evidence::Row>,
    out: &mut Vec<Must>,
) {
    let hop = Hop::of(tree, url);
    // Rows stand in the order of this walk: one per hop that answered.
    let row = rows.next();
    if tree.sampled != Some(false)
        && let Some(row) = row
    {
        for format in HeaderFamily::ALL {
            let wrote = if format == HeaderFamily::W3c { row.proxy.w3c } else { row.proxy.b3 };
            if let Some(context) = row.context(format).filter(|context| wrote && context.sampling.is_sampled())
                && let id = context.span_id.to_string()
                && !out.iter().any(|must| must.id == id)
            {
                let trace = context.trace_id.to_string();
                out.push(Must { trace, id, parent: None, hop: hop.clone(), role: Role::Proxy });
            }
        }
    }
    let reports = tree.propagation == Propagation::Continue && tree.sampled == Some(true);
    let span_id = |text: &Option<String>| Some(parse_span_id(text.as_ref()?).ok()?.to_string());
    let server = span_id(&tree.span_id).filter(|_| reports);
    let trace = tree.trace_id.as_ref().and_then(|id| Some(parse_trace_id(id).ok()?.to_string())).unwrap_or_default();
    if let Some(id) = &server {
        let parent = span_id(&tree.parent_span_id);
        out.push(Must { trace: trace.clone(), id: id.clone(), parent, hop: hop.clone(), role: Role::Server });
    }
    for call in &tree.upstreams {
        let written = HeaderFamily::ALL.into_iter().find_map(|format| format.read(&call.sent));
        if let (Some(server), Some(context)) = (&server, written) {
            out.push(Must {
                trace: context.trace_id.to_string(),
                id: context.span_id.to_string(),
                parent: Some(server.clone()),
                hop: hop.clone(),
                role: Role::Call,
            });
        }
        if let Some(reply) = &call.reply {
            walk(reply, &call.url, rows, out);
        }
    }
}

/// The traces that the request is in, first the one that it begins in: ours, or the one that the front gave it. Where hops only
/// forward, the proxies' are the ones that count.
fn traces(must: &[Must]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for must in must {
        if !ids.contains(&must.trace) {
            ids.push(must.trace.clone());
        }
    }
    ids
}

/// Where the request goes, and what is expected of it.
pub(crate) struct Request<'a> {
    pub(crate) client: &'a Client,
    pub(crate) expect: Option<&'a Expect>,
    pub(crate) place: &'a Place,
}

/// Sends an ordinary request and judges its trace.
pub(crate) async fn follow(
    backend: &Backend,
    request: &Request<'_>,
    wait: Duration,
    stop: &mut watch::Receiver<bool>,
    progress: &Progress,
) -> Vec<Finding> {
    let &Request { client, expect, place } = request;
    // A request that a fault strikes leaves a trace of the part that ran; a whole one says more.
    const TRIES: usize = 5;
    let mut last = None;
    for _ in 0..TRIES {
        let probe = Probe::ordinary();
        if let Ok(answer) = client.get(&probe.headers).await
            && let Some(tree) = answer.tree()
        {
            let whole = answer.status < 300;
            last = Some((probe, tree));
            if whole {
                break;
            }
        }
    }
    let Some((probe, tree)) = last else {
        return vec![Finding::skip(CheckId::TracesArrived, "Trace: skipped, because no request brought the chain's reply")];
    };
    let xray = examine(&probe, &tree, &place.url);
    let must = musts(&tree, &place.url, &xray);
    if tree.sampled == Some(false) {
        return vec![Finding::skip(
            CheckId::TracesArrived,
            "Trace: skipped, because the request arrived as \"not sampled\" although it asked to be: see the sampling rate below, or Propagation",
        )];
    }
    if must.is_empty() {
        let seen: Vec<&str> = xray.rows.iter().filter(|row| row.proxy.is_seen()).map(|row| row.hop.name.as_str()).collect();
        let (text, hint) = if seen.is_empty() {
            (
                "Nobody reports spans: every hop only forwards, and no proxy is seen between them".to_owned(),
                Hint::new("TRACE_EXPORTER (OTEL_TRACES_EXPORTER) is none at every hop, and there are no sidecars: set zipkin or otlp, or inject sidecars")
                    .run(format!("kubectl get namespace {} --show-labels", place.namespace)),
            )
        } else {
            (
                format!("Nobody reports spans: every hop only forwards, and the proxies at {} do not trace", seen.join(", ")),
                no_tracing(place),
            )
        };
        return vec![Finding::fail(CheckId::TracesArrived, text, hint)];
    }
    let ids = traces(&must);
    let Some(id) = ids.first() else { return Vec::new() };
    let here: Vec<Must> = must.iter().filter(|must| must.trace == *id).cloned().collect();
    let started = Instant::now();
    let mut spans = Vec::new();
    let mut trouble = None;
    let own: Vec<String> =
        HeaderFamily::ALL.into_iter().filter_map(|format| Some(format.read(&probe.headers)?.span_id.to_string())).collect();
    loop {
        match backend.trace(id).await {
            Ok(found) => spans = found,
            Err(error) => trouble = Some(error),
        }
        if is_complete(&here, &spans, &own) || started.elapsed() >= wait || *stop.borrow() {
            break;
        }
        progress.show("seconds, waiting for the trace", started.elapsed().as_secs(), wait.as_secs());
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    progress.clear();
    let seen = Seen { tree: &tree, xray: &xray, ids: &ids, must: &here, spans: &spans, own: &own };
    let mut findings = judge(&seen, expect, place, started.elapsed());
    if let Some(first) = findings.first_mut() {
        if let (true, Some(trouble)) = (spans.is_empty(), trouble) {
            first.detail.push(format!("the backend: {trouble}"));
        }
        if !spans.is_empty() {
            first.detail.push(backend.page(id));
        }
    }
    findings
}

fn is_complete(must: &[Must], spans: &[Span], own: &[String]) -> bool {
    must.iter().all(|must| spans.iter().any(|span| span.id == must.id)) && orphans(spans, own).is_empty()
}

/// Spans whose parent is not there. `own`: the spans of `check` itself, which reports none.
fn orphans<'a>(spans: &'a [Span], own: &[String]) -> Vec<&'a Span> {
    spans
        .iter()
        .filter(|span| {
            span.parent.as_ref().is_some_and(|parent| !own.contains(parent) && !spans.iter().any(|other| other.id == *parent))
        })
        .collect()
}

/// Whether `ancestor` is above `id`.
fn is_below(spans: &[Span], id: &str, ancestor: &str) -> bool {
    let mut at = id.to_owned();
    for _ in 0..spans.len() {
        match spans.iter().find(|span| span.id == at).and_then(|span| span.parent.clone()) {
            Some(parent) if parent == ancestor => return true,
            Some(parent) => at = parent,
            None => return false,
        }
    }
    false
}

fn exporter(place: &Place, hop: &Hop) -> Vec<String> {
    let namespace = place.namespace_of(hop);
    match place.runner(hop) {
        Runner::Kubernetes => vec![
            format!(
                "kubectl get --raw /api/v1/namespaces/{namespace}/pods/{}:8080/proxy/metrics | grep httpserver_spans",
                hop.hostname
            ),
            place.settings(hop),
            place.logs(hop),
        ],
        _ => vec![place.logs(hop)],
    }
}

/// One request, seen from both ends.
struct Seen<'a> {
    tree: &'a Tree,
    xray: &'a Xray,
    /// Every trace that this request is in.
    ids: &'a [String],
    /// What must be in the first of them.
    must: &'a [Must],
    spans: &'a [Span],
    /// The spans of `check` itself, which reports none.
    own: &'a [String],
}

fn judge(seen: &Seen<'_>, expect: Option<&Expect>, place: &Place, waited: Duration) -> Vec<Finding> {
    let &Seen { tree, xray, ids, must, spans, own } = seen;
    let id = ids.first().map_or("", String::as_str);
    let missing: Vec<&Must> = must.iter().filter(|must| !spans.iter().any(|span| span.id == must.id)).collect();
    let waited = waited.as_secs_f64();
    if spans.is_empty() {
        let cause = "The exporters or the proxies report to another backend or to nobody: their endpoint is wrong, the collector is down, or this backend is not the one behind it";
        let hop = Hop::of(tree, &place.url);
        let hint = exporter(place, &hop).into_iter().fold(Hint::new(cause), Hint::run);
        return vec![Finding::fail(
            CheckId::TracesArrived,
            format!("The trace never arrived: no span of {} after {waited:.0} s", short(id)),
            hint,
        )];
    }
    let mut out = vec![Finding::pass(
        CheckId::TracesArrived,
        format!("The trace of one request arrived after {waited:.1} s: {} spans", spans.len()),
    )];

    // One trace.
    if ids.len() > 1 {
        let list: Vec<String> = ids.iter().map(|id| short(id)).collect();
        let seam = xray.faults.iter().find(|fault| fault.breaks(HeaderFamily::W3c) || fault.breaks(HeaderFamily::B3));
        let text = format!("One request is {} traces: {}", ids.len(), list.join(", "));
        let cause = match seam {
            Some(fault) => format!("The context is lost between {} and {}: see Propagation", fault.from.name, fault.to.name),
            None => "A hop or a proxy started a trace of its own: see Propagation".to_owned(),
        };
        let mut finding = Finding::fail(CheckId::TracesOne, text, Hint::new(cause));
        if let Some(fault) = seam {
            finding = finding.seam(&fault.from.name, &fault.to.name, Some(fault.side));
        }
        out.push(finding);
    } else {
        out.push(Finding::pass(CheckId::TracesOne, format!("One trace: every hop is in {}", short(id))));
    }
    // Who is missing.
    let mut silent: Vec<&Hop> = Vec::new();
    for must in missing.iter().filter(|must| must.role != Role::Proxy) {
        if !silent.contains(&&must.hop) {
            silent.push(&must.hop);
        }
    }
    for hop in &silent {
        let count = missing.iter().filter(|must| must.role != Role::Proxy && must.hop == **hop).count();
        let of = must.iter().filter(|must| must.role != Role::Proxy && must.hop == **hop).count();
        let text = format!("{} of {} spans of {} never arrived", count, of, hop.name);
        let cause = format!(
            "{} continues the trace and its report gets lost: its exporter's endpoint (OTEL_EXPORTER_…_ENDPOINT) is wrong or unreachable from there, or its queue overflows (httpserver_spans_dropped_total)",
            hop.name
        );
        out.push(
            Finding::fail(CheckId::TracesServices, text, exporter(place, hop).into_iter().fold(Hint::new(cause), Hint::run))
                .hop(&hop.name),
        );
    }
    let mut unproxied: Vec<&Hop> = missing.iter().filter(|must| must.role == Role::Proxy).map(|must| &must.hop).collect();
    unproxied.dedup();
    if let Some(hop) = unproxied.first() {
        let names: Vec<&str> = unproxied.iter().map(|hop| hop.name.as_str()).collect();
        let text = format!("The span of the proxy in front of {} never arrived", names.join(", "));
        let mut hint = Hint::new(
            "The proxy traces and its report gets lost: the provider's service and port in meshConfig.extensionProviders, or the collector's port for that protocol",
        );
        if place.runner(hop) == Runner::Kubernetes {
            hint = hint.run("kubectl get configmap istio -n istio-system -o yaml | grep -A8 extensionProviders").run(format!(
                "istioctl proxy-config clusters {} -n {} | grep -E 'zipkin|jaeger|collector'",
                hop.hostname,
                place.namespace_of(hop)
            ));
        }
        out.push(Finding::fail(CheckId::TracesServices, text, hint).hop(&hop.name));
    }
    let absent = if ids.len() > 1 { Vec::new() } else { absent(tree, spans, must, expect) };
    for (hop, _) in absent.iter().filter(|(_, forwards)| *forwards) {
        let text = format!("{} is not in the trace: it only forwards, and nobody reports for it", hop.name);
        let cause = format!("TRACE_EXPORTER (OTEL_TRACES_EXPORTER) is none at {}, while other hops report", hop.name);
        out.push(Finding::fail(CheckId::TracesServices, text, Hint::new(cause).run(place.settings(hop))).hop(&hop.name));
    }
    // Whoever did not answer is a failure of the chain and told there; its absence here is no second one.
    let unanswered: Vec<&str> = absent.iter().filter(|(_, forwards)| !forwards).map(|(hop, _)| hop.name.as_str()).collect();
    if !unanswered.is_empty() {
        let (names, they) = (unanswered.join(", "), if unanswered.len() == 1 { "it" } else { "they" });
        let text = format!("Spans of {names}: not judged, because {they} did not answer this request: see Chain");
        out.push(Finding::skip(CheckId::TracesServices, text));
    }
    if silent.is_empty() && unproxied.is_empty() && absent.is_empty() {
        let mut services: Vec<&str> = spans.iter().map(|span| span.service.as_str()).collect();
        services.sort_unstable();
        services.dedup();
        out.push(Finding::pass(CheckId::TracesServices, format!("Everybody reports: {}", services.join(", "))));
    }

    // The tree of spans.
    let lost = orphans(spans, own);
    if lost.is_empty() {
        out.push(Finding::pass(CheckId::TracesOrphans, "No orphan: every span's parent is there"));
    } else {
        let known = |parent: &str| missing.iter().find(|must| must.id == parent).map(|must| must.hop.name.clone());
        let lines = lost.iter().take(8).map(|span| {
            let parent = span.parent.as_deref().unwrap_or_default();
            format!(
                "{} {}: parent {} {}",
                span.service,
                span.name,
                short(parent),
                known(parent).map_or_else(|| "is nobody's".to_owned(), |hop| format!("is {hop}'s, and missing"))
            )
        });
        let explained = lost.iter().all(|span| span.parent.as_deref().and_then(known).is_some());
        let cause = if explained {
            "Their parents are the missing spans above".to_owned()
        } else {
            "Somebody writes span ids into the headers and reports no span under them: a proxy or gateway whose tracing is off or goes elsewhere (a Telemetry resource in the app's namespace does not cover the gateway), or an app that makes ids and exports nothing".to_owned()
        };
        let hint = Hint::new(cause).run("kubectl get telemetry -A");
        out.push(
            Finding::fail(CheckId::TracesOrphans, format!("{} of {} spans are orphans", lost.len(), spans.len()), hint)
                .lines(lines),
        );
    }
    out.push(parents(tree, must, spans));
    out.extend(silent_proxies(xray, place));
    out.push(explain(must, spans));
    out
}

/// Why sidecars write no spans.
fn no_tracing(place: &Place) -> Hint {
    let hint = Hint::new(
        "The Telemetry resource names a provider that meshConfig.extensionProviders does not have, or no Telemetry resource turns tracing on",
    );
    place.providers().into_iter().fold(hint, Hint::run).run("istioctl analyze -A")
}

/// Sidecars that vouch for their callers and write no span anywhere. Only certificates prove a sidecar: other proxies may have no
/// part in tracing.
fn silent_proxies(xray: &Xray, place: &Place) -> Option<Finding> {
    let sidecars: Vec<&str> =
        xray.rows.iter().filter(|row| row.proxy.is_own_sidecar()).map(|row| row.hop.name.as_str()).collect();
    if sidecars.is_empty() || xray.mesh_traces() {
        return None;
    }
    let text = format!("The proxies in front of {} report no spans: the trace holds the app's alone", sidecars.join(", "));
    Some(Finding::fail(CheckId::TracesProxies, text, no_tracing(place)))
}

/// Hops that no span speaks of: those that only forward while others report, and expected ones that never answered.
fn absent(tree: &Tree, spans: &[Span], must: &[Must], expect: Option<&Expect>) -> Vec<(Hop, bool)> {
    let reporters = must.iter().any(|must| must.role == Role::Server);
    let mut out = Vec::new();
    let mut answered = Vec::new();
    crate::check::chain::visit(tree, "", 0, &mut |hop, url, _| {
        answered.push(hop.service.clone());
        let named = spans.iter().any(|span| is_named(&span.service, &hop.service));
        if reporters && hop.propagation == Propagation::Forward && !named {
            out.push((Hop::of(hop, url), true));
        }
    });
    for name in expect.map(Expect::names).unwrap_or_default() {
        if !answered.iter().any(|service| is_named(service, name)) {
            out.push((Hop { name: name.to_owned(), hostname: String::new(), url: String::new() }, false));
        }
    }
    out
}

/// Each hop's span hangs where the hop says, and below the hop that called it.
fn parents(tree: &Tree, must: &[Must], spans: &[Span]) -> Finding {
    let mut wrong = Vec::new();
    for must in must.iter().filter(|must| must.role != Role::Proxy) {
        let Some(span) = spans.iter().find(|span| span.id == must.id) else { continue };
        if must.parent.is_some() && span.parent != must.parent {
            let say = |parent: &Option<String>| parent.as_deref().map_or_else(|| "none".to_owned(), short);
            wrong.push(format!(
                "{} {}: parent {}, the hop says {}",
                span.service,
                span.name,
                say(&span.parent),
                say(&must.parent)
            ));
        }
    }
    below(tree, None, spans, &mut wrong);
    if wrong.is_empty() {
        Finding::pass(CheckId::TracesParents, "Every hop's span hangs below its caller's")
    } else {
        let hint = Hint::new(
            "A hop or proxy takes its parent from another header than the one its caller wrote last: see the order of OTEL_PROPAGATORS under Propagation, or spans are missing in between",
        );
        Finding::fail(CheckId::TracesParents, "Spans hang in the wrong place", hint).lines(wrong)
    }
}

fn below(tree: &Tree, above: Option<(&str, &str)>, spans: &[Span], wrong: &mut Vec<String>) {
    let reported = |id: &&str| spans.iter().any(|span| span.id == **id);
    let own = tree.span_id.as_deref().filter(|_| tree.propagation == Propagation::Continue).filter(reported);
    if let (Some(own), Some((caller, parent))) = (own, above)
        && !is_below(spans, own, parent)
    {
        wrong.push(format!("{}: not below {caller}", tree.service));
    }
    for call in &tree.upstreams {
        if let Some(reply) = &call.reply {
            let next = own.map(|own| (tree.service.as_ref(), own)).or(above);
            below(reply, next, spans, wrong);
        }
    }
}

/// How many spans there are and whose they are.
fn explain(must: &[Must], spans: &[Span]) -> Finding {
    let count = |role: Role| spans.iter().filter(|span| must.iter().any(|must| must.role == role && must.id == span.id)).count();
    let is_apps = |span: &&Span| must.iter().any(|must| must.role != Role::Proxy && must.id == span.id);
    // A call whose headers the hop lost wrote its id nowhere; but only the app puts a span below its own.
    let hangs_below_app = |span: &&Span| {
        span.parent.as_deref().is_some_and(|parent| must.iter().any(|must| must.role == Role::Server && must.id == parent))
    };
    let lost = spans.iter().filter(|span| !is_apps(span) && hangs_below_app(span)).count();
    let (server, calls) = (count(Role::Server), count(Role::Call) + lost);
    let others = spans.len() - server - calls;
    let plural = |n: usize, one: &str| if n == 1 { format!("{n} {one}") } else { format!("{n} {one}s") };
    let mut lines = Vec::new();
    if server + calls > 0 {
        lines.push(format!(
            "{} of the app: {} answering, {} calling the next hop",
            plural(server + calls, "span"),
            server,
            calls
        ));
    }
    if others > 0 {
        let mut by: Vec<(&str, usize)> = Vec::new();
        for span in spans.iter().filter(|span| !is_apps(span) && !hangs_below_app(span)) {
            match by.iter_mut().find(|(service, _)| *service == span.service) {
                Some((_, count)) => *count += 1,
                None => by.push((&span.service, 1)),
            }
        }
        let by: Vec<String> = by.into_iter().map(|(service, count)| format!("{service} {count}")).collect();
        lines.push(format!("{} of proxies: {}", plural(others, "span"), by.join(", ")));
    }
    let text = match (server + calls, others) {
        (app, 0) => format!("{}, all of the app: no proxy reports", plural(app, "span")),
        (0, proxies) => format!("{}, all of proxies: the app only forwards", plural(proxies, "span")),
        (app, proxies) => format!("{}: {proxies} of proxies, {app} of the app", plural(app + proxies, "span")),
    };
    Finding::pass(CheckId::TracesSpans, text)
        .lines(lines)
        .data(serde_json::json!({"spans": spans.len(), "app": server + calls, "proxies": others}))
}
