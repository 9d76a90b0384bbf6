//! Sidecars and mutual TLS: who has a sidecar, what a pod accepts, what its callers send.

use std::net::IpAddr;

use serde_json::Value;

use crate::check::cluster::mistake::Symptom::{Answer, Headers, Identity, Proxies, Spans};
use crate::check::cluster::mistake::{Mistake, Symptom};
use crate::check::cluster::object::{Object, at, list, number, text};
use crate::check::cluster::path::{Hop, Path};
use crate::check::cluster::routing::{destination_rules, policy};
use crate::check::cluster::snapshot::{ROOT_NAMESPACE, Snapshot};

pub(super) const PROXY: &str = "istio-proxy";

pub(crate) fn has_sidecar(pod: &Object) -> bool {
    let containers = ["/spec/containers", "/spec/initContainers"].iter().flat_map(|pointer| pod.list(pointer));
    containers.filter(|container| text(container, "/name") == PROXY).count() > 0
}

/// Whether the pod is in the mesh without a sidecar.
pub(crate) fn is_ambient(pod: &Object) -> bool {
    pod.annotation("ambient.istio.io/redirection") == "enabled"
}

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    let any = path.hops.iter().flat_map(|hop| &hop.pods).any(|pod| has_sidecar(pod));
    for hop in path.hops.iter().filter(|_| any) {
        out.extend(injection(path, hop).map(|mistake| mistake.hop(hop)));
        out.extend(excluded(path, hop).into_iter().map(|mistake| mistake.hop(hop)));
    }
    for hop in path.hops.iter().filter(|_| !any) {
        let bare = hop.pods.first().filter(|pod| !is_ambient(pod));
        let older = |pod| older(pod, &[Proxies, Identity, Spans, Headers, Answer]);
        let why = |pod| revision(path, pod).or_else(|| Some(older(pod)).filter(|_| is_injected(path, pod)));
        out.extend(bare.copied().and_then(why).map(|mistake| mistake.hop(hop).standing()));
    }
    for hop in &path.hops {
        out.extend(mtls(path, hop).into_iter().map(|mistake| mistake.seam(path, hop)));
    }
    out
}

/// A pod without a sidecar, while other hops have one: which object keeps it away.
fn injection(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    const INJECT: &str = "sidecar.istio.io/inject";
    let explains = &[Proxies, Identity, Spans, Headers, Answer];
    let pod = hop.pods.iter().find(|pod| !has_sidecar(pod) && !is_ambient(pod))?;
    let deployment = hop.deployments.iter().find(|deployment| pod.is_selected_by(deployment.at("/spec/selector/matchLabels")));
    for place in ["labels", "annotations"] {
        let of = |object: &Object, pointer: &str| {
            object.at(&format!("{pointer}/{place}")).get(INJECT).and_then(Value::as_str) == Some("false")
        };
        let says = "is false: the pod has no sidecar";
        if let Some(deployment) = deployment.filter(|deployment| of(deployment, "/spec/template/metadata")) {
            return Some(Mistake::new(deployment, format!("spec.template.metadata.{place}[{INJECT}]"), says, explains));
        }
        if of(pod, "/metadata") {
            return Some(Mistake::new(pod, format!("metadata.{place}[{INJECT}]"), says, explains));
        }
    }
    if let Some(found) = self::revision(path, pod) {
        return Some(found);
    }
    let namespace = path.snapshot.find("Namespace", "", pod.namespace())?;
    let (injection, revision) = (namespace.label("istio-injection"), namespace.label("istio.io/rev"));
    if injection != "enabled" && revision.is_empty() {
        let says = if injection.is_empty() {
            "is not set: pods that start in this namespace get no sidecar".to_owned()
        } else {
            format!("is {injection}: pods that start in this namespace get no sidecar")
        };
        return Some(Mistake::new(namespace, "metadata.labels[istio-injection]", says, explains));
    }
    if pod.at("/spec/hostNetwork").as_bool() == Some(true) {
        let object = deployment.copied().unwrap_or(pod);
        let field = if deployment.is_some() { "spec.template.spec.hostNetwork" } else { "spec.hostNetwork" };
        return Some(Mistake::new(object, field, "is true: such pods get no sidecar", explains));
    }
    Some(older(pod, explains))
}

/// A pod that should have a sidecar and was not given one.
fn older(pod: &Object, explains: &[Symptom]) -> Mistake {
    let since = pod.text("/metadata/creationTimestamp");
    let says = format!(
        "is {since}: the pod started before its namespace was labelled, or while the injector was away, and has no sidecar; restart its Deployment"
    );
    Mistake::new(pod, "metadata.creationTimestamp", says, explains)
}

/// Whether pods of this namespace get sidecars, of a revision that runs, unless they say that they do not.
fn is_injected(path: &Path<'_>, pod: &Object) -> bool {
    let asks = |namespace: &Object| namespace.label("istio-injection") == "enabled" || !namespace.label(REVISION).is_empty();
    let is_out =
        ["labels", "annotations"].iter().any(|place| !pod.at(&format!("/metadata/{place}/sidecar.istio.io~1inject")).is_null());
    path.snapshot.find("Namespace", "", pod.namespace()).is_some_and(asks) && !is_out && istiods(path).next().is_some()
}

