//! The services of a mesh and the calls between them, as its traces have them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::doctor::peers::{Names, caller_addresses, own_addresses, peer_addresses, peer_names};
use crate::traces::{Kind, Span, Trace, TraceId};

/// Last parts of the paths of health checks, which come at the same times everywhere.
const HEALTH: [&str; 12] = [
    "health",
    "healthz",
    "healthcheck",
    "livez",
    "readyz",
    "live",
    "liveness",
    "ready",
    "readiness",
    "ping",
    "heartbeat",
    "metrics",
];

/// Who made a span, from the marks that tracers leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TracerKind {
    /// Envoy, as a sidecar, waypoint or gateway.
    Envoy,
    /// An OpenTelemetry SDK.
    OpenTelemetry,
    /// A Jaeger client library.
    Jaeger,
    /// A Zipkin library, or nothing that names itself.
    Zipkin,
    /// It reports nothing.
    None,
}

impl TracerKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::OpenTelemetry => "OpenTelemetry",
            Self::Jaeger => "Jaeger",
            Self::Zipkin => "Zipkin or unknown",
            Self::None => "nobody",
        }
    }

    fn of(span: &Span) -> Self {
        let has = |key: &str| span.tag(key).is_some();
        if span.is_proxy() {
            Self::Envoy
        } else if span.tags.keys().any(|key| key.starts_with("otel.") || key.starts_with("telemetry.sdk.")) {
            Self::OpenTelemetry
        } else if has("jaeger.version") || has("internal.span.format") && has("sampler.type") {
            Self::Jaeger
        } else {
            Self::Zipkin
        }
    }
}

/// The other end of a call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remote {
    /// A service that reports spans; its index.
    Reports(usize),
    /// A name of which no span comes.
    Silent(Box<str>),
    /// The span does not name it.
    Unnamed,
}

/// A span in its place. Times are microseconds since 1970-01-01 UTC; a span without a time begins at 0.
#[derive(Debug)]
pub(super) struct SystemSpan {
    pub(super) trace: usize,
    pub(super) span: Arc<Span>,
    pub(super) service: usize,
    pub(super) tracer: TracerKind,
    pub(super) parent: Option<usize>,
    pub(super) is_orphan: bool,
    pub(super) children: Vec<usize>,
    pub(super) start: i64,
    pub(super) end: i64,
}

impl SystemSpan {
    pub(super) fn is(&self, kind: Kind) -> bool {
        self.span.kind == Some(kind)
    }

    /// Begins its trace.
    pub(super) fn is_root(&self) -> bool {
        self.parent.is_none() && !self.is_orphan
    }

    /// A proxy's span of a request to its own app.
    pub(super) fn is_inbound(&self) -> bool {
        self.span.tag("upstream_cluster").is_some_and(|cluster| cluster.starts_with("inbound"))
    }

    /// A proxy's span of a request from its own app.
    pub(super) fn is_outbound(&self) -> bool {
        self.span.tag("upstream_cluster").is_some_and(|cluster| cluster.starts_with("outbound"))
    }

    /// Microseconds.
    pub(super) fn took(&self) -> i64 {
        self.end - self.start
    }

    /// Asks nothing but whether the service is there.
    pub(super) fn is_health_check(&self) -> bool {
        let last = |text: &str| text.rsplit(['/', ' ']).next().unwrap_or(text).to_lowercase();
        let mut texts = self.span.path().into_iter().chain(self.span.tag("http.route")).chain(self.span.name.as_deref());
        texts.any(|text| HEALTH.contains(&last(text).as_str()) || text.starts_with("grpc.health."))
    }
}

/// All spans, the names of the services, and who is called by whom.
pub(super) struct System {
    pub(super) ids: Vec<TraceId>,
    pub(super) spans: Vec<SystemSpan>,
    pub(super) names: Vec<Box<str>>,
    pub(super) by_name: Names,
    /// Whose hosts have which address; `None`: several services'.
    by_address: HashMap<IpAddr, Option<usize>>,
    tracers: Vec<TracerKind>,
    /// The server spans with which requests enter each service, with the services that are called below.
    entries: Vec<Vec<(usize, BTreeSet<usize>)>>,
    /// Those of each trace: the service, and which of its entries.
    entered: Vec<Vec<(usize, usize)>>,
    /// The calls of each trace that have no answer below.
    open: Vec<Vec<usize>>,
    /// Which service a client span of this service and name calls, where all that were answered agree.
    usual: HashMap<(usize, Box<str>), usize>,
}

