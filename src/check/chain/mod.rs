//! The chain itself: the hops in the expected order, and where a failed request broke.
//!
//! In reading order: `probe` (the request), `walk` (over its reply), `evidence` (what it shows), `xray` and `seams` (how it is compared),
//! `failure` (why a call failed), [`expect`] (the values of the options), `order` (what they expect).

pub(crate) mod evidence;
pub mod expect;
mod failure;
mod order;
pub(crate) mod probe;
pub(crate) mod seams;
mod walk;
pub(crate) mod xray;

use crate::hop::reply::{Call, Tree};

use crate::check::chain::evidence::CALLER;
use crate::check::chain::expect::Expect;
use crate::check::chain::order::Comparison;
pub(crate) use crate::check::chain::order::{CallNames, calls_at_times};
pub(crate) use crate::check::chain::walk::numbered;
use crate::check::chain::walk::settled;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, name_of, runner};
use crate::report::{CheckId, Finding, Hint, Status};
use crate::upstream::foreign_response::ForeignResponse;

pub(crate) use crate::check::chain::failure::{BreakPoint, FailureCause};
use crate::check::chain::failure::{by_address, cause};

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
        let failed = call.has_failed();
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
                let foreign_app = HopRef { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() };
                call.embedded.iter().for_each(|reply| walk(&foreign_app, reply, "", above, out));
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
    if !tree.is_success() && out.len() == before {
        out.push(BreakPoint { from: caller.clone(), to: hop, cause: FailureCause::Itself(tree.status) });
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
                let what = if call.is_foreign() { "not httpserver" } else { "no reply" };
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
        call.error.as_ref().is_some_and(|error| matches!(&*ForeignResponse::parse(error).server, "envoy" | "istio-envoy"))
    };
    tree.hops("").any(|(hop, _)| runner(&hop.hostname) == Runner::Kubernetes || hop.upstreams.iter().any(by_envoy))
}

/// The findings of the group.
/// `at_times`: expected calls that other requests made.
pub(crate) fn findings(tree: &Tree, expect: Option<&Expect>, at_times: &[CallNames], hints: &HintContext) -> Vec<Finding> {
    let url = hints.url.as_str();
    let mut out: Vec<Finding> = breaks(tree, url).iter().map(|broken| broken.finding(CheckId::ChainHops, hints)).collect();
    if let Some(expect) = expect {
        let is_circle =
            |found: &Finding| found.seam.as_ref().is_some_and(|seam| out.iter().any(|known| known.is_loop_from(&seam.from)));
        let order = Comparison::of(expect, tree, url, hints, at_times).out.into_iter();
        let order = order.map(|found| if is_circle(&found) { found.following(CheckId::ChainHops) } else { found });
        let order: Vec<Finding> = order.collect();
        out.extend(order);
    }
    let mut table = Vec::new();
    table_of(tree, 0, &mut table);
    if !out.iter().any(|finding| finding.status == Status::Fail) {
        let count = tree.hops("").count();
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
    for (hop, url) in tree.hops(url) {
        for (call, reply) in hop.upstreams.iter().filter_map(|call| Some((call, call.reply.as_deref()?))) {
            let (from, to) = (HopRef::of(hop, url), HopRef::of(reply, &call.url));
            if let Some(hint) = by_address(&from, &to, hints) {
                let text = format!("{} calls {} at an address, past its Service", from.name, to.name);
                out.push(Finding::fail(CheckId::ChainAddress, text, hint).seam(&from.name, &to.name, None).hop(&from.name));
            }
        }
    }
    for (hop, url) in tree.hops(url) {
        let foreign = hop.upstreams.iter().filter(|call| call.is_foreign());
        out.extend(foreign.map(|call| foreign_app(&HopRef::of(hop, url), call, expect, hints)));
    }
    out.extend(unread_order(tree));
    out
}

/// An `x-fault` of this run that changes nothing, because it cannot be read.
fn unread_order(tree: &Tree) -> Option<Finding> {
    let (mut names, mut why) = (Vec::new(), None);
    for (hop, _) in tree.hops("") {
        if let Some(error) = hop.injected.as_ref().and_then(|injected| injected.error.as_deref()) {
            why = why.or(Some(error));
            if !names.contains(&hop.service.as_str()) {
                names.push(&hop.service);
            }
        }
    }
    Some(Finding::skip(CheckId::ChainHops, format!("x-fault has no effect at {}: {}", names.join(", "), why?)))
}

/// A line for each hop, and for each foreign app.
fn table_of(hop: &Tree, depth: usize, table: &mut Vec<String>) {
    let name = |depth: usize, name: &str| format!("{}{name}", "  ".repeat(depth.min(8)));
    let lane = if hop.lane == crate::values::BASE_LANE { String::new() } else { format!("  lane {}", hop.lane) };
    let (first, version, host) = (name(depth, &hop.service), &hop.version, &hop.hostname);
    table.push(format!("{first:<20} {version:<8} {host:<28} {:>8.1} ms{lane}", hop.duration_ms));
    for call in &hop.upstreams {
        if call.is_foreign() {
            let (name, what) = (name(depth + 1, &name_of(&call.url)), "an app that is not httpserver");
            table.push(format!("{name:<20} {:<8} {what:<28} {:>8.1} ms", "", call.duration_ms));
        }
        let below = depth + 1 + usize::from(call.reply.is_none());
        call.replies().for_each(|reply| table_of(reply, below, table));
    }
}

/// A foreign app that answered a hop.
fn foreign_app(hop: &HopRef, call: &Call, expect: Option<&Expect>, hints: &HintContext) -> Finding {
    let (url, name) = (&call.url, name_of(&call.url));
    let seen: Vec<&str> = call.embedded.iter().map(|reply| reply.service.as_str()).collect();
    if !seen.is_empty() {
        let text = format!(
            "{url} is no hop of this chain: {} called it, and its answer has the reply of {}, so both of its sides are compared",
            hop.name,
            seen.join(", ")
        );
        return Finding::pass(CheckId::ChainForeignApp, text).hop(&name);
    }
    let text = format!("{url} is no hop of this chain: {} called it and it answered, but without a reply to look into", hop.name);
    let text = format!("{text}; its answer shows nothing of what is behind it");
    let expected = expect.map_or_else(Vec::new, |expect| expect.below(&hop.name));
    if expected.is_empty() {
        return Finding::skip(CheckId::ChainForeignApp, text).hop(&name);
    }
    // It may be a foreign app that belongs there, and it may be the wrong server: the answer is the same.
    let text = format!("{text}, where {} should be", expected.join(", "));
    let cause = format!(
        "Where {name} should be a hop, the UPSTREAM of {} leads to another server: a wrong port, path or Service",
        hop.name
    );
    let hint = Hint::new(cause).run(hints.settings(hop));
    Finding::fail(CheckId::ChainForeignApp, text, hint).seam(&hop.name, &name, None).hop(&name).into_informational()
}
