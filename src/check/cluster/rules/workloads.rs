//! Services without pods, pods that are not ready, Deployments that run none.

use serde_json::Value;

use crate::check::cluster::mistake::Symptom::{Answer, Chain, NoPod, Retries, Slow, Split};
use crate::check::cluster::mistake::{EVERYTHING, Mistake};
use crate::check::cluster::object::{Object, at, is_selected, labels_text, list, number, service_of, text};
use crate::check::cluster::path::{Hop, Path, env, is_of_chain, named_port, selects};
use crate::check::cluster::rules::peers::PROXY;
use crate::check::cluster::rules::ports;
use crate::check::envoy::gateway::clip;

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for hop in &path.hops {
        let found = match hop.service {
            Some(service) => pods(path, hop, service),
            None => missing_service(path, hop).into_iter().collect(),
        };
        out.extend(found.into_iter().map(|mistake| mistake.seam(path, hop)));
    }
    out
}

/// The caller's `UPSTREAM` names no Service: misspelt, in another namespace, or the address of a pod.
fn missing_service(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    let caller = &path.hops[hop.caller?];
    let (object, field, value) = env(caller, "UPSTREAM")?;
    let host = &hop.call.host;
    if !value.contains(host.as_str()) {
        return None;
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        let pod = path.snapshot.all("Pod").into_iter().find(|pod| pod.text("/status/podIP") == host);
        let whose = match pod {
            Some(pod) => format!("the address of {}, past its Service", pod.title()),
            None => "an address that no pod has (any more), in place of a Service's name".to_owned(),
        };
        return Some(Mistake::new(
            object,
            field,
            format!("is {value}: {whose}, so no route of the mesh holds for it"),
            EVERYTHING,
        ));
    }
    let (name, namespace) = service_of(host, &caller.namespace)?;
    let in_mesh = path.snapshot.all("ServiceEntry").into_iter().any(|entry| entry.texts("/spec/hosts").contains(&host.as_str()));
    if in_mesh || !path.snapshot.knows("services") {
        return None;
    }
    let like: Vec<String> = path
        .snapshot
        .services_like(name)
        .into_iter()
        .take(3)
        .map(|service| format!("{}/{}", service.namespace(), service.name()))
        .collect();
    let hint = if like.is_empty() { String::new() } else { format!("; there is {}", like.join(", ")) };
    Some(Mistake::new(object, field, format!("is {value}, and there is no Service {name} in {namespace}{hint}"), EVERYTHING))
}

fn pods(path: &Path<'_>, hop: &Hop<'_>, service: &Object) -> Vec<Mistake> {
    let selector = service.at("/spec/selector");
    let chosen: Vec<&Object> = hop.pods.iter().copied().filter(|pod| selects(service, pod)).collect();
    if text(service.at("/spec"), "/type") == "ExternalName" {
        let says = format!("is {}: the Service is only another name for that host", service.text("/spec/externalName"));
        return vec![Mistake::new(service, "spec.externalName", says, &[Answer])];
    }
    let stopped = hop.deployments.iter().find(|deployment| number(deployment.at("/spec/replicas")) == Some(0));
    if let Some(stopped) = stopped.filter(|_| chosen.is_empty()) {
        return vec![Mistake::new(stopped, "spec.replicas", format!("is 0: no pod of {} runs", hop.name), &[Answer, NoPod])];
    }
    let running = hop.deployments.iter().find(|deployment| !is_chosen(selector, deployment));
    if let Some(deployment) = running.filter(|_| chosen.is_empty() && path.snapshot.knows("pods")) {
        let has = labels_text(deployment.at("/spec/template/metadata/labels"));
        let says = format!("is {}, which no pod has: those of {} have {has}", labels_text(selector), deployment.title());
        return vec![Mistake::new(service, "spec.selector", says, &[Answer, NoPod])];
    }
    if let Some(refused) = hop.deployments.iter().find_map(|deployment| refused(deployment)).filter(|_| chosen.is_empty()) {
        return vec![refused];
    }
    if chosen.is_empty() && hop.deployments.is_empty() && selector.is_object() && path.snapshot.knows("pods") {
        return vec![Mistake::new(
            service,
            "spec.selector",
            format!("is {}, and no pod has that", labels_text(selector)),
            &[Answer, NoPod],
        )];
    }
    let mut out: Vec<Mistake> = too_wide(path, service, &chosen).into_iter().chain(named_target(hop, service)).collect();
    for deployment in &hop.deployments {
        out.extend(restarted(hop, deployment).or_else(|| trouble(hop, deployment)));
    }
    out
}

