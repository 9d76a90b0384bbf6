//! Whether calls over one connection stay at one pod: a Service balances connections, and over HTTP/2 and gRPC one connection has all calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::chain::evidence::Xray;
use crate::check::envoy::suggestions::HintContext;
use crate::check::report::{CheckId, Finding, Hint};
use crate::check::traffic::sample::{HopSamples, Sample, by_hop};

const ID: CheckId = CheckId::TrafficSticky;

/// How unlikely it is that balanced calls all meet one pod, at most.
const CHANCE: f64 = 0.001;

/// How many pods a hop has, as far as the cluster is known.
pub(crate) type Pods<'a> = &'a dyn Fn(&str) -> Option<u64>;

/// The findings. `kept`: calls of the first hop over one connection.
pub(crate) fn findings(
    hops: &[HopSamples<'_>],
    kept: &[Sample],
    xray: Option<&Xray>,
    pods: Pods<'_>,
    hints: &HintContext,
) -> Vec<Finding> {
    let mut out = Vec::new();
    if let Some(first) = by_hop(kept).first()
        && let Some(all) = hops.iter().find(|hop| hop.name == first.name)
    {
        let seen = hosts(&all.answers.iter().map(|answer| answer.hop.hostname.as_str()).collect::<Vec<_>>());
        let own: Vec<_> = first.answers.iter().map(|answer| answer.hop.hostname.as_str()).collect();
        out.push(finding(first.name, "check", &own, known(seen.len(), pods(first.name)), hints));
    }
    for hop in hops {
        let is_balanced = xray.is_some_and(|xray| xray.rows.iter().any(|row| row.hop.name == hop.name && row.proxy.is_seen()));
        let calls = hop.answers.iter().filter(|answer| !answer.caller.hostname.is_empty() && is_multiplexed(&answer.protocol));
        let (mut by_caller, mut seen) = (BTreeMap::<_, Vec<&str>>::new(), BTreeSet::new());
        for call in calls {
            by_caller.entry((&*call.caller.hostname, &*call.caller.name)).or_default().push(&call.hop.hostname);
            seen.insert(&*call.hop.hostname);
        }
        // The caller that called most says most.
        let most = by_caller.iter().max_by_key(|(_, called)| called.len());
        if let Some(((_, caller), called)) = most.filter(|_| !is_balanced) {
            out.push(finding(hop.name, caller, called, known(seen.len(), pods(hop.name)), hints));
        }
    }
    out
}

fn is_multiplexed(protocol: &str) -> bool {
    matches!(protocol, "grpc" | "http/2")
}

fn hosts<'a>(called: &[&'a str]) -> BTreeSet<&'a str> {
    called.iter().copied().collect()
}

fn known(seen: usize, pods: Option<u64>) -> u64 {
    (seen as u64).max(pods.unwrap_or(0))
}

/// `called`: the pods that the calls of one caller met; `pods`: how many there are.
fn finding(hop: &str, caller: &str, called: &[&str], pods: u64, hints: &HintContext) -> Finding {
    let (calls, met) = (called.len(), hosts(called));
    let data = serde_json::json!({"hop": hop, "caller": caller, "calls": calls, "pods_met": met.len(), "pods": pods});
    let done = |finding: Finding| finding.data(data.clone()).hop(hop);
    if met.len() > 1 {
        return done(Finding::pass(ID, format!("{calls} calls of {caller} spread over {} pods of {hop}", met.len())));
    }
    let by_chance = (1.0 / pods.max(1) as f64).powi(i32::try_from(calls).unwrap_or(i32::MAX) - 1);
    if pods < 2 || by_chance > CHANCE {
        let text = format!(
            "All {calls} calls of {caller} over one connection went to one pod of {hop}: whether they stick to it is unknown, \
             because no other pod is known"
        );
        return done(Finding::skip(ID, text));
    }
    let text = format!(
        "All {calls} calls of {caller} over one connection went to one of {pods} pods of {hop}, {}",
        met.first().copied().unwrap_or_default()
    );
    let hint = Hint::new(format!(
        "A Service balances connections, not calls: over HTTP/2 and gRPC one connection has all calls, and nothing between {caller} \
         and {hop} balances them. A sidecar or a waypoint does, when the port is known as gRPC or HTTP/2 (appProtocol, or a name \
         like grpc); without a mesh a headless Service and a client that balances"
    ))
    .run(format!("kubectl get service -n {} {hop} -o jsonpath='{{.spec.ports}}'", hints.namespace))
    .run(format!("kubectl get endpointslices -n {} -l kubernetes.io/service-name={hop}", hints.namespace));
    done(Finding::fail(ID, text, hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Status;

    #[test]
    fn calls_that_stay_at_one_of_several_pods_are_a_fault_unless_it_may_be_chance() {
        let hints = HintContext::for_tests();
        let judge = |called: &[&str], pods| finding("service2", "service1", called, pods, &hints);
        let stuck = judge(&["a"; 20], 3);
        assert_eq!(stuck.status, Status::Fail);
        assert!(stuck.text.contains("All 20 calls of service1 over one connection went to one of 3 pods"), "{stuck:?}");
        assert_eq!(judge(&["a"; 20], 1).status, Status::Skip);
        assert_eq!(judge(&["a"; 5], 2).status, Status::Skip, "one in sixteen is chance");
        assert_eq!(judge(&["a", "a", "b"], 2).status, Status::Pass);
    }
}
