//! What the spans of proxies say of one call: the proxy that the call left through, and the one in front of the called hop.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::hop::reply::Headers;
use crate::net::hosts::host_of;
use crate::trace_context::HeaderFamily;
use crate::traces::{Kind, Span, SpanId, Trace};

/// One proxy's span.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProxySpan {
    pub(crate) id: Option<SpanId>,
    /// Envoy's response flags; empty where it has nothing to remark.
    flags: Vec<Box<str>>,
    /// `outbound|80|base|service2.httpserver.svc.cluster.local`, `inbound|8080||`, `PassthroughCluster`; empty where none was chosen.
    cluster: Box<str>,
    /// The operation, which Istio names after the destination: `service2.httpserver.svc.cluster.local:80/*`.
    operation: Box<str>,
    pub(crate) status: u16,
    pub(crate) took: Duration,
    /// `sidecar~10.244.0.22~service3-b9b9959-vrhll.httpserver~httpserver.svc.cluster.local`.
    node: Box<str>,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UpstreamCluster<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: &'a str,
    /// Empty without one, and where the proxy found no cluster.
    pub(crate) subset: &'a str,
}

impl ProxySpan {
    fn of(span: &Span) -> Self {
        let tag = |key: &str| span.tag(key).unwrap_or_default();
        Self {
            id: Some(span.id),
            flags: tag("response_flags").split(',').filter(|flag| !matches!(*flag, "" | "-")).map(Box::from).collect(),
            cluster: tag("upstream_cluster").trim_end_matches(';').into(),
            operation: span.name.clone().unwrap_or_default(),
            status: span.http_status().unwrap_or_default(),
            took: Duration::from_micros(span.duration.unwrap_or_default()),
            node: tag("node_id").into(),
        }
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| **known == *flag)
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// No route led anywhere: the name is then `egress HOST`.
    pub(crate) fn is_unrouted(&self) -> bool {
        self.cluster.is_empty() && self.operation.starts_with("egress")
    }

    /// Whether it stands in front of the chain; a sidecar names its node or its cluster so. Not every gateway is Istio's.
    fn is_gateway(&self) -> bool {
        !self.node.starts_with("sidecar~") && !self.cluster.starts_with("inbound|")
    }

    /// Whether Istio runs the proxy.
    fn is_istio(&self) -> bool {
        self.node.starts_with("router~") || self.node.starts_with("sidecar~")
    }

    /// The app's port that an inbound listener calls.
    pub(crate) fn inbound_port(&self) -> Option<&str> {
        self.cluster.strip_prefix("inbound|")?.split('|').next()
    }

    /// Where the route leads, by its cluster, else by the name that Istio gives the operation.
    pub(crate) fn destination(&self) -> Option<UpstreamCluster<'_>> {
        if let Some(cluster) = self.cluster.strip_prefix("outbound|") {
            let mut parts = cluster.splitn(3, '|');
            let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
            return Some(UpstreamCluster { host, port, subset });
        }
        let (host, rest) = self.operation.split_once(':')?;
        let port = rest.split('/').next().filter(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))?;
        Some(UpstreamCluster { host, port, subset: "" })
    }
}

/// The spans of the proxies on the two sides of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CallSpans {
    /// Of the proxy that the call left through.
    pub(crate) client: Option<ProxySpan>,
    /// Of the proxy in front of the called hop; of the last attempt.
    pub(crate) server: Option<ProxySpan>,
    /// How often the called hop's proxy received it.
    pub(crate) attempts: usize,
    /// Whether the caller's proxy reports at all.
    pub(crate) is_caller_traced: bool,
}

impl CallSpans {
    fn of(client: Option<&Span>, servers: &[&Span]) -> Self {
        let server = servers.iter().max_by_key(|span| span.timestamp).map(|span| ProxySpan::of(span));
        Self { client: client.map(ProxySpan::of), server, attempts: servers.len(), is_caller_traced: false }
    }

    /// Whether the caller's proxy answered by itself, as a route told it to: it chose no cluster and has nothing to remark.
    pub(crate) fn is_answered_by_proxy(&self) -> bool {
        let by_route = |span: &ProxySpan| span.cluster.is_empty() && span.flags.is_empty() && !span.is_unrouted();
        self.server.is_none() && self.client.as_ref().is_some_and(by_route)
    }

    /// Whether a proxy other than Istio's reported.
    pub(crate) fn are_foreign(&self) -> bool {
        let mut spans = self.client.iter().chain(&self.server).peekable();
        spans.peek().is_some() && spans.all(|span| !span.is_istio())
    }

    /// Whether a proxy on either side set this flag.
    pub(crate) fn have(&self, flag: &str) -> bool {
        self.client.iter().chain(&self.server).any(|span| span.has(flag))
    }
}

