//! What must be true of manifests that belong together. Each rule returns its findings: none, when all is well.

use serde_json::Value;

use crate::set::{Doc, Set, at, holds, items, seconds, strings, text, top};

/// A rule: its name, and how it looks at a set.
pub(crate) type Rule = (&'static str, fn(&Set) -> Vec<String>);

/// Every rule that a set of manifests is held to.
pub(crate) const RULES: &[Rule] = &[
    ("hosts of routes are Services", hosts_are_services),
    ("subsets exist and select pods", subsets_select_pods),
    ("gateways exist and cover the hosts of their routes", gateways_cover_routes),
    ("a host has HTTPRoutes or GRPCRoutes", hosts_are_of_one_kind),
    ("delegates have a root", delegates_have_a_root),
    ("secrets have the names that the certificate script and cert-manager give", secrets_have_known_names),
    ("Services select pods and name their ports", services_select_pods),
    ("Deployments select their own pods and nobody else's", deployments_select_their_own),
    ("policies, budgets and scalers find what they are for", selectors_find_pods),
    ("probes ask the named port", probes_ask_a_port),
    ("upstreams are Services, and name their path", upstreams_are_services),
    ("timeouts fall along the chain", timeouts_fall),
    ("grace periods hold the drain", grace_holds_drain),
    ("what is published is allowed", published_is_allowed),
    ("what a hop calls is allowed", calls_are_allowed),
    ("one mesh VirtualService per host", one_virtual_service_per_host),
    ("pods have the labels that Istio and Kiali need", pods_have_labels),
    ("version and lane come from the labels", version_and_lane_from_labels),
    ("no user is 1337", no_user_of_the_proxy),
    ("tracing providers are installed", providers_are_installed),
    ("images carry the version of the release", images_carry_the_release),
    ("retries happen at the gateway only", retries_only_at_the_gateway),
];

/// A namespace that exists without us, with pods that are not in these manifests.
const FOREIGN: &str = "istio-system";

/// (host, subset, port) of everything that a rule of a VirtualService sends requests to.
fn destinations(route: &Value) -> Vec<(&str, Option<&str>, Option<u64>)> {
    let entries = items(route, "/route").chain(items(route, "/mirrors"));
    let parts = |entry| {
        let subset = at(entry, "/destination/subset").as_str();
        (text(entry, "/destination/host"), subset, at(entry, "/destination/port/number").as_u64())
    };
    entries.map(parts).collect()
}

fn is_mesh(virtual_service: &Doc) -> bool {
    let gateways = strings(&virtual_service.value, "/spec/gateways");
    !strings(&virtual_service.value, "/spec/hosts").is_empty() && (gateways.is_empty() || gateways.contains(&"mesh"))
}

fn has_port(service: &Doc, port: u64) -> bool {
    items(&service.value, "/spec/ports").any(|p| at(p, "/port").as_u64() == Some(port))
}

fn hosts_are_services(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    let mut wants = |doc: &Doc, host: &str, port: Option<u64>| match set.service(host, doc.namespace()) {
        None => findings.push(format!("{}: {host} is no Service", doc.at())),
        Some(service) => {
            if let Some(port) = port.filter(|port| !has_port(service, *port)) {
                findings.push(format!("{}: {host} has no port {port}", doc.at()));
            }
        }
    };
    for doc in set.all("VirtualService") {
        if is_mesh(doc) {
            strings(&doc.value, "/spec/hosts").iter().for_each(|host| wants(doc, host, None));
        }
        for route in items(&doc.value, "/spec/http") {
            destinations(route).iter().for_each(|(host, _, port)| wants(doc, host, *port));
        }
    }
    for doc in set.all("DestinationRule") {
        wants(doc, text(&doc.value, "/spec/host"), None);
    }
    for doc in gateway_api_routes(set) {
        let parents = items(&doc.value, "/spec/parentRefs").filter(|p| text(p, "/kind") == "Service");
        let backends = items(&doc.value, "/spec/rules").flat_map(|rule| items(rule, "/backendRefs"));
        for reference in parents.chain(backends) {
            wants(doc, text(reference, "/name"), at(reference, "/port").as_u64());
        }
    }
    findings
}

fn subsets_select_pods(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    let mut known: Vec<(&str, &str)> = Vec::new();
    for doc in set.all("DestinationRule") {
        let host = text(&doc.value, "/spec/host");
        for subset in items(&doc.value, "/spec/subsets") {
            let name = text(subset, "/name");
            let labels = at(subset, "/labels");
            if labels.get("lane").is_none() || labels.get("version").is_none() {
                findings.push(format!("{}: subset {name} does not name lane and version", doc.at()));
            }
            let service = set.service(host, doc.namespace());
            if !service.is_some_and(|s| set.behind(s).any(|d| holds(labels, d.pod_labels()))) {
                findings.push(format!("{}: subset {name} selects no pod", doc.at()));
            }
            if known.contains(&(host, name)) {
                findings.push(format!("{}: subset {name} of {host} is there twice", doc.at()));
            }
            known.push((host, name));
        }
    }
    for doc in set.all("VirtualService") {
        for (host, subset, _) in items(&doc.value, "/spec/http").flat_map(destinations) {
            if let Some(subset) = subset.filter(|s| !known.contains(&(host, s))) {
                findings.push(format!("{}: {host} has no subset {subset}", doc.at()));
            }
        }
    }
    findings
}

fn gateway_api_routes(set: &Set) -> impl Iterator<Item = &Doc> {
    set.all("HTTPRoute").chain(set.all("GRPCRoute"))
}

/// Of an HTTPRoute and a GRPCRoute with a host in common, a listener accepts one.
fn hosts_are_of_one_kind(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for grpc in set.all("GRPCRoute") {
        for host in strings(&grpc.value, "/spec/hostnames") {
            let others = set.all("HTTPRoute").filter(|http| {
                let is_of = |other: &&str| covers(other, host) || covers(host, other);
                items(&http.value, "/spec/parentRefs").all(|parent| text(parent, "/kind") != "Service")
                    && strings(&http.value, "/spec/hostnames").iter().any(is_of)
            });
            findings.extend(others.map(|http| format!("{}: {host} is a host of {}, too", grpc.at(), http.at())));
        }
    }
    findings
}

/// The hosts that a Gateway of either API lets routes use.
fn gateway_hosts(gateway: &Doc) -> Vec<&str> {
    let servers = items(&gateway.value, "/spec/servers").flat_map(|server| strings(server, "/hosts"));
    let listeners = items(&gateway.value, "/spec/listeners").map(|listener| text(listener, "/hostname"));
    servers.chain(listeners).collect()
}

fn covers(pattern: &str, host: &str) -> bool {
    pattern == host || pattern.strip_prefix('*').is_some_and(|suffix| host.ends_with(suffix))
}

fn gateways_cover_routes(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    let mut wants = |doc: &Doc, namespace: &str, name: &str, hosts: &str| match set.find("Gateway", namespace, name) {
        None => findings.push(format!("{}: no Gateway {namespace}/{name}", doc.at())),
        Some(gateway) => {
            for host in strings(&doc.value, hosts) {
                if !gateway_hosts(gateway).iter().any(|pattern| covers(pattern, host)) {
                    findings.push(format!("{}: the Gateway {name} does not serve {host}", doc.at()));
                }
            }
        }
    };
    for doc in set.all("VirtualService") {
        for gateway in strings(&doc.value, "/spec/gateways").iter().filter(|g| **g != "mesh") {
            let (namespace, name) = gateway.split_once('/').unwrap_or((doc.namespace(), gateway));
            wants(doc, namespace, name, "/spec/hosts");
        }
    }
    for doc in gateway_api_routes(set) {
        for parent in items(&doc.value, "/spec/parentRefs").filter(|p| text(p, "/kind") != "Service") {
            wants(doc, doc.namespace(), text(parent, "/name"), "/spec/hostnames");
        }
    }
    findings
}

/// A rule whose delegate is missing is left out by Istio: that is how lanes open and close. A delegate nobody asks for is a slip.
fn delegates_have_a_root(set: &Set) -> Vec<String> {
    let rules = set.all("VirtualService").flat_map(|doc| items(&doc.value, "/spec/http"));
    let asked: Vec<&str> = rules.map(|rule| text(rule, "/delegate/name")).collect();
    let lost = |doc: &&Doc| strings(&doc.value, "/spec/hosts").is_empty() && !asked.contains(&doc.name());
    set.all("VirtualService").filter(lost).map(|doc| format!("{}: no root asks for this delegate", doc.at())).collect()
}

fn secrets_have_known_names(set: &Set) -> Vec<String> {
    let script = std::fs::read_to_string(top().join("scripts/certificate.sh")).expect("the certificate script");
    let by_script = |name: &str| script.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == name);
    let mut findings = Vec::new();
    let credential = |doc: &Doc| -> Vec<String> {
        let istio = items(&doc.value, "/spec/servers").map(|server| text(server, "/tls/credentialName"));
        let api = items(&doc.value, "/spec/listeners").flat_map(|l| items(l, "/tls/certificateRefs")).map(|r| text(r, "/name"));
        istio.chain(api).filter(|secret| !secret.is_empty()).map(str::to_owned).collect()
    };
    for doc in set.all("Gateway") {
        for secret in credential(doc).iter().filter(|secret| !by_script(secret)) {
            findings.push(format!("{}: scripts/certificate.sh makes no secret {secret}", doc.at()));
        }
    }
    for doc in set.all("Certificate").filter(|doc| doc.name() == "httpserver") {
        let secret = text(&doc.value, "/spec/secretName");
        if !set.all("Gateway").any(|gateway| credential(gateway).iter().any(|used| used == secret)) {
            findings.push(format!("{}: no Gateway uses the secret {secret}", doc.at()));
        }
        if doc.namespace() != FOREIGN {
            findings.push(format!("{}: the secret would not stand beside the gateway's pods", doc.at()));
        }
        let names = strings(&doc.value, "/spec/dnsNames");
        let served = set.all("Gateway").filter(|gateway| gateway.name() == "httpserver").flat_map(gateway_hosts);
        for host in served.filter(|host| !names.contains(host)) {
            findings.push(format!("{}: the certificate does not name {host}", doc.at()));
        }
    }
    findings
}

