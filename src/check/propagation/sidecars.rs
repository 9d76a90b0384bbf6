//! Hops without a sidecar, and calls that no proxy traces.

use crate::check::chain::evidence::{CALLER, HopEvidence, MissingSidecar, Xray};
use crate::check::envoy::suggestions::HintContext;
use crate::report::{CheckId, Finding, Hint};

/// Hops that injection left out.
pub(crate) fn missing_sidecars(xray: &Xray, hints: &HintContext) -> Vec<Finding> {
    let finding = |MissingSidecar { at, hop, is_certain }: MissingSidecar<'_>| {
        let name = &hop.name;
        let namespace = hints.namespace_of(hop);
        // A hop that calls nobody shows its sidecar nowhere else.
        let calls = xray.called_by(at).next().is_some();
        let (text, excluded) = if calls {
            (
                format!(
                    "{name} has no sidecar, while other hops have one: no proxy of its own is seen in front of it, and none behind it"
                ),
                String::new(),
            )
        } else {
            (
                format!("No sidecar is seen in front of {name}, while other hops have one"),
                ". Else its port is excluded from its sidecar (traffic.sidecar.istio.io/excludeInboundPorts)".to_owned(),
            )
        };
        let or = if is_certain { "" } else { ". Else mTLS is off for it and for what it calls" };
        let hint = Hint::new(format!(
            "Injection is missing at {name}: its pod is older than the label of the namespace (restart it), or has the label sidecar.istio.io/inject: \"false\"{excluded}{or}"
        ))
        .run(hints.containers(hop))
        .run(format!("kubectl get namespace {namespace} --show-labels  # istio-injection=enabled, or istio.io/rev"))
        .run(format!("kubectl get deploy {name} -n {namespace} -o jsonpath='{{.spec.template.metadata}}'  # sidecar.istio.io/inject"));
        let caller = xray.caller_of(at).map_or(CALLER, |row| row.hop.name.as_str());
        Finding::fail(CheckId::PropagationSidecar, text, hint).seam(caller, name, None).hop(name)
    };
    xray.without_sidecar().into_iter().map(finding).collect()
}

/// Between two hops no proxy writes spans, while proxies do elsewhere.
pub(crate) fn coverage(xray: &Xray, hints: &HintContext) -> Vec<Finding> {
    // In ambient mode a waypoint serves some Services and not others; only sidecars stand everywhere.
    let inner = || xray.rows.iter().enumerate().filter(|(_, row)| row.depth > 0);
    let vouching = inner().any(|(_, row)| row.proxy.traces() && row.proxy.identity);
    let vouched = xray.rows.iter().any(|row| row.proxy.identity);
    let missing = xray.without_sidecar();
    let is_missing = |at: usize| missing.iter().any(|known| known.at == at);
    let mut bytes: Option<(&HopEvidence, &HopEvidence)> = None;
    let mut silent: Vec<(&HopEvidence, &HopEvidence)> = Vec::new();
    for (at, row) in inner().filter(|(_, row)| row.via.is_none() && !row.proxy.traces() && (row.proxy.sidecar || vouching)) {
        let Some(caller) = xray.caller_of(at).filter(|_| !is_missing(at) && xray.mesh_traces()) else { continue };
        if row.proxy.identity {
            silent.push((caller, row));
        } else {
            bytes = bytes.or(Some((caller, row)));
        }
    }
    let mut out = Vec::new();
    if let Some((caller, row)) = bytes {
        let (from, to) = (&caller.hop.name, &row.hop.name);
        let namespace = hints.namespace_of(&row.hop);
        let mut cause = format!(
            "The mesh does not know the port of Service {to} as HTTP, so it passes bytes along: its name must begin with http, or it needs appProtocol: http"
        );
        match (row.proxy.sidecar, vouched) {
            (true, true) => {}
            (true, false) => cause.push_str(&format!(". Else no Telemetry resource turns tracing on at {from} and {to}")),
            (false, _) => cause.push_str(&format!(". Else neither {from} nor {to} has a sidecar")),
        }
        let hint = Hint::new(cause)
            .run(format!("kubectl get service {to} -n {namespace} -o jsonpath='{{.spec.ports}}'"))
            .run(format!("istioctl analyze -n {namespace}"));
        let text = format!("No proxy traces between {from} and {to}, while proxies trace elsewhere");
        out.push(Finding::fail(CheckId::PropagationCoverage, text, hint).seam(from, to, None).hop(to));
    }
    if let Some((caller, first)) = silent.first() {
        let names: Vec<&str> = silent.iter().map(|(_, row)| row.hop.name.as_str()).collect();
        let namespace = hints.namespace_of(&first.hop);
        let covers = format!(
            "No Telemetry resource with tracing covers the namespace {namespace}, or the one there switches their reports off (disableSpanReporting) or names a provider that meshConfig.extensionProviders does not have. Else a Sidecar resource keeps the collector's Service from them (egress.hosts)"
        );
        let hint = Hint::new(hints.configured_by(&covers, "Their configuration has no tracing, or overall_sampling there is 0"));
        let hint = hints.providers().into_iter().fold(hint, Hint::run).run("kubectl get sidecar -A -o yaml");
        let text = format!("The sidecars in front of {} do not trace, while proxies trace elsewhere", names.join(", "));
        let (from, to) = (&caller.hop.name, &first.hop.name);
        let data = serde_json::json!({"hops": names});
        out.push(Finding::fail(CheckId::PropagationCoverage, text, hint).seam(from, to, None).hop(to).data(data));
    }
    out
}
