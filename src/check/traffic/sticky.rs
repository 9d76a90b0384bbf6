//! Whether calls over one connection stay at one pod: a Service balances connections, and over HTTP/2 and gRPC one connection has all calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::chain::evidence::Xray;
use crate::check::envoy::suggestions::HintContext;
use crate::check::traffic::sample::{HopSamples, Sample, by_hop};
use crate::report::{CheckId, Finding, Hint, Status};

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
        // A later hop may have its name.
        let seen = all.answers.iter().filter(|answer| answer.caller.hostname.is_empty());
        let seen = hosts(&seen.map(|answer| answer.hop.hostname.as_str()).collect::<Vec<_>>());
        let own: Vec<_> = first.answers.iter().map(|answer| answer.hop.hostname.as_str()).collect();
        out.push(finding(first.name, "check", &own, known(seen.len(), pods(first.name)), hints));
    }
    for hop in hops {
        let is_balanced = xray.is_some_and(|xray| xray.rows.iter().any(|row| row.hop.name == hop.name && row.proxy.is_seen()));
        if !is_balanced {
            out.extend(of_calls(hop, pods, hints));
        }
    }
    out
}

/// What the calls of the hops before it show. The pods of one URL are those that a caller may meet: others have only the name in common.
fn of_calls(hop: &HopSamples<'_>, pods: Pods<'_>, hints: &HintContext) -> Vec<Finding> {
    let mut urls = BTreeMap::<&str, (BTreeMap<(&str, &str), Vec<&str>>, BTreeSet<&str>)>::new();
    for call in hop.answers.iter().filter(|answer| !answer.caller.hostname.is_empty() && is_multiplexed(&answer.protocol)) {
        let (by_caller, seen) = urls.entry(&call.hop.url).or_default();
        by_caller.entry((&call.caller.hostname, &call.caller.name)).or_default().push(&call.hop.hostname);
        seen.insert(&call.hop.hostname);
    }
    // Which of the cluster's pods stand behind which of several URLs is unknown.
    let in_cluster = if urls.len() == 1 { pods(hop.name) } else { None };
    let checked = urls.values().filter_map(|(by_caller, seen)| {
        // The caller that called most says most.
        let ((_, caller), called) = by_caller.iter().max_by_key(|(_, called)| called.len())?;
        Some((called.len(), finding(hop.name, caller, called, known(seen.len(), in_cluster), hints)))
    });
    let (failed, mut others): (Vec<_>, Vec<_>) = checked.partition(|(_, finding)| finding.status == Status::Fail);
    others.sort_by_key(|(calls, _)| *calls);
    let most = others.pop().filter(|_| failed.is_empty());
    failed.into_iter().chain(most).map(|(_, finding)| finding).collect()
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
    use crate::check::traffic::sample::HopSample;

    #[test]
    fn calls_that_stay_at_one_of_several_pods_are_a_fault_unless_it_may_be_chance() {
        let hints = HintContext::for_tests();
        let verdict = |called: &[&str], pods| finding("service2", "service1", called, pods, &hints);
        let stuck = verdict(&["a"; 20], 3);
        assert_eq!(stuck.status, Status::Fail);
        assert!(stuck.text.contains("All 20 calls of service1 over one connection went to one of 3 pods"), "{stuck:?}");
        assert_eq!(verdict(&["a"; 20], 1).status, Status::Skip);
        assert_eq!(verdict(&["a"; 5], 2).status, Status::Skip, "one in sixteen is chance");
        assert_eq!(verdict(&["a", "a", "b"], 2).status, Status::Pass);
    }

    #[test]
    fn only_pods_that_are_called_at_one_url_are_those_of_one_service() {
        let call = |caller: &str, url: &str, hostname: &str| {
            let mut sample = HopSample::for_tests("hop", hostname);
            sample.hop.url = url.to_owned();
            sample.caller.hostname = caller.to_owned();
            sample.caller.name = "hop".to_owned();
            sample.protocol = "grpc".to_owned();
            sample
        };
        let verdict = |calls: &[HopSample], pods: Option<u64>| {
            let hop = HopSamples { name: "hop", answers: calls.iter().collect() };
            findings(&[hop], &[], None, &|_| pods, &HintContext::for_tests()).iter().map(|one| one.status).collect::<Vec<_>>()
        };
        // Three hops of one name, one below the other.
        let chain = [vec![call("d1", "grpc://two/", "d2"); 50], vec![call("d2", "grpc://three/", "d3"); 50]].concat();
        assert_eq!(verdict(&chain, None), [Status::Skip]);
        // Each version of the caller has a next hop of its own.
        let pinned = [vec![call("v1", "grpc://v1/", "a"); 50], vec![call("v2", "grpc://v2/", "b"); 50]].concat();
        assert_eq!(verdict(&pinned, Some(2)), [Status::Skip]);
        let shared = [vec![call("v1", "grpc://one/", "a"); 50], vec![call("v2", "grpc://one/", "b"); 50]].concat();
        assert_eq!(verdict(&shared, None), [Status::Fail]);
    }
}
