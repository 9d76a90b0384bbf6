//! What an answer means that no hop gave: a gateway's or a sidecar's own, read by status, body and server.

use super::client::Answer;
use super::hints::{Hop, Place, Runner};
use super::report::Hint;

/// Whether Envoy answered, as an Istio gateway or as itself.
fn by_envoy(answer: &Answer) -> bool {
    answer.header("server").is_some_and(|server| server.contains("envoy"))
        || answer.header("x-envoy-upstream-service-time").is_some()
}

/// What the front's answer means: a sentence, and a hint.
pub(crate) fn front(answer: &Answer, place: &Place) -> (String, Hint) {
    let body = answer.text();
    let body = body.trim();
    let says = |part: &str| body.to_ascii_lowercase().contains(part);
    let gateway = &place.gateway_namespace;
    let namespace = &place.namespace;
    let envoy = by_envoy(answer);
    let status = answer.status;
    let routes = format!("istioctl proxy-config routes deploy/istio-ingressgateway -n {gateway}");
    let analyze = format!("istioctl analyze -n {namespace}");
    let endpoints = format!("istioctl proxy-config endpoints deploy/istio-ingressgateway -n {gateway} | grep {namespace}");
    let problem = answer.header("content-type").is_some_and(|kind| kind.starts_with("application/problem+json"));

    if problem {
        let detail: Option<String> = serde_json::from_str::<serde_json::Value>(body)
            .ok()
            .and_then(|json| json.get("detail").or_else(|| json.get("title")).and_then(|text| text.as_str().map(str::to_owned)));
        let detail = detail.map_or_else(String::new, |detail| format!(" ({detail})"));
        let text = format!("A hop answered {status} itself{detail}");
        return match status {
            404 => (text, Hint::new("The path that reaches the hop is none of its own: the chain is /service<N>. A route that publishes another path must rewrite it").run(routes)),
            405 => (text, Hint::new("Something on the way turned GET into another method")),
            503 => (text, Hint::new("The hop is overloaded (MAX_CONCURRENCY) or draining; Retry-After says when to come back").run(format!("kubectl get pods -n {namespace}"))),
            508 => (text, Hint::new("The chain calls itself, or is longer than MAX_HOPS: an UPSTREAM leads back to a hop above it").run(format!("kubectl set env deploy --all --list -n {namespace} | grep -B3 UPSTREAM"))),
            _ => (text, Hint::new("The hop's log says why").run(format!("kubectl logs -n {namespace} -l app=service1 -c httpserver --tail=20"))),
        };
    }
    match status {
        404 if envoy && body.is_empty() => (
            "The gateway has no route for this host and path (404 from Envoy, flag NR)".to_owned(),
            Hint::new("The host in the VirtualService or HTTPRoute is not the one in the URL, its path match is another, or it names a Gateway that it may not use")
                .run(routes)
                .run("kubectl get virtualservice,gateway -A")
                .run(analyze),
        ),
        404 => (
            "404: what answers here does not know this path".to_owned(),
            Hint::new("Not a gateway of the mesh and not a hop of this chain: the address, port or path leads to another server").run(format!("curl -sv {}", super::hints::quoted(&place.url))),
        ),
        503 if says("no healthy upstream") => (
            "The gateway knows the route and has no pod to send it to (503, flag UH)".to_owned(),
            Hint::new("The subset that the route names selects no ready pod, the Deployment has none, or outlier detection ejected them all")
                .run(format!("kubectl get pods -n {namespace} --show-labels"))
                .run(endpoints)
                .run("kubectl get destinationrule -A -o yaml | grep -A6 subsets:"),
        ),
        503 if says("overflow") => (
            "A circuit breaker is open (503, flag UO)".to_owned(),
            Hint::new("connectionPool limits in a DestinationRule are lower than this load").run("kubectl get destinationrule -A -o yaml | grep -A8 connectionPool:"),
        ),
        503 if says("tls") => (
            "The gateway cannot agree on TLS with the first hop (503, flag UF)".to_owned(),
            Hint::new("One side wants mTLS and the other does not: a DestinationRule with tls.mode, or a PeerAuthentication that the hop's pod has no sidecar for")
                .run("kubectl get destinationrule,peerauthentication -A")
                .run(format!("kubectl get pods -n {namespace} -o custom-columns=POD:.metadata.name,CONTAINERS:.spec.containers[*].name")),
        ),
        503 if says("reset before headers") || says("connect error") => (
            format!("The gateway cannot reach the first hop (503, flag UF or UC: {})", reason(body)),
            Hint::new("The hop's pod refuses the connection: it is not ready, its port is not the Service's targetPort, or its sidecar refuses plain text (STRICT mTLS) from a gateway outside the mesh")
                .run(format!("kubectl get pods,endpointslices -n {namespace}"))
                .run("kubectl get peerauthentication -A"),
        ),
        503 if envoy && body.is_empty() => (
            "The gateway's route leads to a Service that does not exist (503 with an empty body, flag NC)".to_owned(),
            Hint::new("The destination host of the VirtualService is misspelt or in another namespace, or its subset has no DestinationRule")
                .run("kubectl get virtualservice -A -o yaml | grep -A3 'destination:'")
                .run(format!("kubectl get service -n {namespace}"))
                .run(analyze),
        ),
        401 => (
            format!("The gateway wants a token (401: {})", clip(body)),
            Hint::new("A RequestAuthentication guards this route: give a token with --header 'authorization: Bearer …'").run("kubectl get requestauthentication -A"),
        ),
        403 => (
            format!("The request is denied (403: {})", clip(body)),
            Hint::new("An AuthorizationPolicy at the gateway or at the first hop does not allow this caller, path or method").run("kubectl get authorizationpolicy -A").run(format!("kubectl logs -n {gateway} deploy/istio-ingressgateway --tail=5")),
        ),
        426 => (
            "The gateway refuses this version of HTTP (426)".to_owned(),
            Hint::new("A proxy in front of Envoy speaks HTTP/1.0 to it: nginx needs proxy_http_version 1.1"),
        ),
        429 => (
            "The request is limited (429)".to_owned(),
            Hint::new("A rate limit at the gateway or the hop is lower than --rate").run("kubectl get envoyfilter -A"),
        ),
        400 if says("https port") || says("http request was sent") => (
            "Plain HTTP reached a TLS port (400)".to_owned(),
            Hint::new("The URL says http and the port speaks TLS: write https"),
        ),
        504 if envoy => (
            "The gateway gave up waiting for the first hop (504, flag UT)".to_owned(),
            Hint::new("The route's timeout is shorter than the chain takes, or a hop hangs").run("kubectl get virtualservice -A -o yaml | grep -i timeout").run(format!("kubectl logs -n {gateway} deploy/istio-ingressgateway --tail=5")),
        ),
        500..=599 => (
            format!("{status} from something in front of the chain: {}", clip(body)),
            Hint::new("Not an answer of a hop: the gateway, a load balancer or another server answered").run(format!("curl -sv {}", super::hints::quoted(&place.url))),
        ),
        200..=299 if answer.header("version").is_some() && answer.header("x-request-id").is_some() => (
            format!("A hop answered {status}, and this path is not the chain's: {}", clip(body)),
            Hint::new("The chain is /service<N>").run(format!("httpserver check {}", super::hints::quoted(&place.other_path("/service1")))),
        ),
        _ => (
            format!("{status}, and the body is no reply of the chain: {}", clip(body)),
            Hint::new("The URL leads to another server, or to a path that is not the chain's: it is /service<N>").run(format!("curl -s -H 'accept: application/json' {}", super::hints::quoted(&place.url))),
        ),
    }
}

