//! Explains an answer that is no reply of the chain, at the gateway and between two hops.

use crate::hop::error::{Error, PROBLEM_JSON};
use crate::upstream::foreign_response::{ForeignResponse, detail};

use crate::check::envoy::flags::{self, ForeignAnswer, fill};
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, quoted};
use crate::check::reachability::client::FrontAnswer;
use crate::check::report::Hint;

/// What the front's answer means: a sentence, and a hint.
pub(crate) fn front(answer: &FrontAnswer, hints: &HintContext) -> (String, Hint) {
    let body = answer.text();
    let body = body.trim();
    if answer.header("content-type").is_some_and(|kind| kind.starts_with(PROBLEM_JSON)) {
        return refused_by_hop(answer.status, body, hints);
    }
    let (status, clipped, reason) = (answer.status.to_string(), clip(body), reason(body));
    let (url, chain) = (quoted(&hints.url), quoted(&hints.other_path("/service1")));
    let values = [
        ("status", status.as_str()),
        ("gateway", hints.gateway_namespace.as_str()),
        ("namespace", hints.namespace.as_str()),
        ("url", url.as_str()),
        ("chain", chain.as_str()),
        ("reason", reason.as_str()),
        ("body", clipped.as_str()),
    ];
    let foreign = ForeignAnswer {
        status: answer.status,
        by_envoy: answer.header("server").is_some_and(|server| server.contains("envoy"))
            || answer.header("x-envoy-upstream-service-time").is_some(),
        by_hop: answer.header("version").is_some() && answer.header("x-request-id").is_some(),
        body: Some(&body.to_ascii_lowercase()),
    };
    flags::at_gateway(&foreign, &values).unwrap_or_default()
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

/// What an answer that no hop gave means between two hops.
pub(crate) fn inside(status: u16, stranger: &ForeignResponse, from: &HopRef, to: &HopRef, hints: &HintContext) -> Hint {
    let (caller, called) = (from.name.as_str(), to.name.as_str());
    let words = stranger.message.as_deref();
    if words == Some(Error::Overloaded.parts().1) {
        let cause = format!("{called} is overloaded: more requests are in flight than its MAX_CONCURRENCY");
        return Hint::new(cause).run(hints.settings(to));
    }
    if words == Some(Error::NotFound.parts().1) {
        let cause =
            format!("{called} does not serve this path: UPSTREAM of {caller} should end in /service<N>, or without any path");
        return Hint::new(cause).run(hints.settings(from));
    }
    let (settings, namespace) = (hints.settings(from), hints.namespace_of(to));
    let (proxy, log) = match from.hostname.as_str() {
        "" => (format!("deploy/{caller}"), format!("deploy/{caller}")),
        pod => (pod.to_owned(), format!("pod/{pod}")),
    };
    let values = [
        ("namespace", namespace.as_str()),
        ("settings", settings.as_str()),
        ("proxy", proxy.as_str()),
        ("log", log.as_str()),
        ("caller", caller),
        ("called", called),
    ];
    if hints.runner(from) == Runner::Local {
        let cause = match status {
            503 => format!("{called} is draining, or something in front of it has nobody to send to"),
            300..=399 => fill(flags::REDIRECTED, &values),
            _ => format!("What listens at {} is no hop of this chain, or does not know the path", to.url),
        };
        return Hint::new(cause).run(format!("curl -sv -H 'accept: application/json' {}", quoted(&to.url)));
    }
    let body = words.map(str::to_ascii_lowercase);
    let by_envoy = stranger.server.contains("envoy");
    let answer = ForeignAnswer { status, by_envoy, by_hop: false, body: body.as_deref() };
    flags::between_hops(&answer, &values).unwrap_or_default()
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
