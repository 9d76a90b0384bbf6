//! What a caller's proxy knows: Sidecars, exports of Services, and what happens to calls to what it does not know.

use serde_json::Value;

use crate::check::cluster::mistake::Symptom::{Answer, Headers, Identity, Proxies, Spans};
use crate::check::cluster::mistake::{EVERYTHING, Mistake};
use crate::check::cluster::object::{Object, at, covers, is_exported, number, service_of, text, texts};
use crate::check::cluster::path::{Hop, Path};
use crate::check::cluster::rules::subsets::listed;
use crate::check::cluster::snapshot::{ROOT_NAMESPACE, Snapshot};

const EXPORT: &str = "networking.istio.io/exportTo";

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for hop in &path.hops {
        let found = hidden(path, hop).into_iter().chain(egress(path, hop)).map(|mistake| mistake.seam(path, hop));
        out.extend(found.chain(ingress(path, hop).into_iter().map(|mistake| mistake.seam(path, hop))));
    }
    out
}

/// The Service is not exported to the caller's namespace.
fn hidden(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    let service = hop.service?;
    let namespace = path.calling_namespace(hop);
    let value = service.annotation(EXPORT);
    let export: Vec<&str> = value.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if namespace.is_empty() || is_exported(&export, service.namespace(), namespace) {
        return None;
    }
    Some(Mistake::new(
        service,
        format!("metadata.annotations[{EXPORT}]"),
        format!("is {value}: proxies in {namespace} do not know this Service"),
        EVERYTHING,
    ))
}

/// The Sidecar that holds for a pod: its own, the namespace's, the mesh's.
fn sidecar_of<'a>(snapshot: &'a Snapshot, pod: &Object) -> Option<&'a Object> {
    let all = snapshot.all("Sidecar");
    let selector =
        |sidecar: &Object| sidecar.at("/spec/workloadSelector/labels").as_object().is_some_and(|labels| !labels.is_empty());
    let own = all.iter().find(|sidecar| {
        selector(sidecar)
            && sidecar.namespace() == pod.namespace()
            && pod.is_selected_by(sidecar.at("/spec/workloadSelector/labels"))
    });
    let whole = |namespace: &str| all.iter().find(|sidecar| !selector(sidecar) && sidecar.namespace() == namespace);
    own.or_else(|| whole(pod.namespace())).or_else(|| whole(ROOT_NAMESPACE)).copied()
}

fn egress(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    hop.caller?;
    let caller = path.calling_pods(hop).first()?;
    let sidecar = sidecar_of(path.snapshot, caller)?;
    let service = hop.service?;
    let rules = sidecar.list("/spec/egress");
    let named = |rule: &Value| is_listed(rule, caller.namespace(), service.namespace(), &hop.full_name());
    if rules.is_empty() {
        return None;
    }
    let naming: Vec<(usize, &Value)> = rules.iter().enumerate().filter(|(_, rule)| named(rule)).collect();
    if let Some((index, rule)) = naming.first() {
        let is_open = |rule: &Value| number(at(rule, "/port/number")).is_none_or(|port| Some(port) == hop.call.port);
        let port = number(at(rule, "/port/number")).filter(|_| !naming.iter().any(|(_, rule)| is_open(rule)))?;
        let says = format!("is {port}, and {} is called at {}", hop.name, hop.call.port.unwrap_or_default());
        return Some(Mistake::new(sidecar, format!("spec.egress[{index}].port.number"), says, EVERYTHING));
    }
    let hosts: Vec<String> = rules.iter().map(|rule| listed(rule, "/hosts")).collect();
    let then = match sidecar.text("/spec/outboundTrafficPolicy/mode") {
        "REGISTRY_ONLY" => "calls to it are refused (REGISTRY_ONLY)",
        _ => "calls to it are passed through as bytes, unless the mesh refuses them",
    };
    let says = format!(
        "is {}, which lacks {}: the sidecar of {} does not know the Service, and {then}",
        hosts.join(", "),
        hop.full_name(),
        path.caller_name(hop)
    );
    Some(Mistake::new(sidecar, "spec.egress[0].hosts", says, EVERYTHING))
}

/// Whether the hosts of an egress rule have this one, of a Service in `namespace`, for a caller in `own`.
fn is_listed(rule: &Value, own: &str, namespace: &str, host: &str) -> bool {
    texts(rule, "/hosts").iter().any(|pattern| {
        let (of, pattern) = pattern.split_once('/').unwrap_or(("*", pattern));
        (of == "*" || of == namespace || (of == "." && own == namespace)) && covers(pattern, host)
    })
}

/// The Sidecar that keeps a Service from a pod's proxy, and the hosts that it lists.
pub(super) fn keeping<'a>(snapshot: &'a Snapshot, pod: &Object, host: &str) -> Option<(&'a Object, String)> {
    let (_, namespace) = service_of(host, pod.namespace())?;
    let sidecar = sidecar_of(snapshot, pod)?;
    let rules = sidecar.list("/spec/egress");
    let is_kept = !rules.is_empty() && !rules.iter().any(|rule| is_listed(rule, pod.namespace(), namespace, host));
    is_kept.then(|| (sidecar, rules.iter().map(|rule| listed(rule, "/hosts")).collect::<Vec<_>>().join(", ")))
}

/// A Sidecar that opens other ports to callers than the app has, or hands them on to another one.
fn ingress(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    let pod = hop.pods.first()?;
    let sidecar = sidecar_of(path.snapshot, pod)?;
    let target = hop.target_port()?;
    let rules = sidecar.list("/spec/ingress");
    let explains = &[Answer, Proxies, Headers, Spans, Identity];
    let Some((index, rule)) = rules.iter().enumerate().find(|(_, rule)| number(at(rule, "/port/number")) == Some(target)) else {
        let numbers: Vec<String> = rules.iter().map(|rule| at(rule, "/port/number").to_string()).collect();
        let says = format!("is {}, and {} listens on {target}", numbers.join(", "), hop.name);
        return (!rules.is_empty()).then(|| Mistake::new(sidecar, "spec.ingress[0].port.number", says, explains));
    };
    let endpoint = text(rule, "/defaultEndpoint");
    let port = endpoint.rsplit(':').next().and_then(|port| port.parse::<u64>().ok())?;
    (port != target).then(|| {
        Mistake::new(
            sidecar,
            format!("spec.ingress[{index}].defaultEndpoint"),
            format!("is {endpoint}, and {} listens on {target}", hop.name),
            explains,
        )
    })
}