fn services_select_pods(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for service in set.all("Service") {
        if set.behind(service).next().is_none() {
            findings.push(format!("{}: selects no pod", service.at()));
        }
        for port in items(&service.value, "/spec/ports") {
            if text(port, "/name").is_empty() || text(port, "/appProtocol").is_empty() {
                findings.push(format!("{}: a port without name or appProtocol", service.at()));
            }
            let target = at(port, "/targetPort");
            let is_target = |p: &Value| at(p, "/name") == target || at(p, "/containerPort") == target;
            for deployment in set.behind(service).filter(|d| !items(d.container(), "/ports").any(is_target)) {
                findings.push(format!("{}: {} has no port {target}", service.at(), deployment.name()));
            }
        }
    }
    findings
}

fn deployments_select_their_own(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.all("Deployment") {
        let selector = at(&deployment.value, "/spec/selector/matchLabels");
        for other in set.all("Deployment").filter(|other| other.namespace() == deployment.namespace()) {
            let own = other.name() == deployment.name();
            if holds(selector, other.pod_labels()) != own {
                let how = if own { "does not select its own pods" } else { "also selects the pods of" };
                findings.push(format!("{}: {how} {}", deployment.at(), other.name()));
            }
        }
    }
    findings
}

/// Whatever else chooses pods by their labels, or a Deployment by its name.
fn selectors_find_pods(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for doc in set.docs.iter().filter(|doc| doc.namespace() != FOREIGN) {
        let pointer = match doc.kind() {
            "PodDisruptionBudget" | "PodMonitor" | "PeerAuthentication" | "AuthorizationPolicy" | "RequestAuthentication" => {
                "/spec/selector/matchLabels"
            }
            "NetworkPolicy" => "/spec/podSelector/matchLabels",
            "EnvoyFilter" => "/spec/workloadSelector/labels",
            "HorizontalPodAutoscaler" => {
                let target = text(&doc.value, "/spec/scaleTargetRef/name");
                let container = text(&doc.value, "/spec/metrics/0/containerResource/container");
                if set.find("Deployment", doc.namespace(), target).is_none_or(|d| text(d.container(), "/name") != container) {
                    findings.push(format!("{}: no Deployment {target} with a container {container}", doc.at()));
                }
                continue;
            }
            _ => continue,
        };
        let Some(selector) = doc.value.pointer(pointer) else { continue };
        let selects = |d: &Doc| d.namespace() == doc.namespace() && holds(selector, d.pod_labels());
        if !set.all("Deployment").any(selects) {
            findings.push(format!("{}: selects no pod", doc.at()));
        }
    }
    findings
}