fn istiods<'a>(path: &Path<'a>) -> impl Iterator<Item = &'a Object> {
    let pods = path.snapshot.all("Pod").into_iter();
    pods.filter(|pod| pod.namespace() == ROOT_NAMESPACE && pod.label("app") == "istiod")
}

const REVISION: &str = "istio.io/rev";

/// A namespace that asks for the sidecars of a revision that nobody runs.
fn revision(path: &Path<'_>, pod: &Object) -> Option<Mistake> {
    let namespace = path.snapshot.find("Namespace", "", pod.namespace())?;
    let wanted = namespace.label(REVISION);
    let mut running: Vec<&str> = istiods(path).map(|pod| pod.label(REVISION)).collect();
    running.dedup();
    if wanted.is_empty() || running.is_empty() || running.contains(&wanted) || !namespace.label("istio-injection").is_empty() {
        return None;
    }
    let says =
        format!("is {wanted}, and istiod runs as {}: pods that start in this namespace get no sidecar", running.join(", "));
    Some(Mistake::new(namespace, format!("metadata.labels[{REVISION}]"), says, &[Proxies, Identity, Spans, Headers, Answer]))
}

/// Ports that the sidecar does not see.
fn excluded(path: &Path<'_>, hop: &Hop<'_>) -> Vec<Mistake> {
    let explains = &[Proxies, Identity, Spans, Headers, Answer];
    let ports = |value: &str| value.split(',').filter_map(|port| port.trim().parse::<u64>().ok()).collect::<Vec<_>>();
    let listens = hop.target_port();
    let called: Vec<IpAddr> = path.called_by(hop).flat_map(addresses).collect();
    let within = |value: &str, address: &IpAddr| value.split(',').any(|range| has(range.trim(), *address));
    let mut out = Vec::new();
    let objects = hop.deployments.iter().map(|deployment| (*deployment, "spec.template.metadata.annotations"));
    let pods = hop.pods.iter().filter(|_| hop.deployments.is_empty()).map(|pod| (*pod, "metadata.annotations"));
    for (object, place) in objects.chain(pods) {
        let annotations = object.at(&format!("/{}", place.replace('.', "/")));
        for (name, value) in annotations.as_object().into_iter().flatten() {
            let Some(what) = name.strip_prefix("traffic.sidecar.istio.io/") else { continue };
            let value = value.as_str().unwrap_or_default();
            let hits = match what {
                "excludeInboundPorts" => listens.is_some_and(|port| ports(value).contains(&port)),
                "includeInboundPorts" => value != "*" && listens.is_some_and(|port| !ports(value).contains(&port)),
                "excludeOutboundPorts" => path.called_ports(hop).any(|port| ports(value).contains(&port)),
                "excludeOutboundIPRanges" => called.iter().any(|address| within(value, address)),
                "includeOutboundIPRanges" => value != "*" && called.iter().any(|address| !within(value, address)),
                _ => false,
            };
            if hits {
                let side = if what.contains("Inbound") {
                    "calls to the app go past its sidecar"
                } else {
                    "calls of the app go past its sidecar"
                };
                out.push(Mistake::new(object, format!("{place}[{name}]"), format!("is \"{value}\": {side}"), explains));
            }
        }
        if annotations.get("sidecar.istio.io/interceptionMode").and_then(Value::as_str) == Some("NONE") {
            out.push(Mistake::new(
                object,
                format!("{place}[sidecar.istio.io/interceptionMode]"),
                "is NONE: the sidecar sees no traffic",
                explains,
            ));
        }
    }
    out
}

/// Where a hop's callers connect to: the address of its Service, else those of its pods.
fn addresses(hop: &Hop<'_>) -> Vec<IpAddr> {
    let own: Vec<IpAddr> = hop.service.into_iter().filter_map(|service| service.text("/spec/clusterIP").parse().ok()).collect();
    let pods = || hop.pods.iter().filter_map(|pod| pod.text("/status/podIP").parse().ok()).collect();
    if own.is_empty() { pods() } else { own }
}

/// Whether a range such as `10.0.0.0/8`, or a single address, has this one.
fn has(range: &str, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let (first, length) = range.split_once('/').map_or((range, None), |(first, length)| (first, length.parse::<u32>().ok()));
    let Ok(first) = first.parse::<IpAddr>() else { return false };
    let ((first, most), (own, other)) = (bits(first), bits(address));
    let length = length.unwrap_or(most);
    most == other && length <= most && (length == 0 || (first ^ own) >> (128 - length) == 0)
}

