//! What is wrong with a trace, in the words of the report.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::check::backend::expected::{HopSpan, Role};
use crate::check::backend::proxies::Proxies;
use crate::check::chain::evidence::Xray;
use crate::check::chain::expect::{Expect, is_named};
use crate::check::chain::probe::short;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, name_of};
use crate::hop::reply::{Propagation, Tree};
use crate::report::{CheckId, Finding, Hint};
use crate::telemetry::client_tracing;
use crate::text::counted;
use crate::trace_context::HeaderFamily;
use crate::traces::{Span, SpanId, Trace, TraceId, Verdict};

/// Orphans in the report; more are counted.
const MAX_ORPHANS: usize = 8;
/// Services with their spans in the report.
const MAX_REPORTERS: usize = 50;

/// One request's reply and what arrived of its trace.
pub(super) struct Arrived<'a> {
    pub(super) tree: &'a Tree,
    pub(super) xray: &'a Xray,
    /// Every trace that this request is in.
    pub(super) ids: &'a [TraceId],
    /// What must be in the first of them.
    pub(super) expected: &'a [HopSpan],
    /// The first of them; `None` when no span of it arrived.
    pub(super) trace: Option<&'a Trace>,
    pub(super) verdict: &'a Verdict,
    pub(super) proxies: &'a Proxies<'a>,
}

/// Whether hops that are missing from the trace only forward, or never answered.
struct Absent {
    forwarding: Vec<HopRef>,
    unanswered: Vec<String>,
}