impl System {
    pub(super) fn new(traces: &[Trace]) -> Self {
        let mut spans = Vec::new();
        let named = |span: &Span| span.service().unwrap_or("(unnamed)").to_owned();
        let apps: BTreeSet<String> = traces
            .iter()
            .flat_map(Trace::rows)
            .filter(|row| TracerKind::of(&row.span) != TracerKind::Envoy)
            .map(|row| named(&row.span))
            .collect();
        let mut indices: BTreeMap<String, usize> = BTreeMap::new();
        let mut names: Vec<Box<str>> = Vec::new();
        for (trace, of) in traces.iter().enumerate() {
            let first = spans.len();
            for row in of.rows() {
                let tracer = TracerKind::of(&row.span);
                let mut name = named(&row.span);
                // Istio's proxies name themselves `app.namespace`; beside an app of that name they are one service.
                if tracer == TracerKind::Envoy
                    && let Some(app) = name.split('.').next().filter(|app| apps.contains(*app))
                {
                    name = app.to_owned();
                }
                let service = *indices.entry(name).or_insert_with_key(|name| {
                    names.push(name.as_str().into());
                    names.len() - 1
                });
                let start = row.span.timestamp.unwrap_or(0).try_into().unwrap_or(i64::MAX / 4);
                let took = row.span.duration.unwrap_or(0).try_into().unwrap_or(i64::MAX / 4);
                // A shared span is the half of a call: one whose other half is not there hangs below a span that was lost.
                let is_half = row.span.shared && row.parent.is_none_or(|parent| of.rows()[parent].span.id != row.span.id);
                let parent = row.parent.filter(|_| !is_half).map(|parent| first + parent);
                let is_orphan = row.missing_parent.is_some() || is_half;
                let (span, children, end) = (row.span.clone(), Vec::new(), start + took);
                spans.push(SystemSpan { trace, span, service, tracer, parent, is_orphan, children, start, end });
            }
        }
        cut_below_lost_halves(&mut spans);
        for at in 0..spans.len() {
            if let Some(parent) = spans[at].parent {
                spans[parent].children.push(at);
            }
        }
        let ids = traces.iter().map(Trace::id).collect();
        let (entries, open, tracers) =
            (vec![Vec::new(); names.len()], vec![Vec::new(); traces.len()], tracers(&spans, names.len()));
        let by_name = Names::new(&names);
        let entered = vec![Vec::new(); traces.len()];
        let by_address = addresses(&spans);
        let mut system = Self { ids, spans, names, by_name, by_address, tracers, entries, entered, open, usual: HashMap::new() };
        system.usual = system.usual_callees();
        for at in 0..system.spans.len() {
            let (service, trace) = (system.spans[at].service, system.spans[at].trace);
            if system.is_entry(at) {
                let callees = system.callees(at);
                system.entered[trace].push((service, system.entries[service].len()));
                system.entries[service].push((at, callees));
            } else if system.is_outer_client(at) && system.answered_by(at).is_none() {
                system.open[trace].push(at);
            }
        }
        system
    }

    fn usual_callees(&self) -> HashMap<(usize, Box<str>), usize> {
        /// The callee where all answers agree, the answers, and the calls.
        type Counted = (Option<usize>, usize, usize);
        let mut usual: HashMap<(usize, Box<str>), Counted> = HashMap::new();
        for (at, span) in self.spans.iter().enumerate().filter(|(_, span)| span.is(Kind::Client)) {
            let Some(name) = &span.span.name else { continue };
            let answer = self.answered_by(at).map(|answer| self.spans[answer].service);
            let (callee, answered, calls) = usual.entry((span.service, name.clone())).or_insert((answer, 0, 0));
            *calls += 1;
            if answer.is_some() {
                *answered += 1;
                *callee = if *answered == 1 { answer } else { callee.filter(|callee| Some(*callee) == answer) };
            }
        }
        // Where many have no answer, they may be calls of another service.
        let unanimous = usual.into_iter().filter(|(_, (_, answered, calls))| answered * 5 >= calls * 4);
        unanimous.filter_map(|(key, (callee, ..))| Some((key, callee?))).collect()
    }

    pub(super) fn name(&self, service: usize) -> &str {
        &self.names[service]
    }

