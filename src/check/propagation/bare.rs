//! What two requests show beside each other: one with a trace of its own, and a bare one, as users send it.

use opentelemetry::trace::TraceId;

use crate::check::chain::evidence::CALLER;
use crate::check::chain::probe::short;
use crate::check::envoy::suggestions::{HintContext, HopRef};
use crate::check::report::{CheckId, Finding, Hint};
use crate::hop::reply::{Headers, Tree};
use crate::trace_context::HeaderFamily;
use crate::traces::ids::parse_trace_id;

/// A hop that every request reaches under one request id.
pub(super) struct FixedId {
    pub(super) from: String,
    pub(super) to: HopRef,
    id: String,
    /// The caller itself sends it with every request.
    by_caller: bool,
}

impl FixedId {
    /// The first hop, from the front on, at which two requests have one id.
    pub(super) fn find(one: &Tree, other: &Tree, url: &str) -> Option<Self> {
        Self::at(CALLER, false, one, other, url)
    }

    fn at(from: &str, by_caller: bool, one: &Tree, other: &Tree, url: &str) -> Option<Self> {
        let id = |tree: &Tree| tree.received.first("x-request-id").filter(|id| !id.is_empty()).map(str::to_owned);
        if let Some(id) = id(one).filter(|known| id(other).as_ref() == Some(known)) {
            return Some(Self { from: from.to_owned(), to: HopRef::of(one, url), id, by_caller });
        }
        one.upstreams.iter().zip(&other.upstreams).find_map(|(call, same)| {
            let sent = call.sent.first("x-request-id");
            let by_caller = sent.is_some() && sent == same.sent.first("x-request-id");
            Self::at(&one.service, by_caller, call.reply.as_deref()?, same.reply.as_deref()?, &call.url)
        })
    }

    pub(super) fn finding(&self, hints: &HintContext) -> Finding {
        let Self { from, to, id, by_caller } = self;
        let name = &to.name;
        let text = format!("Every request reaches {name} with one request id: {}", short(id));
        let mut cause = if *by_caller {
            format!("{from} sends a fixed x-request-id with every call instead of the one that it received")
        } else {
            format!("headers.request.set of a VirtualService, or an EnvoyFilter, sets a fixed x-request-id on the way to {name}")
        };
        cause.push_str(". Envoy keeps its decision about sampling in that id: requests that share one share the decision");
        if id.len() != 36 {
            cause.push_str(", and this one is no UUID, so proxies behind it do not sample");
        }
        let hint = Hint::new(cause)
            .run("kubectl get virtualservice,envoyfilter -A -o yaml | grep -n -B2 -A2 x-request-id")
            .run(hints.settings(to));
        Finding::fail(CheckId::PropagationRequestId, text, hint).seam(from, name, None).hop(name)
    }
}

/// Whether a request that brings no trace is one trace at every hop.
pub(super) fn finding(bare: &Tree, url: &str, hints: &HintContext) -> Option<Finding> {
    let mut known = None;
    match walk(CALLER, None, bare, url, &mut known, hints) {
        Some(finding) => Some(finding),
        None => known.map(|_| Finding::pass(CheckId::PropagationBare, "A request without trace headers is one trace, too")),
    }
}

/// `sent`: to this hop. What a hop itself lost or began is not looked for: the probe shows that.
fn walk(
    from: &str,
    sent: Option<&Headers>,
    tree: &Tree,
    url: &str,
    known: &mut Option<TraceId>,
    hints: &HintContext,
) -> Option<Finding> {
    let hop = HopRef::of(tree, url);
    let contexts = HeaderFamily::read_all(&tree.received);
    let own = tree.trace_id.as_ref().and_then(|id| parse_trace_id(id).ok());
    let trace = *known.get_or_insert(contexts.first().map(|(_, context)| context.trace_id).or(own)?);
    let before = sent.map(HeaderFamily::read_all);
    if before.as_ref().is_some_and(|sent| sent.is_empty() || sent.iter().any(|(_, context)| context.trace_id != trace)) {
        return None;
    }
    if let Some((odd, other)) = contexts.iter().find(|(_, context)| context.trace_id != trace) {
        let (name, ids) = (&hop.name, format!("{} and {}", short(&trace.to_string()), short(&other.trace_id.to_string())));
        let goes_on = contexts.iter().find(|(_, context)| context.trace_id == trace);
        let (text, cause) = match goes_on {
            Some((usual, _)) => (
                format!("A request without trace headers is two traces at {name}: {ids}"),
                format!(
                    "The proxy in front of {name} speaks {}, and those before it {}: a Telemetry resource there names another provider (zipkin beside opentelemetry), so each begins a trace of its own",
                    odd.name(),
                    usual.name()
                ),
            ),
            None => (
                format!("A request without trace headers becomes another trace between {from} and {name}: {ids}"),
                format!(
                    "The proxy in front of {name} does not read what {from} sends: its tracer speaks another format, or begins anew"
                ),
            ),
        };
        let hint = hints.providers().into_iter().fold(Hint::new(cause), Hint::run);
        return Some(Finding::fail(CheckId::PropagationBare, text, hint).seam(from, name, None).hop(name));
    }
    tree.upstreams.iter().find_map(|call| walk(&tree.service, Some(&call.sent), call.reply.as_deref()?, &call.url, known, hints))
}
