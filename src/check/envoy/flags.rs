//! What an answer means that no hop gave, as data: one row per response flag of Envoy, then one per status that is all there is to read.
//!
//! A row says how the answer is recognised, and what it means in each of the two places where it is met: at the gateway, in
//! front of the first hop, and between two hops, where the calling hop quotes it. Names in braces are filled in from the request.

use std::time::Duration;

use crate::check::envoy::spans::{CallSpans, ProxySpan, UpstreamCluster};
use crate::net::hosts::port_of;
use crate::report::Hint;

/// A connection that is refused, or TLS that fails, takes milliseconds.
const NOBODY_ANSWERS: Duration = Duration::from_millis(900);

/// What is known of a call that no hop answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signs<'a> {
    /// 0 without an answer.
    pub(crate) status: u16,
    /// The answer carries Envoy's name or headers.
    pub(crate) by_envoy: bool,
    /// The answer carries a hop's headers.
    pub(crate) by_hop: bool,
    /// Another server than Envoy gave its name.
    pub(crate) by_other: bool,
    /// The whole body in lower case; `None` when it was not quoted, which is not the same as empty.
    pub(crate) body: Option<&'a str>,
    /// What the proxies on both sides reported.
    pub(crate) spans: &'a CallSpans,
    /// The URL that was called; empty for the front.
    pub(crate) url: &'a str,
    /// Whether Istio may be what answers: the cause then is an object of the cluster, else the configuration of an Envoy.
    pub(crate) is_mesh: bool,
}

impl Signs<'_> {
    fn says(&self, part: &str) -> bool {
        self.body.is_some_and(|body| body.contains(part))
    }

    fn is_bare(&self) -> bool {
        self.by_envoy && self.body == Some("") && self.spans.server.is_none()
    }

    fn by_client(&self, holds: impl Fn(&ProxySpan) -> bool) -> bool {
        self.spans.client.as_ref().is_some_and(holds)
    }

    fn by_server(&self, holds: impl Fn(&ProxySpan) -> bool) -> bool {
        self.spans.server.as_ref().is_some_and(holds)
    }

    /// The call left the caller's proxy and reached no other.
    fn unreached(&self, flag: &str) -> bool {
        self.spans.server.is_none() && self.by_client(|span| span.has(flag))
    }

    /// The route leads nowhere, to a destination for which this holds, given the called host and port.
    fn leads(&self, holds: impl Fn(UpstreamCluster<'_>, &str, &str) -> bool) -> bool {
        let uri = self.url.parse::<http::Uri>().unwrap_or_default();
        let port = port_of(&uri).to_string();
        let host = uri.host().unwrap_or_default();
        self.by_client(|span| span.has("NC") && span.destination().is_some_and(|to| holds(to, host, &port)))
    }
}

fn first_label(host: &str) -> &str {
    host.split('.').next().unwrap_or_default()
}

/// A likely cause and the commands that settle it, with names in braces to fill in.
#[derive(Debug)]
struct Advice {
    cause: &'static str,
    next: &'static [&'static str],
}

impl Advice {
    fn hint(&self, values: &[(&str, &str)]) -> Hint {
        self.next.iter().fold(Hint::new(fill(self.cause, values)), |hint, command| hint.run(fill(command, values)))
    }
}

