//! Why a call failed, and what that means.

use crate::check::envoy::gateway;
use crate::check::envoy::suggestions::{HintContext, HopRef, Runner, name_of, on_purpose};
use crate::check::reachability::tls::alert_in;
use crate::hop::reply::{Call, NO_REPLY, is_success};
use crate::net::hosts::{address_of, host_of, is_loopback};
use crate::report::{CheckId, Finding, Hint, OwnCause};
use crate::upstream::foreign_response::ForeignResponse;
use crate::upstream::outcome::CallError;

/// Why a call failed, or a hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// No connection: nothing listens.
    Refused,
    /// The name does not resolve.
    NoSuchHost,
    /// No whole answer in the caller's time.
    TimedOut,
    /// The connection ended early.
    Closed,
    /// Another transport error.
    Transport(String),
    /// An answer of this status that is no hop's reply, and what it says.
    Answered(u16, ForeignResponse),
    /// A 2xx answer of a hop that is no reply.
    NoReply,
    /// A 2xx answer that ended before it was whole.
    Torn(String),
    /// A 2xx answer that cannot be used for another reason.
    Unusable(String),
    /// The hop's own fault injection.
    Injected(u16),
    /// The hop's own status, with every call below it fine.
    Itself(u16),
    /// The request went in a circle.
    Loop,
}

/// Where a request broke: the deepest point that the tree shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BreakPoint {
    pub(crate) from: HopRef,
    pub(crate) to: HopRef,
    pub(crate) cause: FailureCause,
}

impl BreakPoint {
    /// What happened, as one sentence.
    pub(crate) fn text(&self) -> String {
        let (from, to) = (&self.from.name, &self.to.name);
        match &self.cause {
            FailureCause::Refused => format!("{from} cannot reach {to}: connection refused at {}", self.to.url),
            FailureCause::NoSuchHost => format!("{from} cannot reach {to}: {} does not resolve", host_of(&self.to.url)),
            FailureCause::TimedOut => format!("{to} did not answer {from} in time"),
            FailureCause::Closed => format!("The connection from {from} to {to} ended before an answer"),
            FailureCause::Transport(error) => format!("{from} cannot call {to}: {error}"),
            FailureCause::Answered(status, foreign) => {
                format!("{from} called {to} and got {status} without a hop's reply{foreign}")
            }
            FailureCause::NoReply => format!("{to} answered {from}, but not with a reply of the chain"),
            FailureCause::Torn(error) => format!("The answer of {to} to {from} ended early: {error}"),
            FailureCause::Unusable(error) => format!("{from} called {to} and could not use the answer: {error}"),
            FailureCause::Injected(status) => format!("{to} answered {status} by its own fault injection"),
            FailureCause::Itself(status) => format!("{to} answered {status} itself"),
            FailureCause::Loop => format!("The chain calls itself: {from} calls {to}, which is above it"),
        }
    }

    /// The same in a few words, for counting.
    pub(crate) fn key(&self) -> String {
        let why = match &self.cause {
            FailureCause::Refused => "connection refused".to_owned(),
            FailureCause::NoSuchHost => "name does not resolve".to_owned(),
            FailureCause::TimedOut => "timed out".to_owned(),
            FailureCause::Closed => "connection closed".to_owned(),
            FailureCause::Transport(error) => error.clone(),
            FailureCause::Answered(status, foreign) => format!("{status} without a reply{foreign}"),
            FailureCause::NoReply => "no reply of a hop".to_owned(),
            FailureCause::Torn(_) => "the answer ended early".to_owned(),
            FailureCause::Unusable(error) => error.clone(),
            FailureCause::Injected(status) => format!("{status} by its fault injection"),
            FailureCause::Itself(status) => format!("{status} by itself"),
            FailureCause::Loop => "loop".to_owned(),
        };
        format!("{}: {why}", self.at())
    }

    /// The kind of failure, for which one set of spans is the evidence.
    pub(crate) fn kind(&self) -> String {
        match &self.cause {
            FailureCause::Answered(status, _) => format!("{} {status}", self.at()),
            _ => self.key(),
        }
    }