/// What a pod accepts on a port, and the object that says so: its own policy, the namespace's, the mesh's.
pub(super) fn peer_mode<'a>(snapshot: &'a Snapshot, pod: &Object, port: Option<u64>) -> Option<(&'a Object, String, &'a str)> {
    let all = snapshot.all("PeerAuthentication");
    let selects = |policy: &&&Object| {
        let selector = policy.at("/spec/selector/matchLabels");
        selector.as_object().is_some_and(|labels| !labels.is_empty())
            && policy.namespace() == pod.namespace()
            && pod.is_selected_by(selector)
    };
    let whole = |namespace: &'a str| {
        move |policy: &&&Object| {
            policy.at("/spec/selector/matchLabels").as_object().is_none_or(serde_json::Map::is_empty)
                && policy.namespace() == namespace
        }
    };
    let own = all.iter().find(|policy| policy.namespace() == pod.namespace()).map_or("", |policy| policy.namespace());
    let levels = [all.iter().find(selects), all.iter().find(whole(own)), all.iter().find(whole(ROOT_NAMESPACE))];
    levels.into_iter().flatten().find_map(|policy| {
        let by_port = port.and_then(|port| {
            Some((format!("spec.portLevelMtls.{port}.mode"), policy.at(&format!("/spec/portLevelMtls/{port}/mode")).as_str()?))
        });
        let (field, mode) = by_port.or_else(|| Some(("spec.mtls.mode".to_owned(), policy.at("/spec/mtls/mode").as_str()?)))?;
        (mode != "UNSET").then_some((*policy, field, mode))
    })
}

/// Both ends of a call: what the caller's proxy sends, what the called pod's accepts.
fn mtls(path: &Path<'_>, hop: &Hop<'_>) -> Vec<Mistake> {
    let Some(pod) = hop.pods.first() else { return Vec::new() };
    let namespace = path.calling_namespace(hop);
    let callers = path.calling_pods(hop);
    let sidecar = has_sidecar(pod);
    let accepts = peer_mode(path.snapshot, pod, hop.target_port()).filter(|_| sidecar || is_ambient(pod));
    let mode = accepts.as_ref().map_or("PERMISSIVE", |(_, _, mode)| *mode);
    let by = |text: &str| {
        accepts.as_ref().map_or_else(|| text.to_owned(), |(policy, _, mode)| format!("{} is {mode}", policy.title()))
    };
    let mut out = Vec::new();
    for to in &hop.destinations {
        let rules = destination_rules(path.snapshot, &to.host, namespace);
        let Some((rule, field, value)) = policy(&rules, to, "/tls/mode") else { continue };
        let says = match (value.as_str().unwrap_or_default(), mode) {
            ("DISABLE", "STRICT") => {
                format!("is DISABLE, {}: the caller's proxy sends plain text, and the called pod accepts only mutual TLS", by(""))
            }
            ("DISABLE", _) => "is DISABLE: calls are in plain text, without an identity".to_owned(),
            ("ISTIO_MUTUAL", _) if !sidecar && !is_ambient(pod) => {
                format!("is ISTIO_MUTUAL, and {} has no sidecar that ends mutual TLS", pod.name())
            }
            ("ISTIO_MUTUAL", "DISABLE") => format!("is ISTIO_MUTUAL, {}: the called pod takes plain text alone", by("")),
            ("SIMPLE" | "MUTUAL", _) => format!(
                "is {}: the caller's proxy speaks TLS to an app that has none{}",
                value.as_str().unwrap_or_default(),
                if sidecar { ", past the mesh's own mutual TLS" } else { "" }
            ),
            _ => continue,
        };
        out.push(Mistake::new(rule, field, says, &[Answer, Identity, Proxies]));
    }
    let Some((object, field, mode)) = accepts else { return out };
    let plain = hop.caller.is_some() && callers.iter().any(|caller| !has_sidecar(caller) && !is_ambient(caller));
    let outside = hop.caller.is_none() && path.front.is_none();
    match mode {
        "STRICT" if plain || outside => {
            let who = if outside { "this caller is outside the mesh" } else { "its caller has no sidecar" };
            out.push(Mistake::new(object, field, format!("is STRICT, and {who}: plain text is refused"), &[Answer]));
        }
        "DISABLE" => out.push(Mistake::new(
            object,
            field,
            format!("is DISABLE: {} is called in plain text, without an identity", hop.name),
            &[Identity, Answer, Proxies],
        )),
        _ => {}
    }
    out
}

/// The port of a hop's pods that callers reach, for policies.
pub(super) fn port_of(hop: &Hop<'_>) -> Option<u64> {
    hop.target_port().or_else(|| hop.service_port().and_then(|(_, port)| number(at(port, "/port"))))
}

/// `cluster.local/ns/shop/sa/service1`, for a caller with mutual TLS.
pub(super) fn principal(pod: &Object) -> Option<String> {
    let account = Some(pod.text("/spec/serviceAccountName")).filter(|name| !name.is_empty()).unwrap_or("default");
    let is_in_mesh = has_sidecar(pod)
        || is_ambient(pod)
        || list(pod.at("/spec"), "/containers").iter().any(|container| text(container, "/name") == PROXY);
    is_in_mesh.then(|| format!("cluster.local/ns/{}/sa/{account}", pod.namespace()))
}
