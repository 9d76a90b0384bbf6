//! Explains an answer that is no reply of the chain, at the gateway and between two hops.

use crate::hop::error::{Error, PROBLEM_JSON, ShedReason};
use crate::upstream::foreign_response::{ForeignResponse, detail};

use crate::check::envoy::flags::{self, Signs, fill};
use crate::check::envoy::spans::CallSpans;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, on_purpose};
use crate::check::reachability::client::FrontAnswer;
use crate::report::Hint;
use crate::text::quoted;

/// What the front's answer means: a sentence, and a hint.
pub(crate) fn front(answer: &FrontAnswer, hints: &HintContext) -> (String, Hint) {
    let body = answer.text();
    let body = body.trim();
    if answer.header("content-type").is_some_and(|kind| kind.starts_with(PROBLEM_JSON)) {
        return refused_by_hop(answer.status, body, hints);
    }
    let server = answer.header("server").unwrap_or_default();
    let by_envoy = server.contains("envoy") || (server.is_empty() && answer.header("x-envoy-upstream-service-time").is_some());
    // Envoy writes how long the upstream took only into answers that are the upstream's.
    let body = body.to_ascii_lowercase();
    let by_upstream = answer.header("x-envoy-upstream-service-time").is_some() && body.is_empty();
    let foreign = Signs {
        status: answer.status,
        by_envoy: by_envoy && !by_upstream,
        by_hop: answer.header("version").is_some() && answer.header("x-request-id").is_some(),
        by_other: false,
        body: Some(&body),
        spans: &hints.evidence.of(&front_key(answer.status)),
        url: "",
        is_mesh: !hints.is_outside,
    };
    at_front(&foreign, answer.text().trim(), hints).unwrap_or_default()
}

/// The kind of failure that an answer of this status in front of the chain is; 0 without one.
pub(crate) fn front_key(status: u16) -> String {
    format!("front: {status}")
}

/// What no answer at all means at the front, where proxies reported of it.
pub(crate) fn unanswered(hints: &HintContext) -> Option<(String, Hint)> {
    let spans = hints.evidence.of(&front_key(0));
    let is_mesh = !hints.is_outside;
    let signs = Signs { status: 0, by_envoy: false, by_hop: false, by_other: false, body: None, spans: &spans, url: "", is_mesh };
    at_front(&signs, "", hints)
}

fn at_front(signs: &Signs<'_>, body: &str, hints: &HintContext) -> Option<(String, Hint)> {
    let (status, clipped, reason) = (signs.status.to_string(), clip(body), reason(body));
    let (url, chain) = (quoted(&hints.url), quoted(&hints.other_path("/service1")));
    let (destination, port) = routed(signs.spans);
    let leads = if destination.is_empty() { String::new() } else { format!(": {destination}") };
    let values = [
        ("status", status.as_str()),
        ("gateway", hints.gateway_namespace.as_str()),
        ("namespace", hints.namespace.as_str()),
        ("url", url.as_str()),
        ("chain", chain.as_str()),
        ("port", port.as_str()),
        ("leads", leads.as_str()),
        ("reason", reason.as_str()),
        // Of what Envoy's own configuration is about.
        ("caller", if matches!(signs.status, 401 | 403) { "this caller" } else { "the gateway" }),
        ("called", "the first hop"),
        ("body", clipped.as_str()),
    ];
    flags::at_gateway(&Signs { is_mesh: signs.is_mesh && !signs.spans.are_foreign(), ..*signs }, &values)
}

/// Where the proxies say that a call's route leads, and the app's port behind it.
fn routed(spans: &CallSpans) -> (String, String) {
    let destination = spans.client.as_ref().and_then(|span| span.destination());
    let port = spans.server.as_ref().and_then(|span| span.inbound_port());
    let destination = destination.map_or_else(String::new, |to| format!("{}:{}", to.host, to.port));
    (clip_word(&destination), clip_word(port.unwrap_or("of the Service")))
}

fn clip_word(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || " -_.:*".contains(*c)).take(120).collect()
}

