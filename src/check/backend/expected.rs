//! The spans that must be in the backend, known from the reply of one request.
//!
//! A hop that continues the trace has its own span's id and its calls' in the reply; where a proxy wrote its span into the
//! headers, that id arrived at the hop.

use std::collections::HashSet;

use http::StatusCode;

use crate::check::chain::evidence::{HopEvidence, Xray};
use crate::check::envoy::suggestions::HopRef;
use crate::hop::reply::{Propagation, Tree};
use crate::rpc;
use crate::trace_context::HeaderFamily;
use crate::traces::ids::{parse_span_id, parse_trace_id};
use crate::traces::{ExpectedSpan, Kind, SpanId, TraceId};
use crate::values::service_number;

/// A span that must be there, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HopSpan {
    pub(super) span: ExpectedSpan,
    pub(super) hop: HopRef,
    pub(super) role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Server,
    Call,
    /// Of the proxy in front of the hop.
    Proxy,
}

impl HopSpan {
    fn new(hop: &HopRef, role: Role, trace_id: TraceId, id: SpanId) -> Self {
        let service = hop.name.as_str().into();
        let span =
            ExpectedSpan { trace_id, id, service, parent: None, ancestor: None, kind: None, route: None, tags: Vec::new() };
        Self { span, hop: hop.clone(), role }
    }

    fn below(mut self, parent: Option<SpanId>, ancestor: Option<SpanId>) -> Self {
        (self.span.parent, self.span.ancestor) = (parent, ancestor);
        self
    }

    fn described(mut self, kind: Kind, route: Option<String>, tags: Vec<(&'static str, String)>) -> Self {
        (self.span.kind, self.span.route, self.span.tags) = (Some(kind), route, tags);
        self
    }

    /// Only ids are compared: a backend may know no kinds, and a collector may rename tags.
    pub(super) fn by_ids(mut self) -> Self {
        (self.span.kind, self.span.route) = (None, None);
        self.span.tags.clear();
        self
    }
}

/// What the reply says must be in the backend. Without an x-ray nothing is known of proxies.
pub(super) fn expected_spans(tree: &Tree, url: &str, xray: Option<&Xray>) -> Vec<HopSpan> {
    let mut walk = Walk { rows: xray.map_or(&[][..], |xray| &xray.rows).iter(), out: Vec::new() };
    walk.hop(tree, url, None);
    walk.out
}

/// The tags of a hop's span that its reply knows. `status`: of the answer that the span is about, if there was one; `protocol`: in which
/// it came.
fn tags(tree: &Tree, status: Option<u16>, protocol: Option<&str>) -> Vec<(&'static str, String)> {
    let mut tags = vec![("request.id", tree.request_id.clone()), ("service.version", tree.version.clone())];
    let code = |status| rpc::status::name(rpc::status::code_of(status)).to_owned();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    tags.extend(status.map(|status| match protocol {
        Some("grpc") => ("rpc.response.status_code", code(status)),
        _ => ("http.response.status_code", status.as_str().to_owned()),
    }));
    tags
}

/// The route template of a hop's server span; `None` for a path outside the chain.
fn route(path: &str) -> Option<String> {
    ["/hello/service", "/service"].into_iter().find_map(|prefix| {
        service_number(path.strip_prefix(prefix)?)?;
        Some(format!("{prefix}{{n}}"))
    })
}

struct Walk<'a> {
    /// In the order of the walk: one per hop that answered.
    rows: std::slice::Iter<'a, HopEvidence>,
    out: Vec<HopSpan>,
}

impl Walk<'_> {
    /// `caller`: the server span of the nearest hop above that reports.
    fn hop(&mut self, tree: &Tree, url: &str, caller: Option<SpanId>) {
        let hop = HopRef::of(tree, url);
        self.proxy(tree, &hop);
        let reports = tree.propagation == Propagation::Continue && tree.sampled == Some(true);
        let ids = tree.trace_id.as_deref().zip(tree.span_id.as_deref()).filter(|_| reports);
        let server = ids.and_then(|(trace, span)| Some((parse_trace_id(trace).ok()?, parse_span_id(span).ok()?)));
        if let Some((trace_id, id)) = server {
            let parent = tree.parent_span_id.as_deref().and_then(|id| parse_span_id(id).ok());
            let mut tags = tags(tree, Some(tree.status), tree.protocol.as_deref());
            let route = route(&tree.path);
            tags.extend(route.clone().map(|route| ("http.route", route)));
            self.out.push(HopSpan::new(&hop, Role::Server, trace_id, id).below(parent, caller).described(
                Kind::Server,
                route,
                tags,
            ));
        }
        let received = HeaderFamily::read_all(&tree.received);
        for call in &tree.upstreams {
            let written = HeaderFamily::ALL.into_iter().find_map(|family| family.read(&call.sent));
            // A span id that the hop only passes on is none of its own.
            let written = written.filter(|own| !received.iter().any(|(_, context)| context.span_id == own.span_id));
            if let (Some((_, server)), Some(context)) = (server, written) {
                // The status of a call without a reply is not always the one that its code came from.
                let is_grpc = call.protocol.as_deref() == Some("grpc");
                let status = call.status.filter(|_| !is_grpc || call.reply.is_some());
                let tags = tags(tree, status, call.protocol.as_deref());
                self.out.push(
                    HopSpan::new(&hop, Role::Call, context.trace_id, context.span_id).below(Some(server), None).described(
                        Kind::Client,
                        None,
                        tags,
                    ),
                );
            }
            if let Some(reply) = &call.reply {
                self.hop(reply, &call.url, server.map(|(_, id)| id).or(caller));
            }
            // What a foreign app reports is its own business.
            call.embedded.iter().for_each(|reply| self.hop(reply, "", None));
        }
    }

    /// The span of the proxy in front of the hop, where it wrote its id into a header.
    fn proxy(&mut self, tree: &Tree, hop: &HopRef) {
        let Some(row) = self.rows.next().filter(|_| tree.sampled != Some(false)) else { return };
        for family in HeaderFamily::ALL {
            let wrote = if family == HeaderFamily::W3c { row.proxy.w3c } else { row.proxy.b3 };
            if let Some(context) = row.context(family).filter(|context| wrote && context.sampling.is_sampled())
                && !self.out.iter().any(|known| known.span.id == context.span_id)
            {
                self.out.push(HopSpan::new(hop, Role::Proxy, context.trace_id, context.span_id));
            }
        }
    }
}

/// The traces that the request is in, first the one that it begins in: ours, or the one that the front gave it. Where hops only
/// forward, the proxies' are the ones that count.
pub(super) fn trace_ids(expected: &[HopSpan]) -> Vec<TraceId> {
    let mut known = HashSet::new();
    expected.iter().map(|expected| expected.span.trace_id).filter(|id| known.insert(*id)).collect()
}
