//! The hops that `--expect` names, beside those that a reply shows.

use crate::check::chain::evidence::CALLER;
use crate::check::chain::expect::{Expect, is_named};
use crate::check::chain::walk::settled;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, name_of};
use crate::check::reachability::client::CheckClient;
use crate::hop::reply::{Call, Headers, Tree};
use crate::report::{CheckId, Finding, Hint};

/// What `--expect` says beside what a reply shows.
pub(super) struct Comparison<'a> {
    hints: &'a HintContext,
    /// Calls that other requests made.
    at_times: &'a [CallNames],
    /// Calls that this one did not make: from whom, and to whom.
    missing: Vec<CallNames>,
    pub(super) out: Vec<Finding>,
}

/// Who calls whom.
pub(crate) type CallNames = (String, String);

impl<'a> Comparison<'a> {
    pub(super) fn of(expect: &Expect, tree: &Tree, url: &str, hints: &'a HintContext, at_times: &'a [CallNames]) -> Self {
        let caller = HopRef { name: CALLER.to_owned(), hostname: String::new(), url: String::new() };
        let mut comparison = Self { hints, at_times, missing: Vec::new(), out: Vec::new() };
        comparison.compare(expect, &caller, tree, url);
        comparison
    }

    fn compare(&mut self, expect: &Expect, caller: &HopRef, tree: &Tree, url: &str) {
        let hints = self.hints;
        let hop = HopRef::of(tree, url);
        if !is_named(&tree.service, &expect.name) {
            let text = format!("Expected {} behind {}, and {} answered", expect.name, caller.name, tree.service);
            let cause = if caller.name == CALLER {
                format!(
                    "The route of this URL leads to {}, not to {}: its destination, or a rewrite of the path",
                    tree.service, expect.name
                )
            } else {
                format!(
                    "The UPSTREAM of {} names another hop, a route of a proxy on the way leads to another one, or SERVICE_NAME there is not what its Service is called",
                    caller.name
                )
            };
            let is_called = caller.name != CALLER && hints.runner(caller) == Runner::Kubernetes;
            let more = format!(
                ", or {} leads to pods of {}: destination.host of a VirtualService, its selector, a ServiceEntry, an address that another pod has now",
                expect.name, tree.service
            );
            let hint = Hint::new(cause + if is_called { &more } else { "" });
            let destinations = "kubectl get virtualservice -A -o yaml | grep -A3 'destination:'";
            let hint = hint.run(match caller.name == CALLER {
                true if hints.runner(&hop) == Runner::Kubernetes => destinations.to_owned(),
                true => hints.settings(&hop),
                false => hints.settings(caller),
            });
            let leads = format!("kubectl get service,endpointslices,serviceentry -n {} -o wide", hints.namespace_of(&hop));
            let hint = if is_called { hint.run(destinations).run(leads) } else { hint };
            self.out
                .push(Finding::fail(CheckId::ChainOrder, text, hint).seam(&caller.name, &expect.name, None).hop(&tree.service));
            return;
        }
        // An abort calls nobody: what is missing below it is not missing by configuration.
        if tree.injected.as_ref().is_some_and(|injected| injected.abort_status.is_some()) {
            return;
        }
        let has_more = tree.upstreams.len() > expect.below.len();
        let calls: Vec<&Call> = if has_more { settled(tree).collect() } else { tree.upstreams.iter().collect() };
        for (below, call) in expect.below.iter().zip(aligned(&expect.below, &calls)) {
            match call {
                None => self.not_called(&hop, &tree.service, &below.name),
                Some(Call { url, reply: Some(reply), .. }) => self.compare(below, &hop, reply, url),
                // The foreign app may be named or left out.
                Some(call) if !call.embedded.is_empty() => {
                    let from = HopRef { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() };
                    let is_first = |expect: &Expect| is_named(&call.embedded[0].service, &expect.name);
                    let behind = if is_first(below) { std::slice::from_ref(below) } else { below.below.as_slice() };
                    let pairs = behind.iter().zip(&call.embedded);
                    pairs.for_each(|(below, reply)| self.compare(below, &from, reply, ""));
                }
                // Reported by the failed call itself, or as a foreign response.
                Some(_) => {}
            }
        }
        for call in calls.into_iter().skip(expect.below.len()) {
            let text = format!("{} also calls {}, which is not expected", tree.service, call.url);
            let cause = format!("UPSTREAM of {} names more hops than --expect, or --expect is too short", tree.service);
            let found = Finding::fail(CheckId::ChainOrder, text, Hint::new(cause).run(hints.settings(&hop)));
            let found = found.seam(&tree.service, &name_of(&call.url), None);
            // A call that failed is reported by itself.
            self.out.push(if call.has_failed() { found.following(CheckId::ChainHops) } else { found });
        }
    }

    fn not_called(&mut self, hop: &HopRef, from: &str, to: &str) {
        let names = (from.to_owned(), to.to_owned());
        if self.at_times.contains(&names) {
            let text =
                format!("{from} calls {to} in some requests only, and in this one it did not: a share in UPSTREAM (20%=URL)");
            self.out.push(Finding::pass(CheckId::ChainOrder, text).hop(to));
        } else {
            let hint = Hint::new(format!("UPSTREAM of {from} is not set, or lacks {to}")).run(self.hints.settings(hop));
            let text = format!("{from} does not call {to}");
            self.out.push(Finding::fail(CheckId::ChainOrder, text, hint).seam(from, to, None).hop(to));
        }
        self.missing.push(names);
    }
}

/// The call of each expected hop, in order. One that is not made moves those behind it up.
fn aligned<'a>(expected: &[Expect], calls: &[&'a Call]) -> Vec<Option<&'a Call>> {
    let mut further = calls.iter().copied().peekable();
    let by_name = expected.iter().map(|expect| further.next_if(|call| is_named(&named(call), &expect.name)));
    let by_name: Vec<Option<&Call>> = by_name.collect();
    if calls.len() < expected.len() && further.next().is_none() {
        return by_name;
    }
    (0..expected.len()).map(|index| calls.get(index).copied()).collect()
}

/// The service that answered a call; else the host that was called.
fn named(call: &Call) -> String {
    call.reply.as_ref().map_or_else(|| name_of(&call.url), |reply| reply.service.clone())
}

/// The expected calls that the first reply lacks and others make: a share (`20%=URL`) decides about each. `count`: of all requests.
pub(crate) async fn calls_at_times(
    expect: Option<&Expect>,
    client: &CheckClient,
    tree: &Tree,
    count: u64,
    hints: &HintContext,
) -> Vec<CallNames> {
    const MOST: u64 = 50;
    let Some(expect) = expect else { return Vec::new() };
    let (mut missing, mut made) = (Comparison::of(expect, tree, &hints.url, hints, &[]).missing, Vec::new());
    for _ in 0..count.min(MOST) {
        if missing.is_empty() {
            break;
        }
        let answer = client.get(&Headers::default()).await;
        if let Some(tree) = answer.ok().and_then(|answer| answer.tree()) {
            made.extend(missing.extract_if(.., |call| makes(&tree, call)));
        }
    }
    made
}

/// Whether this reply shows the call.
fn makes(tree: &Tree, (from, to): &CallNames) -> bool {
    tree.hops("").any(|(hop, _)| hop.service == *from && hop.upstreams.iter().any(|call| is_named(&named(call), to)))
}
