//! From the x-ray's faults to findings: the sentence, the likely cause, the next command.
//!
//! In reading order: this file (the order of the findings), `table`, `fault`, `passed`, `sidecars`, `bare`.

mod bare;
mod fault;
mod passed;
mod sidecars;
mod table;
mod words;

use crate::check::chain::evidence::{HeaderChange, HopEvidence, SeamFault, Withheld, Xray};
use crate::check::chain::probe::{Probe, deepest};
use crate::check::chain::xray::examine_behind;
use crate::check::envoy::suggestions::HintContext;
use crate::check::reachability::client::CheckClient;
use crate::hop::reply::{Propagation, Tree};
use crate::report::{CheckId, Finding, Side};
use crate::trace_context::{HeaderFamily, is_trace_context};

use bare::{FixedId, Replay};
pub(crate) use fault::{finding, sentence};
use fault::{is_about_id, is_order, joined_names};
use sidecars::{coverage, missing_sidecars};
use table::table;

/// Seams that are reported; whoever has more has one fault and not many.
const MAX_SEAMS: usize = 50;

/// The trace formats of the mesh's proxies, as text.
pub(crate) fn dialect(w3c: bool, b3: bool) -> &'static str {
    match (w3c, b3) {
        (true, true) => "B3 and W3C (Zipkin tracer with W3C)",
        (true, false) => "W3C (OpenTelemetry tracer)",
        (false, true) => "B3 (Zipkin tracer)",
        (false, false) => "no trace format",
    }
}

/// The probes of the x-ray. A failure hides the hops behind it, so the most complete of a few answers counts.
pub(crate) async fn probed(client: &CheckClient, hints: &HintContext) -> Option<(Probe, Xray, Tree)> {
    let (probe, tree) = deepest(client, || Probe::new(&HeaderFamily::ALL)).await?;
    let mut xray = examine_behind(hints.evidence.is_front_foreign, &probe, &tree, &hints.url);
    if !xray.unwritten.is_empty() {
        let mut answers = Vec::new();
        for format in HeaderFamily::ALL {
            answers.push((format, deepest(client, || Probe::new(&[format])).await.map(|(_, tree)| tree)));
        }
        xray.settle(|format| answers.iter().find(|(of, _)| *of == format).and_then(|(_, tree)| tree.clone()));
    }
    Some((probe, xray, tree))
}

/// The replies to a bare request, and to more where something between two hops broke it: what strikes only a share of the requests is
/// counted over many of them. `are_counted`: there will be many.
pub(crate) async fn bare_replies(client: &CheckClient, xray: &Xray, are_counted: bool, hints: &HintContext) -> Vec<Tree> {
    const MORE: usize = 5;
    let mut replies: Vec<Tree> = Vec::new();
    while let Some((_, tree)) = deepest(client, Probe::bare).await {
        replies.push(tree);
        let is_settled = !are_counted || replies.len() > MORE;
        if is_settled || !replies.last().is_some_and(|tree| bare::is_apart(tree, xray, hints)) {
            break;
        }
    }
    replies
}

/// The findings of the group. `pair`: the replies to the probe and to bare requests. What broke, then what passed, then what could not be observed.
pub(crate) fn findings(probe: &Probe, xray: &Xray, pair: Option<(&Tree, &[Tree])>, hints: &HintContext) -> Vec<Finding> {
    let mut out = Vec::new();
    // Struck at times: not by every bare request, and so not by what is the same for all of them.
    let is_rare = pair.is_some_and(|(_, bare)| bare.len() > 1 && !bare.iter().all(|tree| bare::is_apart(tree, xray, hints)));
    let pair = pair.and_then(|(one, bare)| Some((one, bare.first()?)));
    let replay = pair.and_then(|(one, bare)| Replay::find(one, bare, &hints.url));
    let fixed = pair.map_or_else(Vec::new, |(one, bare)| FixedId::find(one, bare, &hints.url));
    let is_real = |fixed: &FixedId| replay.as_ref().is_none_or(|it| !it.has(&fixed.to.name)) && !fixed.is_leak(&probe.headers);
    let fixed: Vec<FixedId> = fixed.into_iter().filter(is_real).collect();
    out.push(proxies(xray).lines(table(probe, xray)));
    out.extend(missing_sidecars(xray, hints));
    out.extend(coverage(xray, hints));
    // One wrong setting shows at every hop: reported once, with the other hops below.
    let (order, others): (Vec<&SeamFault>, Vec<&SeamFault>) = xray.faults.iter().partition(|fault| is_order(fault));
    if let Some((first, more)) = order.split_first() {
        let mut reported = finding(first, xray, hints);
        if !more.is_empty() {
            let names: Vec<&str> = more.iter().map(|fault| fault.to.name.as_str()).collect();
            reported.detail.push(format!("the same at {}", names.join(", ")));
        }
        out.push(reported);
    }
    out.extend(replay.as_ref().map(Replay::finding));
    out.extend(fixed.iter().map(|fixed| fixed.finding(hints)));
    let is_of = |fixed: &FixedId, fault: &SeamFault| {
        fault.to.name == fixed.to.name && if fixed.is_trace { breaks_trace(fault) } else { is_about_id(fault) }
    };
    let is_known = |fault: &&SeamFault| {
        fixed.iter().any(|fixed| is_of(fixed, fault)) || replay.as_ref().is_some_and(|replay| replay.has(&fault.to.name))
    };
    let others = others.into_iter().filter(|fault| !is_known(fault));
    out.extend(others.take(MAX_SEAMS).map(|fault| {
        let found = finding(fault, xray, hints);
        unread(fault, xray).map_or(found.clone(), |cause| found.following(cause))
    }));
    out.extend(passed::findings(xray, replay.is_some() || fixed.iter().any(|fixed| !fixed.is_trace)));
    out.extend(xray.withheld.iter().take(MAX_SEAMS).map(withheld));
    let bare = pair.filter(|_| replay.is_none() && !is_rare).and_then(|(_, bare)| bare::finding(bare, xray, hints));
    let is_fixed = fixed.iter().any(|fixed| fixed.is_trace);
    out.extend(
        bare.map(|bare| if is_fixed && bare.follows.is_some() { bare.following(CheckId::PropagationTrace) } else { bare }),
    );
    out.extend(xray.unobserved.iter().take(MAX_SEAMS).map(|(from, to)| {
        Finding::skip(
            CheckId::PropagationUnseen,
            format!("Headers behind {}: skipped, because {} gave no reply that shows what it received", from.name, to.name),
        )
        .hop(&to.name)
    }));
    out
}

