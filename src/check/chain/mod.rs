//! The chain itself: the hops in the expected order, and where a failed request broke.
//!
//! In reading order: `probe` (the request), `walk` (over its reply), `evidence` (what it shows), `xray` and `seams` (how it is compared),
//! [`expect`] (the values of the options), `order` (what they expect).

pub(crate) mod evidence;
pub mod expect;
mod order;
pub(crate) mod probe;
pub(crate) mod seams;
mod walk;
pub(crate) mod xray;

use crate::hop::reply::{Call, Tree};
use crate::net::hosts::{address_of, host_of, is_loopback};
use crate::upstream::foreign_response::ForeignResponse;

use crate::check::chain::evidence::CALLER;
use crate::check::chain::expect::Expect;
use crate::check::chain::order::Comparison;
pub(crate) use crate::check::chain::order::{CallNames, calls_at_times};
use crate::check::chain::walk::{has_failed, is_ok, settled};
pub(crate) use crate::check::chain::walk::{hops, numbered, visit};
use crate::check::envoy::gateway;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, name_of, on_purpose, runner};
use crate::check::report::{CheckId, Finding, Hint, OwnCause, Status};

/// Why a call failed, or a hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// No connection: nothing listens.
    Refused,
    /// The name does not resolve.
    NoSuchHost,
    /// No whole answer in the caller's time.
    TimedOut,
    /// The connection ended early.
    Closed,
    /// Another transport error.
    Transport(String),
    /// An answer of this status that is no hop's reply, and what it says.
    Answered(u16, ForeignResponse),
    /// A 2xx answer that is no hop's reply and yet counts as failed.
    NoReply(String),
    /// The hop's own fault injection.
    Injected(u16),
    /// The hop's own status, with every call below it fine.
    Itself(u16),
    /// The request went in a circle.
    Loop,
}

/// Where a request broke: the deepest point that the tree shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BreakPoint {
    pub(crate) from: HopRef,
    pub(crate) to: HopRef,
    pub(crate) cause: FailureCause,
}

impl BreakPoint {
    /// What happened, as one sentence.
    pub(crate) fn text(&self) -> String {
        let (from, to) = (&self.from.name, &self.to.name);
        match &self.cause {
            FailureCause::Refused => format!("{from} cannot reach {to}: connection refused at {}", self.to.url),
            FailureCause::NoSuchHost => format!("{from} cannot reach {to}: {} does not resolve", host_of(&self.to.url)),
            FailureCause::TimedOut => format!("{to} did not answer {from} in time"),
            FailureCause::Closed => format!("The connection from {from} to {to} ended before an answer"),
            FailureCause::Transport(error) => format!("{from} cannot call {to}: {error}"),
            FailureCause::Answered(status, stranger) => {
                format!("{from} called {to} and got {status} without a hop's reply{stranger}")
            }
            FailureCause::NoReply(error) => format!("{from} called {to} and could not read the answer: {error}"),
            FailureCause::Injected(status) => format!("{to} answered {status} by its own fault injection"),
            FailureCause::Itself(status) => format!("{to} answered {status} itself"),
            FailureCause::Loop => format!("The chain calls itself: {from} calls {to}, which is above it"),
        }
    }

    /// The same in a few words, for counting.
    pub(crate) fn key(&self) -> String {
        let why = match &self.cause {
            FailureCause::Refused => "connection refused".to_owned(),
            FailureCause::NoSuchHost => "name does not resolve".to_owned(),
            FailureCause::TimedOut => "timed out".to_owned(),
            FailureCause::Closed => "connection closed".to_owned(),
            FailureCause::Transport(error) => error.clone(),
            FailureCause::Answered(status, stranger) => format!("{status} without a reply{stranger}"),
            FailureCause::NoReply(_) => "no reply of a hop".to_owned(),
            FailureCause::Injected(status) => format!("{status} by its fault injection"),
            FailureCause::Itself(status) => format!("{status} by itself"),
            FailureCause::Loop => "loop".to_owned(),
        };
        format!("{}: {why}", self.at())
    }

