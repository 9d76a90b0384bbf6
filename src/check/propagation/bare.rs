//! What two requests show beside each other: one with a trace of its own, and a bare one, as users send it.

use opentelemetry::trace::TraceId;

use crate::check::chain::evidence::{CALLER, SeamFault, Xray};
use crate::check::chain::probe::short;
use crate::check::chain::seams::trace_of;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner};
use crate::check::propagation::fault;
use crate::hop::reply::{Headers, Tree};
use crate::report::{CheckId, Finding, Hint, Status};
use crate::text::quoted;
use crate::trace_context::{Context, HeaderFamily};

/// A hop that every request reaches under one request id, or in one trace.
pub(super) struct FixedId {
    pub(super) from: String,
    pub(super) to: HopRef,
    id: String,
    /// The caller itself sends it with every request.
    by_caller: bool,
    pub(super) is_trace: bool,
}

/// What two requests have in common, as they arrive or leave: the trace in one format, or the request id.
fn common(one: &Headers, other: &Headers, is_trace: bool) -> Option<String> {
    if is_trace {
        let others = HeaderFamily::read_all(other);
        let is_same = |(format, context): &(HeaderFamily, Context)| {
            others.iter().any(|(of, other)| of == format && other.trace_id == context.trace_id)
        };
        return HeaderFamily::read_all(one).into_iter().find(is_same).map(|(_, context)| context.trace_id.to_string());
    }
    let id = |headers: &Headers| headers.first("x-request-id").filter(|id| !id.is_empty()).map(str::to_owned);
    id(one).filter(|known| id(other).as_ref() == Some(known))
}

impl FixedId {
    /// The first hop, from the front on, at which two requests have one request id, and the first at which they have one trace.
    pub(super) fn find(one: &Tree, other: &Tree, url: &str) -> Vec<Self> {
        [false, true].into_iter().filter_map(|is_trace| Self::at(CALLER, false, one, other, (url, is_trace))).collect()
    }

    fn at(from: &str, by_caller: bool, one: &Tree, other: &Tree, (url, is_trace): (&str, bool)) -> Option<Self> {
        if let Some(id) = common(&one.received, &other.received, is_trace) {
            return Some(Self { from: from.to_owned(), to: HopRef::of(one, url), id, by_caller, is_trace });
        }
        one.upstreams.iter().zip(&other.upstreams).find_map(|(call, same)| {
            let by_caller = common(&call.sent, &same.sent, is_trace).is_some();
            Self::at(&one.service, by_caller, call.reply.as_deref()?, same.reply.as_deref()?, (&call.url, is_trace))
        })
    }

    /// Whether the trace is one that this run sent, or that a hop sends: an app that mixes up its requests, and fixes nothing.
    pub(super) fn is_leak(&self, sent: &Headers) -> bool {
        let is_own = || HeaderFamily::read_all(sent).iter().any(|(_, context)| context.trace_id.to_string() == self.id);
        self.is_trace && (self.by_caller || is_own())
    }

    fn trace(&self, hints: &HintContext) -> Finding {
        let Self { from, to, id, .. } = self;
        let name = &to.name;
        let text = format!("Every request reaches {name} in one trace: {}", short(id));
        let cause = format!(
            "Something on the way to {name} sets a fixed traceparent: headers.request.set of a VirtualService, request_headers_to_add of a route, or a load balancer"
        );
        let hint = Hint::new(cause).run(hints.settings(to));
        Finding::fail(CheckId::PropagationTrace, text, hint).seam(from, name, None).hop(name)
    }

    pub(super) fn finding(&self, hints: &HintContext) -> Finding {
        if self.is_trace {
            return self.trace(hints);
        }
        let Self { from, to, id, by_caller, .. } = self;
        let name = &to.name;
        let text = format!("Every request reaches {name} with one request id: {}", short(id));
        let mut cause = if *by_caller {
            format!("{from} sends a fixed x-request-id with every call instead of the one that it received")
        } else {
            let what = hints.configured_by(
                "headers.request.set of a VirtualService, or an EnvoyFilter,",
                "request_headers_to_add of a proxy's route, or a filter,",
            );
            format!("{what} sets a fixed x-request-id on the way to {name}")
        };
        cause.push_str(". Envoy keeps its decision about sampling in that id: requests that share one share the decision");
        if id.len() != 36 {
            cause.push_str(", and this one is no UUID, so proxies behind it do not sample");
        }
        let mut hint = Hint::new(cause);
        if hints.runner(to) == Runner::Kubernetes {
            hint = hint.run("kubectl get virtualservice,envoyfilter -A -o yaml | grep -n -B2 -A2 x-request-id");
        }
        let hint = hint.run(hints.settings(to));
        Finding::fail(CheckId::PropagationRequestId, text, hint).seam(from, name, None).hop(name)
    }
}

/// A reply that came back for two requests, as it was.
pub(super) struct Replay {
    from: String,
    to: HopRef,
    started_at: String,
    /// The hops in it.
    hops: Vec<String>,
}

impl Replay {
    pub(super) fn find(one: &Tree, other: &Tree, url: &str) -> Option<Self> {
        Self::at(CALLER, one, other, url)
    }

    fn at(from: &str, one: &Tree, other: &Tree, url: &str) -> Option<Self> {
        let of = |tree: &Tree| (tree.started_at.clone(), tree.span_id.clone(), tree.request_id.clone(), tree.hostname.clone());
        if of(one) == of(other) && one.received == other.received && !one.received.0.is_empty() {
            let hops = one.hops(url).map(|(hop, _)| hop.service.clone()).collect();
            return Some(Self { from: from.to_owned(), to: HopRef::of(one, url), started_at: one.started_at.clone(), hops });
        }
        one.upstreams
            .iter()
            .zip(&other.upstreams)
            .find_map(|(call, same)| Self::at(&one.service, call.reply.as_deref()?, same.reply.as_deref()?, &call.url))
    }

    /// Whether what this hop shows is of another request.
    pub(super) fn has(&self, hop: &str) -> bool {
        self.hops.iter().any(|known| known == hop)
    }

    pub(super) fn finding(&self) -> Finding {
        let Self { from, to, started_at, .. } = self;
        let name = &to.name;
        let text = format!("One reply of {name} comes back for different requests: the same span, which began at {started_at}");
        let hint = Hint::new(format!(
            "A cache between {from} and {name} answers in its place: it ignores that the answers of a hop are not to be stored (cache-control: no-store)"
        ))
        .run(format!(
            "curl -sv -o /dev/null -H 'accept: application/json' {}  # look for age, x-cache and a date that stays",
            quoted(&to.url)
        ));
        Finding::fail(CheckId::PropagationTrace, text, hint).seam(from, name, None).hop(name)
    }
}

/// Whether something between two hops made another trace of such a request.
pub(super) fn is_apart(bare: &Tree, xray: &Xray, hints: &HintContext) -> bool {
    finding(bare, xray, hints).is_some_and(|finding| finding.status == Status::Fail)
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
    for (hop, _) in bare.hops("") {
        let contexts = HeaderFamily::read_all(&hop.received);
        traces.extend(contexts.iter().map(|(_, context)| context.trace_id).chain(trace_of(hop)));
    }
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
