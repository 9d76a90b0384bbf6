//! What two requests show beside each other: one with a trace of its own, and a bare one, as users send it.

use opentelemetry::trace::TraceId;

use crate::check::chain::evidence::{CALLER, SeamFault, Xray};
use crate::check::chain::probe::short;
use crate::check::chain::seams::trace_of;
use crate::check::chain::visit;
use crate::check::envoy::suggestions::{HintContext, HopRef};
use crate::check::propagation::fault;
use crate::check::report::{CheckId, Finding, Hint};
use crate::hop::reply::{Headers, Tree};
use crate::trace_context::{Context, HeaderFamily};

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

/// Whether a request that brings no trace is one trace at every hop. `xray`: of the probe, which shows what a hop itself loses or begins.
pub(super) fn finding(bare: &Tree, xray: &Xray, hints: &HintContext) -> Option<Finding> {
    const ID: CheckId = CheckId::PropagationBare;
    let mut walk = BareWalk { hints, trace: None, broke: None };
    if let Some(finding) = walk.at(CALLER, None, bare, &hints.url) {
        return Some(finding);
    }
    let Some(from) = walk.broke else {
        return walk.trace.map(|_| Finding::pass(ID, "A request without trace headers is one trace, too"));
    };
    let mut traces = Vec::new();
    visit(bare, &hints.url, 0, &mut |hop, _, _| {
        let contexts = HeaderFamily::read_all(&hop.received);
        traces.extend(contexts.iter().map(|(_, context)| context.trace_id).chain(trace_of(hop)));
    });
    traces.sort_by_key(|id| id.to_bytes());
    traces.dedup();
    let breaks = |fault: &&SeamFault| HeaderFamily::ALL.into_iter().any(|format| fault.breaks(format));
    let known = || xray.faults.iter().filter(breaks);
    let cause = known().find(|fault| fault.from.name == from || fault.to.name == from).or_else(|| known().next());
    // What struck this request alone is found with its share of the others.
    let cause = cause.filter(|_| traces.len() > 1)?;
    let text = format!("A request without trace headers is {} traces, too", traces.len());
    Some(Finding::fail(ID, text, Hint::default()).following(fault::id(cause)))
}

/// A walk from the front on.
struct BareWalk<'a> {
    hints: &'a HintContext,
    /// That of the first hop which is in one.
    trace: Option<TraceId>,
    /// The first hop that lost the trace itself, or began another.
    broke: Option<String>,
}

impl BareWalk<'_> {
    fn breaks_at(&mut self, hop: &str) -> Option<Finding> {
        self.broke.get_or_insert_with(|| hop.to_owned());
        None
    }

    /// `sent`: to this hop.
    fn at(&mut self, from: &str, sent: Option<&Headers>, tree: &Tree, url: &str) -> Option<Finding> {
        let contexts = HeaderFamily::read_all(&tree.received);
        let own = trace_of(tree);
        let trace = *self.trace.get_or_insert(contexts.first().map(|(_, context)| context.trace_id).or(own)?);
        let before = sent.map(HeaderFamily::read_all);
        if before.as_ref().is_some_and(|sent| sent.is_empty() || sent.iter().any(|(_, context)| context.trace_id != trace)) {
            return self.breaks_at(from);
        }
        if let Some((odd, other)) = contexts.iter().find(|(_, context)| context.trace_id != trace) {
            return Some(self.apart(from, &HopRef::of(tree, url).name, &contexts, *odd, (trace, other.trace_id)));
        }
        if own.is_some_and(|own| own != trace) {
            return self.breaks_at(&tree.service);
        }
        tree.upstreams.iter().find_map(|call| self.at(&tree.service, Some(&call.sent), call.reply.as_deref()?, &call.url))
    }

    /// Something between two hops made a trace of its own.
    fn apart(
        &self,
        from: &str,
        name: &str,
        contexts: &[(HeaderFamily, Context)],
        odd: HeaderFamily,
        (trace, other): (TraceId, TraceId),
    ) -> Finding {
        let ids = format!("{} and {}", short(&trace.to_string()), short(&other.to_string()));
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
        let hint = self.hints.providers().into_iter().fold(Hint::new(cause), Hint::run);
        Finding::fail(CheckId::PropagationBare, text, hint).seam(from, name, None).hop(name)
    }
}