/// What earlier steps of the run have learned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// Failures, by their kind, and what proxies reported of one of them.
    pub(crate) failures: HashMap<String, CallSpans>,
    /// Whether a foreign app answers at the checked URL, in front of the first hop.
    pub(crate) is_front_foreign: bool,
    /// The hops that have a sidecar for certain.
    pub(crate) sidecars: Vec<String>,
}

impl Evidence {
    pub(crate) fn of(&self, kind: &str) -> CallSpans {
        self.failures.get(kind).cloned().unwrap_or_default()
    }

    pub(crate) fn has_sidecar(&self, hop: &str) -> bool {
        self.sidecars.iter().any(|known| known == hop)
    }
}

/// The spans of one request, by their parents.
#[derive(Debug, Default)]
pub(crate) struct RequestSpans<'a> {
    below: HashMap<SpanId, Vec<&'a Span>>,
    by_id: HashMap<SpanId, &'a Span>,
}

impl<'a> RequestSpans<'a> {
    pub(crate) fn of(traces: &'a [Trace]) -> Self {
        let mut spans = Self::default();
        for span in traces.iter().flat_map(Trace::rows).map(|row| &*row.span) {
            spans.by_id.entry(span.id).or_insert(span);
            if let Some(parent) = span.parent_id {
                spans.below.entry(parent).or_default().push(span);
            }
        }
        spans
    }

    /// The spans of proxies of this kind below one.
    fn proxies(&self, parent: SpanId, kind: Kind) -> Vec<&'a Span> {
        let below = self.below.get(&parent).map(Vec::as_slice).unwrap_or_default();
        below.iter().copied().filter(|span| span.is_proxy() && span.kind == Some(kind)).collect()
    }

    pub(crate) fn get(&self, id: SpanId) -> Option<&'a Span> {
        self.by_id.get(&id).copied()
    }

    /// The spans that name this one as their parent.
    pub(crate) fn below(&self, id: SpanId) -> Vec<&'a Span> {
        self.below.get(&id).cloned().unwrap_or_default()
    }

    /// The call that was sent with these headers to this URL.
    pub(crate) fn call(&self, sent: &Headers, url: &str) -> CallSpans {
        const STEPS: usize = 64;
        let host = host_of(url);
        let contexts = HeaderFamily::read_all(sent);
        let parent = |span: &&'a Span| self.by_id.get(&span.parent_id?).copied();
        let path = |id: SpanId| std::iter::successors(self.by_id.get(&id).copied(), parent).take(STEPS);
        // One format may hold what the caller's own proxy was sent: what hangs below that is above the call.
        let above: HashSet<SpanId> = contexts.iter().flat_map(|(_, context)| path(context.span_id)).map(|span| span.id).collect();
        let spans = contexts.iter().map(|(_, context)| {
            // Calls of a hop that only forwards have one parent.
            let clients = self.proxies(context.span_id, Kind::Client);
            let to_host = |span: &&&Span| span.tag("http.url").is_some_and(|url| host_of(url) == host);
            let client = clients.iter().find(to_host).or(clients.first()).copied();
            let mut servers = self.proxies(client.map_or(context.span_id, |span| span.id), Kind::Server);
            servers.retain(|span| !above.contains(&span.id));
            // The call's own span hangs below the hop's, which hangs below its own proxy's; a caller without one hangs below
            // the span of the proxy that called it.
            let is_own = |span: &Span| span.is_proxy() && span.kind == Some(Kind::Server);
            let is_caller_traced = path(context.span_id).take(3).any(is_own);
            CallSpans { is_caller_traced, ..CallSpans::of(client, &servers) }
        });
        spans.max_by_key(|spans| (spans.client.is_some(), spans.server.is_some(), spans.is_caller_traced)).unwrap_or_default()
    }

    /// The request itself, that brought these headers: a gateway, or the first hop's own proxy.
    pub(crate) fn front(&self, sent: &Headers) -> CallSpans {
        let contexts = HeaderFamily::read_all(sent);
        let top = contexts.iter().find_map(|(_, context)| self.proxies(context.span_id, Kind::Server).into_iter().next());
        let Some(top) = top else { return CallSpans::default() };
        if !ProxySpan::of(top).is_gateway() {
            return CallSpans { server: Some(ProxySpan::of(top)), attempts: 1, ..CallSpans::default() };
        }
        // A gateway reports one span for the request and one for each attempt.
        let last = self.proxies(top.id, Kind::Client).into_iter().max_by_key(|span| span.timestamp);
        let mut spans = CallSpans::of(last, &self.proxies(last.map_or(top.id, |span| span.id), Kind::Server));
        let whole = ProxySpan::of(top);
        let gateway = spans.client.get_or_insert_with(|| whole.clone());
        for flag in whole.flags {
            if !gateway.has(&flag) {
                gateway.flags.push(flag);
            }
        }
        spans.is_caller_traced = true;
        spans
    }
}