    /// The kind of failure, for which one set of spans is the evidence.
    pub(crate) fn kind(&self) -> String {
        match &self.cause {
            FailureCause::Answered(status, _) => format!("{} {status}", self.at()),
            _ => self.key(),
        }
    }

    /// The hop or the seam, for a line.
    pub(crate) fn at(&self) -> String {
        match self.cause {
            FailureCause::Injected(_) | FailureCause::Itself(_) => self.to.name.clone(),
            _ => format!("{} -> {}", self.from.name, self.to.name),
        }
    }

    /// The host that answered with the failure; the caller's when none did.
    pub(crate) fn instance(&self) -> &str {
        if self.to.hostname.is_empty() { &self.from.hostname } else { &self.to.hostname }
    }

    pub(crate) fn hint(&self, hints: &HintContext) -> Hint {
        let (from, to) = (&self.from, &self.to);
        let name = &to.name;
        let kubernetes = hints.runner(to) == Runner::Kubernetes || hints.runner(from) == Runner::Kubernetes;
        let unanswered = || gateway::inside(0, &ForeignResponse::default(), from, to, hints, &self.kind());
        let up = |cause: String| hints.is_up(to).into_iter().fold(Hint::new(cause), Hint::run);
        if let Some(hint) = by_address(from, to, hints)
            .filter(|_| !matches!(self.cause, FailureCause::Injected(_) | FailureCause::Itself(_) | FailureCause::Loop))
        {
            return hint;
        }
        match &self.cause {
            FailureCause::Refused => up(format!("{name} is not running there, or listens on another port")),
            FailureCause::NoSuchHost if kubernetes => Hint::new(format!("No Service has this name: UPSTREAM of {} is misspelt, or {name} is in another namespace", from.name))
                .run(format!("kubectl get service -n {}", hints.namespace_of(to)))
                .run(hints.settings(from)),
            FailureCause::NoSuchHost => up(format!("The UPSTREAM of {} names a host that nobody has", from.name)),
            FailureCause::TimedOut => unanswered().unwrap_or_else(|| {
                let meanwhile = if kubernetes {
                    ", or a VirtualService holds calls to it on purpose (fault.delay)"
                } else {
                    ""
                };
                let cause = format!(
                    "{name} hangs or is slower than the UPSTREAM_TIMEOUT of {}{meanwhile}. If a hop below {name} is the slow one, {name} waits longer than {} does: timeouts must fall along the chain",
                    from.name, from.name
                );
                Hint::new(cause).run(hints.logs(to)).run(hints.settings(from))
            }),
            FailureCause::Closed if kubernetes => unanswered().unwrap_or_else(|| {
                let refused = if hints.evidence.has_sidecar(&from.name) {
                    format!("from {}, whose sidecar its call bypasses (excludeOutboundPorts, excludeOutboundIPRanges)", from.name)
                } else {
                    format!("because {} has no sidecar", from.name)
                };
                Hint::new(format!("{name} stopped while it answered, or refuses plain text (STRICT mTLS) {refused}"))
                    .run(hints.all_containers())
                    .run("kubectl get peerauthentication -A")
            }),
            FailureCause::Closed => up(format!("{name} stopped or crashed while it answered")),
            FailureCause::Transport(_) => up(format!("The connection to {name} does not work")),
            FailureCause::NoReply(_) => Hint::new(format!("The UPSTREAM of {} leads to something that is not a hop of this chain", from.name)).run(hints.settings(from)),
            FailureCause::Answered(status, stranger) => {
                gateway::inside(*status, stranger, from, to, hints, &self.kind()).unwrap_or_default()
            }
            FailureCause::Injected(status) => Hint::new(on_purpose(name, &format!("fails on purpose: abort={status}"), "--fault or FAULT")).run(hints.settings(to)),
            FailureCause::Itself(503) => Hint::new(format!("{name} is overloaded (MAX_CONCURRENCY) or draining: its log says which")).run(hints.logs(to)),
            FailureCause::Itself(508) => Hint::new(format!("The chain is longer than MAX_HOPS or makes more calls than MAX_CALLS at {name}, or calls itself")).run(hints.settings(to)),
            FailureCause::Itself(_) => Hint::new(format!("{name} itself fails; its log says why")).run(hints.logs(to)),
            FailureCause::Loop => Hint::new(format!("The UPSTREAM of {} leads back up the chain: it should name the next hop, or nobody", from.name)).run(hints.settings(from)),
        }
    }