    /// The hop or the seam, for a line.
    pub(crate) fn at(&self) -> String {
        match self.cause {
            FailureCause::Injected(_) | FailureCause::Itself(_) => self.to.name.clone(),
            _ => format!("{} -> {}", self.from.name, self.to.name),
        }
    }

    /// The host that answered with the failure; the caller's when none did.
    pub(crate) fn instance(&self) -> &str {
        if self.to.hostname.is_empty() { &self.from.hostname } else { &self.to.hostname }
    }

    pub(crate) fn hint(&self, hints: &HintContext) -> Hint {
        let (from, to) = (&self.from, &self.to);
        let name = &to.name;
        let kubernetes = hints.runner(to) == Runner::Kubernetes || hints.runner(from) == Runner::Kubernetes;
        let unanswered = || gateway::inside(0, &ForeignResponse::default(), from, to, hints, &self.kind());
        let up = |cause: String| hints.is_up(to).into_iter().fold(Hint::new(cause), Hint::run);
        if let Some(hint) = by_address(from, to, hints)
            .filter(|_| !matches!(self.cause, FailureCause::Injected(_) | FailureCause::Itself(_) | FailureCause::Loop))
        {
            return hint;
        }
        match &self.cause {
            FailureCause::Refused => up(format!("{name} is not running there, or listens on another port")),
            FailureCause::NoSuchHost if kubernetes => Hint::new(format!("No Service has this name: UPSTREAM of {} is misspelt, or {name} is in another namespace", from.name))
                .run(format!("kubectl get service -n {}", hints.namespace_of(to)))
                .run(hints.settings(from)),
            FailureCause::NoSuchHost => up(format!("The UPSTREAM of {} names a host that nobody has", from.name)),
            FailureCause::TimedOut => unanswered().unwrap_or_else(|| {
                let meanwhile = if kubernetes {
                    ", or a VirtualService holds calls to it on purpose (fault.delay)"
                } else {
                    ", or what listens there accepts connections and is no HTTP server"
                };
                let cause = format!(
                    "{name} hangs or is slower than the UPSTREAM_TIMEOUT of {}{meanwhile}. If a hop below {name} is the slow one, {name} waits longer than {} does: timeouts must fall along the chain",
                    from.name, from.name
                );
                Hint::new(cause).run(hints.logs(to)).run(hints.settings(from))
            }),
            FailureCause::Closed if kubernetes => unanswered().unwrap_or_else(|| {
                let refused = if hints.evidence.has_sidecar(&from.name) {
                    format!("from {}, whose sidecar its call bypasses (excludeOutboundPorts, excludeOutboundIPRanges)", from.name)
                } else {
                    format!("because {} has no sidecar", from.name)
                };
                Hint::new(format!("{name} stopped while it answered, or refuses plain text (STRICT mTLS) {refused}"))
                    .run(hints.all_containers())
                    .run("kubectl get peerauthentication -A")
            }),
            FailureCause::Closed => up(format!("{name} stopped or crashed while it answered")),
            FailureCause::Transport(error) => up(wrong_protocol(name, error)),
            FailureCause::NoReply => Hint::new(format!("The path in the UPSTREAM of {} is not the chain's, which is /service<N>, or something between {} and {name} removes the header accept or rewrites the path or the body", from.name, from.name)).run(hints.settings(from)),
            FailureCause::Torn(_) => up(format!("{name} crashed, was killed or stopped while it answered, or has a fault of its own (reset, truncate), or a proxy between {} and {name} cut the answer off", from.name)),
            FailureCause::Unusable(_) => Hint::new(format!("The UPSTREAM of {} leads to something that is not a hop of this chain, or the answers of {name} are larger than a hop reads", from.name)).run(hints.settings(from)),
            FailureCause::Answered(status, foreign) => {
                gateway::inside(*status, foreign, from, to, hints, &self.kind()).unwrap_or_default()
            }
            FailureCause::Injected(status) => Hint::new(on_purpose(name, &format!("fails on purpose: abort={status}"), "--fault or FAULT")).run(hints.settings(to)),
            FailureCause::Itself(503) => Hint::new(format!("{name} is overloaded (MAX_CONCURRENCY) or draining: its log says which")).run(hints.logs(to)),
            FailureCause::Itself(508) => Hint::new(format!("The chain is longer than MAX_HOPS or makes more calls than MAX_CALLS at {name}, or calls itself")).run(hints.settings(to)),
            FailureCause::Itself(_) => Hint::new(format!("{name} itself fails; its log says why")).run(hints.logs(to)),
            // A route or another address leads back where the URL names another hop than the one that answers.
            FailureCause::Loop if !matches!(name_of(&to.url), called if called == *name || called.contains(':')) => Hint::new(format!(
                "{} calls {}, and {name} answers: a route between them leads back ({}), or the UPSTREAM of {} has the address of {name}",
                from.name,
                to.url,
                if kubernetes { "destination.host of a VirtualService, the selector of a Service" } else { "a proxy's" },
                from.name
            ))
            .run(hints.settings(from)),
            FailureCause::Loop => Hint::new(format!("The UPSTREAM of {} leads back up the chain: it should name the next hop, or nobody", from.name)).run(hints.settings(from)),
        }
    }