fn probes_ask_a_port(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.hops() {
        for (probe, path) in [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            let http = at(deployment.container(), &format!("/{probe}/httpGet")).clone();
            if text(&http, "/path") != path {
                findings.push(format!("{}: {probe} does not ask {path}", deployment.at()));
            }
            if !items(deployment.container(), "/ports").any(|p| p.get("name") == http.get("port")) {
                findings.push(format!("{}: {probe} asks a port that is not there", deployment.at()));
            }
        }
    }
    findings
}

/// `http://service2/service2` is (`service2`, 80, `/service2`).
fn parse_url(url: &str) -> (&str, u64, &str) {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("grpc://"));
    let rest = rest.unwrap_or_else(|| panic!("{url}: neither http:// nor grpc://"));
    let (authority, path) = rest.find('/').map_or((rest, ""), |i| rest.split_at(i));
    match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().unwrap_or_else(|_| panic!("{url}: a port")), path),
        None => (authority, 80, path),
    }
}

fn upstreams_are_services(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.hops() {
        for variable in ["UPSTREAM", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
            for url in deployment.env(variable).into_iter().flat_map(|urls| urls.split(',')) {
                let (host, port, path) = parse_url(url);
                if !set.service(host, deployment.namespace()).is_some_and(|service| has_port(service, port)) {
                    findings.push(format!("{}: {variable}={url}: no such Service and port", deployment.at()));
                }
                if variable == "UPSTREAM" && path != format!("/{}", host.split('.').next().unwrap_or_default()) {
                    findings.push(format!("{}: {url} names another path than its hop", deployment.at()));
                }
            }
        }
    }
    findings
}

