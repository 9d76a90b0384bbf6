//! What the proxies of each hop reported: whether a span that a proxy must have written came, and whether a call passed by it.

use crate::check::backend::expected::HopSpan;
use crate::check::chain::evidence::{ForeignApp, HopEvidence, Xray};
use crate::check::chain::probe::short;
use crate::check::envoy::spans::{CallSpans, RequestSpans};
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner};
use crate::hop::reply::{Headers, Tree};
use crate::report::{CheckId, Finding, Hint};
use crate::trace_context::HeaderFamily;
use crate::traces::{Kind, Span, SpanId};

/// Hops that findings are made for.
const MAX_HOPS: usize = 256;

/// A span of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProxyReport {
    Came,
    /// Its id was written into the headers, and nobody reported it.
    Lost,
    /// The headers passed by untouched.
    Bypassed,
}

/// Whose span id arrived at a hop in place of its caller's.
#[derive(Debug, Clone, Copy)]
enum Above<'a> {
    Reported(&'a Span),
    /// Nobody reported the span.
    Lost,
    /// The caller's id passed by untouched.
    Caller,
    /// Nothing arrived that is known.
    Nobody,
}

impl<'a> Above<'a> {
    fn span(self) -> Option<&'a Span> {
        if let Self::Reported(span) = self { Some(span) } else { None }
    }
}

/// A side of an app, as its sidecar sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProxySide {
    Received,
    Made,
}

/// The proxies at one hop.
struct HopProxies {
    hop: HopRef,
    has_sidecar: bool,
    inbound: Option<ProxyReport>,
    /// To each hop that answered.
    outbound: Vec<(HopRef, Option<ProxyReport>, CallSpans)>,
}

impl HopProxies {
    fn count(&self, report: ProxyReport) -> usize {
        let outbound = self.outbound.iter().filter_map(|(_, report, _)| *report);
        self.inbound.into_iter().chain(outbound).filter(|known| *known == report).count()
    }
}

/// Every proxy of one request.
pub(super) struct Proxies<'a> {
    spans: RequestSpans<'a>,
    hops: Vec<HopProxies>,
    /// The gateway's; `None` where no gateway is seen.
    gateway: Option<ProxyReport>,
    front: CallSpans,
    /// Foreign apps that put span ids into the headers and reported no span under them, with the ids.
    lost_foreign_apps: Vec<(ForeignApp, SpanId)>,
}

impl<'a> Proxies<'a> {
    /// `sent`: with the request. `tree`: its reply.
    pub(super) fn of(spans: RequestSpans<'a>, sent: &Headers, tree: &Tree, xray: &Xray, url: &str) -> Self {
        let front = spans.front(sent);
        let mut proxies = Self { spans, hops: Vec::new(), gateway: None, front, lost_foreign_apps: Vec::new() };
        let mut rows = xray.rows.iter();
        proxies.hop(tree, sent, url, &mut rows);
        let has_sidecars = xray.rows.iter().any(|row| row.proxy.sidecar);
        let vouched = xray.rows.first().is_some_and(|row| row.proxy.identity);
        if vouched && has_sidecars {
            // Where the first hop's proxy continues the caller's own span, no gateway wrote one.
            proxies.gateway = proxies.in_front(tree, sent).span().and_then(|span| proxies.report_above(span, sent));
        }
        proxies
    }

