//! Swim lanes: which hop answers from which lane, for requests of the lane and for the baseline's.

use crate::hop::reply::{Headers, Tree};

use crate::check::chain::evidence::CALLER;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner};
use crate::check::traffic::sample::{HopSamples, Outcome, Sample, Series, by_hop};
use crate::report::{CheckId, Finding, Hint};
use crate::values::BASE_LANE;

/// The headers of a request of this lane; the baseline's has none.
pub(crate) fn headers(lane: Option<&str>) -> Headers {
    Headers(lane.map(|lane| ("x-lane".to_owned(), vec![lane.to_owned()])).into_iter().collect())
}

fn commands(hints: &HintContext, hop: &HopRef) -> Vec<String> {
    let namespace = hints.namespace_of(hop);
    match hints.runner(hop) {
        Runner::Kubernetes => vec![
            format!("kubectl get pods -n {namespace} -l app={} -L lane,version", hop.name),
            format!("kubectl get virtualservice -n {namespace} -o yaml | grep -B4 -A12 x-lane"),
            format!("istioctl analyze -n {namespace}"),
        ],
        _ => vec![hints.settings(hop)],
    }
}

fn hint(cause: String, hints: &HintContext, hop: &HopRef) -> Hint {
    commands(hints, hop).into_iter().fold(Hint::new(cause), Hint::run)
}

/// What stopped a walk, if no request at all came through.
fn blocked(what: &str, samples: &[Sample]) -> Option<Finding> {
    if samples.iter().any(|sample| !sample.hops.is_empty()) {
        return None;
    }
    let finding = match samples.first().map(|sample| &sample.outcome) {
        Some(Outcome::Foreign { status: status @ (401 | 403), text, .. }) => Finding::fail(
            CheckId::LanesWalk,
            format!("{what}: the gateway refuses the request ({status}). {text}"),
            Hint::new("The lane's entry is guarded: give a token with --header 'authorization: Bearer …'")
                .run("kubectl get authorizationpolicy,requestauthentication -A"),
        ),
        Some(Outcome::Foreign { text, hint, .. }) => Finding::fail(CheckId::LanesWalk, format!("{what}: {text}"), hint.clone()),
        Some(Outcome::Failed(failure)) => Finding::fail(
            CheckId::LanesWalk,
            format!("{what}: {failure}"),
            Hint::new("The front answered other requests a moment ago: see Reach"),
        ),
        _ => Finding::skip(CheckId::LanesWalk, format!("{what}: skipped, because no request was answered")),
    };
    Some(finding)
}

/// A base request that touches a lane is a failure.
pub(crate) fn baseline(samples: &[Sample], hints: &HintContext) -> Vec<Finding> {
    if let Some(finding) = blocked("Baseline", samples) {
        return vec![finding];
    }
    let hops = by_hop(samples);
    let mut out = Vec::new();
    for (index, hop_samples) in hops.iter().enumerate() {
        let HopSamples { name, answers } = hop_samples;
        for (lane, count) in hop_samples.tally(|answer| &answer.lane).into_iter().filter(|(lane, _)| *lane != BASE_LANE) {
            let Some(hop) = answers.iter().find(|answer| answer.lane == lane).map(|answer| &answer.hop) else { continue };
            let from = if index == 0 { CALLER } else { hops[index - 1].name };
            let text = format!(
                "Lane {lane} leaks into the baseline at {name}: {count} of {} requests without a lane were answered by {}",
                answers.len(),
                hop.hostname
            );
            let cause = format!(
                "The baseline's route for {name} goes to the whole Service, or to a subset that the pods of lane {lane} match too: every subset must name lane and version"
            );
            out.push(Finding::fail(CheckId::LanesLeak, text, hint(cause, hints, hop)).seam(from, name, None).hop(name));
        }
    }
    if out.is_empty() {
        let names: Vec<&str> = hops.iter().map(|hop| hop.name).collect();
        out.push(Finding::pass(
            CheckId::LanesBaseline,
            format!("Baseline: {} requests stayed in it at {}", samples.len(), names.join(", ")),
        ));
    }
    out
}