/// (URL, Deployment) of every version of each upstream of a Deployment.
fn next_hops<'a>(set: &'a Set, deployment: &'a Doc) -> Vec<(&'a str, &'a Doc)> {
    let urls = deployment.env("UPSTREAM").into_iter().flat_map(|urls| urls.split(','));
    let services = urls.filter_map(|url| Some((url, set.service(parse_url(url).0, deployment.namespace())?)));
    services.flat_map(|(url, service)| set.behind(service).map(move |next| (url, next))).collect()
}

/// The longest that a hop takes by its own account: its latency, and its patience with the next, in seconds.
fn longest(deployment: &Doc) -> f64 {
    deployment.env("UPSTREAM_TIMEOUT").map_or(0.0, seconds) + deployment.env("LATENCY").map_or(0.0, seconds)
}

fn timeouts_fall(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.hops().filter(|d| d.env("UPSTREAM").is_some()) {
        let patience = deployment.env("UPSTREAM_TIMEOUT").map_or(0.0, seconds);
        for (_, next) in next_hops(set, deployment).into_iter().filter(|(_, next)| patience <= longest(next)) {
            findings.push(format!("{}: waits no longer than {} may take ({} s)", deployment.at(), next.name(), longest(next)));
        }
    }
    let mut outside = |doc: &Doc, service: Option<&Doc>, per_try: &str, whole: &str| {
        if per_try.is_empty() {
            return;
        }
        if seconds(whole) < seconds(per_try) {
            findings.push(format!("{}: a try is longer than the whole", doc.at()));
        }
        for deployment in service.into_iter().flat_map(|s| set.behind(s)).filter(|d| longest(d) >= seconds(per_try)) {
            findings.push(format!("{}: the gateway gives up before {} does", doc.at(), deployment.name()));
        }
    };
    for doc in set.all("VirtualService") {
        for route in items(&doc.value, "/spec/http") {
            for (host, ..) in destinations(route) {
                let service = set.service(host, doc.namespace());
                outside(doc, service, text(route, "/retries/perTryTimeout"), text(route, "/timeout"));
            }
        }
    }
    for doc in set.all("HTTPRoute") {
        for rule in items(&doc.value, "/spec/rules") {
            for backend in items(rule, "/backendRefs") {
                let service = set.service(text(backend, "/name"), doc.namespace());
                outside(doc, service, text(rule, "/timeouts/backendRequest"), text(rule, "/timeouts/request"));
            }
        }
    }
    findings
}