    /// `sent`: with the call that reached it, as far as it is known.
    fn hop(&mut self, tree: &Tree, sent: &Headers, url: &str, rows: &mut std::slice::Iter<'_, HopEvidence>) {
        let row = rows.next();
        let has_sidecar = row.is_some_and(|row| row.proxy.is_own_sidecar());
        let traced = row.is_some_and(|row| row.proxy.traces());
        let is_behind_foreign_app = row.is_some_and(|row| row.via.is_some());
        let inbound = match self.in_front(tree, sent) {
            Above::Reported(span) if span.is_proxy() && span.kind == Some(Kind::Server) => Some(ProxyReport::Came),
            // It may be the span of the app that called.
            Above::Reported(span) if is_behind_foreign_app && !span.is_proxy() => None,
            Above::Nobody => None,
            Above::Caller if is_behind_foreign_app => None,
            Above::Reported(_) | Above::Caller => has_sidecar.then_some(ProxyReport::Bypassed),
            Above::Lost => (traced && tree.sampled != Some(false)).then_some(ProxyReport::Lost),
        };
        let at = self.hops.len();
        self.hops.push(HopProxies { hop: HopRef::of(tree, url), has_sidecar, inbound, outbound: Vec::new() });
        for call in &tree.upstreams {
            let Some(reply) = &call.reply else { continue };
            let spans = self.spans.call(&call.sent, &call.url);
            let next = self.in_front(reply, &call.sent).span();
            let is_server = |span: &&Span| span.is_proxy() && span.kind == Some(Kind::Server);
            let report = match (spans.client.is_some(), next.filter(is_server)) {
                (true, _) => Some(ProxyReport::Came),
                (false, Some(server)) => self.report_above(server, &call.sent),
                (false, None) => None,
            };
            self.hops[at].outbound.push((HopRef::of(reply, &call.url), report, spans));
            self.hop(reply, &call.sent, &call.url, rows);
        }
        for (call, reply) in tree.upstreams.iter().flat_map(|call| call.embedded.iter().map(move |reply| (call, reply))) {
            let sent = HeaderFamily::read_all(&call.sent);
            let contexts = HeaderFamily::read_all(&reply.received);
            let own = contexts.iter().filter(|(_, context)| {
                context.sampling.is_sampled()
                    && sent.iter().any(|(_, before)| before.trace_id == context.trace_id)
                    && sent.iter().all(|(_, before)| before.span_id != context.span_id)
            });
            // Of two formats one may hold what the other one's tracer left alone.
            let ids: Vec<SpanId> = own.map(|(_, context)| context.span_id).collect();
            if let Some(id) = ids.first().filter(|_| ids.iter().all(|id| self.spans.get(*id).is_none())) {
                self.lost_foreign_apps.push((ForeignApp::at(&call.url), *id));
            }
            self.hop(reply, &call.sent, "", rows);
        }
    }