/// A request of the lane: from the lane where it has the hop, from the baseline where it has not, and never from another.
///
/// `lost_at`: the seam at which `x-lane` was lost in a request of this lane, if it was.
pub(crate) fn walk(lane: &str, samples: &[Sample], lost_at: Option<(HopRef, HopRef)>, hints: &HintContext) -> Vec<Finding> {
    if let Some(finding) = blocked(&format!("Lane {lane}"), samples) {
        return vec![finding];
    }
    let hops = by_hop(samples);
    let (mut out, mut route, mut in_lane) = (Vec::new(), Vec::new(), 0);
    for hop_samples in &hops {
        let (name, all) = (hop_samples.name, hop_samples.answers.len());
        let lanes = hop_samples.tally(|answer| &answer.lane);
        let Some(hop) = hop_samples.answers.first().map(|answer| &answer.hop) else { continue };
        let of = |name: &str| lanes.get(name).copied().unwrap_or(0);
        let (own, base) = (of(lane), of(BASE_LANE));
        for (other, count) in lanes.iter().filter(|(other, _)| **other != lane && **other != BASE_LANE) {
            let text = format!("Lane {lane} is answered from lane {other} at {name}: {count} of {all} requests");
            let cause = format!("A route for {name} sends x-lane: {lane} to the subset of {other}, or to one that both match");
            out.push(Finding::fail(CheckId::LanesWalk, text, hint(cause, hints, hop)).hop(name));
        }
        in_lane += own;
        if own > 0 && base > 0 {
            let text = format!(
                "Lane {lane} does not hold at {name}: {own} of {all} requests were answered from it, {base} from the baseline"
            );
            let cause = match &lost_at {
                Some((from, to)) => {
                    format!("x-lane is lost between {} and {}, so routes behind it cannot match", from.name, to.name)
                }
                None => {
                    format!("The lane's route for {name} shares its weight with the baseline, or only some proxies have it yet")
                }
            };
            out.push(Finding::fail(CheckId::LanesWalk, text, hint(cause, hints, hop)).hop(name));
        }
        route.push(match (own, base) {
            (0, 0) => format!("{name} ?"),
            (0, _) => format!("{name} base (fall-back)"),
            _ => format!("{name} {lane}"),
        });
    }
    if let Some((from, to)) = lost_at {
        let text =
            format!("Lane {lane} is lost between {} and {}: the hops behind it cannot be routed by x-lane", from.name, to.name);
        let cause =
            format!("{} does not carry x-lane (DROP_HEADERS), or something between removes it: see Propagation", from.name);
        let where_ = if from.hostname.is_empty() { &to } else { &from };
        out.push(
            Finding::fail(CheckId::LanesCarry, text, hint(cause, hints, where_)).seam(&from.name, &to.name, None).hop(&from.name),
        );
    }
    let route = route.join(", ");
    if in_lane == 0 {
        let Some(hop) = hops.first().and_then(|hop| hop.answers.first()).map(|answer| &answer.hop) else { return out };
        let text = format!("Lane {lane}: no hop answered from it in {} requests: {route}", samples.len());
        let cause = format!("Nothing runs with LANE={lane}, or no route matches x-lane: {lane}");
        out.push(Finding::fail(CheckId::LanesWalk, text, hint(cause, hints, hop)));
    } else if out.is_empty() {
        let text = format!("Lane {lane}, {} requests: {route}", samples.len());
        let mut finding = Finding::pass(CheckId::LanesWalk, text);
        if route.contains("fall-back") {
            finding = finding.line("fall-back: the lane has no version of that hop, or no route to it");
        }
        out.push(finding);
    }
    out
}

/// The seam at which `x-lane` is lost, in a request of this lane.
pub(crate) async fn lost_in(series: &Series, lane: &str) -> Option<(HopRef, HopRef)> {
    let tree = series.client.get(&headers(Some(lane))).await.ok()?.tree()?;
    lost(&tree, &series.context.url)
}

/// The first seam at which `x-lane` is gone, behind the first hop: what arrives there is the gateway's business.
fn lost(tree: &Tree, url: &str) -> Option<(HopRef, HopRef)> {
    for call in &tree.upstreams {
        let Some(reply) = &call.reply else { continue };
        if tree.received.first("x-lane").is_some() && reply.received.first("x-lane").is_none() {
            return Some((HopRef::of(tree, url), HopRef::of(reply, &call.url)));
        }
        if let Some(found) = lost(reply, &call.url) {
            return Some(found);
        }
    }
    None
}