    /// The first span of another service below a client span; `None` when nothing of the called service is below.
    pub(super) fn answered_by(&self, client: usize) -> Option<usize> {
        let mut next = vec![client];
        while let Some(at) = next.pop() {
            for &child in &self.spans[at].children {
                if self.spans[child].service != self.spans[client].service {
                    return Some(child);
                }
                // A proxy's client span below its app's, or a service that calls itself.
                if self.spans[child].is(Kind::Server) {
                    return Some(child);
                }
                next.push(child);
            }
        }
        None
    }

    /// A client span that no other client span of its service is above: one call, however many proxies report it. A question to
    /// a database is none: nobody traces on behind it.
    pub(super) fn is_outer_client(&self, at: usize) -> bool {
        self.is_outermost(at, Kind::Client)
    }

    /// A server span with which a request enters a service, and not its app's below its proxy's.
    pub(super) fn is_entry(&self, at: usize) -> bool {
        self.is_outermost(at, Kind::Server)
    }

    /// Not a question to a database or a cache, nor a message.
    pub(super) fn is_call(&self, at: usize) -> bool {
        const OTHERS: [&str; 8] = ["db.", "sql.", "redis.", "cassandra.", "mongodb.", "memcached.", "messaging.", "kafka."];
        !self.spans[at].span.tags.keys().any(|key| OTHERS.iter().any(|other| key.starts_with(other)))
    }

    fn is_outermost(&self, at: usize, kind: Kind) -> bool {
        let span = &self.spans[at];
        let above = span.parent.map(|parent| &self.spans[parent]);
        (kind != Kind::Client || self.is_call(at))
            && span.is(kind)
            && !above.is_some_and(|above| above.is(kind) && above.service == span.service && above.tracer != span.tracer)
    }

    /// Whom a client span calls, from its attributes, or from the answered calls of the same name.
    pub(super) fn remote(&self, client: usize) -> Remote {
        let seen = &self.spans[client];
        let usual = || self.usual.get(&(seen.service, seen.span.name.clone()?));
        match self.named_remote(client) {
            Remote::Unnamed => usual().map_or(Remote::Unnamed, |callee| Remote::Reports(*callee)),
            named => named,
        }
    }

    /// Whom a client span calls, from its attributes.
    pub(super) fn named_remote(&self, client: usize) -> Remote {
        let seen = &self.spans[client];
        let (mut silent, mut names) = (None, peer_names(&seen.span));
        if names.is_empty() {
            // Its own proxy below it knows whom it calls.
            let own = |at: &&usize| self.spans[**at].service == seen.service && self.spans[**at].is(Kind::Client);
            names = seen.children.iter().find(own).map(|at| peer_names(&self.spans[*at].span)).unwrap_or_default();
        }
        for name in names {
            match self.by_name.find(name) {
                Some(service) if service != seen.service => return Remote::Reports(service),
                Some(_) => {}
                None => silent = silent.or_else(|| Some(name.label().into())),
            }
        }
        let mut addressed = peer_addresses(&seen.span).filter_map(|address| *self.by_address.get(&address)?);
        match addressed.find(|service| *service != seen.service) {
            Some(service) => Remote::Reports(service),
            None => silent.map_or(Remote::Unnamed, Remote::Silent),
        }
    }

    /// The service from one of whose hosts a request came.
    pub(super) fn caller(&self, server: usize) -> Option<usize> {
        let seen = &self.spans[server];
        let callers = caller_addresses(&seen.span).filter_map(|address| *self.by_address.get(&address)?);
        callers.into_iter().find(|caller| *caller != seen.service)
    }

    /// The calls of one trace that have no answer below, the latest 64.
    pub(super) fn open_calls(&self, trace: usize) -> impl Iterator<Item = usize> {
        self.open[trace].iter().rev().take(64).copied()
    }

    /// The server spans with which requests enter the services of one trace, with whom they call; the first 64.
    pub(super) fn entries_of_trace(&self, trace: usize) -> impl Iterator<Item = &(usize, BTreeSet<usize>)> {
        self.entered[trace].iter().take(64).map(|(service, n)| &self.entries[*service][*n])
    }

    /// The server spans with which requests enter a service, with the services that it calls for them.
    pub(super) fn entries(&self, service: usize) -> &[(usize, BTreeSet<usize>)] {
        &self.entries[service]
    }

    /// How many requests and messages reach a service.
    pub(super) fn calls_in(&self, service: usize) -> usize {
        let messages =
            (0..self.spans.len()).filter(|at| self.spans[*at].service == service && self.is_outermost(*at, Kind::Consumer));
        self.entries(service).len() + messages.count()
    }

