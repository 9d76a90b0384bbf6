//! Ports: what the caller calls, what the Service leads to, what the app listens on, and which protocol the mesh takes it for.

use serde_json::Value;

use crate::check::cluster::mistake::Symptom::{Answer, Headers, Identity, NoPod, Proxies, Spans};
use crate::check::cluster::mistake::{EVERYTHING, Mistake};
use crate::check::cluster::object::{Object, at, list, number, text};
use crate::check::cluster::path::{Hop, Path, env};

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for hop in &path.hops {
        let Some(service) = hop.service else { continue };
        let found = called(path, hop, service).into_iter().chain(target(hop, service)).chain(protocol(hop, service));
        let found = found.chain(misdeclared(hop));
        out.extend(found.map(|mistake| mistake.seam(path, hop)));
    }
    out
}

/// The port in the caller's `UPSTREAM`.
fn called(path: &Path<'_>, hop: &Hop<'_>, service: &Object) -> Option<Mistake> {
    let (object, field, value) = env(&path.hops[hop.caller?], "UPSTREAM")?;
    let called = hop.call.port?;
    let ports = service.list("/spec/ports");
    if ports.iter().any(|port| number(at(port, "/port")) == Some(called)) {
        return None;
    }
    let numbers: Vec<String> = ports.iter().map(|port| at(port, "/port").to_string()).collect();
    Some(Mistake::new(
        object,
        field,
        format!("is {value}, and {} has the port {}, not {called}", service.title(), numbers.join(", ")),
        EVERYTHING,
    ))
}

/// Where the app listens: the port in `ADDR`, else a hop's usual one, else the one that its container declares.
fn listens(hop: &Hop<'_>) -> Option<u64> {
    const USUAL: u64 = 8080;
    if let Some((_, _, addr)) = env(hop, "ADDR") {
        return addr.rsplit(':').next()?.parse().ok();
    }
    if !hop.is_foreign && env(hop, "SERVICE_NAME").is_some() {
        return Some(USUAL);
    }
    let specs = hop
        .pods
        .iter()
        .map(|pod| pod.at("/spec"))
        .chain(hop.deployments.iter().map(|deployment| deployment.at("/spec/template/spec")));
    let mut apps = specs.flat_map(|spec| list(spec, "/containers")).filter(|container| text(container, "/name") != "istio-proxy");
    let ports = list(apps.next()?, "/ports");
    ports.first().and_then(|port| number(at(port, "/containerPort")))
}

/// Nobody but the pod itself reaches the app.
pub(super) fn on_loopback(hop: &Hop<'_>) -> Option<Mistake> {
    let (object, field, addr) = env(hop, "ADDR")?;
    let is_loopback = addr.starts_with("127.") || addr.starts_with("localhost") || addr.starts_with("[::1]");
    let says =
        || format!("is {addr}: the app listens on loopback alone, and the sidecar and the kubelet call it at the pod's address");
    is_loopback.then(|| Mistake::new(object, field, says(), &[Answer, NoPod]))
}

/// A container port that the Service names, and on which the app does not listen.
pub(super) fn misdeclared(hop: &Hop<'_>) -> Option<Mistake> {
    let (_, port) = hop.service_port()?;
    let name = at(port, "/targetPort").as_str()?;
    let listens = listens(hop)?;
    hop.deployments.iter().find_map(|deployment| {
        let containers = deployment.list("/spec/template/spec/containers").iter().enumerate();
        let mut ports = containers
            .flat_map(|(at, container)| list(container, "/ports").iter().enumerate().map(move |(index, port)| (at, index, port)));
        let (container, index, port) = ports.find(|(_, _, port)| text(port, "/name") == name)?;
        let declared = number(at(port, "/containerPort")).filter(|declared| *declared != listens)?;
        let field = format!("spec.template.spec.containers[{container}].ports[{index}].containerPort");
        let says = format!("is {declared} under the name {name}, and the app listens on {listens}");
        Some(Mistake::new(deployment, field, says, &[Answer, NoPod]))
    })
}

fn target(hop: &Hop<'_>, service: &Object) -> Vec<Mistake> {
    let mut out: Vec<Mistake> = on_loopback(hop).into_iter().collect();
    let (Some((index, port)), Some(listens), Some(target)) = (hop.service_port(), listens(hop), hop.target_port()) else {
        return out;
    };
    if target != listens && !at(port, "/targetPort").is_string() {
        let says = format!("is {target}, and the app listens on {listens}");
        out.push(Mistake::new(service, format!("spec.ports[{index}].targetPort"), says, &[Answer]));
    } else if target != listens
        && let Some((object, field, addr)) = env(hop, "ADDR")
    {
        out.push(Mistake::new(
            object,
            field,
            format!("is {addr}, and the port {} of {} leads to {target}", at(port, "/port"), service.title()),
            &[Answer],
        ));
    }
    out
}

/// What the mesh takes the port for. A name without one of its prefixes is left to detection, and works.
fn protocol(hop: &Hop<'_>, service: &Object) -> Option<Mistake> {
    const BYTES: [&str; 9] = ["tcp", "tls", "https", "udp", "mongo", "mysql", "redis", "postgres", "postgresql"];
    let (index, port) = hop.service_port()?;
    if matches!(text(port, "/protocol"), "UDP" | "SCTP") {
        let says = format!("is {}: nothing of TCP is handed on", text(port, "/protocol"));
        return Some(Mistake::new(service, format!("spec.ports[{index}].protocol"), says, EVERYTHING));
    }
    let of = |value: &Value| value.as_str().map(str::to_ascii_lowercase);
    let (field, shown) = match (of(at(port, "/appProtocol")), of(at(port, "/name"))) {
        (Some(protocol), _) => ("appProtocol", protocol),
        (None, Some(name)) => ("name", name),
        (None, None) => return None,
    };
    let prefix = shown.split('-').next().unwrap_or_default();
    if !BYTES.contains(&prefix) && !BYTES.contains(&shown.as_str()) {
        return None;
    }
    let says = format!(
        "is {shown}: the mesh passes bytes along and does not read HTTP, so there are no routes, no headers and no spans on this port"
    );
    Some(Mistake::new(service, format!("spec.ports[{index}].{field}"), says, &[Proxies, Headers, Spans, Identity, Answer]))
}