    pub(crate) fn finding(&self, id: CheckId, hints: &HintContext) -> Finding {
        Finding::fail(id, self.text(), self.hint(hints))
            .seam(&self.from.name, &self.to.name, None)
            .hop(&self.to.name)
            .own_cause(self.own_cause())
    }

    /// What the answer says of its own cause.
    fn own_cause(&self) -> Option<OwnCause> {
        match &self.cause {
            FailureCause::Injected(_) => Some(OwnCause::Fault),
            FailureCause::Answered(401, _) => Some(OwnCause::Unauthorized),
            FailureCause::Answered(403, _) => Some(OwnCause::Denied),
            FailureCause::Answered(404, _) => Some(OwnCause::NotFound),
            FailureCause::Answered(429, _) => Some(OwnCause::Limited),
            FailureCause::Answered(_, answer) if answer.message.as_deref() == Some("fault filter abort") => Some(OwnCause::Abort),
            _ => None,
        }
    }
}

/// In Kubernetes an `UPSTREAM` that names an address is a mistake: no Service is behind it.
fn by_address(from: &HopRef, to: &HopRef, hints: &HintContext) -> Option<Hint> {
    let host = host_of(&to.url);
    address_of(&host).filter(|_| hints.runner(from) == Runner::Kubernetes && !is_loopback(&host))?;
    let (name, cause) = (&to.name, &from.name);
    let cause = format!(
        "UPSTREAM of {cause} is the address {host} and not the Service {name}: it ends with the pod, and no route, policy or mTLS of the mesh applies to it"
    );
    Some(
        Hint::new(cause).run(hints.settings(from)).run(format!("kubectl get pods,service -n {} -o wide", hints.namespace_of(to))),
    )
}

/// Every deepest point at which this request broke; empty when it did not.
pub(crate) fn breaks(tree: &Tree, url: &str) -> Vec<BreakPoint> {
    let caller = HopRef { name: CALLER.to_owned(), hostname: String::new(), url: String::new() };
    let mut out = Vec::new();
    walk(&caller, tree, url, &mut vec![], &mut out);
    out.dedup();
    out
}

fn walk(caller: &HopRef, tree: &Tree, url: &str, above: &mut Vec<String>, out: &mut Vec<BreakPoint>) {
    let hop = HopRef::of(tree, url);
    if let Some(status) = tree.injected.as_ref().and_then(|injected| injected.abort_status) {
        out.push(BreakPoint { from: caller.clone(), to: hop, cause: FailureCause::Injected(status) });
        return;
    }
    let before = out.len();
    above.push(tree.service.clone());
    for call in settled(tree) {
        let failed = has_failed(call);
        match &call.reply {
            Some(reply) if above.contains(&reply.service) && (tree.status == 508 || call.status == Some(508)) => {
                out.push(BreakPoint { from: hop.clone(), to: HopRef::of(reply, &call.url), cause: FailureCause::Loop });
            }
            Some(reply) => walk(&hop, reply, &call.url, above, out),
            None if failed => {
                let to = HopRef { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() };
                let cause = if call.status == Some(508) && above.contains(&to.name) { FailureCause::Loop } else { cause(call) };
                out.push(BreakPoint { from: hop.clone(), to, cause });
            }
            None => {
                let stranger = HopRef { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() };
                call.embedded.iter().for_each(|reply| walk(&stranger, reply, "", above, out));
            }
        }
        // The reply is a success and the call is not: the caller gave up, or a proxy changed the answer.
        if failed
            && out.len() == before
            && let Some(reply) = &call.reply
        {
            out.push(BreakPoint { from: hop.clone(), to: HopRef::of(reply, &call.url), cause: cause(call) });
        }
    }
    above.pop();
    if !is_ok(tree.status) && out.len() == before {
        out.push(BreakPoint { from: caller.clone(), to: hop, cause: FailureCause::Itself(tree.status) });
    }
}

