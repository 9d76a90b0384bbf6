//! What an answer means that no hop gave: a gateway's or a sidecar's own, read by status, body and server.

use crate::hop::error::{Error, PROBLEM_JSON};
use crate::upstream::foreign_response::{ForeignResponse, detail};

use crate::check::envoy::hints::{Hop, Place, Runner};
use crate::check::reachability::client::Answer;
use crate::check::report::Hint;

/// Whether Envoy answered, as an Istio gateway or as itself.
fn by_envoy(answer: &Answer) -> bool {
    answer.header("server").is_some_and(|server| server.contains("envoy"))
        || answer.header("x-envoy-upstream-service-time").is_some()
}

/// What Envoy means by an answer of its own, by the names of its response flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    /// NR
    NoRoute,
    /// UH
    NoHealthyUpstream,
    /// UO
    Overflow,
    /// UF, of a TLS handshake
    Tls,
    /// UF or UC
    Unreachable,
    /// NC
    NoCluster,
    /// FI
    Fault,
    /// UT
    Timeout,
}

/// Stands for words that nobody quoted; an empty text would say that there were none.
const NOT_TOLD: &str = "-";

/// Shows the faults that are injected on purpose.
const FAULTS: &str = "kubectl get virtualservice -A -o yaml | grep -A6 fault:";

