//! From the x-ray's faults to findings: the sentence, the likely cause, the next command.

use crate::hop::reply::Propagation;

use crate::check::chain::xray::{CALLER, Decided, Effect, Fault, Probe, RequestId, Row, Uninjected, Xray, short, table};
use crate::check::envoy::hints::{Hop, Place, Runner, quoted};
use crate::check::report::{CheckId, Finding, Hint, Side};
use crate::trace_context::HeaderFamily;

/// What the mesh's proxies speak, for people.
pub(crate) fn dialect(w3c: bool, b3: bool) -> &'static str {
    match (w3c, b3) {
        (true, true) => "B3 and W3C (Zipkin tracer with W3C)",
        (true, false) => "W3C (OpenTelemetry tracer)",
        (false, true) => "B3 (Zipkin tracer)",
        (false, false) => "no trace format",
    }
}

/// The order of `OTEL_PROPAGATORS` that fits a mesh that speaks `format`.
pub(crate) fn order_for(format: HeaderFamily) -> &'static str {
    match format {
        HeaderFamily::W3c => "tracecontext,baggage,b3multi,b3",
        HeaderFamily::B3 => "b3multi,b3,tracecontext,baggage",
    }
}

/// The findings of the group: what broke first, then what held, then what could not be seen.
pub(crate) fn findings(probe: &Probe, xray: &Xray, place: &Place) -> Vec<Finding> {
    let mut out = Vec::new();
    out.push(proxies(xray).lines(table(probe, xray)));
    out.extend(missing_sidecars(xray, place));
    out.extend(coverage(xray, place));
    // One slip in one setting shows at every hop: told once, with the other hops below.
    let (order, others): (Vec<&Fault>, Vec<&Fault>) = xray.faults.iter().partition(|fault| is_order(fault));
    if let Some((first, more)) = order.split_first() {
        let mut told = finding(first, xray, place);
        if !more.is_empty() {
            let names: Vec<&str> = more.iter().map(|fault| fault.to.name.as_str()).collect();
            told.detail.push(format!("the same at {}", names.join(", ")));
        }
        out.push(told);
    }
    out.extend(others.into_iter().map(|fault| finding(fault, xray, place)));
    out.extend(held(xray));
    out.extend(xray.dark.iter().map(|(from, to)| {
        Finding::skip(
            CheckId::PropagationUnseen,
            format!("Headers behind {}: skipped, because {} gave no reply that shows what it received", from.name, to.name),
        )
        .hop(&to.name)
    }));
    out
}

/// Who speaks what between the hops.
fn proxies(xray: &Xray) -> Finding {
    let (w3c, b3) = (xray.mesh_speaks(HeaderFamily::W3c), xray.mesh_speaks(HeaderFamily::B3));
    let list = |wanted: &dyn Fn(&Row) -> bool| {
        let names: Vec<&str> = xray.rows.iter().filter(|row| wanted(row)).map(|row| row.hop.name.as_str()).collect();
        names.join(", ")
    };
    if w3c || b3 {
        let mut text = format!("Proxies speak {}, seen in front of {}", dialect(w3c, b3), list(&|row| row.proxy.traces()));
        let silent = list(&|row| !row.proxy.traces());
        if !silent.is_empty() {
            text.push_str(&format!("; none that traces in front of {silent}"));
        }
        return Finding::pass(CheckId::PropagationProxies, text);
    }
    let untraced = list(&|row| row.proxy.is_seen());
    let text = if untraced.is_empty() {
        "No proxy seen between the hops, so the order of OTEL_PROPAGATORS is not judged".to_owned()
    } else {
        format!(
            "There are proxies in front of {untraced}, and none of them traces: no Telemetry resource with tracing, or one that \
             names a provider that meshConfig.extensionProviders does not have"
        )
    };
    Finding::skip(CheckId::PropagationProxies, text)
}

