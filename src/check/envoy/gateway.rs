//! Explains an answer that is no reply of the chain, at the gateway and between two hops.

use crate::hop::error::{Error, PROBLEM_JSON, ShedReason};
use crate::system::held::HeldKind;
use crate::upstream::foreign_response::{ForeignResponse, detail};

use crate::check::envoy::flags::{self, Signs, fill};
use crate::check::envoy::spans::CallSpans;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, on_purpose, quoted};
use crate::check::reachability::client::FrontAnswer;
use crate::check::report::Hint;

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
    let signs = Signs { status: 0, by_envoy: false, by_hop: false, by_other: false, body: None, spans: &spans, url: "" };
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
        ("body", clipped.as_str()),
    ];
    flags::at_gateway(signs, &values)
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
    stranger: &ForeignResponse,
    from: &HopRef,
    to: &HopRef,
    hints: &HintContext,
    kind: &str,
) -> Option<Hint> {
    let (caller, called) = (from.name.as_str(), to.name.as_str());
    let words = stranger.message.as_deref();
    if words == Some(Error::Shed(ShedReason::Concurrency).parts().1) {
        let cause = format!("{called} is overloaded: more requests are in flight than its MAX_CONCURRENCY");
        return Some(Hint::new(cause).run(hints.settings(to)));
    }
    if words == Some(Error::Shed(ShedReason::Held(HeldKind::Answer)).parts().1) {
        let memory = on_purpose(called, "is to hold more on purpose than it may (memory=…)", "--fault or FAULT");
        let cause = format!("{memory}, or more and larger requests are in flight than its memory limit allows");
        return Some(Hint::new(cause).run(hints.settings(to)));
    }
    if words == Some(Error::NotFound.parts().1) {
        let rewritten =
            if hints.runner(from) == Runner::Kubernetes { ", or a rewrite in a VirtualService changes it" } else { "" };
        let cause = format!(
            "{called} does not serve this path: UPSTREAM of {caller} should end in /service<N>, or without any path{rewritten}"
        );
        return Some(Hint::new(cause).run(hints.settings(from)));
    }
    let spans = hints.evidence.of(kind);
    let (settings, namespace) = (hints.settings(from), hints.namespace_of(to));
    let (proxy, log) = match from.hostname.as_str() {
        "" => (format!("deploy/{caller}"), format!("deploy/{caller}")),
        pod => (pod.to_owned(), format!("pod/{pod}")),
    };
    let (destination, port) = routed(&spans);
    let values = [
        ("namespace", namespace.as_str()),
        ("settings", settings.as_str()),
        ("proxy", proxy.as_str()),
        ("log", log.as_str()),
        ("port", port.as_str()),
        ("caller", caller),
        ("called", called),
        ("destination", destination.as_str()),
    ];
    if hints.runner(from) == Runner::Local && status != 0 && spans == CallSpans::default() {
        let cause = match status {
            503 => format!("{called} is draining, or something in front of it has nobody to send to"),
            300..=399 => fill(flags::REDIRECTED, &values),
            500..=599 => format!(
                "What listens at {} is no hop of this chain: an app of another make that fails, by itself or by its own next hop (its log says which), or another server",
                to.url
            ),
            _ => format!("What listens at {} is no hop of this chain, or does not know the path", to.url),
        };
        return Some(Hint::new(cause).run(format!("curl -sv -H 'accept: application/json' {}", quoted(&to.url))));
    }
    let body = words.map(str::to_ascii_lowercase);
    let by_envoy = stranger.server.contains("envoy");
    let by_other = !by_envoy && !stranger.server.is_empty();
    flags::between_hops(
        &Signs { status, by_envoy, by_hop: false, by_other, body: body.as_deref(), spans: &spans, url: &to.url },
        &values,
    )
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