/// The Service leads to pods of other Services, too.
fn too_wide(path: &Path<'_>, service: &Object, chosen: &[&Object]) -> Option<Mistake> {
    let mut apps: Vec<&str> = chosen.iter().map(|pod| pod.label("app")).filter(|app| !app.is_empty()).collect();
    apps.sort_unstable();
    apps.dedup();
    let is_others = |app: &&str| *app != service.name() && path.snapshot.service(app, service.namespace()).is_some();
    let selector = labels_text(service.at("/spec/selector"));
    let says = || format!("is {selector}, which finds the pods of {}", apps.join(", "));
    let explains = &[Chain, Answer, Split, Retries, Slow];
    apps.iter().any(is_others).then(|| Mistake::new(service, "spec.selector", says(), explains))
}

/// The API server refuses the pods of a Deployment.
fn refused(deployment: &Object) -> Option<Mistake> {
    let conditions = deployment.list("/status/conditions").iter();
    let condition = conditions
        .into_iter()
        .find(|condition| text(condition, "/type") == "ReplicaFailure" && text(condition, "/status") == "True")?;
    let message = text(condition, "/message");
    let field = if message.contains("service account") {
        "spec.template.spec.serviceAccountName"
    } else if message.contains("violates PodSecurity") {
        "spec.template.spec.securityContext"
    } else if message.contains("quota") || message.contains("LimitRange") || message.contains("per Container is") {
        "spec.template.spec.containers[0].resources"
    } else {
        "spec.template.spec"
    };
    Some(Mistake::new(deployment, field, format!("lets no pod be made: {message}"), &[Answer, NoPod]))
}

fn is_chosen(selector: &Value, deployment: &Object) -> bool {
    is_selected(deployment.at("/spec/template/metadata/labels"), selector)
}

/// A `targetPort` by a name that no container has: the Service has no endpoints.
fn named_target(hop: &Hop<'_>, service: &Object) -> Vec<Mistake> {
    let Some((index, port)) = hop.service_port() else { return Vec::new() };
    let Some(name) = at(port, "/targetPort").as_str() else { return Vec::new() };
    let Some(pod) = hop.pods.first().filter(|pod| named_port(pod.at("/spec"), name).is_none()) else { return Vec::new() };
    let containers = list(pod.at("/spec"), "/containers").iter().flat_map(|container| list(container, "/ports"));
    let names: Vec<&str> = containers.map(|port| text(port, "/name")).filter(|name| !name.is_empty()).collect();
    let says = format!("is {name}, and no container of {} names a port so: there is {}", pod.name(), names.join(", "));
    vec![Mistake::new(service, format!("spec.ports[{index}].targetPort"), says, &[Answer, NoPod])]
}

/// What a pod's containers are in, with the list of the Deployment where each stands.
fn statuses(pod: &Object) -> impl Iterator<Item = (&'static str, &Value)> {
    let lists = [("containers", "/status/containerStatuses"), ("initContainers", "/status/initContainerStatuses")];
    lists.into_iter().flat_map(|(list, pointer)| pod.list(pointer).iter().map(move |status| (list, status)))
}