fn grace_holds_drain(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.hops() {
        let part = |name: &str, default: &str| seconds(deployment.env(name).unwrap_or(default));
        let drain = part("DRAIN_DELAY", "5s") + part("DRAIN_TIMEOUT", "20s") + part("FLUSH_TIMEOUT", "3s");
        let grace = at(&deployment.value, "/spec/template/spec/terminationGracePeriodSeconds").as_f64().unwrap_or(0.0);
        if grace <= drain {
            findings.push(format!("{}: {grace} s of grace do not hold {drain} s of drain", deployment.at()));
        }
        if deployment.container().pointer("/lifecycle/preStop").is_some() {
            findings.push(format!("{}: a preStop takes its time from the server's own drain", deployment.at()));
        }
    }
    findings
}

/// (object, Service, path after the rewrite) of everything that a gateway publishes.
pub(crate) fn published(set: &Set) -> Vec<(&Doc, &Doc, String)> {
    let mut found = Vec::new();
    for doc in set.all("VirtualService").filter(|doc| !is_mesh(doc)) {
        for route in items(&doc.value, "/spec/http") {
            let rewrite = text(route, "/rewrite/uri");
            for exact in items(route, "/match").map(|m| text(m, "/uri/exact")).filter(|path| !path.is_empty()) {
                for service in destinations(route).iter().filter_map(|(host, ..)| set.service(host, doc.namespace())) {
                    found.push((doc, service, if rewrite.is_empty() { exact } else { rewrite }.to_owned()));
                }
            }
        }
    }
    for doc in set.all("HTTPRoute") {
        for rule in items(&doc.value, "/spec/rules") {
            let rewrites = items(rule, "/filters").map(|f| text(f, "/urlRewrite/path/replaceFullPath"));
            let rewrite = rewrites.filter(|path| !path.is_empty()).last();
            for path in items(rule, "/matches").map(|m| text(m, "/path/value")).filter(|path| !path.is_empty()) {
                for service in items(rule, "/backendRefs").filter_map(|b| set.service(text(b, "/name"), doc.namespace())) {
                    found.push((doc, service, rewrite.unwrap_or(path).to_owned()));
                }
            }
        }
    }
    for doc in set.all("GRPCRoute") {
        for rule in items(&doc.value, "/spec/rules") {
            for method in items(rule, "/matches").map(|m| at(m, "/method")) {
                let path = format!("/{}/{}", text(method, "/service"), text(method, "/method"));
                let path = if path.ends_with('/') { path + "Call" } else { path };
                let services = items(rule, "/backendRefs").filter_map(|b| set.service(text(b, "/name"), doc.namespace()));
                found.extend(services.map(|service| (doc, service, path.clone())));
            }
        }
    }
    found
}