    /// The span whose id arrived at the hop: of the proxy in front of it, where there is one that traces. A proxy that speaks one
    /// format leaves the caller's own id in the other, and that is no proxy's.
    fn in_front(&self, tree: &Tree, sent: &Headers) -> Above<'a> {
        let before = HeaderFamily::read_all(sent);
        let is_new = |id: &SpanId| before.iter().all(|(_, context)| context.span_id != *id);
        let ids: Vec<SpanId> = HeaderFamily::read_all(&tree.received).iter().map(|(_, context)| context.span_id).collect();
        if !ids.iter().any(is_new) {
            return if ids.iter().any(|id| self.spans.get(*id).is_some()) { Above::Caller } else { Above::Nobody };
        }
        let spans = ids.into_iter().filter(is_new).filter_map(|id| self.spans.get(id));
        spans.max_by_key(|span| (span.is_proxy(), span.kind == Some(Kind::Server))).map_or(Above::Lost, Above::Reported)
    }

    /// Adds the spans that foreign apps did not report, by what hangs below them.
    pub(super) fn lost_by(&mut self, apps: impl Iterator<Item = (ForeignApp, SpanId)>) {
        self.lost_foreign_apps.extend(apps);
    }

    /// What became of the span that a proxy should have put above `server`, when the call was sent with these headers.
    fn report_above(&self, server: &Span, sent: &Headers) -> Option<ProxyReport> {
        let parent = server.parent_id?;
        if HeaderFamily::read_all(sent).iter().any(|(_, context)| context.span_id == parent) {
            return Some(ProxyReport::Bypassed);
        }
        Some(if self.spans.get(parent).is_some() { ProxyReport::Came } else { ProxyReport::Lost })
    }

    /// Spans that are due of proxies, and how many of them came.
    pub(super) fn counts(&self) -> (usize, usize) {
        // A gateway has a span for the request and one for its call.
        let gateway = |report| if self.gateway == Some(report) { 2 } else { 0 };
        let of = |report| self.hops.iter().map(|hop| hop.count(report)).sum::<usize>() + gateway(report);
        (of(ProxyReport::Came) + of(ProxyReport::Lost), of(ProxyReport::Came))
    }

    /// Whose spans are the ids that nobody reported: for orphans.
    pub(super) fn has_lost(&self) -> bool {
        self.gateway == Some(ProxyReport::Lost)
            || !self.lost_foreign_apps.is_empty()
            || self.hops.iter().any(|hop| hop.count(ProxyReport::Lost) > 0)
    }

    /// Who wrote span ids and reported none, and who does not trace at all.
    pub(super) fn silent(&self, hints: &HintContext) -> Vec<Finding> {
        const ID: CheckId = CheckId::TracesServices;
        let mut out = Vec::new();
        let gateway = &hints.gateway_namespace;
        let one_sided = self.one_sided();
        // A gateway counts as a client: where those are not traced, it is not.
        let is_no_client = one_sided == Some(ProxySide::Made) && self.gateway == Some(ProxyReport::Bypassed);
        if matches!(self.gateway, Some(ProxyReport::Lost | ProxyReport::Bypassed))
            && !is_no_client
            && self.hops.iter().any(|hop| hop.count(ProxyReport::Came) > 0)
        {
            let how =
                if self.gateway == Some(ProxyReport::Lost) { "writes span ids and reports no span" } else { "does not trace" };
            let covers = format!(
                "No Telemetry resource with tracing covers the gateway's namespace ({gateway}), or disableSpanReporting is set for it"
            );
            let hint = Hint::new(hints.configured_by(&covers, NO_REPORT))
                .run(format!("kubectl get telemetry -n {gateway} -o yaml"))
                .run("kubectl get telemetry -A");
            out.push(Finding::fail(ID, format!("No span of the gateway arrived: it {how}"), hint));
        }
        // The last hop makes no call: where no side that receives is traced, nothing is known of its sidecar.
        let is_untraced = |hop: &HopProxies| {
            one_sided.is_none() && hop.has_sidecar && hop.count(ProxyReport::Came) == 0 && hop.count(ProxyReport::Bypassed) > 0
        };
        let quiet: Vec<&HopProxies> =
            self.hops.iter().filter(|hop| hop.count(ProxyReport::Lost) > 0 || is_untraced(hop)).take(MAX_HOPS).collect();
        // Several hops that report nothing at all have it from one setting.
        let (silent, others): (Vec<&HopProxies>, Vec<&HopProxies>) =
            quiet.into_iter().partition(|hop| hop.count(ProxyReport::Came) == 0);
        match silent[..] {
            [first, _, ..] => out.push(silent_sidecars(first, &silent, hints)),
            _ => out.extend(silent.iter().map(|hop| silent_sidecar(hop, hints))),
        }
        out.extend(others.iter().map(|hop| silent_sidecar(hop, hints)));
        for (at, (ForeignApp { name, .. }, id)) in self.lost_foreign_apps.iter().enumerate() {
            if self.lost_foreign_apps[..at].iter().any(|(known, _)| known.name == *name) {
                continue;
            }
            let text = format!("{name} continues the trace and no span of it arrived: {} is missing", short(&id.to_string()));
            let cause = format!(
                "{name}, an app that is not httpserver, reports to another backend or to nobody, or its report gets lost: its exporter's endpoint, or its proxy's tracing provider"
            );
            out.push(Finding::fail(ID, text, Hint::new(cause)).hop(name));
        }
        out
    }

    /// What the proxies did with each call that was answered, apart from tracing it.
    pub(super) fn calls(&self, hints: &HintContext) -> Vec<Finding> {
        const ID: CheckId = CheckId::TracesCalls;
        let mut out = Vec::new();
        let mut seen = self.front.client.is_some();
        if self.front.have("DI") {
            let hint = Hint::new(
                hints.configured_by("A VirtualService injects the fault: fault.delay", "Its fault filter injects the delay"),
            )
            .run("kubectl get virtualservice -A -o yaml | grep -A6 fault:");
            out.push(Finding::fail(ID, "The gateway holds the request on purpose (flag DI)", hint));
        }
        let one_sided = self.one_sided();
        out.extend(one_sided.map(untraced_side));
        let mut as_bytes: Vec<&HopRef> = Vec::new();
        for hop in self.hops.iter().take(MAX_HOPS) {
            let from = &hop.hop;
            for (to, report, spans) in &hop.outbound {
                seen |= spans.client.is_some();
                let (caller, called, namespace) = (&from.name, &to.name, hints.namespace_of(to));
                let cluster = spans.client.as_ref().map_or("", |span| span.cluster());
                let passes = cluster == "PassthroughCluster";
                let found = if spans.have("DI") {
                    let by = hints.configured_by("A VirtualService holds", "The fault filter of a proxy holds");
                    let hint = Hint::new(format!("{by} calls to {called}: fault.delay"))
                        .run("kubectl get virtualservice -A -o yaml | grep -A6 fault:");
                    (format!("The call from {caller} to {called} is held on purpose (flag DI)"), hint)
                } else if passes && self.is_bypassed(to) {
                    // Both sides take the call for bytes: what they have in common is the port of the Service.
                    as_bytes.push(to);
                    let hint = Hint::new(format!("The mesh does not know the port of Service {called} as HTTP: its name must begin with http, or it needs appProtocol: http"))
                        .run(format!("kubectl get service {called} -n {namespace} -o jsonpath='{{.spec.ports}}'"));
                    (
                        format!(
                            "The sidecar of {caller} passes the call to {called} on as it came (PassthroughCluster), and that of {called} does not read it, either"
                        ),
                        hint,
                    )
                } else if passes {
                    let hint = Hint::new(format!("The Service {called} is missing from the egress.hosts of a Sidecar resource, or its exportTo or namespace hides it: no route, no policy and no mTLS of the mesh applies to the call"))
                        .run("kubectl get sidecar -A -o yaml")
                        .run(format!("kubectl get service {called} -n {namespace} -o yaml | grep exportTo"));
                    (
                        format!(
                            "The sidecar of {caller} does not know {called} and passes the call on as it came (PassthroughCluster)"
                        ),
                        hint,
                    )
                } else if one_sided.is_none() && *report == Some(ProxyReport::Bypassed) && hop.inbound == Some(ProxyReport::Came)
                {
                    let hint = Hint::new(format!("The port is excluded from the sidecar of {caller} (traffic.sidecar.istio.io/excludeOutboundPorts), or UPSTREAM names an address: no route, no policy and no mTLS of the mesh applies to the call"))
                        .run(format!("kubectl get pods -n {namespace} -l app={caller} -o yaml | grep -i exclude"))
                        .run(hints.settings(from));
                    (format!("The call from {caller} to {called} bypasses the sidecar of {caller}"), hint)
                } else {
                    continue;
                };
                out.push(Finding::fail(ID, found.0, found.1).seam(caller, called, None).hop(called));
            }
            // Its sidecar works where it calls.
            if one_sided.is_none()
                && hop.inbound == Some(ProxyReport::Bypassed)
                && !as_bytes.contains(&from)
                && hop.outbound.iter().any(|(_, report, _)| *report == Some(ProxyReport::Came))
            {
                let name = &from.name;
                let hint = Hint::new(format!(
                    "The port of {name} is excluded from its sidecar (traffic.sidecar.istio.io/excludeInboundPorts)"
                ))
                .run(format!("kubectl get pods -n {} -l app={name} -o yaml | grep -i exclude", hints.namespace_of(from)));
                out.push(Finding::fail(ID, format!("Calls to {name} bypass its sidecar"), hint).hop(name));
            }
        }
        if out.is_empty() && seen {
            out.push(Finding::pass(ID, "The proxies sent every call where its route leads, and delayed none on purpose"));
        }
        out
    }

    /// Whether a call reached a hop past the HTTP proxy of its sidecar.
    fn is_bypassed(&self, hop: &HopRef) -> bool {
        self.hops.iter().any(|known| known.hop == *hop && known.inbound == Some(ProxyReport::Bypassed))
    }

    /// Which side of the apps no sidecar traces at all: that is a setting of the tracing. One hop alone, or one beside others that
    /// are traced on both sides, is told by its ports.
    fn one_sided(&self) -> Option<ProxySide> {
        let inbound = || self.hops.iter().filter_map(|hop| hop.inbound);
        let outbound = || self.hops.iter().flat_map(|hop| hop.outbound.iter().filter_map(|(_, report, _)| *report));
        let count = |reports: &mut dyn Iterator<Item = ProxyReport>, wanted| reports.filter(|report| *report == wanted).count();
        let (received, missed) = (count(&mut inbound(), ProxyReport::Came), count(&mut inbound(), ProxyReport::Bypassed));
        let (made, passed) = (count(&mut outbound(), ProxyReport::Came), count(&mut outbound(), ProxyReport::Bypassed));
        match (received, made) {
            (0, 1..) if missed > 1 && passed == 0 => Some(ProxySide::Received),
            (1.., 0) if passed > 1 && missed == 0 => Some(ProxySide::Made),
            _ => None,
        }
    }

    /// The hop that lost the span with this id, where that is known.
    pub(super) fn owner(&self, id: SpanId, expected: &[HopSpan]) -> Option<String> {
        let own = expected.iter().find(|expected| expected.span.id == id).map(|expected| expected.hop.name.clone());
        let foreign_app = || Some(self.lost_foreign_apps.iter().find(|(_, lost)| *lost == id)?.0.name.clone());
        own.or_else(foreign_app).or_else(|| {
            // A proxy's span that names it as its parent stands in front of a hop that the owner called.
            let server = self.spans.below(id).into_iter().find(|span| span.is_proxy() && span.kind == Some(Kind::Server))?;
            let service = server.service().unwrap_or_default();
            let caller = self.hops.iter().find(|hop| {
                hop.outbound.iter().any(|(to, report, _)| *report == Some(ProxyReport::Lost) && service.starts_with(&to.name))
            });
            caller
                .map(|hop| hop.hop.name.clone())
                .or_else(|| (self.gateway == Some(ProxyReport::Lost)).then(|| "the gateway".to_owned()))
        })
    }
}

