//! Who called whom, where a proxy vouches for it.

use crate::check::chain::evidence::{CALLER, Proxy, Xray};
use crate::check::chain::expect::{Principal, is_named};
use crate::check::envoy::suggestions::HintContext;
use crate::check::traffic::sample::{HopSample, HopSamples};
use crate::report::{CheckId, Finding, Hint};

const ID: CheckId = CheckId::TrafficIdentity;

/// How the callers of one hop are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallerProof {
    /// A proxy reports the identity in every call.
    Vouched,
    /// A proxy is there, and calls come without mTLS.
    PlainText,
    /// The caller reports an identity, and no proxy confirms it.
    Unproven,
    /// The hop's sidecar handles the call as bytes, mTLS or not, and can vouch for nobody.
    Opaque,
    /// No sign of a proxy.
    NoProxy,
}

/// What the samples and the x-ray show of one hop's callers.
struct HopCallers<'a> {
    name: &'a str,
    caller: CallerProof,
    line: String,
}

impl<'a> HopCallers<'a> {
    fn of(hop: &HopSamples<'a>, xray: &Xray) -> Self {
        let name = hop.name;
        let mut ids: Vec<&str> = hop.answers.iter().filter_map(|answer| answer.identity.as_deref()).collect();
        ids.sort_unstable();
        ids.dedup();
        let ids = ids.join(", ");
        let without = hop.answers.iter().filter(|answer| answer.identity.is_none()).count();
        let (is_proxied, has_sidecar) = (is_proxied(xray, name), has(xray, name, |proxy| proxy.sidecar));
        let (caller, line) = match (is_proxied, ids.is_empty()) {
            (_, false) if without == 0 && (is_proxied || has_sidecar) => (CallerProof::Vouched, format!("called by {ids}")),
            // No gateway stands before it: this is the caller.
            (true, true) if has_sidecar && is_first(xray, name) => {
                (CallerProof::NoProxy, "called by check itself, from outside the mesh".to_owned())
            }
            (true, _) => (CallerProof::PlainText, format!("{without} of {} calls without mTLS", hop.answers.len())),
            (false, false) => (CallerProof::Unproven, format!("reports {ids}, and no proxy is seen there")),
            (false, true) if has_sidecar => (CallerProof::Opaque, "its sidecar does not report who calls".to_owned()),
            (false, true) => (CallerProof::NoProxy, "no proxy seen in front".to_owned()),
        };
        Self { name, caller, line: format!("{name:<20} {line}") }
    }
}