/// The flag that explains an answer; none when it may be anybody's. `envoy`: the answer says that Envoy gave it; `words`: its whole body,
/// or [`NOT_TOLD`].
fn flag(status: u16, envoy: bool, words: &str) -> Option<Flag> {
    let words = words.to_ascii_lowercase();
    let says = |part: &str| words.contains(part);
    match status {
        _ if says("fault filter abort") => Some(Flag::Fault),
        404 if envoy && words.is_empty() => Some(Flag::NoRoute),
        503 if says("no healthy upstream") => Some(Flag::NoHealthyUpstream),
        503 if says("overflow") => Some(Flag::Overflow),
        503 if says("tls") => Some(Flag::Tls),
        503 if says("reset before headers") || says("connect error") => Some(Flag::Unreachable),
        503 if envoy && words.is_empty() => Some(Flag::NoCluster),
        504 if envoy => Some(Flag::Timeout),
        _ => None,
    }
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
    let problem = answer.header("content-type").is_some_and(|kind| kind.starts_with(PROBLEM_JSON));

    if problem {
        let detail = detail(body.as_bytes()).map_or_else(String::new, |detail| format!(" ({detail})"));
        let text = format!("A hop answered {status} itself{detail}");
        return match status {
            404 => (text, Hint::new("The path that reaches the hop is none of its own: the chain is /service<N>. A route that publishes another path must rewrite it").run(routes)),
            405 => (text, Hint::new("Something on the way turned GET into another method")),
            503 => (text, Hint::new("The hop is overloaded (MAX_CONCURRENCY) or draining; Retry-After says when to come back").run(format!("kubectl get pods -n {namespace}"))),
            508 => (text, Hint::new("The chain calls itself, or is longer than MAX_HOPS: an UPSTREAM leads back to a hop above it").run(format!("kubectl set env deploy --all --list -n {namespace} | grep -B3 UPSTREAM"))),
            _ => (text, Hint::new("The hop's log says why").run(format!("kubectl logs -n {namespace} -l app=service1 -c httpserver --tail=20"))),
        };
    }
    match (status, flag(status, envoy, body)) {
        (_, Some(Flag::Fault)) => (
            format!("The gateway aborts this on purpose ({status}, flag FI)"),
            Hint::new("A VirtualService injects the fault: fault.abort").run(FAULTS),
        ),
        (_, Some(Flag::NoRoute)) => (
            "The gateway has no route for this host and path (404 from Envoy, flag NR)".to_owned(),
            Hint::new("The host in the VirtualService or HTTPRoute is not the one in the URL, its path match is another, or it names a Gateway that it may not use")
                .run(routes)
                .run("kubectl get virtualservice,gateway -A")
                .run(analyze),
        ),
        (404, _) => (
            "404: what answers here does not know this path".to_owned(),
            Hint::new("Not a gateway of the mesh and not a hop of this chain: the address, port or path leads to another server").run(format!("curl -sv {}", crate::check::envoy::hints::quoted(&place.url))),
        ),
        (_, Some(Flag::NoHealthyUpstream)) => (
            "The gateway knows the route and has no pod to send it to (503, flag UH)".to_owned(),
            Hint::new("The subset that the route names selects no ready pod, the Deployment has none, or outlier detection ejected them all")
                .run(format!("kubectl get pods -n {namespace} --show-labels"))
                .run(endpoints)
                .run("kubectl get destinationrule -A -o yaml | grep -A6 subsets:"),
        ),
        (_, Some(Flag::Overflow)) => (
            "A circuit breaker is open (503, flag UO)".to_owned(),
            Hint::new("connectionPool limits in a DestinationRule are lower than this load").run("kubectl get destinationrule -A -o yaml | grep -A8 connectionPool:"),
        ),
        (_, Some(Flag::Tls)) => (
            "The gateway cannot agree on TLS with the first hop (503, flag UF)".to_owned(),
            Hint::new("One side wants mTLS and the other does not: a DestinationRule with tls.mode, or a PeerAuthentication that the hop's pod has no sidecar for")
                .run("kubectl get destinationrule,peerauthentication -A")
                .run(format!("kubectl get pods -n {namespace} -o custom-columns=POD:.metadata.name,CONTAINERS:.spec.containers[*].name")),
        ),
        (_, Some(Flag::Unreachable)) => (
            format!("The gateway cannot reach the first hop (503, flag UF or UC: {})", reason(body)),
            Hint::new("The hop's pod refuses the connection: it is not ready, its port is not the Service's targetPort, or its sidecar refuses plain text (STRICT mTLS) from a gateway outside the mesh")
                .run(format!("kubectl get pods,endpointslices -n {namespace}"))
                .run("kubectl get peerauthentication -A"),
        ),
        (_, Some(Flag::NoCluster)) => (
            "The gateway's route leads to a Service that does not exist (503 with an empty body, flag NC)".to_owned(),
            Hint::new("The destination host of the VirtualService is misspelt or in another namespace, or its subset has no DestinationRule")
                .run("kubectl get virtualservice -A -o yaml | grep -A3 'destination:'")
                .run(format!("kubectl get service -n {namespace}"))
                .run(analyze),
        ),
        (401, _) => (
            format!("The gateway wants a token (401: {})", clip(body)),
            Hint::new("A RequestAuthentication guards this route: give a token with --header 'authorization: Bearer …'").run("kubectl get requestauthentication -A"),
        ),
        (403, _) => (
            format!("The request is denied (403: {})", clip(body)),
            Hint::new("An AuthorizationPolicy at the gateway or at the first hop does not allow this caller, path or method").run("kubectl get authorizationpolicy -A").run(format!("kubectl logs -n {gateway} deploy/istio-ingressgateway --tail=5")),
        ),
        (426, _) => (
            "The gateway refuses this version of HTTP (426)".to_owned(),
            Hint::new("A proxy in front of Envoy speaks HTTP/1.0 to it: nginx needs proxy_http_version 1.1"),
        ),
        (429, _) => (
            "The request is limited (429)".to_owned(),
            Hint::new("A rate limit at the gateway or the hop is lower than --rate").run("kubectl get envoyfilter -A"),
        ),
        (400, _) if says("https port") || says("http request was sent") => (
            "Plain HTTP reached a TLS port (400)".to_owned(),
            Hint::new("The URL says http and the port speaks TLS: write https"),
        ),
        (_, Some(Flag::Timeout)) => (
            "The gateway gave up waiting for the first hop (504, flag UT)".to_owned(),
            Hint::new("The route's timeout is shorter than the chain takes, or a hop hangs").run("kubectl get virtualservice -A -o yaml | grep -i timeout").run(format!("kubectl logs -n {gateway} deploy/istio-ingressgateway --tail=5")),
        ),
        (500..=599, _) => (
            format!("{status} from something in front of the chain: {}", clip(body)),
            Hint::new("Not an answer of a hop: the gateway, a load balancer or another server answered").run(format!("curl -sv {}", crate::check::envoy::hints::quoted(&place.url))),
        ),
        (200..=299, _) if answer.header("version").is_some() && answer.header("x-request-id").is_some() => (
            format!("A hop answered {status}, and this path is not the chain's: {}", clip(body)),
            Hint::new("The chain is /service<N>").run(format!("httpserver check {}", crate::check::envoy::hints::quoted(&place.other_path("/service1")))),
        ),
        _ => (
            format!("{status}, and the body is no reply of the chain: {}", clip(body)),
            Hint::new("The URL leads to another server, or to a path that is not the chain's: it is /service<N>").run(format!("curl -s -H 'accept: application/json' {}", crate::check::envoy::hints::quoted(&place.url))),
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

/// What an answer that no hop gave means between two hops.
pub(crate) fn inside(status: u16, stranger: &ForeignResponse, from: &Hop, to: &Hop, place: &Place) -> Hint {
    let (caller, called) = (&from.name, &to.name);
    let namespace = place.namespace_of(to);
    let words = stranger.message.as_deref();
    if words == Some(Error::Overloaded.parts().1) {
        return Hint::new(format!("{called} is overloaded: more requests are in flight than its MAX_CONCURRENCY"))
            .run(place.settings(to));
    }
    if words == Some(Error::NotFound.parts().1) {
        return Hint::new(format!(
            "{called} does not serve this path: UPSTREAM of {caller} should end in /service<N>, or without any path"
        ))
        .run(place.settings(from));
    }
    let redirected =
        format!("{called} is redirected, and a hop does not follow redirects: UPSTREAM of {caller} should name the final URL");
    if place.runner(from) == Runner::Local {
        let cause = match status {
            503 => format!("{called} is draining, or something in front of it has nobody to send to"),
            300..=399 => redirected,
            _ => format!("What listens at {} is no hop of this chain, or does not know the path", to.url),
        };
        return Hint::new(cause)
            .run(format!("curl -sv -H 'accept: application/json' {}", crate::check::envoy::hints::quoted(&to.url)));
    }
    let pod = if from.hostname.is_empty() { format!("deploy/{caller}") } else { from.hostname.clone() };
    let proxy_log = format!(
        "kubectl logs {} -c istio-proxy -n {namespace} --tail=5",
        if from.hostname.is_empty() { pod.clone() } else { format!("pod/{pod}") }
    );
    let endpoints = format!("istioctl proxy-config endpoints {pod} -n {namespace} | grep {called}");
    let pods = format!("kubectl get pods -n {namespace} -l app={called} --show-labels");
    let analyze = format!("istioctl analyze -n {namespace}");
    match (status, flag(status, stranger.server.contains("envoy"), words.unwrap_or(NOT_TOLD))) {
        (_, Some(Flag::NoRoute)) => Hint::new(format!("The mesh has no route from {caller} for this host or path (flag NR)"))
            .run(format!("istioctl proxy-config routes {pod} -n {namespace} | grep {called}"))
            .run(analyze),
        (_, Some(Flag::NoHealthyUpstream)) => Hint::new(format!("No ready pod stands behind {called} (flag UH): its Deployment has none, the subset that the route names selects none, or outlier detection ejected them all"))
            .run(pods)
            .run(endpoints)
            .run(format!("kubectl get destinationrule -n {namespace} -o yaml | grep -A6 subsets:")),
        (_, Some(Flag::Overflow)) => Hint::new(format!("A circuit breaker between {caller} and {called} is open (flag UO): connectionPool limits in a DestinationRule are lower than this load"))
            .run(format!("kubectl get destinationrule -n {namespace} -o yaml | grep -A8 connectionPool:")),
        (_, Some(Flag::Tls)) => Hint::new(format!("{caller} and {called} do not agree on TLS (flag UF): a DestinationRule's tls.mode, or a PeerAuthentication that one of them has no sidecar for"))
            .run(format!("kubectl get destinationrule,peerauthentication -n {namespace}"))
            .run(proxy_log),
        (_, Some(Flag::Unreachable)) => Hint::new(format!("The pod of {called} cannot be reached or hung up (flag UF or UC): it is not ready, its port is not the Service's targetPort, or mTLS is on one side only"))
            .run(pods)
            .run(endpoints)
            .run(proxy_log),
        (_, Some(Flag::NoCluster)) => Hint::new(format!("The route from {caller} leads to a Service or subset that does not exist (flag NC): a host in a VirtualService is misspelt, or the subset has no DestinationRule"))
            .run("kubectl get virtualservice -A -o yaml | grep -A3 'destination:'")
            .run(analyze),
        (_, Some(Flag::Fault)) => Hint::new(format!("A VirtualService aborts calls from {caller} to {called} on purpose (flag FI)")).run(FAULTS),
        (403, _) => Hint::new(format!("An AuthorizationPolicy at {called} denies {caller} (RBAC): its principal, path or method is not allowed"))
            .run(format!("kubectl get authorizationpolicy -n {namespace}"))
            .run(format!("istioctl x authz check $(kubectl get pod -n {namespace} -l app={called} -o name | head -1 | cut -d/ -f2) -n {namespace}")),
        (404, _) => Hint::new(format!("The mesh has no route from {caller} for this host or path (flag NR), or {called} does not serve the path"))
            .run(format!("istioctl proxy-config routes {pod} -n {namespace} | grep {called}"))
            .run(analyze),
        (429, _) => Hint::new(format!("A rate limit at {called} is lower than this load")).run(format!("kubectl get envoyfilter -n {namespace}")),
        (502 | 503, _) => Hint::new(format!(
            "The proxy at {caller} answered for {called}: no ready pod or a subset without pods (UH), a Service or subset that does not exist (NC), or a refused connection (UF): not ready, wrong port, mTLS on one side only"
        ))
        .run(pods)
        .run(endpoints)
        .run(proxy_log),
        (504, _) => Hint::new(format!("The proxy at {caller} gave up waiting for {called} (UT): a VirtualService timeout is shorter than {called} takes"))
            .run(format!("kubectl get virtualservice -n {namespace} -o yaml | grep -i timeout"))
            .run(proxy_log),
        (300..=399, _) => Hint::new(redirected).run(place.settings(from)),
        _ => Hint::new(format!("A proxy, or something that is no hop, answered {caller} in place of {called}")).run(proxy_log),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_own_answers_are_told_apart_by_status_and_words() {
        for (status, envoy, words, want) in [
            (404, true, "", Some(Flag::NoRoute)),
            (404, false, "", None),
            (503, true, "no healthy upstream", Some(Flag::NoHealthyUpstream)),
            (
                503,
                true,
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
                Some(Flag::Overflow),
            ),
            (
                503,
                true,
                "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote connection failure, transport failure reason: TLS_error:|268435703:SSL routines",
                Some(Flag::Tls),
            ),
            (
                503,
                true,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
                Some(Flag::Unreachable),
            ),
            (503, true, "", Some(Flag::NoCluster)),
            (503, true, NOT_TOLD, None),
            (503, false, "", None),
            (418, true, "fault filter abort", Some(Flag::Fault)),
            (504, true, "upstream request timeout", Some(Flag::Timeout)),
            (504, false, "", None),
            (200, true, "", None),
        ] {
            assert_eq!(flag(status, envoy, words), want, "{status} {words}");
        }
    }
}
