//! How Istio routes one request, as its objects say: which rule of which VirtualService applies, which DestinationRule.

use serde_json::Value;

use crate::check::cluster::object::{Object, at, covers, full_host, is_exported, is_selected, list, number, text, texts};
use crate::check::cluster::snapshot::{ROOT_NAMESPACE, Snapshot};

/// The request at one seam, as far as a route may ask for it.
#[derive(Debug, Clone)]
pub(crate) struct SeamCall {
    pub(crate) host: String,
    pub(crate) port: Option<u64>,
    pub(crate) path: String,
    /// `mesh`, or the Gateways that serve the request, with their namespaces.
    pub(crate) gateways: Vec<String>,
}

/// The rule that applies: its VirtualService, and which of `spec.http` it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) object: &'a Object,
    pub(crate) index: usize,
    pub(crate) rule: &'a Value,
}

impl Choice<'_> {
    /// `spec.http[0].timeout`.
    pub(crate) fn field(&self, rest: &str) -> String {
        format!("spec.http[{}].{rest}", self.index)
    }
}

/// Where a rule sends requests.
#[derive(Debug, Clone)]
pub(crate) struct Destination<'a> {
    /// Which of the rule's `route` it is; `None` without a VirtualService.
    pub(crate) index: Option<usize>,
    pub(crate) host: String,
    pub(crate) subset: Option<&'a str>,
    pub(crate) port: Option<u64>,
    pub(crate) weight: Option<u64>,
}

/// Whether a VirtualService is bound to one of `gateways` (`mesh` or `namespace/name`).
pub(crate) fn is_bound(service: &Object, gateways: &[String]) -> bool {
    let bound = service.texts("/spec/gateways");
    let full = |name: &str| {
        if name == "mesh" || name.contains('/') { name.to_owned() } else { format!("{}/{name}", service.namespace()) }
    };
    if bound.is_empty() {
        return gateways.iter().any(|gateway| gateway == "mesh");
    }
    bound.iter().any(|name| gateways.contains(&full(name)))
}

/// Whether a VirtualService names this host.
pub(crate) fn names_host(service: &Object, host: &str) -> bool {
    service.texts("/spec/hosts").iter().any(|pattern| covers(&full_host(pattern, service.namespace()), host))
}

pub(crate) fn is_visible(object: &Object, namespace: &str) -> bool {
    is_exported(&object.texts("/spec/exportTo"), object.namespace(), namespace)
}

/// The VirtualServices that a client in `namespace` obeys for this call: those with the most specific host, oldest first.
pub(crate) fn virtual_services<'a>(snapshot: &'a Snapshot, call: &SeamCall, namespace: &str) -> Vec<&'a Object> {
    let mut found: Vec<&Object> = snapshot
        .all("VirtualService")
        .into_iter()
        .filter(|service| names_host(service, &call.host) && is_bound(service, &call.gateways) && is_visible(service, namespace))
        .collect();
    let exact =
        |service: &Object| service.texts("/spec/hosts").iter().any(|host| full_host(host, service.namespace()) == call.host);
    if found.iter().any(|service| exact(service)) {
        found.retain(|service| exact(service));
    }
    found
}

/// The rule of these VirtualServices that takes the call. In the mesh only the oldest of them counts; a gateway has the rules of
/// all, one object after the other.
pub(crate) fn choose<'a>(
    snapshot: &'a Snapshot,
    services: &[&'a Object],
    call: &SeamCall,
    client: &Value,
    namespace: &str,
) -> Option<Choice<'a>> {
    let is_mesh = call.gateways.iter().any(|gateway| gateway == "mesh");
    let services = if is_mesh { services.get(..1).unwrap_or_default() } else { services };
    let mut rules = services.iter().flat_map(|object| {
        let rules = object.list("/spec/http").iter().enumerate();
        rules.map(|(index, rule)| Choice { object, index, rule })
    });
    let chosen = rules.find(|choice| takes(choice.rule, call, client, namespace))?;
    Some(delegated(snapshot, chosen, call, client, namespace).unwrap_or(chosen))
}

/// The rule of the VirtualService that a rule delegates to.
fn delegated<'a>(
    snapshot: &'a Snapshot,
    choice: Choice<'a>,
    call: &SeamCall,
    client: &Value,
    namespace: &str,
) -> Option<Choice<'a>> {
    let delegate = choice.rule.get("delegate")?;
    let own = choice.object.namespace();
    let of = Some(text(delegate, "/namespace")).filter(|name| !name.is_empty()).unwrap_or(own);
    let object = snapshot.find("VirtualService", of, text(delegate, "/name"))?;
    let mut rules = object.list("/spec/http").iter().enumerate();
    rules.find(|(_, rule)| takes(rule, call, client, namespace)).map(|(index, rule)| Choice { object, index, rule })
}

/// Whether a rule takes the call. `client`: the labels of the caller's pods.
pub(crate) fn takes(rule: &Value, call: &SeamCall, client: &Value, namespace: &str) -> bool {
    let matches = list(rule, "/match");
    matches.is_empty() || matches.iter().any(|one| meets(one, call, client, namespace))
}

