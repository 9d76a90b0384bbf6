//! Services without pods, pods that are not ready, Deployments that run none.

use serde_json::Value;

use crate::check::cluster::mistake::Symptom::{Answer, NoPod, Retries, Slow, Split};
use crate::check::cluster::mistake::{EVERYTHING, Mistake};
use crate::check::cluster::object::{Object, at, is_selected, labels_text, list, number, service_of, text};
use crate::check::cluster::path::{Hop, Path, env, named_port, selects};
use crate::check::cluster::rules::ports;

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
    let mut out = named_target(hop, service);
    out.extend(hop.deployments.iter().filter_map(|deployment| trouble(hop, deployment)));
    out
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

/// Why pods of a Deployment are not ready: the newest, which a change of the Deployment made.
fn trouble(hop: &Hop<'_>, deployment: &Object) -> Option<Mistake> {
    let wanted = deployment.at("/spec/selector/matchLabels");
    let mut pods: Vec<&Object> =
        hop.pods.iter().copied().filter(|pod| pod.is_selected_by(wanted) && !is_ready(pod) && !is_leaving(pod)).collect();
    pods.sort_by_key(|pod| pod.age_order());
    let pod = pods.pop()?;
    let statuses = ["/status/containerStatuses", "/status/initContainerStatuses"].iter().flat_map(|pointer| pod.list(pointer));
    let spec = |rest: &str| format!("spec.template.spec.containers[0].{rest}");
    let waiting = statuses.clone().map(|status| text(status, "/state/waiting/reason")).find(|reason| !reason.is_empty());
    let explains: &[_] = &[Answer, NoPod, Retries, Slow, Split];
    let of = |field: String, says: String| Some(Mistake::new(deployment, field, says, explains));
    match waiting {
        Some(reason @ ("ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull")) => {
            let image = deployment.text("/spec/template/spec/containers/0/image");
            of(spec("image"), format!("is {image}, which cannot be pulled ({reason} at {})", pod.name()))
        }
        Some("CrashLoopBackOff") => {
            let ended = statuses.clone().find_map(|status| {
                number(at(status, "/lastState/terminated/exitCode"))
                    .map(|code| (code, text(status, "/lastState/terminated/reason")))
            });
            let why = ended.map_or_else(String::new, |(code, reason)| format!(", last with exit code {code} ({reason})"));
            let field = if ended.is_some_and(|(_, reason)| reason == "OOMKilled") { "resources.limits.memory" } else { "env" };
            of(spec(field), format!("does not let the container run: {} ends again and again{why}", pod.name()))
        }
        Some(reason @ "CreateContainerConfigError") => {
            of(spec("env"), format!("names what is not there ({reason} at {})", pod.name()))
        }
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

/// The app runs and its readiness probe fails.
fn probe(hop: &Hop<'_>, deployment: &Object, pod: &Object) -> Option<Mistake> {
    let field = |rest: &str| format!("spec.template.spec.containers[0].readinessProbe.{rest}");
    // An app that listens where the kubelet does not ask is no matter of the probe.
    if ports::on_loopback(hop).is_some() {
        return None;
    }
    let probe = deployment.at("/spec/template/spec/containers/0/readinessProbe");
    let path = at(probe, "/httpGet/path").as_str()?;
    let port = match at(probe, "/httpGet/port") {
        Value::String(name) => named_port(pod.at("/spec"), name),
        port => number(port),
    };
    let explains: &[_] = &[Answer, NoPod, Retries, Slow, Split];
    let listens = hop.target_port();
    if let (Some(port), Some(listens)) = (port, listens)
        && port != listens
    {
        let says = format!("is {port}, and the app listens on {listens}: {} is never ready", pod.name());
        return Some(Mistake::new(deployment, field("httpGet.port"), says, explains));
    }
    let (rest, says) = match path {
        "/readyz" | "/healthz" => ("httpGet", format!("fails at {}: the app says that it is not ready", pod.name())),
        path => ("httpGet.path", format!("is {path}, which the app does not answer with 200: {} is never ready", pod.name())),
    };
    Some(Mistake::new(deployment, field(rest), says, explains))
}

pub(super) fn is_ready(pod: &Object) -> bool {
    pod.list("/status/conditions")
        .iter()
        .any(|condition| text(condition, "/type") == "Ready" && text(condition, "/status") == "True")
}

pub(super) fn is_leaving(pod: &Object) -> bool {
    !pod.at("/metadata/deletionTimestamp").is_null()
}
