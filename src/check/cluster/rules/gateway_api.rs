//! The Gateway API: its controllers write into the status what does not fit.

use serde_json::Value;

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{Answer, Connection, NoPod};
use crate::check::cluster::object::{Object, covers, list, text};
use crate::check::cluster::path::Path;

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for route in path.snapshot.all("HTTPRoute").into_iter().filter(|route| concerns(path, route)) {
        for parent in route.list("/status/parents") {
            let bad = list(parent, "/conditions").iter().filter(|condition| text(condition, "/status") == "False");
            out.extend(bad.map(|condition| of_route(route, condition)));
        }
    }
    for gateway in path.snapshot.api_gateways().into_iter().filter(|gateway| serves(path, gateway)) {
        let listeners = gateway
            .list("/status/listeners")
            .iter()
            .flat_map(|listener| list(listener, "/conditions").iter().map(move |condition| (text(listener, "/name"), condition)));
        let bad =
            listeners.filter(|(_, condition)| text(condition, "/status") == "False" && text(condition, "/type") != "Conflicted");
        out.extend(bad.map(|(name, condition)| of_listener(gateway, name, condition)));
    }
    out.into_iter().map(Mistake::front).collect()
}

/// A route for the host of the URL, or for one of the hops.
fn concerns(path: &Path<'_>, route: &Object) -> bool {
    let hosts = route.texts("/spec/hostnames");
    let to_hop = || {
        let parents = route.list("/spec/parentRefs").iter();
        parents
            .filter(|parent| text(parent, "/kind") == "Service")
            .any(|parent| path.hops.iter().any(|hop| hop.service.is_some_and(|service| service.name() == text(parent, "/name"))))
    };
    hosts.iter().any(|pattern| covers(pattern, &path.host)) || to_hop()
}

fn serves(path: &Path<'_>, gateway: &Object) -> bool {
    let hosts = gateway.list("/spec/listeners").iter().map(|listener| text(listener, "/hostname"));
    hosts.into_iter().any(|host| host.is_empty() || covers(host, &path.host))
        && gateway.text("/spec/gatewayClassName") != "istio-waypoint"
}

fn said(condition: &Value) -> String {
    format!("{} is False ({}): {}", text(condition, "/type"), text(condition, "/reason"), text(condition, "/message"))
}

fn of_route(route: &Object, condition: &Value) -> Mistake {
    let field = match text(condition, "/reason") {
        "BackendNotFound" | "InvalidKind" | "RefNotPermitted" | "UnsupportedProtocol" => {
            let rules = route.list("/spec/rules").iter().enumerate();
            let named = rules.flat_map(|(rule, value)| {
                list(value, "/backendRefs").iter().enumerate().map(move |(index, backend)| (rule, index, backend))
            });
            let found = named.into_iter().find(|(_, _, backend)| text(condition, "/message").contains(text(backend, "/name")));
            let (rule, index) = found.map_or((0, 0), |(rule, index, _)| (rule, index));
            format!("spec.rules[{rule}].backendRefs[{index}]")
        }
        "NoMatchingListenerHostname" => "spec.hostnames".to_owned(),
        _ => "spec.parentRefs[0]".to_owned(),
    };
    Mistake::new(route, field, format!("is not accepted: {}", said(condition)), &[Answer, NoPod])
}

fn of_listener(gateway: &Object, name: &str, condition: &Value) -> Mistake {
    let index = gateway.list("/spec/listeners").iter().position(|listener| text(listener, "/name") == name).unwrap_or(0);
    let field = match text(condition, "/reason") {
        "InvalidCertificateRef" | "RefNotPermitted" => format!("spec.listeners[{index}].tls.certificateRefs[0]"),
        _ => format!("spec.listeners[{index}]"),
    };
    Mistake::new(gateway, field, format!("does not work: {}", said(condition)), &[Connection, Answer])
}