/// The field of the Deployment for a container that a status is about; of the sidecar the annotation that the injector reads.
fn field_of(deployment: &Object, (list, status): (&str, &Value), rest: &str) -> String {
    let name = text(status, "/name");
    let own = deployment.list(&format!("/spec/template/spec/{list}"));
    if name == PROXY && !own.iter().any(|container| text(container, "/name") == name) {
        let annotation = match rest {
            "image" => "sidecar.istio.io/proxyImage",
            "resources.limits.memory" => "sidecar.istio.io/proxyMemoryLimit",
            _ => "proxy.istio.io/config",
        };
        return format!("spec.template.metadata.annotations[{annotation}]");
    }
    let index = own.iter().position(|container| text(container, "/name") == name).unwrap_or(0);
    format!("spec.template.spec.{list}[{index}].{rest}")
}

/// A probe that fails for good ends the container again and again.
fn restarted(hop: &Hop<'_>, deployment: &Object) -> Option<Mistake> {
    if hop.is_foreign || env(hop, "SERVICE_NAME").is_none() {
        return None;
    }
    let wanted = deployment.at("/spec/selector/matchLabels");
    let own = |status: &Value| text(status, "/name") == deployment.text("/spec/template/spec/containers/0/name");
    let again = |status: &Value| own(status) && number(at(status, "/restartCount")).is_some_and(|count| count > 0);
    let pods = hop.pods.iter().copied().filter(|pod| pod.is_selected_by(wanted) && !is_leaving(pod));
    let pod = pods.into_iter().find(|pod| statuses(pod).any(|(_, status)| again(status)))?;
    let found =
        ["livenessProbe", "startupProbe"].into_iter().find_map(|kind| Some((kind, wrong_probe(hop, deployment, pod, kind)?)));
    let (kind, (rest, says)) = found?;
    let field = format!("spec.template.spec.containers[0].{kind}.{rest}");
    let says = format!("{says}: {} is ended again and again", pod.name());
    Some(Mistake::new(deployment, field, says, &[Answer, NoPod, Retries, Slow, Split]).standing())
}

/// A probe that asks where the app does not answer.
fn wrong_probe(hop: &Hop<'_>, deployment: &Object, pod: &Object, kind: &str) -> Option<(&'static str, String)> {
    let probe = deployment.at(&format!("/spec/template/spec/containers/0/{kind}/httpGet"));
    let port = match at(probe, "/port") {
        Value::String(name) => named_port(pod.at("/spec"), name),
        port => number(port),
    };
    if let (Some(port), Some(listens)) = (port, hop.target_port())
        && port != listens
    {
        return Some(("httpGet.port", format!("is {port}, and the app listens on {listens}")));
    }
    let is_known = |path: &str| matches!(path, "/readyz" | "/healthz" | "/metrics") || is_of_chain(path);
    let path = at(probe, "/path").as_str().filter(|path| !is_known(path))?;
    Some(("httpGet.path", format!("is {path}, which the app does not answer with 200")))
}