/// What is in question, for the id and the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Trace,
    Only(HeaderFamily),
    Sampled,
    RequestId,
    Others,
}

fn subject(fault: &Fault) -> Subject {
    match (fault.breaks(HeaderFamily::W3c), fault.breaks(HeaderFamily::B3)) {
        (true, true) => Subject::Trace,
        (true, false) => Subject::Only(HeaderFamily::W3c),
        (false, true) => Subject::Only(HeaderFamily::B3),
        (false, false) if fault.effects.iter().any(|effect| matches!(effect, Effect::Sampled { .. })) => Subject::Sampled,
        (false, false) if fault.touches("x-request-id") => Subject::RequestId,
        (false, false) => Subject::Others,
    }
}

fn is_order(fault: &Fault) -> bool {
    fault.effects.iter().any(|effect| matches!(effect, Effect::Order { .. }))
}

/// Hops that injection left out.
fn missing_sidecars(xray: &Xray, place: &Place) -> Vec<Finding> {
    let told = |Uninjected { at, hop, is_certain }: Uninjected<'_>| {
        let name = &hop.name;
        let namespace = place.namespace_of(hop);
        let behind = if xray.called_by(at).next().is_some() { ", and none behind it" } else { "" };
        let text =
            format!("{name} has no sidecar, while other hops have one: no proxy of its own is seen in front of it{behind}");
        let or = if is_certain { "" } else { ". Else mTLS is off for it and for what it calls" };
        let hint = Hint::new(format!(
            "Injection is missing at {name}: its pod is older than the label of the namespace (restart it), or has the label sidecar.istio.io/inject: \"false\"{or}"
        ))
        .run(place.containers(hop))
        .run(format!("kubectl get namespace {namespace} --show-labels  # istio-injection=enabled, or istio.io/rev"))
        .run(format!("kubectl get deploy {name} -n {namespace} -o jsonpath='{{.spec.template.metadata}}'  # sidecar.istio.io/inject"));
        let caller = xray.caller_of(at).map_or(CALLER, |row| row.hop.name.as_str());
        Finding::fail(CheckId::PropagationSidecar, text, hint).seam(caller, name, None).hop(name)
    };
    xray.without_sidecar().into_iter().map(told).collect()
}

/// Between two hops no proxy writes spans, while proxies do elsewhere.
fn coverage(xray: &Xray, place: &Place) -> Vec<Finding> {
    // In ambient mode a waypoint serves some Services and not others; only sidecars stand everywhere.
    let inner = || xray.rows.iter().enumerate().filter(|(_, row)| row.depth > 0);
    let vouching = inner().any(|(_, row)| row.proxy.traces() && row.proxy.identity);
    let vouched = xray.rows.iter().any(|row| row.proxy.identity);
    let missing = xray.without_sidecar();
    let is_missing = |at: usize| missing.iter().any(|known| known.at == at);
    let mut bytes: Option<(&Row, &Row)> = None;
    let mut silent: Vec<(&Row, &Row)> = Vec::new();
    for (at, row) in inner().filter(|(_, row)| !row.proxy.traces() && (row.proxy.sidecar || vouching)) {
        let Some(caller) = xray.caller_of(at).filter(|_| !is_missing(at) && xray.mesh_traces()) else { continue };
        if row.proxy.identity {
            silent.push((caller, row));
        } else {
            bytes = bytes.or(Some((caller, row)));
        }
    }
    let mut out = Vec::new();
    if let Some((caller, row)) = bytes {
        let (from, to) = (&caller.hop.name, &row.hop.name);
        let namespace = place.namespace_of(&row.hop);
        let mut cause = format!(
            "The mesh does not know the port of Service {to} as HTTP, so it passes bytes along: its name must begin with http, or it needs appProtocol: http"
        );
        match (row.proxy.sidecar, vouched) {
            (true, true) => {}
            (true, false) => cause.push_str(&format!(". Else no Telemetry resource turns tracing on at {from} and {to}")),
            (false, _) => cause.push_str(&format!(". Else neither {from} nor {to} has a sidecar")),
        }
        let hint = Hint::new(cause)
            .run(format!("kubectl get service {to} -n {namespace} -o jsonpath='{{.spec.ports}}'"))
            .run(format!("istioctl analyze -n {namespace}"));
        let text = format!("No proxy traces between {from} and {to}, while proxies trace elsewhere");
        out.push(Finding::fail(CheckId::PropagationCoverage, text, hint).seam(from, to, None).hop(to));
    }
    if let Some((caller, first)) = silent.first() {
        let names: Vec<&str> = silent.iter().map(|(_, row)| row.hop.name.as_str()).collect();
        let namespace = place.namespace_of(&first.hop);
        let hint = Hint::new(format!(
            "No Telemetry resource with tracing covers the namespace {namespace}, or the one there names a provider that meshConfig.extensionProviders does not have"
        ));
        let hint = place.providers().into_iter().fold(hint, Hint::run);
        let text = format!("The sidecars in front of {} do not trace, while proxies trace elsewhere", names.join(", "));
        let (from, to) = (&caller.hop.name, &first.hop.name);
        out.push(Finding::fail(CheckId::PropagationCoverage, text, hint).seam(from, to, None).hop(to));
    }
    out
}

