//! Traffic splits over versions, tested exactly.

use crate::check::chain::expect::{Split, is_named};
use crate::check::envoy::suggestions::HintContext;
use crate::check::traffic::sample::HopSamples;
use crate::check::traffic::stats::{self, ALPHA, MIN_DETECTABLE_SHIFT};
use crate::report::{CheckId, Finding, Hint};

const ID: CheckId = CheckId::TrafficSplit;

/// A finding for each hop that the split is about: the named one, or each that answers in more than one of the versions.
pub(crate) fn findings(hops: &[HopSamples<'_>], split: &Split, hints: &HintContext) -> Vec<Finding> {
    let is_concerned = |hop: &&HopSamples<'_>| match &split.hop {
        Some(expected) => is_named(hop.name, expected),
        None => {
            let versions = hop.tally(|answer| &answer.version);
            split.shares.iter().filter(|(version, _)| versions.contains_key(version.as_str())).count() > 1
        }
    };
    let found: Vec<Finding> = hops.iter().filter(is_concerned).map(|hop| compare(hop, split, hints)).collect();
    if !found.is_empty() {
        return found;
    }
    if let Some(hop) = &split.hop {
        return vec![Finding::skip(ID, format!("Split {split} at {hop}: not checked, because {hop} never answered"))];
    }
    if split.shares.iter().filter(|(_, share)| *share > 0.0).count() < 2 {
        return hops.first().map(|hop| compare(hop, split, hints)).into_iter().collect();
    }
    let cause = "No weighted route is in force: it is for another host or Gateway, or a version has no pods behind its subset";
    let text = format!("Split {split}: no hop answered in more than one of these versions");
    vec![Finding::fail(ID, text, hint(cause.to_owned(), hints))]
}

fn hint(cause: String, hints: &HintContext) -> Hint {
    Hint::new(cause)
        .run("kubectl get virtualservice -A -o yaml | grep -B8 weight:")
        .run(format!("kubectl get pods -n {} -L app,version", hints.namespace))
}

/// The exact binomial test for every version, corrected for the number of versions.
fn compare(hop: &HopSamples<'_>, split: &Split, hints: &HintContext) -> Finding {
    let name = hop.name;
    let counts = hop.tally(|answer| &answer.version);
    let count = |version: &str| counts.get(version).copied().unwrap_or(0);
    let all = hop.answers.len() as u64;
    let tests = if split.shares.len() <= 2 { 1.0 } else { split.shares.len() as f64 };
    let unnamed: Vec<&str> =
        counts.keys().copied().filter(|version| !split.shares.iter().any(|(named, _)| named == version)).collect();
    let versions = split.shares.iter().map(|(version, _)| version.as_str()).chain(unnamed.iter().copied());
    let got: Vec<String> =
        versions.map(|version| format!("{version}={:.1}", 100.0 * count(version) as f64 / all as f64)).collect();
    let result = format!("Split at {name}: {} over {all} requests", got.join(","));

    let p_values = split.shares.iter().map(|(version, share)| stats::binomial(count(version), all, share / 100.0));
    let p = if unnamed.is_empty() { (p_values.fold(1.0, f64::min) * tests).min(1.0) } else { 0.0 };
    let shifts = split.shares.iter().map(|(_, share)| stats::detectable(all, share / 100.0, ALPHA / tests));
    let shift = shifts.fold(0.0, f64::max);
    let points = shift * 100.0;
    let finding = if p < ALPHA {
        let cause = if unnamed.is_empty() {
            format!(
                "The weights in force for {name} are others, or its Service balances over all pods because no route with weights applies"
            )
        } else {
            format!(
                "A version answers at {name} that the split does not name: another subset or Deployment behind the same Service"
            )
        };
        let chance = if p > 0.0 { format!("p = {p:.0e}") } else { "impossible by chance".to_owned() };
        Finding::fail(ID, format!("{result}, {split} promised ({chance})"), hint(cause, hints))
    } else if shift > MIN_DETECTABLE_SHIFT {
        let text = format!("{result}, {split} promised: {}", stats::too_few(points));
        Finding::skip(ID, text)
    } else {
        let text =
            format!("{result}, as promised ({split}; p = {p:.2}; a shift of {points:.1} points would be seen half the time)");
        Finding::pass(ID, text)
    };
    finding.hop(name).data(serde_json::json!({"hop": name, "counts": counts, "p": p, "detectable_points": points}))
}