/// A problem document: a hop itself refused.
fn refused_by_hop(status: u16, body: &str, hints: &HintContext) -> (String, Hint) {
    let namespace = &hints.namespace;
    let detail = detail(body.as_bytes()).map_or_else(String::new, |detail| format!(" ({detail})"));
    let hint = match status {
        404 => Hint::new("The path that reaches the hop is none of its own: the chain is /service<N>. A route that publishes another path must rewrite it")
            .run(format!("istioctl proxy-config routes deploy/istio-ingressgateway -n {}", hints.gateway_namespace)),
        405 => Hint::new("Something on the way turned GET into another method"),
        503 => Hint::new("The hop is overloaded (MAX_CONCURRENCY) or draining; Retry-After says when to come back")
            .run(format!("kubectl get pods -n {namespace}")),
        508 => Hint::new("The chain calls itself, is longer than MAX_HOPS or makes more calls than MAX_CALLS: an UPSTREAM leads back to a hop above it")
            .run(format!("kubectl set env deploy --all --list -n {namespace} | grep -B3 UPSTREAM")),
        _ => Hint::new("The hop's log says why")
            .run(format!("kubectl logs -n {namespace} -l app=service1 -c httpserver --tail=20")),
    };
    (format!("A hop answered {status} itself{detail}"), hint)
}

/// What it means between two hops that no hop answered. `status`: 0 without any answer. `kind`: of the failure.
pub(crate) fn inside(
    status: u16,
    foreign: &ForeignResponse,
    from: &HopRef,
    to: &HopRef,
    hints: &HintContext,
    kind: &str,
) -> Option<Hint> {
    let (caller, called) = (from.name.as_str(), to.name.as_str());
    let words = foreign.message.as_deref();
    let by_envoy = is_envoys(foreign);
    if let Some(error) = words.and_then(Error::of_detail) {
        return Some(refused(error, from, to, by_envoy, hints));
    }
    let spans = hints.evidence.of(kind);
    let (settings, namespace) = (hints.settings(from), hints.namespace_of(to));
    let (proxy, log) = match from.hostname.as_str() {
        "" => (format!("deploy/{caller}"), format!("deploy/{caller}")),
        pod => (pod.to_owned(), format!("pod/{pod}")),
    };
    let (destination, port) = routed(&spans);
    let (target, reason) = (quoted(&to.url), reason(words.unwrap_or_default()));
    let values = [
        ("target", target.as_str()),
        ("namespace", namespace.as_str()),
        ("settings", settings.as_str()),
        ("proxy", proxy.as_str()),
        ("log", log.as_str()),
        ("port", port.as_str()),
        ("caller", caller),
        ("called", called),
        ("destination", destination.as_str()),
        ("reason", reason.as_str()),
    ];
    if hints.runner(from) == Runner::Local && status != 0 && !by_envoy && spans == CallSpans::default() {
        let cause = match status {
            503 => format!("{called} is draining, or something in front of it has nobody to send to"),
            300..=399 => fill(flags::REDIRECTED, &values),
            500..=599 => format!(
                "What listens at {} is no hop of this chain: an app that is not httpserver and fails, by itself or by its own next hop (its log says which), or another server",
                to.url
            ),
            _ => format!("What listens at {} is no hop of this chain, or does not know the path", to.url),
        };
        return Some(Hint::new(cause).run(format!("curl -sv -H 'accept: application/json' {}", quoted(&to.url))));
    }
    let body = words.map(str::to_ascii_lowercase);
    let by_other = !by_envoy && !foreign.server.is_empty();
    let is_mesh = hints.runner(from) == Runner::Kubernetes;
    let signs = Signs { status, by_envoy, by_hop: false, by_other, body: body.as_deref(), spans: &spans, url: &to.url, is_mesh };
    flags::between_hops(&signs, &values)
}