fn cause(call: &Call) -> FailureCause {
    let error = call.error.as_deref().unwrap_or("");
    let lower = error.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    match call.status {
        // The status may have come in time and the rest of the answer not.
        status if status.is_none_or(is_ok) && has(&["timed out", "timeout", "deadline", "no whole answer within"]) => {
            FailureCause::TimedOut
        }
        Some(status) if is_ok(status) => FailureCause::NoReply(error.to_owned()),
        Some(status) => FailureCause::Answered(status, ForeignResponse::parse(error)),
        None if has(&["refused"]) => FailureCause::Refused,
        None if has(&["dns", "lookup", "resolve", "name or service not known"]) => FailureCause::NoSuchHost,
        None if has(&["closed", "reset", "eof", "incomplete", "broken pipe", "canceled"]) => FailureCause::Closed,
        None => FailureCause::Transport(error.to_owned()),
    }
}

/// The chain as one line: `service1 v1 -> service2 v1 -> service3 v1`, a fan-out in brackets.
pub(crate) fn outline(tree: &Tree) -> String {
    let own = format!("{} {}", tree.service, tree.version);
    let below: Vec<String> = tree
        .upstreams
        .iter()
        .map(|call| match &call.reply {
            Some(reply) => outline(reply),
            None => {
                let what = if call.is_foreign() { "another make" } else { "no reply" };
                let name = format!("{} ({what})", name_of(&call.url));
                match call.embedded.iter().map(|reply| outline(reply)).collect::<Vec<_>>().as_slice() {
                    [] => name,
                    [one] => format!("{name} -> {one}"),
                    many => format!("{name} -> ({})", many.join(", ")),
                }
            }
        })
        .collect();
    match below.as_slice() {
        [] => own,
        [one] => format!("{own} -> {one}"),
        many => format!("{own} -> ({})", many.join(", ")),
    }
}

/// Whether an answer of Envoy, or the name of a pod, shows that proxies may be between the hops.
pub(crate) fn meets_proxies(tree: &Tree) -> bool {
    let by_envoy = |call: &Call| {
        call.error.as_ref().is_some_and(|error| error.contains("[server envoy]") || error.contains("[server istio-envoy]"))
    };
    let mut meets = false;
    visit(tree, "", 0, &mut |hop, _, _| {
        meets |= runner(&hop.hostname) == Runner::Kubernetes || hop.upstreams.iter().any(by_envoy)
    });
    meets
}

/// The findings of the group.
/// `at_times`: expected calls that other requests made.
pub(crate) fn findings(tree: &Tree, expect: Option<&Expect>, at_times: &[CallNames], hints: &HintContext) -> Vec<Finding> {
    let url = hints.url.as_str();
    let mut out: Vec<Finding> = breaks(tree, url).iter().map(|broken| broken.finding(CheckId::ChainHops, hints)).collect();
    if let Some(expect) = expect {
        out.extend(Comparison::of(expect, tree, url, hints, at_times).out);
    }
    let mut table = Vec::new();
    table_of(tree, 0, &mut table);
    if !out.iter().any(|finding| finding.status == Status::Fail) {
        let count = hops(tree);
        let plural = if count == 1 { "hop" } else { "hops" };
        let text = match expect {
            Some(expect) if !out.is_empty() => format!("{count} of the expected {plural} answered in order: {expect}"),
            Some(expect) => format!("The {count} expected {plural} answered in order: {expect}"),
            None => format!("{count} {plural} answered: {}", outline(tree)),
        };
        out.insert(0, Finding::pass(CheckId::ChainHops, text).lines(table));
    } else if let Some(first) = out.first_mut() {
        first.detail.extend(table);
    }
    visit(tree, url, 0, &mut |hop, url, _| {
        for (call, reply) in hop.upstreams.iter().filter_map(|call| Some((call, call.reply.as_deref()?))) {
            let (from, to) = (HopRef::of(hop, url), HopRef::of(reply, &call.url));
            if let Some(hint) = by_address(&from, &to, hints) {
                let text = format!("{} calls {} at an address, past its Service", from.name, to.name);
                out.push(Finding::fail(CheckId::ChainAddress, text, hint).seam(&from.name, &to.name, None).hop(&from.name));
            }
        }
    });
    visit(tree, url, 0, &mut |hop, url, _| {
        let foreign = hop.upstreams.iter().filter(|call| call.is_foreign());
        out.extend(foreign.map(|call| stranger(&HopRef::of(hop, url), call, expect, hints)));
    });
    out.extend(unread_order(tree));
    out
}

