//! What an answer means that no hop gave, as data: one row per response flag of Envoy, then one per status that is all there is to read.
//!
//! A row says how the answer is recognised, and what it means in each of the two places where it is met: at the gateway, in
//! front of the first hop, and between two hops, where the calling hop quotes it. Names in braces are filled in from the request.

use crate::check::report::Hint;

/// An answer of something that is no hop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForeignAnswer<'a> {
    pub(crate) status: u16,
    /// The answer carries Envoy's name or headers.
    pub(crate) by_envoy: bool,
    /// The answer carries a hop's headers.
    pub(crate) by_hop: bool,
    /// The whole body in lower case; `None` when it was not quoted, which is not the same as empty.
    pub(crate) body: Option<&'a str>,
}

impl ForeignAnswer<'_> {
    fn says(&self, part: &str) -> bool {
        self.body.is_some_and(|body| body.contains(part))
    }

    fn is_bare(&self) -> bool {
        self.by_envoy && self.body == Some("")
    }
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
    matches: fn(&ForeignAnswer<'_>) -> bool,
    /// The sentence of the report, and the advice. Fills `code`, `status`, `gateway`, `namespace`, `url`, `chain`, `reason` and `body`.
    at_gateway: Option<(&'static str, Advice)>,
    /// The advice; the sentence is that of the failed call. Fills `code`, `caller`, `called`, `namespace`,
    /// `proxy`, `log` and `settings`.
    between_hops: Option<Advice>,
}

/// What the answer means at the gateway: the sentence and the hint.
pub(crate) fn at_gateway(answer: &ForeignAnswer<'_>, values: &[(&str, &str)]) -> Option<(String, Hint)> {
    FLAGS.iter().filter(|row| (row.matches)(answer)).find_map(|row| {
        let (text, advice) = row.at_gateway.as_ref()?;
        let values = [&[("code", row.code)], values].concat();
        Some((fill(text, &values), advice.hint(&values)))
    })
}

/// What the answer means between two hops.
pub(crate) fn between_hops(answer: &ForeignAnswer<'_>, values: &[(&str, &str)]) -> Option<Hint> {
    FLAGS.iter().filter(|row| (row.matches)(answer)).find_map(|row| {
        let advice = row.between_hops.as_ref()?;
        Some(advice.hint(&[&[("code", row.code)], values].concat()))
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
    )*) => {
        /// The rows, the more specific ones first.
        static FLAGS: &[EnvoyFlag] = &[$(EnvoyFlag {
            code: $code,
            matches: $matches,
            at_gateway: optional!($(($text, Advice { cause: $gateway_cause, next: &[$($gateway_next),*] }))?),
            between_hops: optional!($(Advice { cause: $hop_cause, next: &[$($hop_next),*] })?),
        },)*];
    };
}

envoy_flags! {
    "FI" when |answer| answer.says("fault filter abort");
        at_gateway "The gateway aborts this on purpose ({status}, flag {code})"
            because "A VirtualService injects the fault: fault.abort"
            next [FAULTS];
        between_hops because "A VirtualService aborts calls from {caller} to {called} on purpose (flag {code})",
            next [FAULTS];

    "NR" when |answer| answer.status == 404 && answer.is_bare();
        at_gateway "The gateway has no route for this host and path (404 from Envoy, flag {code})"
            because "The host in the VirtualService or HTTPRoute is not the one in the URL, its path match is another, or it names a Gateway that it may not use"
            next [GATEWAY_ROUTES, "kubectl get virtualservice,gateway -A", ANALYZE];
        between_hops because "The mesh has no route from {caller} for this host or path (flag {code})",
            next [PROXY_ROUTES, ANALYZE];

    "UH" when |answer| answer.status == 503 && answer.says("no healthy upstream");
        at_gateway "The gateway knows the route and has no pod to send it to (503, flag {code})"
            because "The subset that the route names selects no ready pod, the Deployment has none, or outlier detection ejected them all"
            next ["kubectl get pods -n {namespace} --show-labels", "istioctl proxy-config endpoints deploy/istio-ingressgateway -n {gateway} | grep {namespace}", "kubectl get destinationrule -A -o yaml | grep -A6 subsets:"];
        between_hops because "No ready pod stands behind {called} (flag {code}): its Deployment has none, the subset that the route names selects none, or outlier detection ejected them all",
            next [PODS, PROXY_ENDPOINTS, "kubectl get destinationrule -n {namespace} -o yaml | grep -A6 subsets:"];

    "UO" when |answer| answer.status == 503 && answer.says("overflow");
        at_gateway "A circuit breaker is open (503, flag {code})"
            because "connectionPool limits in a DestinationRule are lower than this load"
            next ["kubectl get destinationrule -A -o yaml | grep -A8 connectionPool:"];
        between_hops because "A circuit breaker between {caller} and {called} is open (flag {code}): connectionPool limits in a DestinationRule are lower than this load",
            next ["kubectl get destinationrule -n {namespace} -o yaml | grep -A8 connectionPool:"];

    "UF" when |answer| answer.status == 503 && answer.says("tls");
        at_gateway "The gateway cannot agree on TLS with the first hop (503, flag {code})"
            because "One side wants mTLS and the other does not: a DestinationRule with tls.mode, or a PeerAuthentication that the hop's pod has no sidecar for"
            next ["kubectl get destinationrule,peerauthentication -A", CONTAINERS];
        between_hops because "{caller} and {called} do not agree on TLS (flag {code}): a DestinationRule's tls.mode, or a PeerAuthentication that one of them has no sidecar for",
            next ["kubectl get destinationrule,peerauthentication -n {namespace}", PROXY_LOG];

    "UF or UC" when |answer| answer.status == 503 && (answer.says("reset before headers") || answer.says("connect error"));
        at_gateway "The gateway cannot reach the first hop (503, flag {code}: {reason})"
            because "The hop's pod refuses the connection: it is not ready, its port is not the Service's targetPort, or its sidecar refuses plain text (STRICT mTLS) from a gateway outside the mesh"
            next ["kubectl get pods,endpointslices -n {namespace}", "kubectl get peerauthentication -A"];
        between_hops because "The pod of {called} cannot be reached or hung up (flag {code}): it is not ready, its port is not the Service's targetPort, or mTLS is on one side only",
            next [PODS, PROXY_ENDPOINTS, PROXY_LOG];

    "NC" when |answer| answer.status == 503 && answer.is_bare();
        at_gateway "The gateway's route leads to a Service that does not exist (503 with an empty body, flag {code})"
            because "The destination host of the VirtualService is misspelt or in another namespace, or its subset has no DestinationRule"
            next [DESTINATIONS, "kubectl get service -n {namespace}", ANALYZE];
        between_hops because "The route from {caller} leads to a Service or subset that does not exist (flag {code}): a host in a VirtualService is misspelt, or the subset has no DestinationRule",
            next [DESTINATIONS, ANALYZE];

    "UT" when |answer| answer.status == 504 && answer.by_envoy;
        at_gateway "The gateway gave up waiting for the first hop (504, flag {code})"
            because "The route's timeout is shorter than the chain takes, or a hop hangs"
            next ["kubectl get virtualservice -A -o yaml | grep -i timeout", GATEWAY_LOG];

    "" when |answer| answer.status == 400 && (answer.says("https port") || answer.says("http request was sent"));
        at_gateway "Plain HTTP reached a TLS port (400)"
            because "The URL says http and the port speaks TLS: write https"
            next [];

    "" when |answer| answer.status == 401;
        at_gateway "The gateway demands a token (401: {body})"
            because "A RequestAuthentication guards this route: give a token with --header 'authorization: Bearer …'"
            next ["kubectl get requestauthentication -A"];

    "" when |answer| answer.status == 403;
        at_gateway "The request is denied (403: {body})"
            because "An AuthorizationPolicy at the gateway or at the first hop does not allow this caller, path or method"
            next ["kubectl get authorizationpolicy -A", GATEWAY_LOG];
        between_hops because "An AuthorizationPolicy at {called} denies {caller} (RBAC): its principal, path or method is not allowed",
            next ["kubectl get authorizationpolicy -n {namespace}", "istioctl x authz check $(kubectl get pod -n {namespace} -l app={called} -o name | head -1 | cut -d/ -f2) -n {namespace}"];

    "" when |answer| answer.status == 404;
        at_gateway "404: what answers here does not know this path"
            because "Not a gateway of the mesh and not a hop of this chain: the address, port or path leads to another server"
            next [CURL];
        between_hops because "The mesh has no route from {caller} for this host or path (flag NR), or {called} does not serve the path",
            next [PROXY_ROUTES, ANALYZE];

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

    "" when |answer| matches!(answer.status, 502 | 503);
        between_hops because "The proxy at {caller} answered for {called}: no ready pod or a subset without pods (UH), a Service or subset that does not exist (NC), or a refused connection (UF): not ready, wrong port, mTLS on one side only",
            next [PODS, PROXY_ENDPOINTS, PROXY_LOG];

    "" when |answer| answer.status == 504;
        between_hops because "The proxy at {caller} gave up waiting for {called} (UT): a VirtualService timeout is shorter than {called} takes",
            next ["kubectl get virtualservice -n {namespace} -o yaml | grep -i timeout", PROXY_LOG];

    "" when |answer| (500..600).contains(&answer.status);
        at_gateway "{status} from something in front of the chain: {body}"
            because "Not an answer of a hop: the gateway, a load balancer or another server answered"
            next [CURL];

    "" when |answer| (200..300).contains(&answer.status) && answer.by_hop;
        at_gateway "A hop answered {status}, and this path is not the chain's: {body}"
            because "The chain is /service<N>"
            next ["httpserver check {chain}"];

    "" when |answer| (300..400).contains(&answer.status);
        between_hops because REDIRECTED,
            next ["{settings}"];

    "" when |_| true;
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
            let answer = ForeignAnswer { status, by_envoy, by_hop: false, body: body.as_deref() };
            let row = FLAGS.iter().find(|row| (row.matches)(&answer)).unwrap();
            assert_eq!(row.code, code, "{status} {body:?}");
            assert!(at_gateway(&answer, &[]).is_some() && between_hops(&answer, &[]).is_some());
        }
    }

    #[test]
    fn every_name_in_braces_is_filled_in() {
        let gateway = ["code", "status", "gateway", "namespace", "url", "chain", "reason", "body"].map(|name| (name, "x"));
        let hops = ["code", "caller", "called", "namespace", "proxy", "log", "settings"].map(|name| (name, "x"));
        for row in FLAGS {
            if let Some((text, advice)) = &row.at_gateway {
                let hint = advice.hint(&gateway);
                for text in hint.next.iter().chain([&fill(text, &gateway), &hint.cause]) {
                    assert!(!text.contains('{'), "{text}");
                }
            }
            if let Some(advice) = &row.between_hops {
                let hint = advice.hint(&hops);
                for text in hint.next.iter().chain([&hint.cause]) {
                    assert!(!text.contains('{'), "{text}");
                }
            }
        }
    }
}