    pub(crate) fn finding(&self, id: CheckId, hints: &HintContext) -> Finding {
        Finding::fail(id, self.text(), self.hint(hints))
            .seam(&self.from.name, &self.to.name, None)
            .hop(&self.to.name)
            .own_cause(self.own_cause())
    }

    /// What the answer says of its own cause.
    fn own_cause(&self) -> Option<OwnCause> {
        match &self.cause {
            FailureCause::Injected(_) => Some(OwnCause::Fault),
            FailureCause::Loop => Some(OwnCause::Loop),
            FailureCause::Answered(401, _) => Some(OwnCause::Unauthorized),
            FailureCause::Answered(403, _) => Some(OwnCause::Denied),
            FailureCause::Answered(404, _) => Some(OwnCause::NotFound),
            FailureCause::Answered(429, _) => Some(OwnCause::Limited),
            FailureCause::Answered(_, answer) if answer.message.as_deref() == Some("fault filter abort") => Some(OwnCause::Abort),
            _ => None,
        }
    }
}

/// In Kubernetes an `UPSTREAM` that names an address is a mistake: no Service is behind it.
pub(super) fn by_address(from: &HopRef, to: &HopRef, hints: &HintContext) -> Option<Hint> {
    let host = host_of(&to.url);
    address_of(&host).filter(|_| hints.runner(from) == Runner::Kubernetes && !is_loopback(&host))?;
    let (name, cause) = (&to.name, &from.name);
    let cause = format!(
        "UPSTREAM of {cause} is the address {host} and not the Service {name}: it ends with the pod, and no route, policy or mTLS of the mesh applies to it"
    );
    Some(
        Hint::new(cause).run(hints.settings(from)).run(format!("kubectl get pods,service -n {} -o wide", hints.namespace_of(to))),
    )
}

/// What the error of a connection says that works as one, but not for what was sent.
fn wrong_protocol(name: &str, error: &str) -> String {
    if let Some(means) = alert_in(error) {
        return format!("{name} refuses the TLS connection: it {means}");
    }
    let error = error.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
    let why = if has(&["invalidcontenttype", "corrupt message", "wrong version number"]) {
        "the URL is called by TLS (https, grpcs), and the port of {name} speaks plain text: write http, or another port"
    } else if has(&["certificate", "unknownissuer", "notvalidforname", "expired"]) {
        "the certificate of {name} is not accepted: it has expired, is of another CA than UPSTREAM_CA names, or of another name"
    } else if has(&["http2 error", "http/2", "h2 ", "frame with invalid size"]) {
        "the URL asks for HTTP/2 (h2c, grpc), and the port of {name} speaks HTTP/1.1 alone, or no HTTP at all"
    } else if has(&["http version", "invalid http", "invalid header", "status-code", "parsed"]) {
        "what listens at that port is no HTTP server (SSH, a database, TLS)"
    } else {
        "the error says why"
    };
    format!("The connection to {name} does not work: {}", why.replace("{name}", name))
}