/// `check` sends GET, and none of the headers and parameters that routes ask for.
fn meets(one: &Value, call: &SeamCall, client: &Value, namespace: &str) -> bool {
    let string = |pointer: &str, value: &str| {
        let wanted = at(one, pointer);
        // What a regular expression accepts is not worked out here: it is taken to match.
        wanted.is_null()
            || wanted.get("exact").and_then(Value::as_str) == Some(value)
            || wanted.get("prefix").and_then(Value::as_str).is_some_and(|prefix| value.starts_with(prefix))
            || wanted.get("regex").is_some()
    };
    let path = call.path.split('?').next().unwrap_or_default();
    let gateways = texts(one, "/gateways");
    let empty = |pointer: &str| at(one, pointer).as_object().is_none_or(serde_json::Map::is_empty);
    string("/uri", path)
        && string("/method", "GET")
        && string("/authority", &call.host)
        && empty("/headers")
        && empty("/queryParams")
        && number(at(one, "/port")).is_none_or(|port| call.port.is_none_or(|called| called == port))
        && is_selected(client, at(one, "/sourceLabels"))
        && [text(one, "/sourceNamespace"), namespace].iter().any(|wanted| wanted.is_empty() || *wanted == namespace)
        && (text(one, "/sourceNamespace").is_empty() || text(one, "/sourceNamespace") == namespace)
        && (gateways.is_empty()
            || gateways
                .iter()
                .any(|name| call.gateways.iter().any(|gateway| gateway == name || gateway.ends_with(&format!("/{name}")))))
}

/// The destinations of a rule.
pub(crate) fn destinations<'a>(choice: &Choice<'a>) -> Vec<Destination<'a>> {
    let routes = list(choice.rule, "/route").iter().enumerate();
    let of = |(index, route): (usize, &'a Value)| Destination {
        index: Some(index),
        host: full_host(text(route, "/destination/host"), choice.object.namespace()),
        subset: Some(text(route, "/destination/subset")).filter(|subset| !subset.is_empty()),
        port: number(at(route, "/destination/port/number")),
        weight: number(at(route, "/weight")),
    };
    routes.map(of).collect()
}

/// The DestinationRules for a host that a client in `namespace` obeys: those of its own namespace, else of the Service's, else of the
/// whole mesh; several there are merged.
pub(crate) fn destination_rules<'a>(snapshot: &'a Snapshot, host: &str, namespace: &str) -> Vec<&'a Object> {
    let own = host.split('.').nth(1).unwrap_or_default();
    let of = |rule: &Object| full_host(rule.text("/spec/host"), rule.namespace());
    let all: Vec<&Object> = snapshot.all("DestinationRule").into_iter().filter(|rule| covers(&of(rule), host)).collect();
    [namespace, own, ROOT_NAMESPACE]
        .into_iter()
        .map(|from| {
            let mut rules: Vec<&Object> =
                all.iter().copied().filter(|rule| rule.namespace() == from && is_visible(rule, namespace)).collect();
            // Nothing of a rule for a wider pattern holds beside one for a nearer host.
            let nearest = rules.iter().map(|rule| nearness(&of(rule))).max();
            rules.retain(|rule| Some(nearness(&of(rule))) == nearest);
            rules
        })
        .find(|rules| !rules.is_empty())
        .unwrap_or_default()
}

/// How near a pattern is to the hosts that it covers: a name, else the longer pattern.
fn nearness(pattern: &str) -> usize {
    if pattern.starts_with('*') { pattern.len() } else { usize::MAX }
}

/// A subset by its name, with the object that has it and its place there.
pub(crate) fn subset<'a>(rules: &[&'a Object], name: &str) -> Option<(&'a Object, usize, &'a Value)> {
    rules.iter().find_map(|rule| {
        let (index, subset) = rule.list("/spec/subsets").iter().enumerate().find(|(_, subset)| text(subset, "/name") == name)?;
        Some((*rule, index, subset))
    })
}

/// A setting of a traffic policy that holds for a destination: of its subset, else of the port, else of the rule.
pub(crate) fn policy<'a>(rules: &[&'a Object], to: &Destination<'_>, pointer: &str) -> Option<(&'a Object, String, &'a Value)> {
    let dotted = pointer.replace('/', ".");
    let within = |policy: &'a Value, prefix: &str| {
        let ports = list(policy, "/portLevelSettings").iter().enumerate();
        let mut ports = ports.filter(|(_, setting)| to.port.is_none_or(|port| number(at(setting, "/port/number")) == Some(port)));
        let of_port = ports.find_map(|(index, setting)| {
            Some((format!("{prefix}.portLevelSettings[{index}]{dotted}"), setting.pointer(pointer)?))
        });
        of_port.or_else(|| Some((format!("{prefix}{dotted}"), policy.pointer(pointer)?)))
    };
    if let Some((rule, index, subset)) = to.subset.and_then(|name| subset(rules, name))
        && let Some((field, value)) = within(at(subset, "/trafficPolicy"), &format!("spec.subsets[{index}].trafficPolicy"))
    {
        return Some((rule, field, value));
    }
    rules.iter().find_map(|rule| {
        let (field, value) = within(rule.at("/spec/trafficPolicy"), "spec.trafficPolicy")?;
        Some((*rule, field, value))
    })
}