/// Whether a hop's caller is the promised one in every call.
pub(crate) fn expected(hops: &[HopSamples<'_>], principal: &Principal, hints: &HintContext) -> Finding {
    let Principal { hop: expected, identity } = principal;
    let Some(hop) = hops.iter().find(|hop| is_named(hop.name, expected)) else {
        return Finding::skip(ID, format!("The caller of {expected}: not checked, because {expected} never answered"));
    };
    let name = hop.name;
    let of = |answer: &&&HopSample| answer.identity.as_deref() != Some(identity);
    let wrong: Vec<&&HopSample> = hop.answers.iter().filter(of).collect();
    let Some(first) = wrong.first() else {
        return Finding::pass(ID, format!("{name} is called by {identity} in all {} requests, as promised", hop.answers.len()))
            .hop(name);
    };
    let who = first.identity.as_deref().unwrap_or("nobody that a certificate names (no mTLS)");
    let text = format!("{name} is called by {who} in {} of {} requests, {identity} promised", wrong.len(), hop.answers.len());
    let cause =
        "The caller runs under another service account, another workload calls in its place, or mTLS is off between the two";
    let hint = Hint::new(cause)
        .run(format!(
            "kubectl get pods -n {} -o custom-columns=POD:.metadata.name,ACCOUNT:.spec.serviceAccountName",
            hints.namespace
        ))
        .run("kubectl get peerauthentication,destinationrule -A");
    Finding::fail(ID, text, hint).hop(name)
}

fn has(xray: &Xray, name: &str, sign: fn(Proxy) -> bool) -> bool {
    xray.rows.iter().any(|row| row.hop.name == name && sign(row.proxy))
}

fn is_first(xray: &Xray, name: &str) -> bool {
    xray.rows.first().is_some_and(|row| row.hop.name == name)
}

fn is_proxied(xray: &Xray, name: &str) -> bool {
    has(xray, name, |proxy| proxy.traces() || proxy.envoy)
}

/// The finding of the check.
pub(crate) fn finding(hops: &[HopSamples<'_>], xray: &Xray, hints: &HintContext) -> Finding {
    if !hops.iter().any(|hop| hop.answers.iter().any(|answer| answer.identity.is_some())) {
        let why = if hops.iter().any(|hop| is_proxied(xray, hop.name)) {
            "no proxy reports a caller's certificate: the hops are called without mTLS, or the proxies do not forward it"
        } else {
            "no proxy is seen in front of any hop"
        };
        return Finding::skip(ID, format!("Identities: not checked, because {why}"));
    }
    let callers: Vec<HopCallers<'_>> = hops.iter().map(|hop| HopCallers::of(hop, xray)).collect();
    let of = |kind: CallerProof| -> Vec<&str> {
        callers.iter().filter(|callers| callers.caller == kind).map(|callers| callers.name).collect()
    };
    let (plain, unproven) = (of(CallerProof::PlainText), of(CallerProof::Unproven));
    // A missing sidecar is a finding of Propagation: calls to and from that hop are in plain text for that reason.
    let missing = xray.without_sidecar();
    let is_missing = |name: &str| missing.iter().any(|known| known.hop.name == name);
    let is_explained = |name: &&str| is_missing(name) || caller_of(xray, name).is_some_and(is_missing);
    let finding = if plain.is_empty() && unproven.is_empty() {
        Finding::pass(ID, "mTLS with an identity wherever a proxy is seen")
    } else if plain.is_empty() {
        let names = unproven.join(", ");
        let why = "no proxy is seen in front and what the caller reports proves nothing";
        Finding::skip(ID, format!("Identities: not checked at {names}, because {why}"))
    } else if plain.iter().all(is_explained) {
        let names: Vec<&str> = missing.iter().map(|known| known.hop.name.as_str()).collect();
        let (plain, names) = (plain.join(", "), names.join(", "));
        Finding::skip(ID, format!("Identities: not checked at {plain}, because {names} has no sidecar: see Propagation"))
    } else {
        plain_text(&plain, xray, hints)
    };
    finding.lines(callers.into_iter().map(|callers| callers.line))
}

/// The hop that calls the one of this name.
fn caller_of<'a>(xray: &'a Xray, name: &str) -> Option<&'a str> {
    let at = xray.rows.iter().position(|row| row.hop.name == name)?;
    xray.caller_of(at).map(|row| row.hop.name.as_str())
}

/// Plain text into a hop and out of it again: that hop has no sidecar. Plain text into one alone: itself, or its caller.
fn plain_text(plain: &[&str], xray: &Xray, hints: &HintContext) -> Finding {
    let first = plain.first().copied().unwrap_or_default();
    let is_last = xray.rows.last().is_some_and(|row| row.hop.name == first);
    let is_own = |name: &str| has(xray, name, Proxy::is_own_sidecar);
    let caller = caller_of(xray, first);
    let off = format!("mTLS is off for {first}: PeerAuthentication DISABLE, or a DestinationRule with tls.mode DISABLE");
    let called = format!("{first} is called without mTLS, while other hops use it");
    let middle = plain.iter().find(|name| plain.iter().any(|other| caller_of(xray, other) == Some(**name)));
    let (hop, text, cause) = match middle {
        Some(name) => (
            *name,
            format!("{name} is called and calls without mTLS, while other hops use it: it has no sidecar"),
            format!(
                "Injection is missing at {name}: its pod is older than the namespace's label, or has sidecar.istio.io/inject: \"false\""
            ),
        ),
        None if is_own(first) && caller.is_some_and(is_own) => (
            first,
            called,
            format!(
                "{off}. Else the mesh does not know the port of Service {first} as HTTP (its name, or appProtocol), or the call bypasses the sidecar of {} (excludeOutboundPorts)",
                caller.unwrap_or(CALLER)
            ),
        ),
        None if xray
            .rows
            .iter()
            .position(|row| row.hop.name == first)
            .is_some_and(|at| xray.called_by(at).any(|next| next.proxy.identity)) =>
        {
            (
                first,
                called,
                format!(
                    "The port of {first} is excluded from its sidecar (excludeInboundPorts), which vouches for {first} where it calls; or {off}"
                ),
            )
        }
        None if is_last => {
            (first, called, format!("{first} has no sidecar (its pod is older than the namespace's label), or {off}"))
        }
        None => (first, called, format!("{} calls from outside the mesh, or {off}", caller.unwrap_or(CALLER))),
    };
    let namespace = &hints.namespace;
    let hint = Hint::new(cause)
        .run(hints.all_containers())
        .run(format!("kubectl get namespace {namespace} --show-labels"))
        .run("kubectl get peerauthentication,destinationrule -A");
    Finding::fail(ID, text, hint).hop(hop)
}