/// Why pods of a Deployment are not ready: the newest, which a change of the Deployment made.
fn trouble(hop: &Hop<'_>, deployment: &Object) -> Option<Mistake> {
    let wanted = deployment.at("/spec/selector/matchLabels");
    let mut pods: Vec<&Object> =
        hop.pods.iter().copied().filter(|pod| pod.is_selected_by(wanted) && !is_ready(pod) && !is_leaving(pod)).collect();
    pods.sort_by_key(|pod| pod.age_order());
    let pod = pods.pop()?;
    // A container that waits for the others to be initialized has no trouble of its own.
    let reason = |status: &Value| text(status, "/state/waiting/reason").to_owned();
    let waits = |(_, status): &(_, &Value)| !matches!(reason(status).as_str(), "" | "PodInitializing" | "ContainerCreating");
    let waiting = statuses(pod).find(waits);
    let field = |rest: &str| waiting.map_or_else(String::new, |of| field_of(deployment, of, rest));
    let explains: &[_] = &[Answer, NoPod, Retries, Slow, Split];
    let of = |field: String, says: String| Some(Mistake::new(deployment, field, says, explains));
    let shown = waiting.map(|(_, status)| reason(status));
    match shown.as_deref() {
        Some(reason @ ("ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull")) => {
            let image = waiting.map_or("", |(_, status)| text(status, "/image"));
            of(field("image"), format!("is {image}, which cannot be pulled ({reason} at {})", pod.name()))
        }
        Some("CrashLoopBackOff") => {
            let ended = waiting.and_then(|(_, status)| {
                let code = number(at(status, "/lastState/terminated/exitCode"))?;
                Some((code, text(status, "/lastState/terminated/reason")))
            });
            let why = ended.map_or_else(String::new, |(code, reason)| format!(", last with exit code {code} ({reason})"));
            let has = |name: &str| !deployment.list(&format!("/spec/template/spec/containers/0/{name}")).is_empty();
            let rest = match ended {
                Some((_, "OOMKilled")) => "resources.limits.memory",
                Some((_, "StartError" | "ContainerCannotRun")) if has("command") => "command",
                // Wrong usage.
                Some((2, _)) if has("args") => "args",
                _ => "env",
            };
            of(field(rest), format!("does not let the container run: {} ends again and again{why}", pod.name()))
        }
        Some(reason @ ("RunContainerError" | "CreateContainerError")) => {
            of(field("command"), format!("does not let the container start ({reason} at {})", pod.name()))
        }
        Some(reason @ "CreateContainerConfigError") => {
            of(field("env"), format!("names what is not there ({reason} at {})", pod.name()))
        }
        _ if let Some(found) = proxy(deployment, pod) => Some(found),
        _ if text(pod.at("/status"), "/phase") == "Pending" => {
            let scheduled = pod
                .list("/status/conditions")
                .iter()
                .find(|condition| text(condition, "/type") == "PodScheduled" && text(condition, "/status") == "False");
            scheduled.and_then(|condition| {
                of("spec.template.spec".to_owned(), format!("does not fit on any node: {}", text(condition, "/message")))
            })
        }
        _ => probe(hop, deployment, pod),
    }
}

/// The sidecar is told something by an annotation with which it does not get ready.
fn proxy(deployment: &Object, pod: &Object) -> Option<Mistake> {
    const CONFIG: &str = "proxy.istio.io/config";
    let value = deployment.at("/spec/template/metadata/annotations").get(CONFIG)?.as_str()?;
    let is_stuck = |(_, status): (_, &Value)| text(status, "/name") == PROXY && at(status, "/ready").as_bool() == Some(false);
    let says = format!("is {}: the sidecar of {} does not get ready with it", clip(value), pod.name());
    let field = format!("spec.template.metadata.annotations[{CONFIG}]");
    let explains: &[_] = &[Answer, NoPod, Retries, Slow, Split];
    statuses(pod).any(is_stuck).then(|| Mistake::new(deployment, field, says, explains))
}

/// The app runs and its readiness probe fails.
fn probe(hop: &Hop<'_>, deployment: &Object, pod: &Object) -> Option<Mistake> {
    // An app that listens where the kubelet does not ask is no matter of the probe.
    if ports::on_loopback(hop).or_else(|| ports::misdeclared(hop)).is_some() {
        return None;
    }
    let explains: &[_] = &[Answer, NoPod, Retries, Slow, Split];
    let new = |kind: &str, rest: &str, says: String| {
        Mistake::new(deployment, format!("spec.template.spec.containers[0].{kind}.{rest}"), says, explains)
    };
    for kind in ["startupProbe", "readinessProbe"] {
        if let Some((rest, says)) = wrong_probe(hop, deployment, pod, kind) {
            return Some(new(kind, rest, format!("{says}: {} is never ready", pod.name())));
        }
    }
    at(deployment.at("/spec/template/spec/containers/0/readinessProbe"), "/httpGet/path").as_str()?;
    Some(new("readinessProbe", "httpGet", format!("fails at {}: the app says that it is not ready", pod.name())))
}

pub(super) fn is_ready(pod: &Object) -> bool {
    pod.list("/status/conditions")
        .iter()
        .any(|condition| text(condition, "/type") == "Ready" && text(condition, "/status") == "True")
}

pub(super) fn is_leaving(pod: &Object) -> bool {
    !pod.at("/metadata/deletionTimestamp").is_null()
}
