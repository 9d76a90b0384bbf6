//! EnvoyFilters and WasmPlugins: what they name is searched, not understood.

use serde_json::Value;

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{self, Answer, Denied, Headers, Identity, Overload, Sampling, Slow, Spans};
use crate::check::cluster::object::{Object, at, number, text};
use crate::check::cluster::path::{Hop, Path};
use crate::check::cluster::snapshot::ROOT_NAMESPACE;

/// What a filter's text may name, what that does, and how it shows.
const SIGNS: &[(&[&str], &str, &[Symptom])] = &[
    (
        &["traceparent", "x-b3-", "x-request-id", "tracestate", "baggage", "b3"],
        "names HEADER, which a filter here removes or changes",
        &[Headers, Spans, Sampling],
    ),
    (&["x-lane"], "names HEADER, which a filter here removes or changes", &[Headers, Symptom::Lanes]),
    (
        &["x-forwarded-client-cert", "forward_client_cert_details"],
        "changes what is told of the caller's certificate",
        &[Identity],
    ),
    (&["local_ratelimit", "LocalRateLimit", "ratelimit"], "limits the rate of requests", &[Overload, Answer]),
    (&["HTTPFault", "filters.http.fault"], "injects faults", &[Answer, Slow]),
    (&["filters.http.rbac", "ext_authz"], "decides who may call", &[Denied]),
    (
        &["preserve_external_request_id", "generate_request_id", "always_set_request_id_in_response"],
        "changes how request ids are made",
        &[Headers, Sampling],
    ),
    (&["filters.http.tracing", "\"tracing\"", "random_sampling"], "changes tracing", &[Spans, Sampling]),
    (&["circuit_breakers", "max_pending_requests"], "limits the calls that are open at a time", &[Overload, Answer]),
    (
        &["buffer", "max_request_bytes", "timeout", "max_stream_duration", "max_connection_duration"],
        "limits how long or how large a request may be",
        &[Slow, Answer],
    ),
    (&["direct_response", "respond("], "answers requests itself", &[Answer]),
];

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for filter in path.snapshot.all("EnvoyFilter") {
        let at_gateway = path.front.as_ref().is_some_and(|front| front.pods.iter().any(|pod| holds(filter, pod)));
        let hops: Vec<_> = path.hops.iter().filter(|hop| hop.pods.iter().any(|pod| holds(filter, pod))).collect();
        for (index, patch) in filter.list("/spec/configPatches").iter().enumerate() {
            let Some((says, explains)) = sign(at(patch, "/patch"), text(patch, "/applyTo")) else { continue };
            let field = format!("spec.configPatches[{index}].patch.value");
            let mistake = || Mistake::new(filter, field.clone(), says.clone(), explains);
            let inbound = text(patch, "/match/context");
            if at_gateway && !inbound.starts_with("SIDECAR") {
                out.push(mistake().front());
            }
            if inbound != "GATEWAY" {
                let listens = number(at(patch, "/match/listener/portNumber"));
                let meets = |hop: &&&Hop<'_>| listens.is_none_or(|port| ports(path, hop, inbound).contains(&port));
                out.extend(hops.iter().filter(meets).map(|hop| mistake().hop(hop)));
            }
        }
    }
    for plugin in path.snapshot.all("WasmPlugin") {
        let says = format!("is {}: code in the proxy, which sees and may change every request", plugin.text("/spec/url"));
        let hops = path.hops.iter().filter(|hop| hop.pods.iter().any(|pod| holds(plugin, pod)));
        out.extend(hops.map(|hop| Mistake::new(plugin, "spec.url", says.clone(), &[Headers, Answer, Denied]).hop(hop)));
    }
    out
}

/// The ports at which a hop's sidecar meets the requests: the app's, and those that the app calls.
fn ports(path: &Path<'_>, hop: &Hop<'_>, context: &str) -> Vec<u64> {
    let inbound = hop.target_port().filter(|_| context != "SIDECAR_OUTBOUND");
    let outbound = path.called_ports(hop).filter(|_| context != "SIDECAR_INBOUND");
    inbound.into_iter().chain(outbound).collect()
}

/// Whether a filter holds for a pod.
fn holds(filter: &Object, pod: &Object) -> bool {
    let in_scope = filter.namespace() == pod.namespace() || filter.namespace() == ROOT_NAMESPACE;
    in_scope
        && pod.is_targeted_by(filter)
        && pod.is_selected_by(filter.at("/spec/workloadSelector/labels"))
        && pod.is_selected_by(filter.at("/spec/selector/matchLabels"))
}

/// The first sign in what a patch says.
fn sign(patch: &Value, apply_to: &str) -> Option<(String, &'static [Symptom])> {
    let text = patch.to_string();
    // A name as short as `b3` is a part of other words.
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let has = |word: &str| match word {
        "b3" => text.split(|c| !is_part(c)).any(|part| part == word),
        _ => text.contains(word),
    };
    let (words, says, explains) = SIGNS.iter().find(|(words, ..)| words.iter().any(|word| has(word)))?;
    let word = words.iter().find(|word| has(word)).copied().unwrap_or_default();
    let header = if word == "x-b3-" { "x-b3-*" } else { word };
    Some((format!("({apply_to}) {}", says.replace("HEADER", header)), explains))
}