/// True if the policies let `principal` call `path` of the pods of this Deployment; also when none covers them.
fn allowed(set: &Set, deployment: &Doc, principal: &str, path: &str) -> bool {
    let covers = |policy: &&Doc| {
        policy.namespace() == deployment.namespace()
            && policy.value.pointer("/spec/targetRefs").is_none()
            && text(&policy.value, "/spec/action") != "DENY"
            && policy.value.pointer("/spec/selector/matchLabels").is_none_or(|s| holds(s, deployment.pod_labels()))
    };
    let method = if path.starts_with("/httpserver.v1.") { "POST" } else { "GET" };
    let allows = |rule: &Value| {
        let from = items(rule, "/from").any(|f| strings(f, "/source/principals").contains(&principal));
        let to = |t: &Value| strings(t, "/operation/paths").contains(&path) && strings(t, "/operation/methods").contains(&method);
        from && items(rule, "/to").any(to)
    };
    let covering: Vec<&Doc> = set.all("AuthorizationPolicy").filter(covers).collect();
    covering.is_empty() || covering.iter().any(|policy| items(&policy.value, "/spec/rules").any(allows))
}

fn published_is_allowed(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for (doc, service, path) in published(set) {
        let gateway = if matches!(doc.kind(), "HTTPRoute" | "GRPCRoute") {
            "cluster.local/ns/httpserver/sa/httpserver-istio"
        } else {
            "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"
        };
        for deployment in set.behind(service).filter(|d| !allowed(set, d, gateway, &path)) {
            findings.push(format!("{}: the gateway may not call {path} of {}", doc.at(), deployment.name()));
        }
    }
    findings
}

fn calls_are_allowed(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.all("Deployment") {
        let account = text(&deployment.value, "/spec/template/spec/serviceAccountName");
        if set.find("ServiceAccount", deployment.namespace(), account).is_none() {
            findings.push(format!("{}: no ServiceAccount {account}", deployment.at()));
        }
        let principal = format!("cluster.local/ns/{}/sa/{account}", deployment.namespace());
        for (url, next) in next_hops(set, deployment) {
            let path = if url.starts_with("grpc://") { "/httpserver.v1.Chain/Call" } else { parse_url(url).2 };
            if !allowed(set, next, &principal, path) {
                findings.push(format!("{}: may not call {url} of {}", deployment.at(), next.name()));
            }
        }
    }
    findings
}

fn one_virtual_service_per_host(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    let mut seen: Vec<(&str, &Doc)> = Vec::new();
    for doc in set.all("VirtualService").filter(|doc| is_mesh(doc)) {
        for host in strings(&doc.value, "/spec/hosts") {
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == host) {
                findings.push(format!("{}: {host} is also in {}: only one of them counts", doc.at(), first.at()));
            }
            seen.push((host, doc));
        }
    }
    findings
}

fn pods_have_labels(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.hops() {
        let labels = deployment.pod_labels();
        for label in ["app", "version", "lane"].iter().filter(|label| labels.get(**label).is_none()) {
            findings.push(format!("{}: no label {label}", deployment.at()));
        }
        // Istio and Kiali take these before app and version: shared, they would make one service of three.
        if labels.get("app.kubernetes.io/name") != labels.get("app") {
            findings.push(format!("{}: app.kubernetes.io/name is not app", deployment.at()));
        }
        if labels.get("app.kubernetes.io/version").is_some() {
            findings.push(format!("{}: app.kubernetes.io/version hides the label version", deployment.at()));
        }
    }
    findings
}