impl Arrived<'_> {
    pub(super) fn findings(&self, expect: Option<&Expect>, hints: &HintContext, waited: Duration) -> Vec<Finding> {
        let waited = waited.as_secs_f64();
        let Some(trace) = self.trace else { return vec![self.never_arrived(hints, waited)] };
        let text = format!("The trace of one request arrived after {waited:.1} s: {} spans", trace.rows().len());
        let mut out = vec![Finding::pass(CheckId::TracesArrived, text), self.one_trace()];
        out.extend(self.services(trace, expect, hints));
        out.extend([self.orphans(trace), self.parents()]);
        out.extend(self.proxies.calls(hints));
        out.extend(self.silent_proxies(hints));
        out.push(self.whose_spans(trace));
        out
    }

    fn never_arrived(&self, hints: &HintContext, waited: f64) -> Finding {
        let cause = "The exporters or the proxies report to another backend or to nobody: their endpoint is wrong, the collector is down, or this backend is not the one behind it";
        let hint = exporter(hints, &HopRef::of(self.tree, &hints.url)).into_iter().fold(Hint::new(cause), Hint::run);
        let id = self.ids.first().map(ToString::to_string).unwrap_or_default();
        let text = format!("The trace never arrived: no span of {} after {waited:.0} s", short(&id));
        Finding::fail(CheckId::TracesArrived, text, hint)
    }

    fn one_trace(&self) -> Finding {
        let ids: Vec<String> = self.ids.iter().map(|id| short(&id.to_string())).collect();
        if let [id] = ids.as_slice() {
            return Finding::pass(CheckId::TracesOne, format!("One trace: every hop is in {id}"));
        }
        let seam = self.xray.faults.iter().find(|fault| fault.breaks(HeaderFamily::W3c) || fault.breaks(HeaderFamily::B3));
        let text = format!("One request is {} traces: {}", ids.len(), ids.join(", "));
        let cause = match seam {
            Some(fault) => format!("The context is lost between {} and {}: see Propagation", fault.from.name, fault.to.name),
            None => "A hop or a proxy started a trace of its own: see Propagation".to_owned(),
        };
        let finding = Finding::fail(CheckId::TracesOne, text, Hint::new(cause));
        match seam {
            Some(fault) => finding.seam(&fault.from.name, &fault.to.name, Some(fault.side)),
            None => finding,
        }
    }

    /// The spans that are missing: those of the app, or those of proxies.
    fn missing(&self, of_proxies: bool) -> impl Iterator<Item = &HopSpan> {
        let ids: HashSet<SpanId> = self.verdict.missing.iter().map(|span| span.id).collect();
        let expected = self.expected.iter().filter(move |expected| (expected.role == Role::Proxy) == of_proxies);
        expected.filter(move |expected| ids.contains(&expected.span.id))
    }

    /// Who did not report.
    fn services(&self, trace: &Trace, expect: Option<&Expect>, hints: &HintContext) -> Vec<Finding> {
        let mut silent: Vec<&HopRef> = Vec::new();
        for expected in self.missing(false) {
            if silent.len() < MAX_REPORTERS && !silent.contains(&&expected.hop) {
                silent.push(&expected.hop);
            }
        }
        let mut out: Vec<Finding> = match silent.as_slice() {
            [] | [_] => silent.iter().map(|hop| self.silent_hop(hop, hints)).collect(),
            // Whose exporter works loses no span by it.
            many if many.iter().all(|hop| self.lost_of(hop).0 < self.lost_of(hop).1) => vec![self.lossy(many)],
            many => many.iter().map(|hop| self.silent_hop(hop, hints)).collect(),
        };
        // Of several traces the first is read alone: what is not in it may be in another.
        if self.ids.len() == 1 {
            out.extend(self.proxies.silent(hints));
        }
        if let Some(first) = out.first_mut() {
            let app = self.expected.iter().filter(|expected| expected.role != Role::Proxy).count();
            let (due, came) = self.proxies.counts();
            let lost = self.missing(false).count();
            first.detail.push(format!("{} spans are due, {} came", due + app, came + app - lost));
        }
        out.extend(self.misnamed(trace, hints));
        let absent = if self.ids.len() > 1 { None } else { Some(self.absent(trace, expect)) };
        if let Some(Absent { forwarding, unanswered }) = absent {
            for hop in &forwarding {
                let text = format!("{} is not in the trace: it only forwards, and nobody reports for it", hop.name);
                let cause = format!("TRACE_EXPORTER (OTEL_TRACES_EXPORTER) is none at {}, while other hops report", hop.name);
                let hint = Hint::new(cause).run(hints.settings(hop));
                out.push(Finding::fail(CheckId::TracesServices, text, hint).hop(&hop.name));
            }
            // Whoever did not answer is a failure of the chain and reported there; its absence here is no second one.
            if !unanswered.is_empty() {
                let (names, they) = (unanswered.join(", "), if unanswered.len() == 1 { "it" } else { "they" });
                let text = format!("Spans of {names}: not checked, because {they} did not answer this request: see Chain");
                out.push(Finding::skip(CheckId::TracesServices, text));
            }
        }
        if out.is_empty() && self.ids.len() > 1 {
            let text = "Who reports: not checked, because the request is several traces";
            out.push(Finding::skip(CheckId::TracesServices, text));
        } else if out.is_empty() {
            let services: Vec<&str> = trace.services().iter().map(AsRef::as_ref).collect();
            out.push(Finding::pass(CheckId::TracesServices, format!("Everybody reports: {}", services.join(", "))));
        }
        out
    }

    /// Hops whose spans came under the name of another hop: a setting that was copied.
    fn misnamed(&self, trace: &Trace, hints: &HintContext) -> Vec<Finding> {
        let mut out: Vec<Finding> = Vec::new();
        for HopSpan { span, hop, .. } in self.expected.iter().filter(|expected| expected.role == Role::Server) {
            let came = trace.rows().iter().find(|row| row.span.id == span.id && !row.span.is_proxy());
            let Some(service) = came.and_then(|row| row.span.service()).filter(|service| !is_named(service, &hop.name)) else {
                continue;
            };
            let is_taken = self.expected.iter().any(|other| is_named(service, &other.hop.name));
            if is_taken && !out.iter().any(|known| known.hop.as_ref() == Some(&hop.name)) {
                let name = &hop.name;
                let hint = Hint::new(format!(
                    "OTEL_SERVICE_NAME at {name}, or service.name in OTEL_RESOURCE_ATTRIBUTES there, is that of another hop: the backend counts the spans of both as one service's"
                ));
                let text = format!("{name} reports its spans under the name {service}, which is another hop's");
                out.push(Finding::fail(CheckId::TracesServices, text, hint.run(hints.settings(hop))).hop(name));
            }
        }
        out
    }

    /// How many spans of the app at this hop are missing, and of how many.
    fn lost_of(&self, hop: &HopRef) -> (usize, usize) {
        let of = self.expected.iter().filter(|expected| expected.role != Role::Proxy && expected.hop == *hop).count();
        (self.missing(false).filter(|expected| expected.hop == *hop).count(), of)
    }

    /// Several hops whose spans came in part.
    fn lossy(&self, hops: &[&HopRef]) -> Finding {
        let lost: Vec<String> = hops.iter().map(|hop| format!("{} of {}", self.lost_of(hop).0, hop.name)).collect();
        let (count, of) = hops.iter().map(|hop| self.lost_of(hop)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let text = format!("{count} of {of} spans of {} hops never arrived: {}", hops.len(), lost.join(", "));
        let cause = "Other spans of the same hops came: the collector or the backend between them and here drops some (its queue, its memory limit, a sampling processor), or the exporters' queues overflow (httpserver_spans_dropped_total)";
        Finding::fail(CheckId::TracesServices, text, Hint::new(cause))
    }

    fn silent_hop(&self, hop: &HopRef, hints: &HintContext) -> Finding {
        let (count, of) = self.lost_of(hop);
        let cause = format!(
            "{} continues the trace and its report gets lost: its exporter's endpoint (OTEL_EXPORTER_…_ENDPOINT) is wrong or unreachable from there, or its queue overflows (httpserver_spans_dropped_total)",
            hop.name
        );
        let hint = exporter(hints, hop).into_iter().fold(Hint::new(cause), Hint::run);
        let text = format!("{count} of {of} spans of {} never arrived", hop.name);
        Finding::fail(CheckId::TracesServices, text, hint).hop(&hop.name)
    }

    /// Hops of which no span speaks: those that only forward while others report, and expected ones that never answered.
    fn absent(&self, trace: &Trace, expect: Option<&Expect>) -> Absent {
        let reporters = self.expected.iter().any(|expected| expected.role == Role::Server);
        let (mut forwarding, mut answered, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (hop, url) in self.tree.hops("") {
            answered.push(hop.service.clone());
            gone.extend(
                hop.upstreams.iter().filter(|call| call.reply.is_none() && call.error.is_some()).map(|call| name_of(&call.url)),
            );
            let named = trace.services().iter().any(|service| is_named(service, &hop.service));
            if reporters && hop.propagation == Propagation::Forward && !named {
                forwarding.push(HopRef::of(hop, url));
            }
        }
        let names = expect.map(Expect::names).unwrap_or_default().into_iter().map(str::to_owned);
        let mut unanswered: Vec<String> = Vec::new();
        for name in gone.into_iter().chain(names) {
            if !unanswered.contains(&name) && !answered.iter().any(|service| is_named(service, &name)) {
                unanswered.push(name);
            }
        }
        Absent { forwarding, unanswered }
    }

    fn orphans(&self, trace: &Trace) -> Finding {
        let orphans = &self.verdict.orphans;
        if orphans.is_empty() {
            return Finding::pass(CheckId::TracesOrphans, "No orphan: every span's parent is there");
        }
        let whose: Vec<Option<String>> =
            orphans.iter().take(MAX_ORPHANS).map(|orphan| self.proxies.owner(orphan.parent, self.expected)).collect();
        let lines = orphans.iter().zip(&whose).map(|(orphan, owner)| {
            let whose = owner.as_ref().map_or_else(|| "is nobody's".to_owned(), |owner| format!("is of {owner}, and missing"));
            format!("{} {}: parent {} {whose}", orphan.service, orphan.name, short(&orphan.parent.to_string()))
        });
        let mut text = format!("{} of {} spans are orphans", orphans.len(), trace.rows().len());
        let is_known = whose.iter().all(Option::is_some) && (!self.verdict.missing.is_empty() || self.proxies.has_lost());
        if is_known {
            text.push_str(": their parents are the missing spans");
        }
        let hint = Hint::new("Somebody writes span ids into the headers and reports no span under them: a proxy or gateway whose tracing is off or goes elsewhere (a Telemetry resource in the app's namespace does not cover the gateway), or an app that makes ids and exports nothing")
            .run("kubectl get telemetry -A");
        let finding = Finding::fail(CheckId::TracesOrphans, text, hint).lines(lines);
        if is_known { finding.following(CheckId::TracesServices) } else { finding }
    }

    /// Each hop's span hangs where the hop says, and below the hop that called it.
    fn parents(&self) -> Finding {
        if self.verdict.misplaced.is_empty() {
            return Finding::pass(CheckId::TracesParents, "Every hop's span hangs below its caller's");
        }
        let hint = Hint::new(
            "A hop or proxy takes its parent from another header than the one its caller wrote last: see the order of OTEL_PROPAGATORS under Propagation, or spans are missing in between",
        );
        let lines = self.verdict.misplaced.iter().map(|misplaced| misplaced.text.clone());
        let finding = Finding::fail(CheckId::TracesParents, "Spans hang in the wrong place", hint).lines(lines);
        // What is lost in between leaves nothing to hang below.
        if self.verdict.missing.is_empty() && !self.proxies.has_lost() {
            finding
        } else {
            finding.following(CheckId::TracesServices)
        }
    }

    /// Sidecars that vouch for their callers and write no span anywhere. Only certificates prove a sidecar: other proxies may
    /// have no part in tracing.
    fn silent_proxies(&self, hints: &HintContext) -> Option<Finding> {
        let rows = self.xray.rows.iter().filter(|row| row.proxy.is_own_sidecar());
        let sidecars: Vec<&str> = rows.map(|row| row.hop.name.as_str()).collect();
        if sidecars.is_empty() || self.xray.mesh_traces() {
            return None;
        }
        let text = format!("The proxies in front of {} report no spans: the trace holds the app's alone", sidecars.join(", "));
        Some(Finding::fail(CheckId::TracesProxies, text, no_tracing(hints)))
    }

    /// How many spans there are and whose they are.
    fn whose_spans(&self, trace: &Trace) -> Finding {
        // The caller's own report is no part of the chain.
        let spans = trace.rows().iter().map(|row| &*row.span);
        let spans: Vec<&Span> = spans.filter(|span| span.service() != Some(client_tracing::SERVICE)).collect();
        let roles: HashSet<(SpanId, Role)> = self.expected.iter().map(|expected| (expected.span.id, expected.role)).collect();
        let is = |id: SpanId, role: Role| roles.contains(&(id, role));
        // A call whose headers the hop lost wrote its id nowhere; but only the app puts a span below its own.
        let is_call = |span: &Span| {
            is(span.id, Role::Call)
                || !span.is_proxy() && !is(span.id, Role::Server) && span.parent_id.is_some_and(|parent| is(parent, Role::Server))
        };
        let server = spans.iter().filter(|span| is(span.id, Role::Server)).count();
        let calls = spans.iter().filter(|span| !is(span.id, Role::Server) && is_call(span)).count();
        let app = server + calls;
        let by_service = |spans: &[&Span]| {
            let mut by: BTreeMap<&str, usize> = BTreeMap::new();
            spans.iter().for_each(|span| *by.entry(span.service().unwrap_or_default()).or_default() += 1);
            let by = by.into_iter().take(MAX_REPORTERS).map(|(service, count)| format!("{service} {count}"));
            by.collect::<Vec<_>>().join(", ")
        };
        let rest = spans.iter().copied().filter(|span| !is(span.id, Role::Server) && !is_call(span));
        let (proxies, others): (Vec<&Span>, Vec<&Span>) = rest.partition(|span| span.is_proxy() || is(span.id, Role::Proxy));
        let mut lines = Vec::new();
        if app > 0 {
            lines.push(format!("{} of the app: {server} answering, {calls} calling the next hop", counted(app, "span")));
        }
        for (of, spans) in [("proxies", &proxies), ("other apps", &others)] {
            if !spans.is_empty() {
                lines.push(format!("{} of {of}: {}", counted(spans.len(), "span"), by_service(spans)));
            }
        }
        let text = match (app, proxies.len(), others.len()) {
            (app, 0, 0) => format!("{}, all of the app: no proxy reports", counted(app, "span")),
            (0, proxies, 0) => format!("{}, all of proxies: the app only forwards", counted(proxies, "span")),
            (app, proxies, 0) => format!("{}: {proxies} of proxies, {app} of the app", counted(app + proxies, "span")),
            (app, proxies, others) => format!(
                "{}: {proxies} of proxies, {app} of the app, {others} of other apps",
                counted(app + proxies + others, "span")
            ),
        };
        let mut data = serde_json::json!({"spans": spans.len(), "app": app, "proxies": proxies.len()});
        if !others.is_empty() {
            data["others"] = others.len().into();
        }
        Finding::pass(CheckId::TracesSpans, text).lines(lines).data(data)
    }
}

/// No hop continues the trace, and no proxy wrote a span into a header.
pub(super) fn nobody_reports(xray: &Xray, hints: &HintContext) -> Finding {
    let rows = xray.rows.iter().filter(|row| row.proxy.is_seen());
    let proxies: Vec<&str> = rows.map(|row| row.hop.name.as_str()).collect();
    if !proxies.is_empty() {
        let names = proxies.join(", ");
        let text = format!("Nobody reports spans: every hop only forwards, and the proxies at {names} do not trace");
        return Finding::fail(CheckId::TracesArrived, text, no_tracing(hints));
    }
    let hint = Hint::new("TRACE_EXPORTER (OTEL_TRACES_EXPORTER) is none at every hop, and there are no sidecars: set zipkin or otlp, or inject sidecars")
        .run(format!("kubectl get namespace {} --show-labels", hints.namespace));
    let text = "Nobody reports spans: every hop only forwards, and no proxy is seen between them";
    Finding::fail(CheckId::TracesArrived, text, hint)
}

/// The commands that show why a hop's report gets lost.
fn exporter(hints: &HintContext, hop: &HopRef) -> Vec<String> {
    let namespace = hints.namespace_of(hop);
    match hints.runner(hop) {
        Runner::Kubernetes => vec![
            format!(
                "kubectl get --raw /api/v1/namespaces/{namespace}/pods/{}:8080/proxy/metrics | grep httpserver_spans",
                hop.hostname
            ),
            hints.settings(hop),
            hints.logs(hop),
        ],
        _ => vec![hints.logs(hop)],
    }
}

/// Why sidecars write no spans.
fn no_tracing(hints: &HintContext) -> Hint {
    let hint = Hint::new(
        "The Telemetry resource names a provider that meshConfig.extensionProviders does not have, or no Telemetry resource turns tracing on",
    );
    hints.providers().into_iter().fold(hint, Hint::run).run("istioctl analyze -A")
}
