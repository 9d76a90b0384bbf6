//! A fault of the x-ray as a finding: the sentence, the likely cause, the next command.

use crate::check::chain::evidence::{CALLER, ForeignApp, HeaderChange, SeamFault, Xray};
use crate::check::chain::probe::{is_of_this_run, short};
use crate::check::envoy::suggestions::{HintContext, Runner, on_purpose};
use crate::check::propagation::words::{apart, ask, damaged, mixed_up};
use crate::hop::reply::Propagation;
use crate::report::{CheckId, Finding, Hint, Side};
use crate::text::quoted;
use crate::trace_context::{HeaderFamily, Mangling};
use crate::traces::TraceId;
use crate::traces::ids::parse_trace_id;

pub(crate) use crate::check::propagation::words::decision;

/// The order of `OTEL_PROPAGATORS` that fits a mesh that speaks `format`.
pub(crate) fn order_for(format: HeaderFamily) -> &'static str {
    match format {
        HeaderFamily::W3c => "tracecontext,baggage,b3multi,b3",
        HeaderFamily::B3 => "b3multi,b3,tracecontext,baggage",
    }
}

/// What is in question, for the id and the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Trace,
    Only(HeaderFamily),
    Parent,
    Sampled,
    RequestId,
    Others,
}

fn subject(fault: &SeamFault) -> Subject {
    match (fault.breaks(HeaderFamily::W3c), fault.breaks(HeaderFamily::B3)) {
        (true, true) => Subject::Trace,
        (true, false) => Subject::Only(HeaderFamily::W3c),
        (false, true) => Subject::Only(HeaderFamily::B3),
        (false, false) if fault.effects.iter().any(|effect| matches!(effect, HeaderChange::StaleParent { .. })) => {
            Subject::Parent
        }
        (false, false) if fault.effects.iter().any(|effect| matches!(effect, HeaderChange::Sampled { .. })) => Subject::Sampled,
        (false, false) if fault.touches("x-request-id") => Subject::RequestId,
        (false, false) => Subject::Others,
    }
}

/// Whether nothing but the request id is in question.
pub(crate) fn is_about_id(fault: &SeamFault) -> bool {
    subject(fault) == Subject::RequestId
}

pub(crate) fn is_order(fault: &SeamFault) -> bool {
    fault.effects.iter().any(|effect| matches!(effect, HeaderChange::Order { .. }))
}

pub(crate) fn id(fault: &SeamFault) -> CheckId {
    if is_order(fault) {
        return CheckId::PropagationOrder;
    }
    match subject(fault) {
        Subject::Trace | Subject::Parent => CheckId::PropagationTrace,
        Subject::Only(HeaderFamily::W3c) => CheckId::PropagationW3c,
        Subject::Only(HeaderFamily::B3) => CheckId::PropagationB3,
        Subject::Sampled => CheckId::PropagationSampled,
        Subject::RequestId => CheckId::PropagationRequestId,
        Subject::Others if fault.touches("x-lane") => CheckId::PropagationLane,
        Subject::Others if fault.touches("baggage") => CheckId::PropagationBaggage,
        Subject::Others if fault.touches("tracestate") => CheckId::PropagationTracestate,
        Subject::Others => CheckId::PropagationHeaders,
    }
}

fn lost(fault: &SeamFault) -> Vec<&str> {
    fault
        .effects
        .iter()
        .filter_map(|effect| if let HeaderChange::Lost(name) = effect { Some(name.as_str()) } else { None })
        .collect()
}

/// The header whose value is no valid context any more.
fn invalid(fault: &SeamFault) -> Option<&str> {
    fault
        .effects
        .iter()
        .find_map(|effect| if let HeaderChange::Invalid { name, .. } = effect { Some(name.as_str()) } else { None })
}

