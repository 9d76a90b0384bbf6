//! Where a route sends requests: Services, their ports, subsets and weights.

use serde_json::Value;

use crate::check::chain::expect::is_named;
use crate::check::cluster::mistake::Symptom::{Answer, Chain, Lanes, NoPod, Retries, Split};
use crate::check::cluster::mistake::{EVERYTHING, Mistake};
use crate::check::cluster::object::{
    Object, at, covers, full_host, is_selected, labels_text, list, number, service_of, text, texts,
};
use crate::check::cluster::path::{Hop, Path, base_name, selects};
use crate::check::cluster::routing::{Choice, Destination, destination_rules, is_visible, subset};
use crate::check::cluster::snapshot::ROOT_NAMESPACE;

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for hop in &path.hops {
        for to in &hop.destinations {
            let found = hop.choice.as_ref().and_then(|choice| host(path, hop, choice, to)).into_iter();
            let found: Vec<Mistake> = found.chain(of_subset(path, hop, to)).collect();
            out.extend(found.into_iter().map(|mistake| mistake.seam(path, hop)));
        }
        out.extend(hop.choice.as_ref().and_then(|choice| weights(hop, choice)).map(|mistake| mistake.seam(path, hop)));
    }
    out
}

/// The destination's Service and port.
fn host(path: &Path<'_>, hop: &Hop<'_>, choice: &Choice<'_>, to: &Destination<'_>) -> Option<Mistake> {
    let index = to.index?;
    let field = |rest: &str| choice.field(&format!("route[{index}].destination.{rest}"));
    let parts = to.host.ends_with(".svc.cluster.local").then(|| service_of(&to.host, "")).flatten();
    let service = parts.and_then(|(name, namespace)| path.snapshot.service(name, namespace));
    let by_entry = path
        .snapshot
        .all("ServiceEntry")
        .into_iter()
        .any(|entry| entry.texts("/spec/hosts").iter().any(|host| covers(host, &to.host)));
    let Some(service) = service else {
        if by_entry || !path.snapshot.knows("services") {
            return None;
        }
        let written = text(choice.rule, &format!("/route/{index}/destination/host"));
        return Some(Mistake::new(
            choice.object,
            field("host"),
            format!("is {written}, {}", no_service(path, written, choice.object.namespace())),
            &[Answer],
        ));
    };
    let ports = service.list("/spec/ports");
    let numbers: Vec<String> = ports.iter().map(|port| at(port, "/port").to_string()).collect();
    match to.port {
        Some(port) if !ports.iter().any(|own| number(at(own, "/port")) == Some(port)) && is_agreed(path, hop, choice, to) => {
            let says = format!("is {}, and all that lead to the Service ask for {port}", numbers.join(", "));
            Some(Mistake::new(service, "spec.ports[0].port", says, EVERYTHING))
        }
        Some(port) if !ports.iter().any(|own| number(at(own, "/port")) == Some(port)) => {
            let says = format!("is {port}, and {} has {}", service.title(), numbers.join(", "));
            Some(Mistake::new(choice.object, field("port.number"), says, &[Answer]))
        }
        None if ports.len() > 1 => {
            let says = format!("is not set, and {} has several: {}", service.title(), numbers.join(", "));
            Some(Mistake::new(choice.object, field("port.number"), says, &[Answer]))
        }
        _ if hop.caller.is_none() && is_astray(path, hop, service) => {
            let first = path.expected_first().unwrap_or_default();
            let says = format!("is {}, and {first} is expected first", to.host);
            Some(Mistake::new(choice.object, field("host"), says, &[Answer, Chain, Split]))
        }
        _ if hop.service.is_some_and(|own| own.title() != service.title()) && hop.answered => {
            let says = format!("is {}, which is another Service than {} that the caller asks for", to.host, hop.name);
            Some(Mistake::new(choice.object, field("host"), says, &[Answer, Split]))
        }
        _ => None,
    }
}