/// The reason in Envoy's sentence "upstream connect error …. reset reason: connection failure, …".
fn reason(body: &str) -> String {
    body.split_once("reset reason: ").map_or_else(|| clip(body), |(_, reason)| clip(reason))
}

/// The start of a body, on one line.
pub(crate) fn clip(body: &str) -> String {
    const SHOWN: usize = 80;
    let line: String = body.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None if line.is_empty() => "empty body".to_owned(),
        None => line,
    }
}

/// What an answer that no hop gave means between two hops, where only its status is known.
pub(crate) fn inside(status: u16, from: &Hop, to: &Hop, place: &Place) -> Hint {
    let (caller, called) = (&from.name, &to.name);
    let namespace = place.namespace_of(to);
    if place.runner(from) == Runner::Local {
        let url = super::hints::quoted(&to.url);
        let cause = match status {
            503 => {
                format!("{called} is overloaded (MAX_CONCURRENCY) or draining, or something in front of it has nobody to send to")
            }
            300..=399 => format!(
                "{called} is redirected, and a hop does not follow redirects: UPSTREAM of {caller} should name the final URL"
            ),
            _ => format!("What listens at {} is no hop of this chain, or does not know the path", to.url),
        };
        return Hint::new(cause).run(format!("curl -sv -H 'accept: application/json' {url}"));
    }
    let pod = if from.hostname.is_empty() { format!("deploy/{caller}") } else { from.hostname.clone() };
    let proxy_log = format!(
        "kubectl logs {} -c istio-proxy -n {namespace} --tail=5",
        if from.hostname.is_empty() { pod.clone() } else { format!("pod/{pod}") }
    );
    match status {
        403 => Hint::new(format!("An AuthorizationPolicy at {called} denies {caller} (RBAC): its principal, path or method is not allowed"))
            .run(format!("kubectl get authorizationpolicy -n {namespace}"))
            .run(format!("istioctl x authz check $(kubectl get pod -n {namespace} -l app={called} -o name | head -1 | cut -d/ -f2) -n {namespace}")),
        404 => Hint::new(format!("The mesh has no route from {caller} for this host or path (flag NR), or {called} does not serve the path"))
            .run(format!("istioctl proxy-config routes {pod} -n {namespace} | grep {called}"))
            .run(format!("istioctl analyze -n {namespace}")),
        429 => Hint::new(format!("A rate limit at {called} is lower than this load")).run(format!("kubectl get envoyfilter -n {namespace}")),
        502 | 503 => Hint::new(format!(
            "The proxy at {caller} answered for {called}: no ready pod or a subset without pods (UH), a Service or subset that does not exist (NC), or a refused connection (UF): not ready, wrong port, mTLS on one side only"
        ))
        .run(format!("kubectl get pods -n {namespace} -l app={called} --show-labels"))
        .run(format!("istioctl proxy-config endpoints {pod} -n {namespace} | grep {called}"))
        .run(proxy_log),
        504 => Hint::new(format!("The proxy at {caller} gave up waiting for {called} (UT): a VirtualService timeout is shorter than {called} takes"))
            .run(format!("kubectl get virtualservice -n {namespace} -o yaml | grep -i timeout"))
            .run(proxy_log),
        300..=399 => Hint::new(format!("{called} is redirected, and a hop does not follow redirects: UPSTREAM of {caller} should name the final URL")).run(place.settings(from)),
        _ => Hint::new(format!("A proxy, or something that is no hop, answered {caller} in place of {called}")).run(proxy_log),
    }
}