/// An `x-fault` of this run that changes nothing, because it cannot be read.
fn unread_order(tree: &Tree) -> Option<Finding> {
    let (mut names, mut why) = (Vec::new(), None);
    visit(tree, "", 0, &mut |hop, _, _| {
        if let Some(error) = hop.injected.as_ref().and_then(|injected| injected.error.as_deref()) {
            why = why.or(Some(error));
            if !names.contains(&hop.service.as_str()) {
                names.push(&hop.service);
            }
        }
    });
    Some(Finding::skip(CheckId::ChainHops, format!("x-fault has no effect at {}: {}", names.join(", "), why?)))
}

/// A line for each hop, and for each app of another make.
fn table_of(hop: &Tree, depth: usize, table: &mut Vec<String>) {
    let name = |depth: usize, name: &str| format!("{}{name}", "  ".repeat(depth.min(8)));
    let lane = if hop.lane == "base" { String::new() } else { format!("  lane {}", hop.lane) };
    let (first, version, host) = (name(depth, &hop.service), &hop.version, &hop.hostname);
    table.push(format!("{first:<20} {version:<8} {host:<28} {:>8.1} ms{lane}", hop.duration_ms));
    for call in &hop.upstreams {
        if call.is_foreign() {
            let (name, what) = (name(depth + 1, &name_of(&call.url)), "an app of another make");
            table.push(format!("{name:<20} {:<8} {what:<28} {:>8.1} ms", "", call.duration_ms));
        }
        let below = depth + 1 + usize::from(call.reply.is_none());
        call.replies().for_each(|reply| table_of(reply, below, table));
    }
}

/// An app of another make that answered a hop.
fn stranger(hop: &HopRef, call: &Call, expect: Option<&Expect>, hints: &HintContext) -> Finding {
    let (url, name) = (&call.url, name_of(&call.url));
    let seen: Vec<&str> = call.embedded.iter().map(|reply| reply.service.as_str()).collect();
    if !seen.is_empty() {
        let text = format!(
            "{url} is no hop of this chain: {} called it, and its answer has the reply of {}, so it is judged from both sides",
            hop.name,
            seen.join(", ")
        );
        return Finding::pass(CheckId::ChainStranger, text).hop(&name);
    }
    let text = format!("{url} is no hop of this chain: {} called it and it answered, but without a reply to look into", hop.name);
    let text = format!("{text}; its answer shows nothing of what is behind it");
    let expected = expect.map_or_else(Vec::new, |expect| expect.below(&hop.name));
    if expected.is_empty() {
        return Finding::skip(CheckId::ChainStranger, text).hop(&name);
    }
    // It may be an app of another make that belongs there, and it may be the wrong server: the answer is the same.
    let text = format!("{text}, where {} should be", expected.join(", "));
    let cause = format!(
        "Where {name} should be a hop, the UPSTREAM of {} leads to another server: a wrong port, path or Service",
        hop.name
    );
    let hint = Hint::new(cause).run(hints.settings(hop));
    Finding::fail(CheckId::ChainStranger, text, hint).seam(&hop.name, &name, None).hop(&name).into_informational()
}