fn breaks_trace(fault: &SeamFault) -> bool {
    fault.side == Side::Between && fault.effects.iter().all(|effect| matches!(effect, HeaderChange::Trace { .. }))
}

/// A hop that does not read what came does not send it on, either: the check that has this cause.
fn unread(fault: &SeamFault, xray: &Xray) -> Option<CheckId> {
    // OTEL_PROPAGATORS decides about baggage, too.
    let is_lost =
        |effect: &HeaderChange| matches!(effect, HeaderChange::Lost(name) if is_trace_context(name) || name == "baggage");
    let by_hop = fault.side == Side::Hop && fault.mode == Some(Propagation::Continue) && fault.effects.iter().all(is_lost);
    let cause = xray.faults.iter().find(|known| by_hop && known.side == Side::NewTrace && known.to == fault.from)?;
    Some(fault::id(cause))
}

/// Where the trace or the headers of one request of many broke.
pub(crate) fn damage(probe: &Probe, tree: &Tree, hints: &HintContext) -> Vec<Finding> {
    const SHOWN: usize = 10;
    let mut xray = examine_behind(hints.evidence.is_front_foreign, probe, tree, &hints.url);
    xray.settle_by_orders();
    xray.faults.iter().take(SHOWN).map(|fault| finding(fault, &xray, hints)).collect()
}

/// What a foreign app leaves out is its own business as long as the trace goes on.
fn withheld(withheld: &Withheld) -> Finding {
    let named = |wanted: &dyn Fn(&HeaderChange) -> bool, how: &str, end: &str| {
        let names: Vec<String> =
            withheld.effects.iter().filter(|effect| wanted(effect)).filter_map(HeaderChange::header).collect();
        let names = joined_names(&names.iter().map(String::as_str).collect::<Vec<_>>());
        (!names.is_empty()).then(|| format!("{how} {names}{end}"))
    };
    let is_own = |effect: &HeaderChange| matches!(effect, HeaderChange::Changed { .. });
    let is_upper = |effect: &HeaderChange| matches!(effect, HeaderChange::Mangled { .. });
    let parts = [
        named(&|effect| !is_own(effect) && !is_upper(effect), "without", ""),
        named(&is_own, "with", " of its own"),
        named(&is_upper, "with", " in upper case"),
    ];
    let (via, how) = (&withheld.via.name, parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    let text = format!("{via} passes the trace on to {}, {how}: no fault, as it is no hop of this chain", withheld.to.name);
    Finding::skip(CheckId::PropagationHeaders, text).hop(via)
}

/// The formats that the proxies between the hops use.
fn proxies(xray: &Xray) -> Finding {
    let (w3c, b3) = (xray.mesh_speaks(HeaderFamily::W3c), xray.mesh_speaks(HeaderFamily::B3));
    let list = |wanted: &dyn Fn(&HopEvidence) -> bool| {
        let mut names: Vec<&str> = Vec::new();
        for row in xray.rows.iter().filter(|row| wanted(row)) {
            if !names.contains(&row.hop.name.as_str()) {
                names.push(&row.hop.name);
            }
        }
        names.join(", ")
    };
    if w3c || b3 {
        let mut text = format!("Proxies speak {}, seen in front of {}", dialect(w3c, b3), list(&|row| row.proxy.traces()));
        let silent = list(&|row| !row.proxy.traces() && row.via.is_none());
        if !silent.is_empty() {
            text.push_str(&format!("; none that traces in front of {silent}"));
        }
        return Finding::pass(CheckId::PropagationProxies, text);
    }
    let untraced = list(&|row| row.proxy.is_seen());
    let text = if untraced.is_empty() {
        "No proxy seen between the hops, so the order of OTEL_PROPAGATORS is not checked".to_owned()
    } else {
        format!(
            "There are proxies in front of {untraced}, and none of them traces: no Telemetry resource with tracing, or one that \
             names a provider that meshConfig.extensionProviders does not have"
        )
    };
    Finding::skip(CheckId::PropagationProxies, text)
}