/// The same of an Envoy with a configuration of its own.
const NO_REPORT: &str = "Its configuration has no tracing, or the collector's cluster there has the wrong address or port, or the collector drops spans";

/// Several sidecars that report nothing.
fn silent_sidecars(first: &HopProxies, silent: &[&HopProxies], hints: &HintContext) -> Finding {
    let names: Vec<&str> = silent.iter().map(|hop| hop.hop.name.as_str()).collect();
    let cause = format!(
        "The Telemetry resource that covers them switches tracing off (disableSpanReporting) or names a provider that meshConfig.extensionProviders does not have, or none covers the namespace {}. Else a Sidecar resource keeps the collector's Service from them (egress.hosts), or the provider's service or port is wrong",
        hints.namespace_of(&first.hop)
    );
    let hint = Hint::new(hints.configured_by(&cause, NO_REPORT));
    let hint = hints.providers().into_iter().fold(hint, Hint::run).run("kubectl get sidecar -A -o yaml");
    let text = format!("No span of the sidecars of {} arrived", names.join(", "));
    Finding::fail(CheckId::TracesServices, text, hint).hop(names[0]).data(serde_json::json!({"hops": names}))
}

/// One hop whose proxy reports too little, or nothing.
fn silent_sidecar(hop: &HopProxies, hints: &HintContext) -> Finding {
    let (lost, came) = (hop.count(ProxyReport::Lost), hop.count(ProxyReport::Came));
    let name = &hop.hop.name;
    let namespace = hints.namespace_of(&hop.hop);
    let (text, cause) = if lost == 0 {
        (
            format!("The sidecar of {name} does not trace, while others do"),
            format!(
                "A Telemetry resource that selects {name} switches tracing off (disableSpanReporting, a provider of its own), or none covers it"
            ),
        )
    } else if came == 0 {
        (
            format!("{lost} of {lost} spans of the proxy at {name} never arrived, while it writes their ids into the headers"),
            format!(
                "disableSpanReporting in a Telemetry resource that selects {name}, or its report gets lost: the provider's service and port in meshConfig.extensionProviders"
            ),
        )
    } else {
        (
            format!("{lost} of {} spans of the proxy at {name} never arrived", lost + came),
            "Its report gets lost: the provider's service and port in meshConfig.extensionProviders, or a collector that drops spans".to_owned(),
        )
    };
    let mut hint = Hint::new(hints.configured_by(&cause, NO_REPORT));
    if hints.runner(&hop.hop) == Runner::Kubernetes {
        hint = hint.run(format!("kubectl get telemetry -n {namespace} -o yaml"));
        hint = hints.providers().into_iter().fold(hint, Hint::run);
    }
    Finding::fail(CheckId::TracesServices, text, hint).hop(name)
}

/// No sidecar traces this side of its app.
fn untraced_side(side: ProxySide) -> Finding {
    let (silent, reported, mode) = match side {
        ProxySide::Received => ("that its app receives", "makes", "CLIENT"),
        ProxySide::Made => ("that its app makes", "receives", "SERVER"),
    };
    let hint = Hint::new(format!(
        "A Telemetry resource traces with match.mode {mode} alone, or the ports of all of them are excluded from the sidecars"
    ))
    .run("kubectl get telemetry -A -o yaml | grep -A4 match:");
    Finding::fail(
        CheckId::TracesCalls,
        format!("No sidecar reports a call {silent}, while those that it {reported} are reported"),
        hint,
    )
}