fn version_and_lane_from_labels(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    for deployment in set.hops() {
        for (variable, label) in [("VERSION", "version"), ("LANE", "lane")] {
            let from = items(deployment.container(), "/env").find(|env| text(env, "/name") == variable);
            let field = from.map_or("", |env| text(env, "/valueFrom/fieldRef/fieldPath"));
            if field != format!("metadata.labels['{label}']") {
                findings.push(format!("{}: {variable} is not the label {label}", deployment.at()));
            }
        }
    }
    findings
}

fn no_user_of_the_proxy(set: &Set) -> Vec<String> {
    fn has_1337(value: &Value) -> bool {
        match value {
            Value::Object(map) => {
                ["runAsUser", "runAsGroup", "fsGroup"].iter().any(|key| map.get(*key).and_then(Value::as_u64) == Some(1337))
                    || map.values().any(has_1337)
            }
            Value::Array(list) => list.iter().any(has_1337),
            _ => false,
        }
    }
    let wrong = set.docs.iter().filter(|doc| has_1337(&doc.value));
    wrong.map(|doc| format!("{}: runs as the proxy's user, whose traffic no sidecar sees", doc.at())).collect()
}

fn providers_are_installed(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    let providers: Vec<&Value> =
        set.all("IstioOperator").flat_map(|doc| items(&doc.value, "/spec/meshConfig/extensionProviders")).collect();
    // A provider that nobody chooses may be without its Service.
    let chosen: Vec<&str> = set
        .all("Telemetry")
        .flat_map(|doc| items(&doc.value, "/spec/tracing"))
        .flat_map(|tracing| items(tracing, "/providers"))
        .map(|provider| text(provider, "/name"))
        .collect();
    for provider in providers.iter().filter(|provider| chosen.contains(&text(provider, "/name"))) {
        let target = provider.get("opentelemetry").or(provider.get("zipkin")).unwrap_or(&Value::Null);
        let port = at(target, "/port").as_u64().unwrap_or(0);
        if !set.service(text(target, "/service"), FOREIGN).is_some_and(|s| has_port(s, port)) {
            findings.push(format!("provider {}: no such Service and port", text(provider, "/name")));
        }
    }
    for doc in set.all("Telemetry") {
        for tracing in items(&doc.value, "/spec/tracing") {
            for name in items(tracing, "/providers").map(|p| text(p, "/name")) {
                if !providers.iter().any(|p| text(p, "/name") == name) {
                    findings.push(format!("{}: no provider {name}", doc.at()));
                }
            }
            if at(tracing, "/randomSamplingPercentage").as_u64() != Some(100) {
                findings.push(format!("{}: does not trace every request", doc.at()));
            }
        }
    }
    findings
}

fn images_carry_the_release(set: &Set) -> Vec<String> {
    let want = concat!("httpserver:", env!("CARGO_PKG_VERSION"));
    let wrong = |d: &&Doc| text(d.container(), "/image") != want || text(d.container(), "/imagePullPolicy") != "IfNotPresent";
    let ours = set.all("Deployment").filter(|d| text(d.container(), "/image").starts_with("httpserver"));
    ours.filter(wrong).map(|d| format!("{}: its image is not {want}, IfNotPresent", d.at())).collect()
}

fn retries_only_at_the_gateway(set: &Set) -> Vec<String> {
    let mut findings = Vec::new();
    // It shows what the rule is for.
    if set.name == "istio/scenarios/retries-multiply.yaml" {
        return findings;
    }
    for doc in set.all("VirtualService") {
        for route in items(&doc.value, "/spec/http").filter(|route| route.get("delegate").is_none()) {
            // A delegate of a mesh route has no hosts; unlike the gateway's delegates it matches no path.
            let inside = is_mesh(doc) || (strings(&doc.value, "/spec/hosts").is_empty() && route.get("match").is_none());
            if inside && at(route, "/retries/attempts").as_u64() != Some(0) {
                findings.push(format!("{}: a retry inside the mesh multiplies with the gateway's", doc.at()));
            }
        }
    }
    findings
}