/// Replaces each `{name}` by its value, in this order: a value that somebody else wrote comes last, so that nothing is filled into it.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// One row: a response flag, or a status.
#[derive(Debug)]
struct EnvoyFlag {
    /// The flag in Envoy's access log (`%RESPONSE_FLAGS%`); empty where only the status is known.
    code: &'static str,
    matches: fn(&Signs<'_>) -> bool,
    /// The sentence of the report, and the advice. Fills `code`, `status`, `gateway`, `namespace`, `url`, `chain`, `reason`, `body`,
    /// `leads` and `port`.
    at_gateway: Option<(&'static str, Advice)>,
    /// The advice; the sentence is that of the failed call. Fills `code`, `caller`, `called`, `namespace`,
    /// `proxy`, `log`, `settings`, `port`, `destination`, `target` and `reason`.
    between_hops: Option<Advice>,
    /// The cause between two hops where no mesh is, in the words of Envoy's own configuration.
    in_envoy: Option<&'static str>,
}

impl EnvoyFlag {
    fn between(&self, advice: &Advice, is_mesh: bool, values: &[(&str, &str)]) -> Hint {
        let mut hint = advice.hint(values);
        if !is_mesh {
            hint.cause = self.in_envoy.map_or(hint.cause, |cause| fill(cause, values));
            hint = hint.run(fill("curl -sv -H 'accept: application/json' {target}", values));
        }
        hint
    }
}

/// What the answer means at the gateway: the sentence and the hint.
pub(crate) fn at_gateway(answer: &Signs<'_>, values: &[(&str, &str)]) -> Option<(String, Hint)> {
    FLAGS.iter().filter(|row| (row.matches)(answer)).find_map(|row| {
        let (text, advice) = row.at_gateway.as_ref()?;
        let values = [&[("code", row.code)], values].concat();
        let mut hint = advice.hint(&values);
        if let Some(cause) = row.in_envoy.filter(|_| !answer.is_mesh) {
            hint.cause = fill(cause, &values);
            hint = hint.run(fill(CURL, &values));
        }
        Some((fill(text, &values), hint))
    })
}

/// What the answer means between two hops.
pub(crate) fn between_hops(answer: &Signs<'_>, values: &[(&str, &str)]) -> Option<Hint> {
    FLAGS.iter().filter(|row| (row.matches)(answer)).find_map(|row| {
        let advice = row.between_hops.as_ref()?;
        Some(row.between(advice, answer.is_mesh, &[&[("code", row.code)], values].concat()))
    })
}

const GATEWAY_ROUTES: &str = "istioctl proxy-config routes deploy/istio-ingressgateway -n {gateway}";
const GATEWAY_LOG: &str = "kubectl logs -n {gateway} deploy/istio-ingressgateway --tail=5";
const ANALYZE: &str = "istioctl analyze -n {namespace}";
const FAULTS: &str = "kubectl get virtualservice -A -o yaml | grep -A6 fault:";
const DESTINATIONS: &str = "kubectl get virtualservice -A -o yaml | grep -A3 'destination:'";
const CURL: &str = "curl -sv {url}";
const PROXY_ROUTES: &str = "istioctl proxy-config routes {proxy} -n {namespace} | grep {called}";
const PROXY_ENDPOINTS: &str = "istioctl proxy-config endpoints {proxy} -n {namespace} | grep {called}";
const PROXY_LOG: &str = "kubectl logs {log} -c istio-proxy -n {namespace} --tail=5";
const CONTAINERS: &str =
    "kubectl get pods -n {namespace} -o custom-columns=POD:.metadata.name,CONTAINERS:.spec.containers[*].name";
const PROXY_CLUSTERS: &str = "istioctl proxy-config clusters {proxy} -n {namespace} | grep {called}";
const TLS_MODES: &str = "kubectl get destinationrule,peerauthentication -A -o yaml | grep -E '^  kind:|  name:|mode:'";
const ROUTE_STATUS: &str =
    "kubectl get httproutes.gateway.networking.k8s.io -A -o yaml | grep -E '^    (name|namespace):|reason:|message:'";
const PODS: &str = "kubectl get pods -n {namespace} -l app={called} --show-labels";

macro_rules! optional {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

macro_rules! envoy_flags {
    ($($code:literal when $matches:expr;
        $(at_gateway $text:literal because $gateway_cause:literal next [$($gateway_next:expr),*];)?
        $(between_hops because $hop_cause:expr, next [$($hop_next:expr),*];)?
        $(in_envoy because $envoy_cause:literal;)?
    )*) => {
        /// The rows, the more specific ones first.
        static FLAGS: &[EnvoyFlag] = &[$(EnvoyFlag {
            code: $code,
            matches: $matches,
            at_gateway: optional!($(($text, Advice { cause: $gateway_cause, next: &[$($gateway_next),*] }))?),
            between_hops: optional!($(Advice { cause: $hop_cause, next: &[$($hop_next),*] })?),
            in_envoy: optional!($($envoy_cause)?),
        },)*];
    };
}

envoy_flags! {
    "FI" when |answer| answer.by_server(|span| span.has("FI"));
        at_gateway "The proxy in front of the first hop aborts this on purpose ({status}, flag {code})"
            because "An EnvoyFilter, or that proxy's own configuration, has the fault filter: abort"
            next ["kubectl get envoyfilter -n {namespace}"];
        in_envoy because "That proxy's configuration has the fault filter: abort";

    "FI" when |answer| answer.by_client(|span| span.has("FI"));
        at_gateway "The gateway aborts this on purpose ({status}, flag {code})"
            because "A VirtualService injects the fault: fault.abort"
            next [FAULTS];
        in_envoy because "Its configuration has the fault filter: abort";

    "FI" when |answer| answer.says("fault filter abort") || answer.spans.have("FI");
        at_gateway "The gateway, or the proxy in front of the first hop, aborts this on purpose ({status}, flag {code})"
            because "A VirtualService injects the fault: fault.abort"
            next [FAULTS];
        between_hops because "A VirtualService aborts calls from {caller} to {called} on purpose (flag {code}): fault.abort",
            next [FAULTS];
        in_envoy because "The fault filter of a proxy aborts calls from {caller} to {called} on purpose (flag {code})";

    "DI" when |answer| answer.status == 0 && answer.unreached("DI");
        at_gateway "The gateway holds the request on purpose, and no hop got it (flag {code})"
            because "A VirtualService injects the fault: fault.delay, longer than --timeout"
            next [FAULTS];
        between_hops because "A VirtualService holds calls from {caller} to {called} on purpose (flag {code}) for longer than {caller} waits: fault.delay. {called} was not reached",
            next [FAULTS];
        in_envoy because "The fault filter of a proxy holds calls from {caller} to {called} on purpose (flag {code}) for longer than {caller} waits. {called} was not reached";

    "" when |answer| answer.status >= 300 && answer.spans.is_answered_by_proxy();
        at_gateway "The gateway answers {status} itself, as a route tells it to: {body}"
            because "A VirtualService or HTTPRoute answers this host and path: directResponse or redirect"
            next ["kubectl get virtualservice -A -o yaml | grep -A4 -E 'directResponse:|redirect:'"];
        between_hops because "A VirtualService answers calls from {caller} to {called} itself: directResponse or redirect",
            next ["kubectl get virtualservice -n {namespace} -o yaml | grep -A4 -E 'directResponse:|redirect:'"];
        in_envoy because "A route of a proxy answers calls from {caller} to {called} itself: direct_response or redirect";

    "" when |answer| answer.status == 502
        && (answer.by_client(|span| span.is_unrouted() || span.cluster() == "BlackHoleCluster") || (answer.spans.client.is_none() && answer.is_bare()));
        between_hops because "The sidecar of {caller} does not know {called}, and outboundTrafficPolicy REGISTRY_ONLY allows it to call nobody else: the Service is missing from the egress.hosts of a Sidecar resource, or its exportTo or namespace hides it",
            next ["kubectl get sidecar -A -o yaml", PROXY_CLUSTERS, "kubectl get service {called} -n {namespace} -o yaml | grep exportTo"];
        in_envoy because "The proxy at {caller} has no route that leads to {called}";

    "" when |answer| matches!(answer.status, 0 | 503) && answer.by_client(|span| span.cluster() == "PassthroughCluster");
        between_hops because "The sidecar of {caller} does not know {called} and passes the call on as it came, without mTLS (PassthroughCluster): the Service is missing from the egress.hosts of a Sidecar resource, its exportTo hides it, it has no port of that number or one whose name is no HTTP, or UPSTREAM names an address. What it reaches refuses that",
            next ["kubectl get service {called} -n {namespace}", "kubectl get sidecar -A -o yaml", PROXY_CLUSTERS, "kubectl get service {called} -n {namespace} -o yaml | grep exportTo"];

    "UF" when |answer| answer.by_server(|span| span.has("UF"));
        at_gateway "The first hop's pod is reached, and its app does not listen on port {port} (503, flag {code} at its own sidecar)"
            because "targetPort of the Service is not the app's port, or the app listens on 127.0.0.1 alone or does not run"
            next ["kubectl get service -n {namespace} -o custom-columns=NAME:.metadata.name,PORTS:.spec.ports[*].targetPort", "kubectl get pods -n {namespace}"];
        between_hops because "The pod of {called} is reached, and its app does not listen on port {port} (flag {code} at its own sidecar): targetPort of the Service is not the app's port, or the app listens on 127.0.0.1 alone or does not run",
            next ["kubectl get service {called} -n {namespace} -o yaml | grep -A8 ports:", PODS, "kubectl set env deploy/{called} --list -n {namespace} | grep ADDR"];
        in_envoy because "The proxy in front of {called} is reached, and nothing listens behind it (flag {code} at that proxy): {called} does not run there, or the proxy's cluster has another address or port";

    "UC" when |answer| answer.by_server(|span| span.has("UC"));
        at_gateway "The first hop's app ended the connection before it answered (503, flag {code} at its own sidecar)"
            because "The app crashed or was stopped while it answered, or closes idle connections before its callers do"
            next ["kubectl get pods -n {namespace}"];
        between_hops because "The app of {called} ended the connection before it answered (flag {code} at its own sidecar): it crashed, was stopped, has a fault of its own (reset, close), or closes idle connections before its callers do",
            next [PODS, "kubectl logs deploy/{called} -c httpserver -n {namespace} --tail=20"];

    // Envoy reports a request that is no HTTP/2 or no HTTP/1.1 to what it reaches so.
    "UPE" when |answer| answer.spans.have("UPE") || answer.status == 502 && answer.says("protocol error");
        at_gateway "The gateway and the first hop do not speak the same version of HTTP ({status}, flag {code})"
            because "The port of the Service is named or marked (appProtocol) as HTTP/2 or gRPC and the app there speaks HTTP/1.1 alone, or the other way round"
            next ["kubectl get service -n {namespace} -o custom-columns=NAME:.metadata.name,PORTS:.spec.ports[*].name,APP:.spec.ports[*].appProtocol"];
        between_hops because "The proxy at {caller} and {called} do not speak the same version of HTTP (flag {code}): the port of the Service {called} is named or marked (appProtocol) as HTTP/2 or gRPC and the app there speaks HTTP/1.1 alone, or the other way round",
            next ["kubectl get service {called} -n {namespace} -o yaml | grep -A8 ports:", PROXY_LOG];
        in_envoy because "The proxy between {caller} and {called} does not speak the version of HTTP that {called} does (flag {code}): its cluster has HTTP/2 (http2_protocol_options) where {called} speaks HTTP/1.1 alone, or the other way round";

    "UC" when |answer| !answer.is_mesh && (answer.unreached("UC") || answer.status == 503 && answer.says("connection termination") && answer.spans.server.is_none());
        at_gateway "What the gateway reaches for the first hop accepts the connection and closes it (503, flag {code})"
            because "It speaks TLS or the PROXY protocol and gets plain HTTP, or a filter of connections refuses the caller (RBAC, a limit), or it crashed"
            next [CURL];
        between_hops because "What the proxy at {caller} reaches for {called} accepts the connection and closes it before an answer (flag {code}): it speaks TLS or the PROXY protocol and gets plain HTTP, a filter of connections there refuses the caller (RBAC, a limit), or {called} crashed",
            next [];

    "UC" when |answer| answer.unreached("UC");
        at_gateway "The first hop's pod accepts the gateway's connection and closes it (503, flag {code})"
            because "Its sidecar accepts only mutual TLS (PeerAuthentication STRICT), and the gateway sends plain text: a DestinationRule has tls.mode DISABLE"
            next [TLS_MODES];
        between_hops because "{called} accepts only mutual TLS (PeerAuthentication STRICT), and the sidecar of {caller} sends plain text (flag {code}): a DestinationRule of {called} has tls.mode DISABLE",
            next [TLS_MODES, PROXY_LOG];

    "UF" when |answer| answer.unreached("UF") && answer.by_client(|span| span.took >= NOBODY_ANSWERS)
        || (answer.status == 0 && answer.unreached("DC") && answer.by_client(|span| span.cluster().starts_with("outbound|")))
        || answer.says("connection timeout");
        at_gateway "Nothing answers at the address that the gateway has for the first hop (503, flag {code})"
            because "The endpoint is nobody's: a ServiceEntry or an Endpoints object left it over, or a NetworkPolicy drops the connection"
            next ["kubectl get serviceentry,endpointslices,networkpolicy -n {namespace}"];
        between_hops because "Nothing answers at the address that {caller} has for {called} (flag {code}, connection timeout): the endpoint is nobody's, left over by a ServiceEntry or an Endpoints object, or a NetworkPolicy drops the connection",
            next ["kubectl get serviceentry,endpointslices,networkpolicy -n {namespace}", PROXY_ENDPOINTS];
        in_envoy because "Nothing answers at the address that the proxy at {caller} has for {called} (flag {code}, connection timeout): the address is nobody's, or a firewall drops the connection";

    "" when |answer| answer.is_mesh && answer.status == 0 && answer.spans.is_caller_traced && answer.spans.client.is_none() && answer.spans.server.is_none();
        between_hops because "The call bypasses the HTTP proxy in the sidecar of {caller}, and what it reaches ends the connection: UPSTREAM of {caller} names a port that the Service {called} does not have, or the port is excluded from the sidecar (excludeOutboundPorts) and {called} accepts only mutual TLS (PeerAuthentication STRICT)",
            next ["{settings}", "kubectl get service {called} -n {namespace} -o yaml | grep -A8 ports:", "kubectl get pods -n {namespace} -l app={caller} -o yaml | grep -i exclude"];

    "NR" when |answer| answer.by_server(|span| span.has("NR"));
        at_gateway "The proxy in front of the first hop has no route for this host and path ({status}, flag {code} at that proxy)"
            because "The gateway's route writes another host or path (rewrite), or the virtual hosts of that proxy do not name it"
            next [DESTINATIONS, ANALYZE];
        between_hops because "The proxy in front of {called} has no route for this host or path (flag {code} at that proxy): a route from {caller} writes another host or path (rewrite), or the virtual hosts of that proxy do not name it",
            next [PROXY_ROUTES, ANALYZE];

    "NR" when |answer| answer.status == 404 && (answer.is_bare() || answer.unreached("NR"));
        at_gateway "The gateway has no route for this host and path (404 from Envoy, flag {code})"
            because "The host in the VirtualService or HTTPRoute is not the one in the URL, its path match is another, or it is not bound to this Gateway: its gateways names another one or mesh alone, its exportTo keeps it to its own namespace, or the Gateway's hosts have the prefix of another namespace"
            next [GATEWAY_ROUTES, "kubectl get virtualservice,gateway -A", ANALYZE];
        between_hops because "The mesh has no route from {caller} for this host or path (flag {code}): no match of a VirtualService of {called} fits the call",
            next [PROXY_ROUTES, ANALYZE];
        in_envoy because "The proxy at {caller} has no route for this host or path (flag {code}): no virtual host or match of its routes fits the call to {called}";

    "UH" when |answer| answer.status == 503 && (answer.says("no healthy upstream") || answer.spans.have("UH"));
        at_gateway "The gateway knows the route and has no pod to send it to (503, flag {code})"
            because "The subset that the route names selects no ready pod, the Service's selector finds none, the Deployment has none, or outlier detection ejected them all"
            next ["kubectl get pods -n {namespace} --show-labels", "istioctl proxy-config endpoints deploy/istio-ingressgateway -n {gateway} | grep {namespace}", "kubectl get destinationrule -A -o yaml | grep -A6 subsets:"];
        between_hops because "No ready pod stands behind {called} (flag {code}): the Service's selector finds none, its Deployment has none, the subset that the route names selects none, or outlier detection ejected them all",
            next [PODS, PROXY_ENDPOINTS, "kubectl get destinationrule -n {namespace} -o yaml | grep -A6 subsets:"];
        in_envoy because "The proxy's cluster for {called} has no endpoint that is healthy (flag {code}): it has none, its name does not resolve, or health checks or outlier detection took them all out";

    "UO" when |answer| answer.status == 503 && (answer.says("overflow") || answer.spans.have("UO"));
        at_gateway "A circuit breaker is open (503, flag {code})"
            because "connectionPool limits in a DestinationRule are lower than this load"
            next ["kubectl get destinationrule -A -o yaml | grep -A8 connectionPool:"];
        between_hops because "A circuit breaker between {caller} and {called} is open (flag {code}): connectionPool limits in a DestinationRule are lower than this load",
            next ["kubectl get destinationrule -n {namespace} -o yaml | grep -A8 connectionPool:"];
        in_envoy because "A circuit breaker between {caller} and {called} is open (flag {code}): the circuit_breakers of the proxy's cluster are lower than this load";

    // Envoy names TLS in its answer up to 1.37; from 1.38 on in its access log alone.
    "UF" when |answer| answer.is_mesh && answer.unreached("UF") || (answer.status == 503 && answer.says("tls"));
        at_gateway "The gateway cannot agree on TLS with the first hop (503, flag {code})"
            because "One side wants mTLS and the other does not: tls.mode of a DestinationRule, a PeerAuthentication, or a port that is excluded from the hop's sidecar. Or a certificate does not fit: it has expired, or is of another CA or name (subjectAltNames)"
            next [TLS_MODES, CONTAINERS, GATEWAY_LOG];
        between_hops because "{caller} and {called} do not agree on TLS (flag {code}): tls.mode of a DestinationRule is not what the pod of {called} accepts (SIMPLE, MUTUAL or DISABLE instead of ISTIO_MUTUAL, or PeerAuthentication DISABLE), or its port is excluded from its sidecar. Or a certificate does not fit: it has expired, or is of another CA or name (subjectAltNames)",
            next [TLS_MODES, PROXY_LOG];
        in_envoy because "The proxy at {caller} and {called} do not agree on TLS (flag {code}): one side speaks plain text, or a certificate does not fit: it has expired, or is of another CA or name. upstream_transport_failure_reason in that proxy's access log says which";

    "UF or UC" when |answer| answer.status == 503 && (answer.says("reset before headers") || answer.says("connect error"));
        at_gateway "The gateway cannot reach the first hop (503, flag {code}: {reason})"
            because "The hop's pod refuses the connection: it is not ready, its port is not the Service's targetPort, or its sidecar refuses plain text (STRICT mTLS) from a gateway outside the mesh"
            next ["kubectl get pods,endpointslices -n {namespace}", "kubectl get peerauthentication -A"];
        between_hops because "The pod of {called} cannot be reached or hung up (flag {code}): it is not ready, its port is not the Service's targetPort, mTLS is on one side only, or a ServiceEntry or EndpointSlice left an address behind that no pod has",
            next [PODS, PROXY_ENDPOINTS, PROXY_LOG];
        in_envoy because "The proxy at {caller} cannot connect to {called} (flag {code}: {reason}): nothing listens at the address of its cluster, or TLS fails: one side speaks plain text, or a certificate does not fit (it has expired, or is of another CA or name). upstream_transport_failure_reason in that proxy's access log says which";

    "NC" when |answer| !answer.is_mesh && (answer.spans.have("NC") || answer.status == 503 && answer.is_bare());
        at_gateway "The gateway's route leads to a cluster that does not exist (503 with an empty body, flag {code}){leads}"
            because "The name of the backend in the route is misspelt, or what it names is gone"
            next [CURL];
        between_hops because "The route of the proxy at {caller} leads to a cluster that does not exist (flag {code}): the name in the route to {called} is misspelt, or what it names is gone",
            next [];

    "NC" when |answer| answer.leads(|to, host, _| !host.is_empty() && first_label(to.host) != first_label(host));
        between_hops because "The route from {caller} for {called} leads to {destination}, which the mesh does not know (flag {code}): destination.host of a VirtualService is misspelt or in another namespace",
            next [DESTINATIONS, ANALYZE];

    "NC" when |answer| answer.leads(|to, host, port| !host.is_empty() && to.port != port);
        between_hops because "The route from {caller} for {called} leads to {destination}, and the Service has no such port (flag {code}): destination.port.number of a VirtualService",
            next [DESTINATIONS, "kubectl get service {called} -n {namespace} -o yaml | grep -A8 ports:"];

    "NC" when |answer| answer.leads(|_, host, _| !host.is_empty());
        between_hops because "The route from {caller} leads to {destination}, in a subset that no DestinationRule gives it (flag {code}): destination.subset of a VirtualService is misspelt, the Service or subset that it names does not exist, or the DestinationRule is missing or its exportTo hides it",
            next [DESTINATIONS, "kubectl get destinationrule -n {namespace} -o yaml | grep -A6 subsets:", ANALYZE];

    "NC" when |answer| answer.status == 503 && (answer.is_bare() || answer.by_client(|span| span.has("NC")));
        at_gateway "The gateway's route leads to a Service that does not exist (503 with an empty body, flag {code}){leads}"
            because "The destination host of the VirtualService is misspelt or in another namespace, the Service has no such port, its subset has no DestinationRule, or an exportTo keeps the Service or that rule to its own namespace"
            next [DESTINATIONS, "kubectl get service -n {namespace}", ANALYZE];
        between_hops because "The route from {caller} leads to a Service or subset that does not exist (flag {code}): a host in a VirtualService is misspelt, the Service has no such port, or the subset has no DestinationRule",
            next [DESTINATIONS, ANALYZE];

    "UT" when |answer| answer.status == 504 && answer.by_envoy;
        at_gateway "The gateway gave up waiting for the first hop (504, flag {code})"
            because "The route's timeout is shorter than the chain takes, or a hop hangs"
            next ["kubectl get virtualservice -A -o yaml | grep -i timeout", GATEWAY_LOG];

    "" when |answer| answer.status == 431;
        at_gateway "The request's head is larger than what answers here allows (431)"
            because "A gateway or proxy limits the headers of a request (Envoy: max_request_headers_kb, max_headers_count), and so does a hop: 32 KiB and 100 fields"
            next [CURL];
        between_hops because "The head of the request from {caller} is larger than the proxy in front of {called} allows: max_request_headers_kb or max_headers_count of Envoy, 60 KiB and 100 fields by default, or a filter that adds headers",
            next [PROXY_LOG];

    "UAEX" when |answer| answer.status == 403 && (answer.spans.have("UAEX") || answer.by_envoy && answer.body == Some(""));
        at_gateway "An external authorizer denies the request, or does not answer (403 with an empty body, flag {code})"
            because "The ext_authz filter (an AuthorizationPolicy with action CUSTOM) asks a service that denies this caller, or that is down: Envoy denies what it cannot ask about"
            next ["kubectl get authorizationpolicy -A", GATEWAY_LOG];
        between_hops because "An external authorizer (ext_authz, an AuthorizationPolicy with action CUSTOM) in front of {called} denies {caller}, or does not answer: Envoy denies what it cannot ask about (flag {code})",
            next ["kubectl get authorizationpolicy -n {namespace}", PROXY_LOG];

    "" when |answer| answer.status == 400 && (answer.says("https port") || answer.says("http request was sent"));
        at_gateway "Plain HTTP reached a TLS port (400)"
            because "The URL says http and the port speaks TLS: write https"
            next [];

    "" when |answer| answer.status == 401;
        at_gateway "The gateway demands a token (401: {body})"
            because "A RequestAuthentication guards this route: give a token with --header 'authorization: Bearer …'"
            next ["kubectl get requestauthentication -A"];
        between_hops because "A RequestAuthentication at {called} demands a token (JWT) that is valid, and {caller} sends none or another",
            next ["kubectl get requestauthentication,authorizationpolicy -n {namespace} -o yaml"];
        in_envoy because "A filter in front of {called} (jwt_authn) demands a token (JWT) that is valid, and {caller} sends none or another";

    "" when |answer| answer.status == 403;
        at_gateway "The request is denied (403: {body})"
            because "An AuthorizationPolicy at the gateway or at the first hop does not allow this caller, path or method, or demands a JWT"
            next ["kubectl get authorizationpolicy -A", GATEWAY_LOG];
        between_hops because "An AuthorizationPolicy at {called} denies {caller} (RBAC): its principal, path or method is not allowed, or the policy demands a JWT (requestPrincipals), which hops do not pass on",
            next ["kubectl get authorizationpolicy -n {namespace}", "istioctl x authz check $(kubectl get pod -n {namespace} -l app={called} -o name | head -1 | cut -d/ -f2) -n {namespace}"];
        in_envoy because "A policy in front of {called} (the filter rbac or ext_authz) denies {caller}";

    "" when |answer| answer.status >= 400 && answer.by_other;
        between_hops because "Not a proxy of the mesh and not a hop of this chain answered {caller}: UPSTREAM there leads to another server or path, or the Service {called} to another server's pods",
            next ["{settings}", PODS];

    "" when |answer| answer.status == 404;
        at_gateway "404: what answers here does not know this path"
            because "Not a gateway of the mesh and not a hop of this chain: the address, port or path leads to another server"
            next [CURL];
        between_hops because "{called} does not serve this path, or the mesh has no route from {caller} for this host or path (Envoy's flag would be NR)",
            next [PROXY_ROUTES, ANALYZE];
        in_envoy because "{called} does not serve this path, or no route of the proxy at {caller} fits this host or path (Envoy's flag would be NR)";

    "" when |answer| answer.status == 426;
        at_gateway "The gateway refuses this version of HTTP (426)"
            because "A proxy in front of Envoy speaks HTTP/1.0 to it: nginx needs proxy_http_version 1.1"
            next [];

    "" when |answer| answer.status == 429;
        at_gateway "The request is limited (429)"
            because "A rate limit at the gateway or the hop is lower than --rate"
            next ["kubectl get envoyfilter -A"];
        between_hops because "A rate limit at {called} is lower than this load",
            next ["kubectl get envoyfilter -n {namespace}"];
        in_envoy because "A rate limit in front of {called} is lower than this load";

    "" when |answer| matches!(answer.status, 502 | 503);
        between_hops because "The proxy at {caller} answered for {called}: no ready pod or a subset without pods (UH), a Service or subset that does not exist (NC), or a refused connection (UF): not ready, wrong port, mTLS on one side only",
            next [PODS, PROXY_ENDPOINTS, PROXY_LOG];
        in_envoy because "The proxy at {caller} answered for {called}: no endpoint that is healthy (UH), a route to no cluster (NC), or a connection that fails (UF): refused, or by TLS";

    "" when |answer| answer.status == 504;
        between_hops because "The proxy at {caller} gave up waiting for {called} (UT): a VirtualService timeout is shorter than {called} takes",
            next ["kubectl get virtualservice -n {namespace} -o yaml | grep -i timeout", PROXY_LOG];
        in_envoy because "A proxy between {caller} and {called} gave up waiting (UT): the timeout of its route, or of each try, is shorter than {called} takes";

    // What istiod makes of a reference that it cannot resolve.
    "" when |answer| answer.status == 500 && answer.is_bare();
        at_gateway "The gateway has a route for this host and path that leads nowhere (500 with an empty body from Envoy)"
            because "An HTTPRoute refers to a backend that is not there: the name or the port of a Service in backendRefs, or a Service of another namespace without a ReferenceGrant. The route's own status names a missing Service (condition ResolvedRefs), and no missing port"
            next [ROUTE_STATUS, "kubectl get service -n {namespace}"];
        between_hops because "The route from {caller} to {called} leads nowhere (500 with an empty body from Envoy): an HTTPRoute whose parent is the Service refers to a backend that is not there, by the name or the port in backendRefs. The route's own status names a missing Service (condition ResolvedRefs), and no missing port",
            next [ROUTE_STATUS, "kubectl get service -n {namespace}"];

    "" when |answer| (500..600).contains(&answer.status);
        at_gateway "{status} from something in front of the chain: {body}"
            because "Not an answer of a hop: the gateway, a load balancer or another server answered, or an app that is not httpserver and fails by itself or by its own next hop: its log says which"
            next [CURL];
        between_hops because "A proxy, or something that is no hop, answered {caller} in place of {called}: an app that is not httpserver and fails, by itself or by its own next hop (its log says which), or another server",
            next ["{settings}", PODS, PROXY_LOG];

    "" when |answer| (200..300).contains(&answer.status) && answer.by_hop;
        at_gateway "A hop answered {status}, but not with a reply of the chain: {body}"
            because "The path is not the chain's, which is /service<N>, or something on the way removes the header accept or rewrites the body"
            next ["curl -s -H 'accept: application/json' {url}", "httpserver check {chain}"];

    "" when |answer| (300..400).contains(&answer.status);
        between_hops because REDIRECTED,
            next ["{settings}"];

    "" when |answer| answer.status != 0;
        at_gateway "{status}, and the body is no reply of the chain: {body}"
            because "The URL leads to another server, or to a path that is not the chain's: it is /service<N>"
            next ["curl -s -H 'accept: application/json' {url}"];
        between_hops because "A proxy, or something that is no hop, answered {caller} in place of {called}",
            next [PROXY_LOG];
}

/// The cause of a redirect between two hops, in a mesh or not.
pub(crate) const REDIRECTED: &str =
    "{called} is redirected, and a hop does not follow redirects: UPSTREAM of {caller} should name the final URL";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_own_answers_are_distinguished_by_status_and_body() {
        const RESET: &str = "upstream connect error or disconnect/reset before headers. ";
        let with = |reason: &str| Some(format!("{RESET}{reason}").to_ascii_lowercase());
        let plain = |body: &str| Some(body.to_owned());
        for (status, by_envoy, body, code) in [
            (404, true, plain(""), "NR"),
            (404, false, plain(""), ""),
            (500, true, plain(""), ""),
            (500, false, plain("oops"), ""),
            (503, true, plain("no healthy upstream"), "UH"),
            (503, true, with("reset reason: overflow"), "UO"),
            (
                503,
                true,
                with(
                    "retried and the latest reset reason: remote connection failure, transport failure reason: TLS_error:|268435703:SSL routines",
                ),
                "UF",
            ),
            (503, true, with("reset reason: connection termination"), "UF or UC"),
            (503, true, plain(""), "NC"),
            (503, true, None, ""),
            (503, false, plain(""), ""),
            (418, true, plain("fault filter abort"), "FI"),
            (504, true, plain("upstream request timeout"), "UT"),
            (504, false, plain(""), ""),
            (200, true, plain(""), ""),
        ] {
            let spans = CallSpans::default();
            let answer = Signs {
                status,
                by_envoy,
                by_hop: false,
                by_other: false,
                body: body.as_deref(),
                spans: &spans,
                url: "",
                is_mesh: true,
            };
            let row = FLAGS.iter().find(|row| (row.matches)(&answer)).unwrap();
            assert_eq!(row.code, code, "{status} {body:?}");
            assert!(at_gateway(&answer, &[]).is_some() && between_hops(&answer, &[]).is_some());
        }
    }

    #[test]
    fn every_name_in_braces_is_filled_in() {
        let gateway =
            ["code", "status", "gateway", "namespace", "url", "chain", "reason", "body", "leads", "port"].map(|name| (name, "x"));
        let hops =
            ["code", "caller", "called", "namespace", "proxy", "log", "settings", "port", "destination", "target", "reason"]
                .map(|name| (name, "x"));
        for row in FLAGS {
            if let Some((text, advice)) = &row.at_gateway {
                let hint = advice.hint(&gateway);
                for text in hint.next.iter().chain([&fill(text, &gateway), &hint.cause]) {
                    assert!(!text.contains('{'), "{text}");
                }
            }
            if let Some(advice) = &row.between_hops {
                for hint in [true, false].map(|is_mesh| row.between(advice, is_mesh, &hops)) {
                    for text in hint.next.iter().chain([&hint.cause]) {
                        assert!(!text.contains('{'), "{text}");
                    }
                }
            }
        }
    }
}
