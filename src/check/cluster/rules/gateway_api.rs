//! The Gateway API: backends that are not there, and what its controllers write into the status.

use serde_json::Value;

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{Answer, Connection, NoPod};
use crate::check::cluster::object::{Object, at, covers, list, number, text};
use crate::check::cluster::path::Path;

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    let routes: Vec<&Object> =
        path.snapshot.all("HTTPRoute").into_iter().filter(|route| path.is_ours(route.namespace())).collect();
    for route in &routes {
        // As a route between two hops, for the one whose Service is its parent; and as one of the gateway.
        let called = path.hops.iter().filter(|hop| hop.caller.is_some() && has_parent(route, hop.service));
        out.extend(
            called.flat_map(|hop| of_route(path, route, &hop.call.path).into_iter().map(|mistake| mistake.seam(path, hop))),
        );
        let hosts = route.texts("/spec/hostnames");
        let is_of_gateway = || route.list("/spec/parentRefs").iter().any(|parent| text(parent, "/kind") != "Service");
        if hosts.iter().any(|pattern| covers(pattern, &path.host)) || (hosts.is_empty() && is_of_gateway()) {
            out.extend(of_route(path, route, &path.path).into_iter().map(Mistake::front));
        }
    }
    for gateway in path.snapshot.api_gateways().into_iter().filter(|gateway| serves(path, gateway, &routes)) {
        let listeners = gateway
            .list("/status/listeners")
            .iter()
            .flat_map(|listener| list(listener, "/conditions").iter().map(move |condition| (text(listener, "/name"), condition)));
        let bad =
            listeners.filter(|(_, condition)| text(condition, "/status") == "False" && text(condition, "/type") != "Conflicted");
        out.extend(bad.map(|(name, condition)| of_listener(gateway, name, condition).front()));
    }
    out
}

/// What is wrong with the backends of the rules that take a path, else what the status says.
fn of_route(path: &Path<'_>, route: &Object, asked: &str) -> Vec<Mistake> {
    let rules = route.list("/spec/rules").iter().enumerate().filter(|(_, rule)| takes(rule, asked));
    let backends = rules.flat_map(|(rule, value)| {
        list(value, "/backendRefs").iter().enumerate().map(move |(index, backend)| (rule, index, backend))
    });
    let mut out: Vec<Mistake> =
        backends.filter_map(|(rule, index, backend)| missing(path, route, rule, index, backend)).collect();
    if out.is_empty() {
        let parents = route.list("/status/parents").iter();
        let conditions = parents.flat_map(|parent| list(parent, "/conditions"));
        let bad = conditions.filter(|condition| text(condition, "/status") == "False");
        out.extend(bad.map(|condition| of_condition(route, condition)));
    }
    out
}

/// Whether a rule takes a GET of this path.
fn takes(rule: &Value, asked: &str) -> bool {
    let fits = |one: &Value| {
        let value = text(one, "/path/value");
        let path = match text(one, "/path/type") {
            "Exact" => value == asked,
            "RegularExpression" => true,
            _ => asked.strip_prefix(value.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        let more = ["/headers", "/queryParams"].iter().any(|pointer| !list(one, pointer).is_empty());
        path && !more && matches!(text(one, "/method"), "" | "GET")
    };
    let matches = list(rule, "/matches");
    matches.is_empty() || matches.iter().any(fits)
}

/// A backend that no Service is.
fn missing(path: &Path<'_>, route: &Object, rule: usize, index: usize, backend: &Value) -> Option<Mistake> {
    let is_service = text(backend, "/group").is_empty() && matches!(text(backend, "/kind"), "" | "Service");
    let name = text(backend, "/name");
    let namespace = Some(text(backend, "/namespace")).filter(|name| !name.is_empty()).unwrap_or(route.namespace());
    if !is_service || !path.snapshot.knows("services") {
        return None;
    }
    let field = |rest: &str| format!("spec.rules[{rule}].backendRefs[{index}].{rest}");
    let explains = &[Answer, NoPod];
    let Some(service) = path.snapshot.service(name, namespace) else {
        let says = format!("is {name}, and there is no Service {name} in {namespace}");
        return Some(Mistake::new(route, field("name"), says, explains));
    };
    let ports = service.list("/spec/ports");
    let port = number(at(backend, "/port"));
    let is_there = ports.iter().any(|own| port.is_some() && number(at(own, "/port")) == port);
    let has: Vec<String> = ports.iter().map(|port| at(port, "/port").to_string()).collect();
    let shown = port.map_or_else(|| "not set".to_owned(), |port| port.to_string());
    let says = format!("is {shown}, and {} has {}", service.title(), has.join(", "));
    (!is_there).then(|| Mistake::new(route, field("port"), says, explains))
}

/// Whether a Service is a route's parent.
fn has_parent(route: &Object, service: Option<&Object>) -> bool {
    let mut parents = route.list("/spec/parentRefs").iter().filter(|parent| text(parent, "/kind") == "Service");
    let namespace = |parent: &Value| match text(parent, "/namespace") {
        "" => route.namespace().to_owned(),
        namespace => namespace.to_owned(),
    };
    service.is_some_and(|service| {
        parents.any(|parent| text(parent, "/name") == service.name() && namespace(parent) == service.namespace())
    })
}

/// Whether a Gateway serves the host, as a parent of one of these routes or as one of the chain's own.
fn serves(path: &Path<'_>, gateway: &Object, routes: &[&Object]) -> bool {
    let mut hosts = gateway.list("/spec/listeners").iter().map(|listener| text(listener, "/hostname"));
    let is_parent = |parent: &Value| {
        text(parent, "/kind") != "Service"
            && text(parent, "/name") == gateway.name()
            && text(parent, "/namespace") == gateway.namespace()
    };
    hosts.any(|host| host.is_empty() || covers(host, &path.host))
        && gateway.text("/spec/gatewayClassName") != "istio-waypoint"
        && (path.is_ours(gateway.namespace()) || routes.iter().any(|route| route.list("/spec/parentRefs").iter().any(is_parent)))
}

fn condition_text(condition: &Value) -> String {
    format!("{} is False ({}): {}", text(condition, "/type"), text(condition, "/reason"), text(condition, "/message"))
}

fn of_condition(route: &Object, condition: &Value) -> Mistake {
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
    Mistake::new(route, field, format!("is not accepted: {}", condition_text(condition)), &[Answer, NoPod])
}

fn of_listener(gateway: &Object, name: &str, condition: &Value) -> Mistake {
    let index = gateway.list("/spec/listeners").iter().position(|listener| text(listener, "/name") == name).unwrap_or(0);
    let field = match text(condition, "/reason") {
        "InvalidCertificateRef" | "RefNotPermitted" => format!("spec.listeners[{index}].tls.certificateRefs[0]"),
        _ => format!("spec.listeners[{index}]"),
    };
    Mistake::new(gateway, field, format!("does not work: {}", condition_text(condition)), &[Connection, Answer])
}