/// Whether Envoy answered: by its name, or by words that are its own.
fn is_envoys(answer: &ForeignResponse) -> bool {
    const WORDS: [&str; 8] = [
        "upstream connect error or disconnect/reset before headers",
        "no healthy upstream",
        "upstream request timeout",
        "fault filter abort",
        "RBAC: access denied",
        "Jwt ",
        "local_rate_limited",
        "no_cluster_found",
    ];
    let says = |message: &str| WORDS.iter().any(|words| message.starts_with(words));
    answer.server.contains("envoy") || answer.message.as_deref().is_some_and(says)
}

/// What it means that a hop refused, by the words of its own problem document.
fn refused(error: Error, from: &HopRef, to: &HopRef, by_envoy: bool, hints: &HintContext) -> Hint {
    let (caller, called) = (&from.name, &to.name);
    let (called_is, caller_is) = (hints.settings(to), hints.settings(from));
    let (cause, next) = match error {
        Error::Shed(ShedReason::Concurrency) => {
            (format!("{called} is overloaded: more requests are in flight than its MAX_CONCURRENCY"), called_is)
        }
        Error::Shed(ShedReason::Streams) => {
            (format!("{called} has as many streams as it may have: an eighth of its MAX_CONCURRENCY"), called_is)
        }
        Error::Shed(ShedReason::Held(_)) => (
            format!(
                "{}, or more and larger requests are in flight than its memory limit allows",
                on_purpose(called, "is to hold more on purpose than it may (memory=…)", "--fault or FAULT")
            ),
            called_is,
        ),
        Error::LoopDetected => (
            format!(
                "The request has passed more hops than MAX_HOPS (--max-hops) of {called} allows: the chain is longer than that, or an UPSTREAM leads back to a hop above it"
            ),
            called_is,
        ),
        Error::NotFound => {
            let is_rewritten = by_envoy || hints.runner(from) == Runner::Kubernetes;
            let rewritten =
                if is_rewritten { ", or a rewrite in a route changes it (VirtualService, prefix_rewrite)" } else { "" };
            (
                format!(
                    "{called} does not serve this path: UPSTREAM of {caller} should end in /service<N>, or without any path{rewritten}"
                ),
                caller_is,
            )
        }
        Error::NotGrpc => (
            format!(
                "The call of {caller} is gRPC and does not arrive at {called} as such: a proxy between them speaks HTTP/1.1 to {called}, or changes content-type. gRPC needs HTTP/2 on every part of the way (a port named grpc-…, appProtocol, http2_protocol_options)"
            ),
            caller_is,
        ),
        Error::CertificateRequired => (
            format!(
                "{called} demands a client certificate (--tls-client-ca), and what calls it presents none: {caller}, or a proxy between them"
            ),
            caller_is,
        ),
        Error::Internal => (format!("{called} itself fails; its log says why"), hints.logs(to)),
        Error::DeadlineExceeded => {
            (format!("The time that the callers of {called} allow (grpc-timeout) had passed before it was done"), caller_is)
        }
        _ => (
            format!(
                "{called} itself refuses the request as it arrives: {caller} or a proxy between them changes it. The log of {called} says what it got"
            ),
            hints.logs(to),
        ),
    };
    Hint::new(cause).run(next)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::held::HeldKind;

    const RESET: &str = "upstream connect error or disconnect/reset before headers. ";

    fn cause(status: u16, server: &str, message: &str) -> String {
        let hop = |n: u16, hostname: &str| HopRef {
            name: format!("service{n}"),
            hostname: hostname.to_owned(),
            url: format!("http://127.0.0.1:{n}/service{n}"),
        };
        let answer = ForeignResponse { server: server.to_owned(), message: Some(message.to_owned()) };
        inside(status, &answer, &hop(1, "vm"), &hop(2, ""), &HintContext::for_tests(), "").unwrap().cause
    }

    /// Nothing is known but the answer, as without a trace backend.
    #[test]
    fn what_envoy_answers_between_processes_has_its_own_cause() {
        let reset = |why: &str| format!("{RESET}reset reason: {why}");
        for (status, message, says) in [
            (503, "fault filter abort", "The fault filter of a proxy aborts calls"),
            (429, "local_rate_limited", "A rate limit in front of service2"),
            (503, &*reset("overflow"), "A circuit breaker between service1 and service2 is open"),
            (503, "no healthy upstream", "no endpoint that is healthy"),
            (403, "RBAC: access denied", "denies service1"),
            (401, "Jwt is missing", "demands a token"),
            (504, "upstream request timeout", "gave up waiting"),
            (502, &*reset("protocol error"), "version of HTTP"),
            (503, &*reset("connection termination"), "accepts the connection and closes it"),
            (503, &*reset("remote connection failure"), "cannot connect to service2 (flag UF or UC: remote connection failure)"),
        ] {
            for server in ["envoy", ""] {
                let cause = cause(status, server, message);
                assert!(cause.contains(says), "{message}: {cause}");
                for istio in ["VirtualService", "PeerAuthentication", "draining", "no hop of this chain"] {
                    assert!(!cause.contains(istio), "{message}: {cause}");
                }
            }
        }
        assert!(cause(404, "envoy", "").contains("no route for this host or path"));
        assert!(cause(503, "envoy", "").contains("a cluster that does not exist"));
        assert!(cause(403, "envoy", "").contains("An external authorizer"));
        assert!(cause(431, "envoy", "Request Header Fields Too Large").contains("larger than"));
        // No proxy speaks here.
        assert!(cause(503, "", "").contains("draining"));
        assert!(cause(500, "nginx", "oops").contains("no hop of this chain"));
    }

    /// Where no cluster is seen, the front is a proxy with a configuration of its own.
    #[test]
    fn what_a_plain_envoy_answers_in_front_of_the_chain_has_no_cause_in_a_cluster() {
        let hints = HintContext { is_outside: true, ..HintContext::for_tests() };
        let spans = CallSpans::default();
        for (status, message, says) in [
            (404, "", "no virtual host or match of its routes fits the call to the first hop"),
            (503, "", "misspelt"),
            (503, "fault filter abort", "The fault filter of a proxy"),
            (503, "no healthy upstream", "no endpoint that is healthy"),
            (503, &*format!("{RESET}reset reason: overflow"), "circuit_breakers of the proxy's cluster"),
            (
                503,
                &*format!("{RESET}reset reason: remote connection failure"),
                "The proxy at the gateway cannot connect to the first hop",
            ),
            (401, "Jwt is missing", "this caller sends none or another"),
            (403, "RBAC: access denied", "denies this caller"),
            (429, "local_rate_limited", "A rate limit in front of the first hop"),
            (504, "upstream request timeout", "shorter than the chain takes"),
        ] {
            let body = message.to_ascii_lowercase();
            let (by_hop, by_other, url, is_mesh) = (false, false, "", false);
            let signs = Signs { status, by_envoy: true, by_hop, by_other, body: Some(&body), spans: &spans, url, is_mesh };
            let (text, hint) = at_front(&signs, message, &hints).unwrap();
            assert!(hint.cause.contains(says), "{status} {message}: {text}: {}", hint.cause);
            for istio in ["VirtualService", "DestinationRule", "PeerAuthentication", "RequestAuthentication", "{"] {
                assert!(!hint.cause.contains(istio), "{status} {message}: {}", hint.cause);
            }
        }
    }

    #[test]
    fn a_hops_own_refusal_is_known_by_its_words() {
        for (error, says) in [
            (Error::LoopDetected, "MAX_HOPS"),
            (Error::Shed(ShedReason::Held(HeldKind::Answer)), "memory limit"),
            (Error::Shed(ShedReason::Streams), "streams"),
            (Error::NotGrpc, "HTTP/1.1"),
            (Error::CertificateRequired, "client certificate"),
        ] {
            let (status, detail) = error.parts();
            for (server, before) in [("", ""), ("envoy", ""), ("", "RESOURCE_EXHAUSTED: ")] {
                let cause = cause(status.as_u16(), server, &format!("{before}{detail}"));
                assert!(cause.contains(says), "{error:?}: {cause}");
            }
        }
    }
}