fn id(fault: &Fault) -> CheckId {
    if is_order(fault) {
        return CheckId::PropagationOrder;
    }
    match subject(fault) {
        Subject::Trace => CheckId::PropagationTrace,
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

fn lost(fault: &Fault) -> Vec<&str> {
    fault.effects.iter().filter_map(|effect| if let Effect::Lost(name) = effect { Some(name.as_str()) } else { None }).collect()
}

/// The header whose value is no valid context any more.
fn invalid(fault: &Fault) -> Option<&str> {
    fault.effects.iter().find_map(|effect| if let Effect::Invalid { name, .. } = effect { Some(name.as_str()) } else { None })
}

/// Names in a sentence; the headers of B3 multi as one.
fn said(names: &[&str]) -> String {
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

fn finding(fault: &Fault, xray: &Xray, place: &Place) -> Finding {
    let (from, to) = (&fault.from.name, &fault.to.name);
    let head = match subject(fault) {
        _ if fault.effects.iter().any(|effect| matches!(effect, Effect::Order { trace: false, .. })) => {
            format!("The order of OTEL_PROPAGATORS at {to} does not fit the mesh")
        }
        Subject::Trace => format!("Trace broke between {from} and {to}"),
        Subject::Only(format) => format!("{} trace broke between {from} and {to}", format.name()),
        Subject::Sampled => format!("The sampling decision flipped between {from} and {to}"),
        Subject::RequestId => format!("The request id broke between {from} and {to}"),
        Subject::Others => format!("Headers are lost between {from} and {to}"),
    };
    let mut parts = Vec::new();
    let names = lost(fault);
    if !names.is_empty() {
        let list = said(&names);
        let them = if names.len() > 1 { "them" } else { "it" };
        parts.push(match fault.side {
            Side::Hop => format!("{from} received {list} and did not send {them}"),
            Side::Between | Side::NewTrace => format!("{from} sent {list}, {to} never got {them}"),
        });
    }
    for effect in &fault.effects {
        parts.push(match (effect, fault.side) {
            (Effect::Lost(_), _) => continue,
            (Effect::Changed { name, before, after }, Side::Hop) => {
                format!("{from} received {name} {} and sent {}", short(before), short(after))
            }
            (Effect::Changed { name, before, after }, _) => {
                format!("{from} sent {name} {}, {to} got {}", short(before), short(after))
            }
            (Effect::Invalid { name, value, .. }, Side::Hop) => {
                format!("{from} received a valid {name} and sent one that is invalid: {value}")
            }
            (Effect::Invalid { name, value, .. }, _) => {
                format!("{from} sent a valid {name}, and the one that {to} received is invalid: {value}")
            }
            (Effect::Trace { format, before, after }, Side::Hop) => {
                format!("{from} is in trace {} and sent {} in {}", short(before), short(after), format.header())
            }
            (Effect::Trace { format, before, after }, _) => {
                format!("{from} sent trace {} in {}, {to} got {}", short(before), format.header(), short(after))
            }
            (Effect::Sampled { before, after }, Side::Hop) => {
                format!("{from} received {} and sent {}", decision(*before), decision(*after))
            }
            (Effect::Sampled { before, after }, _) => {
                format!("{from} sent {}, {to} got {}", decision(*before), decision(*after))
            }
            (Effect::NewTrace { received, started }, _) => {
                let mut traces: Vec<String> =
                    received.iter().map(|(format, id)| format!("{} ({})", short(id), format.name())).collect();
                traces.dedup();
                format!("{to} received trace {} and started a new one, {}", traces.join(" and "), short(started))
            }
            (Effect::Order { fresh, read, trace: true }, _) => format!(
                "the proxy in front of {to} speaks {}, and {to} joined the other trace, which the caller left in {}",
                fresh.name(),
                read.header()
            ),
            (Effect::Order { fresh, read, trace: false }, _) => format!(
                "the proxy in front of {to} speaks {}, and {to} took its parent from the older {}, so its span hangs beside the proxy's",
                fresh.name(),
                read.header()
            ),
        });
    }
    let hint = hint(fault, xray, place);
    Finding::fail(id(fault), format!("{head}: {}", parts.join("; ")), hint)
        .seam(from, to, Some(fault.side))
        .hop(if fault.side == Side::NewTrace { to } else { from })
}

fn decision(sampled: bool) -> &'static str {
    if sampled { "\"sampled\"" } else { "\"not sampled\"" }
}

fn hint(fault: &Fault, xray: &Xray, place: &Place) -> Hint {
    match fault.side {
        Side::Hop => by_hop(fault, xray, place),
        Side::Between => by_proxy(fault, xray, place),
        Side::NewTrace => by_new_trace(fault, place),
    }
}

/// What losing one format means here.
fn consequence(fault: &Fault, xray: &Xray) -> String {
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

fn by_hop(fault: &Fault, xray: &Xray, place: &Place) -> Hint {
    let hop = &fault.from;
    let name = &hop.name;
    let continues = fault.mode == Some(Propagation::Continue);
    if subject(fault) == Subject::Sampled {
        let cause = if continues {
            format!("OTEL_TRACES_SAMPLER at {name} does not follow its parent (use parentbased_always_on), or drops what came in")
        } else {
            format!(
                "{name} says that it forwards and yet changes the decision: not a build of this project, or a filter in its pod"
            )
        };
        return Hint::new(cause).run(place.settings(hop));
    }
    let names = lost(fault);
    if names.is_empty() {
        let cause = format!("{name} changes headers that it should pass on as they came: another build, or a filter in its pod");
        return Hint::new(cause).run(place.settings(hop));
    }
    let formats =
        names.iter().any(|name| *name == "traceparent" || *name == "baggage" || *name == "b3" || name.starts_with("x-b3-"));
    let mut cause = format!("DROP_HEADERS (--drop-header) at {name} names {}", said(&names));
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
        cause.push_str(", or an app of another make runs there that forwards only headers it knows");
    }
    cause.push_str(&consequence(fault, xray));
    match place.runner(hop) {
        Runner::Local => Hint::new(format!("{cause}. Its first log lines name every header that it drops")).run(ask(hop, &names)),
        Runner::Kubernetes | Runner::Compose => Hint::new(cause).run(place.settings(hop)),
    }
}

/// A request that shows the loss at this hop alone.
fn ask(hop: &Hop, names: &[&str]) -> String {
    let name = names.first().copied().unwrap_or("x-request-id");
    let value = match name {
        "traceparent" => "00-11111111111111111111111111111111-2222222222222222-01",
        "x-b3-traceid" => "11111111111111111111111111111111",
        "x-b3-spanid" => "2222222222222222",
        "b3" => "11111111111111111111111111111111-2222222222222222-1",
        "x-b3-sampled" => "1",
        _ => "probe",
    };
    let more = if name == "x-b3-traceid" { " -H 'x-b3-spanid: 2222222222222222'" } else { "" };
    format!("curl -s -H '{name}: {value}'{more} -H 'accept: application/json' {}", quoted(&hop.url))
}

fn by_proxy(fault: &Fault, xray: &Xray, place: &Place) -> Hint {
    let (from, to) = (&fault.from.name, &fault.to.name);
    let namespace = place.namespace_of(&fault.to);
    let caller = from == CALLER;
    let names = lost(fault);
    if names.is_empty() {
        let cause = match subject(fault) {
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
        return Hint::new(cause).run(match place.runner(&fault.to) {
            Runner::Kubernetes => "istioctl analyze -A".to_owned(),
            Runner::Compose => "docker compose logs --tail 20 envoy".to_owned(),
            Runner::Local => place.settings(&fault.to),
        });
    }
    let what = if caller {
        format!("The gateway, or a proxy in front of {to}, removes")
    } else {
        format!("A proxy between {from} and {to} removes")
    };
    let cause = format!(
        "{what} {}: headers.request.remove of a VirtualService, an EnvoyFilter, or a proxy that is not of the mesh{}",
        said(&names),
        consequence(fault, xray)
    );
    match place.runner(&fault.to) {
        Runner::Kubernetes => {
            let pod = if caller || fault.from.hostname.is_empty() {
                format!("deploy/istio-ingressgateway -n {}", place.gateway_namespace)
            } else {
                format!("{} -n {namespace}", fault.from.hostname)
            };
            Hint::new(cause)
                .run(format!("istioctl proxy-config routes {pod} -o json | grep -A4 requestHeadersToRemove"))
                .run("kubectl get virtualservice,envoyfilter -A -o yaml | grep -n -A4 'remove:'")
        }
        Runner::Compose => Hint::new(cause).run("docker compose logs --tail 20 envoy"),
        Runner::Local => {
            let url = if fault.to.url.is_empty() { &place.url } else { &fault.to.url };
            Hint::new(cause).run(format!("curl -sv {}  # who answers: look at server: and via:", quoted(url)))
        }
    }
}

fn by_new_trace(fault: &Fault, place: &Place) -> Hint {
    let hop = &fault.to;
    let order =
        fault.effects.iter().find_map(|effect| if let Effect::Order { fresh, .. } = effect { Some(*fresh) } else { None });
    let cause = match order {
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
                .flat_map(|effect| if let Effect::NewTrace { received, .. } = effect { received.as_slice() } else { &[] })
                .map(|(format, _)| format.name())
                .collect();
            format!(
                "OTEL_PROPAGATORS at {} does not read {}, or the app there starts a trace for every request",
                hop.name,
                formats.join(" or ")
            )
        }
    };
    let hint = Hint::new(cause).run(place.settings(hop));
    match (place.runner(hop), order) {
        (Runner::Kubernetes, Some(format)) => {
            let namespace = place.namespace_of(hop);
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

/// What came through at every hop.
fn held(xray: &Xray) -> Vec<Finding> {
    let Some(last) = xray.rows.last() else { return Vec::new() };
    let hops = match xray.rows.len() {
        1 => format!("reached {}", last.hop.name),
        n => format!("reached all {n} hops"),
    };
    let mut out = Vec::new();
    for format in HeaderFamily::ALL {
        let id = if format == HeaderFamily::W3c { CheckId::PropagationW3c } else { CheckId::PropagationB3 };
        if xray.faults.iter().any(|fault| fault.breaks(format)) {
            continue;
        }
        let left: Vec<&str> = xray.left_out.iter().filter(|(_, of)| *of == format).map(|(hop, _)| hop.name.as_str()).collect();
        if !left.is_empty() {
            out.push(Finding::skip(
                id,
                format!("{} trace: not judged, because {} leaves it out (OTEL_PROPAGATORS or DROP_HEADERS) and no proxy here speaks it", format.name(), left.join(", ")),
            ));
        } else if xray.rows.iter().all(|row| row.context(format).is_some()) {
            let headers = match format {
                HeaderFamily::W3c => "traceparent",
                HeaderFamily::B3 => "x-b3-*",
            };
            let goes_on = xray.rows.iter().any(|row| row.mode == Propagation::Continue && xray.rows.len() > 1);
            let how = if goes_on { ", and the hops continue it" } else { " untouched by the hops" };
            let how = if xray.rows.len() == 1 { "" } else { how };
            out.push(Finding::pass(id, format!("{} trace ({headers}) {hops}{how}", format.name())));
        }
    }
    if !xray.faults.iter().any(|fault| fault.effects.iter().any(|effect| matches!(effect, Effect::Sampled { .. })))
        && xray
            .rows
            .iter()
            .all(|row| row.w3c.as_ref().or(row.b3.as_ref()).is_some_and(|context| context.sampling.decision().is_some()))
    {
        out.push(match xray.decided.first() {
            None => Finding::pass(CheckId::PropagationSampled, format!("The sampling decision {hops} unchanged")),
            Some(Decided { from, to, before, after }) => Finding::skip(
                CheckId::PropagationSampled,
                format!(
                    "The sampling decision: not judged, because the proxies take it themselves: {} sent {}, {} got {}. That is a question of their sampling rate, which --traces measures",
                    from.name,
                    decision(*before),
                    to.name,
                    decision(*after)
                ),
            ),
        });
    }
    if !xray.faults.iter().any(|fault| fault.touches("x-request-id"))
        && xray.rows.iter().all(|row| row.request_id != RequestId::Missing)
    {
        let edge = xray.rows.first().is_some_and(|row| row.request_id == RequestId::Replaced);
        let how = if edge { "; the gateway gave it, as Envoy does for callers from outside" } else { "" };
        out.push(Finding::pass(CheckId::PropagationRequestId, format!("x-request-id {hops} unchanged{how}")));
    }
    let names = ["baggage", "tracestate", "x-lane"];
    let through: Vec<&str> = names
        .into_iter()
        .filter(|name| {
            !xray.faults.iter().any(|fault| fault.touches(name)) && xray.rows.iter().all(|row| row.others.contains(name))
        })
        .collect();
    if !through.is_empty() {
        out.push(Finding::pass(CheckId::PropagationHeaders, format!("{} {hops}", said(&through))));
    }
    for name in names {
        if through.contains(&name) || xray.faults.iter().any(|fault| fault.touches(name)) {
            continue;
        }
        let Some(row) = xray.rows.iter().find(|row| !row.others.contains(&name)) else { continue };
        let (id, why) = match name {
            "tracestate" => (CheckId::PropagationTracestate, "the traceparent that it belonged to was replaced there"),
            "x-lane" if row.depth == 0 => (CheckId::PropagationLane, "the gateway takes it from callers from outside"),
            "x-lane" => (CheckId::PropagationLane, "the hops before it had none to send"),
            _ => (CheckId::PropagationBaggage, "the hops before it had none to send"),
        };
        if !xray.faults.iter().any(|fault| fault.breaks(HeaderFamily::W3c) && fault.breaks(HeaderFamily::B3)) {
            out.push(Finding::skip(id, format!("{name} did not reach {}: not judged, because {why}", row.hop.name)));
        }
    }
    out
}