pub(super) fn cause(call: &Call) -> FailureCause {
    let error = call.error.as_deref().unwrap_or("");
    let lower = error.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let kind = CallError::kind_of(error);
    let is_late = kind == Some("timeout") || has(&["timed out", "timeout", "deadline"]);
    match call.status {
        // The status may have come in time and the rest of the answer not.
        status if status.is_none_or(is_success) && is_late => FailureCause::TimedOut,
        Some(status) if is_success(status) && error == NO_REPLY => FailureCause::NoReply,
        Some(status) if is_success(status) && kind == Some("broken_answer") => FailureCause::Torn(error.to_owned()),
        Some(status) if is_success(status) => FailureCause::Unusable(error.to_owned()),
        Some(status) => FailureCause::Answered(status, ForeignResponse::parse(error)),
        None if has(&["refused"]) => FailureCause::Refused,
        None if has(&["dns", "lookup", "resolve", "name or service not known"]) => FailureCause::NoSuchHost,
        None if has(&["closed", "reset", "eof", "incomplete", "broken pipe", "canceled"]) => FailureCause::Closed,
        None => FailureCause::Transport(error.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::reply::Tree;

    #[test]
    fn a_circle_is_of_what_leads_back() {
        let hop = |name: &str, url: &str| HopRef { name: name.to_owned(), hostname: "vm".to_owned(), url: url.to_owned() };
        for (url, says) in [
            ("http://127.0.0.1:1/service1", "The UPSTREAM of service2 leads back"),
            ("http://127.0.0.1:1/", "The UPSTREAM of service2 leads back"),
            ("http://127.0.0.1:1/service3", "a route between them leads back"),
        ] {
            let broken = BreakPoint { from: hop("service2", ""), to: hop("service1", url), cause: FailureCause::Loop };
            assert!(broken.hint(&HintContext::for_tests()).cause.contains(says), "{url}");
        }
    }

    fn tree(call: &serde_json::Value) -> Tree {
        let reply = serde_json::json!({"service": "service1", "version": "v1", "lane": "base", "hostname": "vm", "message": "Hello!",
            "path": "/service1", "status": 200, "started_at": "", "duration_ms": 1.0, "request_id": "made", "trace_id": null,
            "span_id": null, "parent_span_id": null, "sampled": null, "propagation": "forward", "received": {},
            "client": {"ip": "127.0.0.1", "identity": null}, "attempt": 1, "injected": null, "upstreams": [call]});
        Tree::parse(reply.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_answer_that_ends_early_comes_from_the_hop() {
        let torn = "broken answer: error reading a body from connection: end of file before message length reached";
        for (status, error, text, says) in [
            (Some(200), torn, "The answer of service2 to service1 ended early", "crashed"),
            (Some(200), NO_REPLY, "service2 answered service1, but not with a reply", "/service<N>"),
            (Some(200), "too large", "could not use the answer", "larger than a hop reads"),
            (None, "cannot connect: received corrupt message of type InvalidContentType", "cannot call", "write http"),
            (None, "cannot connect: received fatal alert: CertificateRequired", "cannot call", "demands a client certificate"),
            (None, "cannot connect: received fatal alert: UnknownCA", "cannot call", "presents none"),
            (None, "broken answer: received fatal alert: CertificateExpired", "cannot call", "demands a client certificate"),
            (None, "cannot connect: received fatal alert: ProtocolVersion", "cannot call", "TLS 1.2"),
            (None, "cannot connect: received fatal alert: UnrecognisedName", "cannot call", "no certificate for the name"),
            (None, "cannot connect: received fatal alert: InternalError", "cannot call", "cannot use its own"),
            (None, "cannot connect: received fatal alert: HandshakeFailure", "cannot call", "cipher suite"),
            (None, "broken answer: invalid HTTP version parsed", "cannot call", "no HTTP server"),
            (None, "broken answer: http2 error: frame with invalid size", "cannot call", "HTTP/1.1 alone"),
        ] {
            let call = serde_json::json!({"url": "http://127.0.0.1:1/service2", "status": status, "duration_ms": 1.0, "error": error,
                "sent": {}, "reply": null});
            let call = &tree(&call).upstreams[0];
            let to = HopRef { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() };
            let from = HopRef { name: "service1".to_owned(), hostname: "vm".to_owned(), url: String::new() };
            let broken = BreakPoint { from, to, cause: cause(call) };
            let found = broken.finding(CheckId::ChainHops, &HintContext::for_tests());
            assert!(found.text.contains(text), "{found:?}");
            assert!(found.cause.as_ref().unwrap().contains(says), "{found:?}");
        }
    }
}