    pub(super) fn callees(&self, entry: usize) -> BTreeSet<usize> {
        self.answers_below(entry).map(|at| self.spans[at].service).collect()
    }

    /// The first spans of other services below one.
    pub(super) fn answers_below(&self, entry: usize) -> impl Iterator<Item = usize> {
        let mut next = vec![entry];
        std::iter::from_fn(move || {
            loop {
                let at = next.pop()?;
                if self.spans[at].service != self.spans[entry].service {
                    return Some(at);
                }
                next.extend(&self.spans[at].children);
            }
        })
    }

    /// Whether the first span is somewhere below the second.
    pub(super) fn is_below(&self, at: usize, above: usize) -> bool {
        std::iter::successors(self.spans[at].parent, |at| self.spans[*at].parent).any(|at| at == above)
    }

    /// The service that a root or orphan client span leads to.
    pub(super) fn callee(&self, client: usize) -> Remote {
        match self.answered_by(client) {
            Some(answer) => Remote::Reports(self.spans[answer].service),
            None => self.remote(client),
        }
    }

    /// Up to three different traces of these spans.
    pub(super) fn examples(&self, spans: impl IntoIterator<Item = usize>) -> Vec<TraceId> {
        let mut ids = Vec::new();
        for at in spans {
            let id = self.ids[self.spans[at].trace];
            if !ids.contains(&id) {
                ids.push(id);
            }
            if ids.len() == 3 {
                break;
            }
        }
        ids
    }

    /// What makes most of a service's spans.
    pub(super) fn tracer(&self, service: usize) -> TracerKind {
        self.tracers[service]
    }
}

fn addresses(spans: &[SystemSpan]) -> HashMap<IpAddr, Option<usize>> {
    let mut known: HashMap<IpAddr, Option<usize>> = HashMap::new();
    for span in spans {
        for address in own_addresses(&span.span) {
            let service = known.entry(address).or_insert(Some(span.service));
            *service = service.filter(|service| *service == span.service);
        }
    }
    known
}

/// Where a service shares the ids of its callers' spans, what it did for a request whose span was lost hangs directly below the call.
fn cut_below_lost_halves(spans: &mut [SystemSpan]) {
    let is_half = |span: &SystemSpan| span.parent.is_some_and(|above| spans[above].span.id == span.span.id);
    let shares = |span: &&SystemSpan| span.is(Kind::Server) && (span.span.shared || is_half(span));
    let sharing: BTreeSet<usize> = spans.iter().filter(shares).map(|span| span.service).collect();
    for at in 0..spans.len() {
        let span = &spans[at];
        let Some(above) = span.parent.map(|above| &spans[above]) else { continue };
        let is_request = span.is(Kind::Server) || span.is(Kind::Consumer) || span.span.shared;
        if !is_request && above.is(Kind::Client) && above.service != span.service && sharing.contains(&span.service) {
            (spans[at].parent, spans[at].is_orphan) = (None, true);
        }
    }
}

fn tracers(spans: &[SystemSpan], services: usize) -> Vec<TracerKind> {
    let mut counts: Vec<BTreeMap<TracerKind, usize>> = vec![BTreeMap::new(); services];
    for span in spans {
        *counts[span.service].entry(span.tracer).or_default() += 1;
    }
    let most = |counts: BTreeMap<TracerKind, usize>| counts.into_iter().max_by_key(|(_, count)| *count);
    counts.into_iter().map(|counts| most(counts).map_or(TracerKind::None, |(tracer, _)| tracer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::decode;

    #[test]
    fn a_tracer_is_known_by_its_marks() {
        for (tags, tracer) in [
            (r#""component":"proxy""#, TracerKind::Envoy),
            (r#""response_flags":"-""#, TracerKind::Envoy),
            // Envoy's tracer for OpenTelemetry.
            (r#""telemetry.sdk.name":"envoy","telemetry.sdk.language":"cpp""#, TracerKind::Envoy),
            (r#""telemetry.sdk.name":"opentelemetry""#, TracerKind::OpenTelemetry),
            (r#""jaeger.version":"Go-2""#, TracerKind::Jaeger),
            (r#""http.path":"/""#, TracerKind::Zipkin),
        ] {
            let span = format!(r#"[{{"traceId":"1","id":"2","tags":{{{tags}}}}}]"#);
            assert_eq!(TracerKind::of(&decode(span.as_bytes(), 1).unwrap()[0]), tracer, "{tags}");
        }
    }
}