/// Whether others ask for the port of this destination, too: then it is the Service that differs.
fn is_agreed(path: &Path<'_>, hop: &Hop<'_>, choice: &Choice<'_>, to: &Destination<'_>) -> bool {
    if hop.caller.is_some() {
        return hop.call.port == to.port;
    }
    let services = path.snapshot.all("VirtualService").into_iter();
    let mut rules = services.flat_map(|object| object.list("/spec/http").iter().enumerate().map(move |rule| (object, rule)));
    rules.any(|(object, (index, rule))| {
        let leads = |route: &Value| {
            full_host(text(route, "/destination/host"), object.namespace()) == to.host
                && number(at(route, "/destination/port/number")) == to.port
        };
        (object.title() != choice.object.title() || index != choice.index) && list(rule, "/route").iter().any(leads)
    })
}

/// Whether the request is sent to another Service than that of the hop that is expected first.
fn is_astray(path: &Path<'_>, hop: &Hop<'_>, service: &Object) -> bool {
    let Some(first) = path.expected_first() else { return false };
    let is_right = hop.answered && is_named(&hop.name, first);
    let own = base_name(first);
    let is_variant = service.name().strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    !is_right && !is_variant && path.snapshot.service(own, service.namespace()).is_some()
}

/// Why a host is no Service: what it may have meant.
fn no_service(path: &Path<'_>, written: &str, namespace: &str) -> String {
    let name = written.split('.').next().unwrap_or_default();
    let like = path.snapshot.services_like(name);
    let full = |service: &&Object| format!("{}.{}.svc.cluster.local", service.name(), service.namespace());
    if written.contains('.') && !written.ends_with(".svc.cluster.local") {
        let meant = like.first().map_or_else(String::new, |service| format!(": write {}", full(service)));
        return format!("which is no Service's full name{meant}");
    }
    let meant: Vec<String> = like.iter().take(3).map(full).collect();
    let hint = if meant.is_empty() { String::new() } else { format!("; there is {}", meant.join(", ")) };
    format!(
        "and there is no such Service{}{hint}",
        if written.contains('.') { String::new() } else { format!(" in {namespace}") }
    )
}

/// The subset that a route names: that some DestinationRule has it, and that it selects a pod.
fn of_subset(path: &Path<'_>, hop: &Hop<'_>, to: &Destination<'_>) -> Option<Mistake> {
    let name = to.subset?;
    let choice = hop.choice.as_ref()?;
    let namespace = path.calling_namespace(hop);
    let rules = destination_rules(path.snapshot, &to.host, namespace);
    let Some((rule, index, found)) = subset(&rules, name) else {
        return Some(no_subset(path, hop, choice, to, &rules));
    };
    let (service, own) = service_of(&to.host, "")?;
    let service = path.snapshot.service(service, own)?;
    let labels = at(found, "/labels");
    let pods: Vec<&Object> = path.snapshot.all("Pod").into_iter().filter(|pod| selects(service, pod)).collect();
    let chosen = |pod: &&&Object| is_selected(pod.at("/metadata/labels"), labels);
    if pods.is_empty() || pods.iter().any(|pod| chosen(&pod)) {
        return None;
    }
    let keys: Vec<&str> = labels.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let mut have: Vec<String> = pods
        .iter()
        .map(|pod| keys.iter().map(|key| format!("{key}={}", pod.label(key))).collect::<Vec<_>>().join(", "))
        .collect();
    have.sort();
    have.dedup();
    let says = format!("is {}, which no pod of {} has: there is {}", labels_text(labels), service.name(), have.join(" and "));
    Some(Mistake::new(rule, format!("spec.subsets[{index}].labels"), says, &[Answer, NoPod, Lanes, Retries, Split]))
}

