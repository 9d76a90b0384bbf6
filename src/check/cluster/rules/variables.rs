//! Variables of the hops' own Deployments, which docs/reference/environment.md lists.

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{self, Answer, Headers, Overload, Retries, Sampling, Slow, Spans, Split};
use crate::check::cluster::object::{Object, at, number, seconds, service_of};
use crate::check::cluster::path::{Hop, Path, base_name, env, envs, is_of_chain};
use crate::net::hosts::port_of;

/// A variable, when it is a mistake, and what it does. The value stands in front.
struct Rule {
    name: &'static str,
    is_wrong: fn(&str) -> bool,
    says: &'static str,
    explains: &'static [Symptom],
}

const RULES: &[Rule] = &[
    Rule {
        name: "DROP_HEADERS",
        is_wrong: is_set,
        says: "the hop drops these headers on purpose",
        explains: &[Headers, Spans, Symptom::Lanes],
    },
    Rule { name: "BREAK", is_wrong: is_set, says: "the hop breaks the trace on purpose", explains: &[Headers, Spans, Sampling] },
    Rule {
        name: "FAULT",
        is_wrong: is_set,
        says: "the hop fails on purpose",
        explains: &[Answer, Slow, Overload, Split, Retries],
    },
    Rule {
        name: "OTEL_PROPAGATORS",
        is_wrong: is_set,
        says: "the hop reads these formats, in this order, and writes them",
        explains: &[Headers, Spans],
    },
    Rule {
        name: "OTEL_TRACES_SAMPLER",
        is_wrong: |value| !value.starts_with("parentbased"),
        says: "the hop does not follow its caller's decision",
        explains: &[Sampling, Spans, Headers],
    },
    Rule {
        name: "OTEL_TRACES_EXPORTER",
        is_wrong: |value| matches!(value, "none" | "console"),
        says: "the hop sends its spans to no collector",
        explains: &[Spans],
    },
    Rule {
        name: "UPSTREAM_TIMEOUT",
        is_wrong: |value| longest(value) < 1.0,
        says: "the hop gives up a call after that time",
        explains: &[Slow],
    },
    Rule { name: "LATENCY", is_wrong: |value| longest(value) >= 1.0, says: "the hop waits on purpose", explains: &[Slow, Split] },
    Rule { name: "MAX_CONCURRENCY", is_wrong: is_set, says: "more requests at a time get 503", explains: &[Overload] },
    Rule { name: "RETRIES", is_wrong: |value| value != "0", says: "the hop repeats failed calls", explains: &[Retries] },
    Rule { name: "READY_AFTER", is_wrong: is_set, says: "the hop is not ready for that long", explains: &[Symptom::NoPod] },
];

/// The longest time in a value such as `10ms..2s` or `p50=20ms,p99=1s`, seconds.
fn longest(value: &str) -> f64 {
    value.split([',', '=']).flat_map(|part| part.split("..")).filter_map(seconds).fold(0.0, f64::max)
}

fn is_set(value: &str) -> bool {
    !value.trim().is_empty()
}

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    // The variables are those of a hop: in a foreign app the same names may mean anything.
    for hop in path.hops.iter().filter(|hop| !hop.is_foreign) {
        for rule in RULES {
            for (object, field, value) in envs(hop, rule.name).into_iter().filter(|(.., value)| (rule.is_wrong)(value)) {
                out.push(Mistake::new(object, field, format!("is {value}: {}", rule.says), rule.explains).hop(hop));
            }
        }
        out.extend(collector(path, hop));
        out.extend(renamed(path, hop));
        out.extend(upstream(path, hop));
    }
    out.extend(path.hops.iter().filter_map(|hop| called_path(path, hop)));
    out
}

/// The collector of the hop's own spans: a Service that is there, with that port.
fn collector(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    const NAMES: [&str; 3] =
        ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_ZIPKIN_ENDPOINT"];
    let (object, field, value) = NAMES.into_iter().find_map(|name| env(hop, name))?;
    let uri: http::Uri = value.parse().ok()?;
    let (name, namespace) = service_of(uri.host()?, &hop.namespace)?;
    let says = match path.snapshot.service(name, namespace) {
        None if !path.snapshot.knows("services") => return None,
        None => format!("is {value}, and there is no Service {name} in {namespace}"),
        Some(service) => {
            let ports: Vec<u64> = service.list("/spec/ports").iter().filter_map(|port| number(at(port, "/port"))).collect();
            let port = u64::from(port_of(&uri));
            if ports.contains(&port) {
                return other_protocol(hop, port, (object, &field, value));
            }
            format!(
                "is {value}, and {} has the ports {}",
                service.title(),
                ports.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
            )
        }
    };
    Some(Mistake::new(object, field, says, &[Spans]).hop(hop))
}

/// Collectors take OTLP over HTTP at one port and over gRPC at another.
fn other_protocol(hop: &Hop<'_>, port: u64, (object, field, value): (&Object, &str, &str)) -> Option<Mistake> {
    let names = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    let set = names.into_iter().find_map(|name| env(hop, name));
    let is_grpc = set.as_ref().is_some_and(|(.., protocol)| *protocol == "grpc");
    match (port, set) {
        (4317, _) if !is_grpc && field.contains("OTLP") => {
            let says = format!("is {value}: 4317 is the port of OTLP over gRPC, and the hop sends OTLP over HTTP (4318)");
            Some(Mistake::new(object, field, says, &[Spans]).hop(hop))
        }
        (4318, Some((object, field, protocol))) if is_grpc => {
            let says = format!("is {protocol}, and {value} has the port of OTLP over HTTP (of gRPC: 4317)");
            Some(Mistake::new(object, field, says, &[Spans]).hop(hop))
        }
        _ => None,
    }
}

/// The hop answers under another name than its Service's, which is the expected one.
fn renamed(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    let service = hop.service?;
    let (object, field, value) = env(hop, "SERVICE_NAME")?;
    let is_other = base_name(&hop.name) == value && path.expects(service.name()) && !path.expects(&hop.name);
    let says = || format!("is {value}, and the hop is reached as {}", service.title());
    is_other.then(|| Mistake::new(object, field, says(), &[Symptom::Chain, Spans]).hop(hop))
}

/// The path in the caller's `UPSTREAM`.
fn called_path(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    let caller = path.hops.get(hop.caller?).filter(|caller| !caller.is_foreign)?;
    let (object, field, value) = env(caller, "UPSTREAM")?;
    let called = hop.call.path.as_str();
    // Without a path it is the chain's own.
    if hop.answered || hop.is_foreign || matches!(called, "" | "/") || is_of_chain(called) {
        return None;
    }
    let says = format!("is {value}: {} is asked for {called}, which is no path of the chain (/service<N>)", hop.name);
    Some(Mistake::new(object, field, says, &[Symptom::NotFound]).seam(path, hop))
}

/// A chain that is shorter, longer or other than expected is what `UPSTREAM` makes it.
fn upstream(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    if path.calls_as_expected(hop) {
        return None;
    }
    let (object, field, value) = env(hop, "UPSTREAM").or_else(|| {
        let deployment = hop.deployments.first()?;
        Some((*deployment, "spec.template.spec.containers[0].env[UPSTREAM]".to_owned(), ""))
    })?;
    let says = if value.is_empty() { "is not set: the hop calls nobody".to_owned() } else { format!("is {value}") };
    Some(Mistake::new(object, field, says, &[Symptom::Chain]).hop(hop))
}