/// Names in a sentence; the headers of B3 multi as one.
pub(crate) fn joined_names(names: &[&str]) -> String {
    let mut short: Vec<&str> = Vec::new();
    let many = names.iter().filter(|name| name.starts_with("x-b3-")).count() > 1;
    for name in names {
        let name = if many && name.starts_with("x-b3-") { "x-b3-*" } else { name };
        if !short.contains(&name) {
            short.push(name);
        }
    }
    match short.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// What broke, and where.
fn head(fault: &SeamFault) -> String {
    let (from, to) = (&fault.from.name, &fault.to.name);
    let head = match subject(fault) {
        _ if fault.effects.iter().any(|effect| matches!(effect, HeaderChange::Order { trace: false, .. })) => {
            format!("The order of OTEL_PROPAGATORS at {to} does not fit the mesh")
        }
        Subject::Trace => format!("Trace broke between {from} and {to}"),
        Subject::Only(format) => format!("{} trace broke between {from} and {to}", format.name()),
        Subject::Parent => format!("The parent is stale between {from} and {to}"),
        Subject::Sampled => format!("The sampling decision flipped between {from} and {to}"),
        Subject::RequestId => format!("The request id broke between {from} and {to}"),
        Subject::Others if has_damage(fault) => format!("Headers are damaged between {from} and {to}"),
        Subject::Others if lost(fault).is_empty() => format!("Headers are changed between {from} and {to}"),
        Subject::Others => format!("Headers are lost between {from} and {to}"),
    };
    match &fault.via {
        Some(via) => format!("{head}, at {}", via.name),
        None => head,
    }
}

/// What went wrong at a seam, without the full stop.
pub(crate) fn sentence(fault: &SeamFault) -> String {
    let (from, to) = (&fault.from.name, &fault.to.name);
    let head = head(fault);
    let mut parts = Vec::new();
    let names = lost(fault);
    if !names.is_empty() {
        let list = joined_names(&names);
        let them = if names.len() > 1 { "them" } else { "it" };
        parts.push(match fault.side {
            Side::Hop => format!("{from} received {list} and did not send {them}"),
            Side::Between | Side::NewTrace => format!("{from} sent {list}, {to} never got {them}"),
        });
    }
    for effect in &fault.effects {
        parts.push(match (effect, fault.side) {
            (HeaderChange::Lost(_), _) => continue,
            (HeaderChange::Mangled { name, how, values }, Side::Hop) => {
                format!("{from} received one {name} and sent {} ({values})", damaged(*how))
            }
            (HeaderChange::Mangled { name, how, values }, _) => {
                format!("{from} sent one {name}, {to} got {} ({values})", damaged(*how))
            }
            (HeaderChange::Changed { name, before, after }, Side::Hop) => {
                let (before, after) = apart(before, after);
                format!("{from} received {name} {before} and sent {after}")
            }
            (HeaderChange::Changed { name, before, after }, _) => {
                let (before, after) = apart(before, after);
                format!("{from} sent {name} {before}, {to} got {after}")
            }
            (HeaderChange::Invalid { name, value, .. }, Side::Hop) => {
                format!("{from} received a valid {name} and sent one that is invalid: {value}")
            }
            (HeaderChange::Invalid { name, value, .. }, _) => {
                format!("{from} sent a valid {name}, and the one that {to} received is invalid: {value}")
            }
            (HeaderChange::Trace { format, before, after }, Side::Hop) => {
                format!("{from} is in trace {} and sent {} in {}", short(before), short(after), format.header())
            }
            (HeaderChange::Trace { format, before, after }, _) => {
                format!("{from} sent trace {} in {}, {to} got {}", short(before), format.header(), short(after))
            }
            (HeaderChange::Sampled { before, after }, Side::Hop) => {
                format!("{from} received {} and sent {}", decision(*before), decision(*after))
            }
            (HeaderChange::Sampled { before, after }, _) => {
                format!("{from} sent {}, {to} got {}", decision(*before), decision(*after))
            }
            (HeaderChange::StaleParent { span }, _) => format!(
                "{from} has spans of its own and sent the span id that it received, {}, so the span of {to} hangs beside the one of {from}",
                short(span)
            ),
            (HeaderChange::NewTrace { received, started }, _) => {
                let mut traces: Vec<String> =
                    received.iter().map(|(format, id)| format!("{} ({})", short(id), format.name())).collect();
                traces.dedup();
                format!("{to} received trace {} and started a new one, {}", traces.join(" and "), short(started))
            }
            (HeaderChange::Order { fresh, read, trace: true }, _) => format!(
                "the proxy in front of {to} speaks {}, and {to} joined the other trace, which the caller left in {}",
                fresh.name(),
                read.header()
            ),
            (HeaderChange::Order { fresh, read, trace: false }, _) => format!(
                "the proxy in front of {to} speaks {}, and {to} took its parent from the older {}, so its span hangs beside the proxy's",
                fresh.name(),
                read.header()
            ),
        });
    }
    format!("{head}: {}", parts.join("; "))
}

pub(crate) fn finding(fault: &SeamFault, xray: &Xray, hints: &HintContext) -> Finding {
    let (from, to) = (&fault.from.name, &fault.to.name);
    let hint = hint(fault, xray, hints);
    let foreign_app = fault.via.as_ref().map(|via| &via.name);
    Finding::fail(id(fault), sentence(fault), hint)
        .seam(from, to, Some(fault.side))
        .hop(foreign_app.unwrap_or(if fault.side == Side::NewTrace { to } else { from }))
}

fn has_damage(fault: &SeamFault) -> bool {
    fault.effects.iter().any(|effect| matches!(effect, HeaderChange::Mangled { .. }))
}

/// The first damage, and its header.
fn damage(fault: &SeamFault) -> Option<(&str, Mangling)> {
    fault.effects.iter().find_map(|effect| match effect {
        HeaderChange::Mangled { name, how, .. } => Some((name.as_str(), *how)),
        _ => None,
    })
}

/// Whether the trace of another request of this run stands in place of the one that was sent.
fn is_of_another_request(fault: &SeamFault, xray: &Xray) -> bool {
    let is_others = |trace: TraceId| is_of_this_run(trace) && !xray.brought.contains(&trace);
    fault.effects.iter().any(|effect| match effect {
        HeaderChange::Trace { after, .. } => parse_trace_id(after).is_ok_and(is_others),
        _ => false,
    })
}

fn hint(fault: &SeamFault, xray: &Xray, hints: &HintContext) -> Hint {
    if let Some(via) = &fault.via {
        return by_foreign_app(fault, via, xray);
    }
    if is_of_another_request(fault, xray) && xray.broken_by(&fault.from).is_none() {
        let name = match fault.side {
            Side::Hop => fault.from.name.clone(),
            _ => format!("Something between {} and {}", fault.from.name, fault.to.name),
        };
        return Hint::new(mixed_up(&name)).run(hints.settings(if fault.side == Side::Hop { &fault.from } else { &fault.to }));
    }
    match fault.side {
        Side::Hop => by_hop(fault, xray, hints),
        Side::Between => by_proxy(fault, xray, hints),
        Side::NewTrace => by_new_trace(fault, xray, hints),
    }
}

/// What losing one format means here.
fn consequence(fault: &SeamFault, xray: &Xray) -> String {
    match subject(fault) {
        Subject::Only(format) if xray.mesh_speaks(format) => {
            format!(". The proxies here speak {}, so they start a new trace behind it", format.name())
        }
        Subject::Only(format) if xray.mesh_traces() => {
            format!(". The proxies here do not speak {}, so only callers and hops that do lose the trace", format.name())
        }
        Subject::Only(format) => format!(". Proxies or hops that speak {} start a new trace behind it", format.name()),
        _ => String::new(),
    }
}

/// A foreign app that stands between the two hops.
fn by_foreign_app(fault: &SeamFault, via: &ForeignApp, xray: &Xray) -> Hint {
    let ForeignApp { name, url } = via;
    let makes_traces = || fault.effects.iter().any(|effect| matches!(effect, HeaderChange::Trace { .. }));
    let cause = if let Some((header, how)) = damage(fault) {
        format!("{name}, an app that is not httpserver, damages {header}: {}", how.cause())
    } else if subject(fault) == Subject::Sampled {
        format!("{name}, an app that is not httpserver, decides about sampling by itself: its sampler is not parent-based")
    } else if is_of_another_request(fault, xray) {
        mixed_up(&format!("{name}, an app that is not httpserver,"))
    } else if let (Subject::Others, Some(header)) = (subject(fault), fault.effects.iter().find_map(HeaderChange::header)) {
        format!(
            "{name}, an app that is not httpserver, changes {header}: it cuts the value, or writes one of its own in its place"
        )
    } else if makes_traces() {
        format!(
            "{name}, an app that is not httpserver, begins a trace of its own: its server is not instrumented, reads another format, or the context does not reach its HTTP client"
        )
    } else {
        format!(
            "{name}, an app that is not httpserver, does not pass the trace on: its HTTP client is not instrumented, or it does not copy the headers"
        )
    };
    Hint::new(cause).run(format!(
        "httpserver probe {} --downstream 127.0.0.1:9001  # with the next hop of {name} set to that address",
        quoted(url)
    ))
}

fn by_hop(fault: &SeamFault, xray: &Xray, hints: &HintContext) -> Hint {
    let hop = &fault.from;
    let name = &hop.name;
    let continues = fault.mode == Some(Propagation::Continue);
    if let Some(breaks) = xray.broken_by(hop) {
        let cause = on_purpose(name, &format!("breaks the trace on purpose: {breaks}"), "--break or BREAK");
        return Hint::new(cause).run(hints.settings(hop));
    }
    if subject(fault) == Subject::Parent {
        let cause = format!(
            "{name} copies the headers that it received beside its spans: another build, or an app that is not httpserver"
        );
        return Hint::new(cause).run(hints.settings(hop));
    }
    if subject(fault) == Subject::Sampled {
        let cause = if continues {
            format!("OTEL_TRACES_SAMPLER at {name} does not follow its parent (use parentbased_always_on), or drops what came in")
        } else {
            format!(
                "{name} says that it forwards and yet changes the decision: not a build of this project, or a filter in its pod"
            )
        };
        return Hint::new(cause).run(hints.settings(hop));
    }
    let names = lost(fault);
    if let Some((header, how)) = damage(fault) {
        let cause = format!("{name} damages {header}, which it should pass on whole: {}", how.cause());
        return Hint::new(cause).run(hints.settings(hop));
    }
    if names.is_empty() {
        let cause = format!("{name} changes headers that it should pass on as they came: another build, or a filter in its pod");
        return Hint::new(cause).run(hints.settings(hop));
    }
    let formats =
        names.iter().any(|name| *name == "traceparent" || *name == "baggage" || *name == "b3" || name.starts_with("x-b3-"));
    let mut cause = format!("DROP_HEADERS (--drop-header) at {name} names {}", joined_names(&names));
    if continues && formats {
        let mut missing: Vec<&str> = Vec::new();
        for (header, propagator) in
            [("traceparent", "tracecontext"), ("baggage", "baggage"), ("x-b3-traceid", "b3multi"), ("b3", "b3")]
        {
            if names.contains(&header) {
                missing.push(propagator);
            }
        }
        cause.push_str(&format!(", or OTEL_PROPAGATORS there lacks {}", missing.join(",")));
    } else {
        cause.push_str(", or an app that is not httpserver runs there and forwards only headers it knows");
    }
    cause.push_str(&consequence(fault, xray));
    match hints.runner(hop) {
        Runner::Local => Hint::new(format!("{cause}. Its first log lines name every header that it drops")).run(ask(hop, &names)),
        Runner::Kubernetes | Runner::Compose => Hint::new(cause).run(hints.settings(hop)),
    }
}

fn by_proxy(fault: &SeamFault, xray: &Xray, hints: &HintContext) -> Hint {
    let (from, to) = (&fault.from.name, &fault.to.name);
    let namespace = hints.namespace_of(&fault.to);
    let caller = from == CALLER;
    let names = lost(fault);
    if names.is_empty() || has_damage(fault) {
        let cause = match subject(fault) {
            _ if let Some((header, how)) = damage(fault) => match how {
                Mangling::Doubled | Mangling::Joined => format!(
                    "A proxy between {from} and {to} adds a {header} beside the one that is there: {}, or a second tracer",
                    hints.configured_by(
                        "headers.request.add of a VirtualService, an EnvoyFilter",
                        "request_headers_to_add of its route, a filter (lua, header_mutation)"
                    )
                ),
                _ => format!("A proxy between {from} and {to} damages {header}: {}", how.cause()),
            },
            Subject::Sampled => {
                "A proxy between them decides anew about sampling instead of respecting the decision that came in".to_owned()
            }
            Subject::RequestId => format!(
                "A proxy between {from} and {to} makes request ids of its own: one with use_remote_address, or an edge gateway in the middle of the chain. Log lines of one request no longer match"
            ),
            _ if let Some(header) = invalid(fault) => format!(
                "A proxy between {from} and {to} changes {header} so that it is no valid context any more: a filter that rewrites headers, or a tracer with a bug. {to} has to ignore it"
            ),
            _ if caller => {
                "The gateway, or a load balancer in front of it, does not trust a caller's trace and starts its own".to_owned()
            }
            _ => format!("A proxy between {from} and {to} starts a trace of its own instead of continuing the one it got"),
        };
        return Hint::new(cause).run(match hints.runner(&fault.to) {
            Runner::Kubernetes => "istioctl analyze -A".to_owned(),
            Runner::Compose => "docker compose logs --tail 20 envoy".to_owned(),
            Runner::Local => hints.settings(&fault.to),
        });
    }
    let what = if caller {
        format!("The gateway, or a proxy in front of {to}, removes")
    } else {
        format!("A proxy between {from} and {to} removes")
    };
    let cause = format!(
        "{what} {}: {}{}",
        joined_names(&names),
        hints.configured_by(
            "headers.request.remove of a VirtualService, an EnvoyFilter, or a proxy that is not of the mesh",
            "request_headers_to_remove of its route, or a filter (lua, header_mutation)"
        ),
        consequence(fault, xray)
    );
    match hints.runner(&fault.to) {
        Runner::Kubernetes => {
            let pod = if caller || fault.from.hostname.is_empty() {
                format!("deploy/istio-ingressgateway -n {}", hints.gateway_namespace)
            } else {
                format!("{} -n {namespace}", fault.from.hostname)
            };
            Hint::new(cause)
                .run(format!("istioctl proxy-config routes {pod} -o json | grep -A4 requestHeadersToRemove"))
                .run("kubectl get virtualservice,envoyfilter -A -o yaml | grep -n -A4 'remove:'")
        }
        Runner::Compose => Hint::new(cause).run("docker compose logs --tail 20 envoy"),
        Runner::Local => {
            let url = if fault.to.url.is_empty() { &hints.url } else { &fault.to.url };
            Hint::new(cause).run(format!("curl -sv {}  # who answers: look at server: and via:", quoted(url)))
        }
    }
}

fn by_new_trace(fault: &SeamFault, xray: &Xray, hints: &HintContext) -> Hint {
    let hop = &fault.to;
    let order =
        fault.effects.iter().find_map(|effect| if let HeaderChange::Order { fresh, .. } = effect { Some(*fresh) } else { None });
    // A hop that does not write the format either does not have it at all.
    let is_unwritten = |format: HeaderFamily| {
        let mut by_hop = xray.faults.iter().filter(|known| known.side == Side::Hop && known.from == *hop);
        by_hop.any(|known| lost(known).iter().any(|name| format.has(name)))
    };
    let cause = match order {
        Some(format) if is_unwritten(format) => format!(
            "OTEL_PROPAGATORS at {} lacks {}, and the mesh speaks {}: set it to {}",
            hop.name,
            match format {
                HeaderFamily::W3c => "tracecontext",
                HeaderFamily::B3 => "b3multi",
            },
            format.name(),
            order_for(format)
        ),
        Some(format) => {
            format!(
                "The order of OTEL_PROPAGATORS at {} does not fit a mesh that speaks {}: set it to {}",
                hop.name,
                format.name(),
                order_for(format)
            )
        }
        None => {
            let formats: Vec<&str> = fault
                .effects
                .iter()
                .flat_map(|effect| if let HeaderChange::NewTrace { received, .. } = effect { received.as_slice() } else { &[] })
                .map(|(format, _)| format.name())
                .collect();
            format!(
                "OTEL_PROPAGATORS at {} does not read {}, or the app there starts a trace for every request",
                hop.name,
                formats.join(" or ")
            )
        }
    };
    let hint = Hint::new(cause).run(hints.settings(hop));
    match (hints.runner(hop), order) {
        (Runner::Kubernetes, Some(format)) => {
            let namespace = hints.namespace_of(hop);
            hint.run(format!("kubectl set env deploy/{} OTEL_PROPAGATORS={} -n {namespace}", hop.name, order_for(format)))
        }
        (Runner::Local, Some(format)) => Hint::new(hint.cause).run(format!(
            "OTEL_PROPAGATORS={} httpserver serve --name {} …",
            order_for(format),
            quoted(&hop.name)
        )),
        _ => hint,
    }
}