fn no_subset(path: &Path<'_>, hop: &Hop<'_>, choice: &Choice<'_>, to: &Destination<'_>, rules: &[&Object]) -> Mistake {
    let name = to.subset.unwrap_or_default();
    let namespace = path.calling_namespace(hop);
    let having: Vec<&Object> =
        path.snapshot.all("DestinationRule").into_iter().filter(|rule| subset(&[*rule], name).is_some()).collect();
    // Only those of the caller's namespace, of the Service's and of the mesh's count.
    let places = [namespace, to.host.split('.').nth(1).unwrap_or_default(), ROOT_NAMESPACE];
    let own = |rule: &&&Object| {
        places.contains(&rule.namespace()) && covers(&full_host(rule.text("/spec/host"), rule.namespace()), &to.host)
    };
    // The subset is there, and this caller does not see it.
    if let Some(hidden) = having.iter().find(own) {
        let exported = hidden.texts("/spec/exportTo").join(", ");
        return if is_visible(hidden, namespace) {
            let says = format!(
                "is {name}; {} has that subset, and {} counts in its place for callers in {namespace}",
                hidden.title(),
                rules.first().map_or_else(String::new, |rule| rule.title())
            );
            Mistake::new(
                choice.object,
                choice.field(&format!("route[{}].destination.subset", to.index.unwrap_or(0))),
                says,
                &[Answer, Lanes],
            )
        } else {
            Mistake::new(
                hidden,
                "spec.exportTo",
                format!("is {exported}: callers in {namespace} do not see the subset {name}"),
                &[Answer, Lanes],
            )
        };
    }
    // It is in a rule for a host that nobody has, while this host has none.
    let astray = having.iter().find(|rule| {
        let host = full_host(rule.text("/spec/host"), rule.namespace());
        let mut entries = path.snapshot.all("ServiceEntry").into_iter().flat_map(|entry| entry.texts("/spec/hosts"));
        rules.is_empty()
            && path.is_ours(rule.namespace())
            && !entries.any(|entry| covers(entry, &host))
            && service_of(&host, "").is_none_or(|(name, namespace)| {
                path.snapshot.service(name, namespace).is_none() || !host.ends_with("cluster.local")
            })
    });
    if let Some(astray) = astray {
        let says = format!("is {}, which is no Service's name, so {} has no subset {name}", astray.text("/spec/host"), to.host);
        return Mistake::new(astray, "spec.host", says, &[Answer, Lanes]);
    }
    // A rule in a namespace where nobody calls was meant for these callers.
    let is_somebodys = |namespace: &str| {
        path.snapshot.all("Service").into_iter().any(|service| service.namespace() == namespace && service.name() != "kubernetes")
    };
    let is_for = |rule: &&&Object| {
        covers(&full_host(rule.text("/spec/host"), rule.namespace()), &to.host) && !is_somebodys(rule.namespace())
    };
    if let Some(elsewhere) = having.iter().find(is_for) {
        let says = format!(
            "is {}: callers in {namespace} obey rules of their own namespace, of the Service's and of {ROOT_NAMESPACE}, and none there has the subset {name}",
            elsewhere.namespace()
        );
        return Mistake::new(elsewhere, "metadata.namespace", says, &[Answer, Lanes]);
    }
    let names: Vec<&str> = rules.iter().flat_map(|rule| rule.list("/spec/subsets")).map(|subset| text(subset, "/name")).collect();
    let has = match (rules.first(), names.is_empty()) {
        (None, _) => format!("and no DestinationRule is for {}", to.host),
        (Some(rule), true) => format!("and {} has no subsets", rule.title()),
        (Some(rule), false) => format!("and {} has {}", rule.title(), names.join(", ")),
    };
    let field = choice.field(&format!("route[{}].destination.subset", to.index.unwrap_or(0)));
    Mistake::new(choice.object, field, format!("is {name}, {has}"), &[Answer, Lanes])
}

/// The shares of a route.
fn weights(hop: &Hop<'_>, choice: &Choice<'_>) -> Option<Mistake> {
    let weighted: Vec<String> =
        hop.destinations.iter().filter_map(|to| Some(format!("{} {}", to.subset.unwrap_or(&to.host), to.weight?))).collect();
    if weighted.is_empty() {
        return None;
    }
    let sum: u64 = hop.destinations.iter().filter_map(|to| to.weight).sum();
    let of = if sum == 100 { String::new() } else { format!(", of {sum} in all") };
    Some(Mistake::new(
        choice.object,
        choice.field("route[0].weight"),
        format!("and the others are {}{of}: other shares than expected", weighted.join(", ")),
        &[Split],
    ))
}

/// Hosts that a list of patterns has, for a sentence.
pub(super) fn listed(value: &Value, pointer: &str) -> String {
    texts(value, pointer).join(", ")
}
