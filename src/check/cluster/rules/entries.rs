//! Endpoints that no pod stands behind: ServiceEntries, WorkloadEntries and EndpointSlices made by hand; and what a
//! DestinationRule limits or ejects.

use crate::check::cluster::mistake::Symptom::{Answer, NoPod, Overload, Retries, Slow, Split};
use crate::check::cluster::mistake::{EVERYTHING, Mistake};
use crate::check::cluster::object::{Object, at, covers, full_host, is_selected, number, seconds, text, texts};
use crate::check::cluster::path::{Hop, Path};
use crate::check::cluster::routing::{destination_rules, is_visible, policy};

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for hop in &path.hops {
        let found = service_entries(path, hop).into_iter().chain(slices(path, hop)).chain(limits(path, hop));
        out.extend(found.map(|mistake| mistake.seam(path, hop)));
    }
    out
}

/// Also what one pod of several does may come from an endpoint that is no pod.
const EXPLAINS: &[crate::check::cluster::mistake::Symptom] = &[Answer, Slow, Retries, Split, NoPod];

/// A ServiceEntry for the very host of a Service adds its endpoints to the Service's, or takes their place.
fn service_entries(path: &Path<'_>, hop: &Hop<'_>) -> Vec<Mistake> {
    let (host, namespace) = (hop.full_name(), path.calling_namespace(hop));
    let hosts = [host.as_str(), hop.call.host.as_str()];
    // Where another namespace has an entry for the host, proxies obey the Service.
    let own = hop.service.map_or("", |service| service.namespace());
    let is_own = |entry: &&Object| {
        let is_seen = namespace.is_empty() || is_visible(entry, namespace);
        is_seen
            && entry.namespace() == own
            && entry
                .texts("/spec/hosts")
                .iter()
                .any(|name| hosts.iter().any(|host| covers(&full_host(name, entry.namespace()), host)))
    };
    let entries = path.snapshot.all("ServiceEntry").into_iter().filter(|_| hop.service.is_some()).filter(is_own);
    entries
        .map(|entry| {
            let addresses: Vec<&str> = entry.list("/spec/endpoints").iter().map(|endpoint| text(endpoint, "/address")).collect();
            if addresses.is_empty() {
                let index = 0;
                let says = format!(
                    "is {}: a ServiceEntry for a host that is a Service's already",
                    entry.texts("/spec/hosts").join(", ")
                );
                return Mistake::new(entry, format!("spec.hosts[{index}]"), says, EVERYTHING);
            }
            let says = format!("is {}: endpoints of {host} beside the pods of the Service", addresses.join(", "));
            Mistake::new(entry, "spec.endpoints[0].address", says, EVERYTHING)
        })
        .collect()
}

/// EndpointSlices of the Service with addresses that are no pod's, and WorkloadEntries that the Service selects.
fn slices(path: &Path<'_>, hop: &Hop<'_>) -> Vec<Mistake> {
    let Some(service) = hop.service else { return Vec::new() };
    let mut out = Vec::new();
    let own = path.snapshot.all("EndpointSlice").into_iter();
    let own = own
        .filter(|slice| slice.namespace() == service.namespace() && slice.label("kubernetes.io/service-name") == service.name());
    for slice in own {
        for (index, endpoint) in slice.list("/endpoints").iter().enumerate() {
            let addresses = texts(endpoint, "/addresses");
            if text(endpoint, "/targetRef/kind") != "Pod" && service.at("/spec/selector").is_object() {
                let says =
                    format!("is {}, which is no pod's: an endpoint that was left over or made by hand", addresses.join(", "));
                out.push(Mistake::new(slice, format!("endpoints[{index}].addresses"), says, EXPLAINS));
            }
        }
    }
    for entry in path.snapshot.all("WorkloadEntry") {
        let labels = at_labels(entry);
        if entry.namespace() == service.namespace()
            && service.at("/spec/selector").is_object()
            && is_selected(labels, service.at("/spec/selector"))
        {
            let says = format!("is {}: {} selects it beside its pods", entry.text("/spec/address"), service.title());
            out.push(Mistake::new(entry, "spec.address", says, EXPLAINS));
        }
    }
    out
}

fn at_labels(entry: &Object) -> &serde_json::Value {
    entry.at("/spec/labels")
}

/// Limits of a circuit breaker.
const LIMITS: [&str; 3] = [
    "/connectionPool/http/http1MaxPendingRequests",
    "/connectionPool/http/http2MaxRequests",
    "/connectionPool/tcp/maxConnections",
];

/// Limits of a DestinationRule: they matter only where calls are refused, wait, or find no pod.
fn limits(path: &Path<'_>, hop: &Hop<'_>) -> Vec<Mistake> {
    let namespace = path.calling_namespace(hop);
    let mut out = Vec::new();
    for to in &hop.destinations {
        let rules = destination_rules(path.snapshot, &to.host, namespace);
        let mut add = |pointer: &str, explains: &[_], says: &dyn Fn(&str) -> String| {
            if let Some((rule, field, value)) = policy(&rules, to, pointer) {
                let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                out.push(Mistake::new(rule, field, says(&shown), explains));
            }
        };
        for pointer in LIMITS {
            let set = LIMITS.iter().filter(|other| **other != pointer);
            let set = set.filter_map(|other| Some((other.rsplit('/').next()?, policy(&rules, to, other)?.2)));
            let others: Vec<String> = set.map(|(name, value)| format!("{name} is {value}")).collect();
            let others = if others.is_empty() { String::new() } else { format!(", {}", others.join(", ")) };
            add(pointer, &[Overload], &|value| {
                format!("is {value}{others}: fewer than this load needs, and Envoy refuses the rest (503, flag UO)")
            });
        }
        if let Some((_, _, value)) = policy(&rules, to, "/connectionPool/tcp/connectTimeout")
            && value.as_str().and_then(seconds).is_some_and(|seconds| seconds < 0.1)
        {
            add("/connectionPool/tcp/connectTimeout", &[Answer, Slow], &|value| {
                format!("is {value}: shorter than a connection takes")
            });
        }
        if let Some((_, _, value)) = policy(&rules, to, "/outlierDetection")
            && value.is_object()
        {
            let errors = ["consecutive5xxErrors", "consecutiveGatewayErrors"]
                .into_iter()
                .find_map(|name| Some((name, number(at(value, &format!("/{name}")))?)));
            let when = errors.map_or_else(String::new, |(name, errors)| format!(" ({name}: {errors})"));
            add("/outlierDetection", &[NoPod, Split], &|_| {
                format!("ejects pods that fail{when}: none is left for a while, or the others take their share")
            });
        }
        add("/loadBalancer/consistentHash", &[Split], &|_| {
            "sends requests that are alike to the same pod, not in turn".to_owned()
        });
    }
    out
}
