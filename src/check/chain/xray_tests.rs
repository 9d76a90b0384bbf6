//! The x-ray against a small model of a mesh: hops as the contract has them, proxies as Envoy was measured, each in every broken
//! shape.

use opentelemetry::trace::SpanId;

use super::*;
use crate::check::chain::probe::{fresh, fresh_request_id, one, written};
use crate::check::chain::seams::same_request;
use crate::check::envoy::suggestions::HintContext;
use crate::check::propagation;
use crate::hop::reply::{Call, Client};
use crate::report::{Finding, Status};
use crate::telemetry::ids;
use crate::trace_context::cases_for_tests::context_cases;
use crate::trace_context::{Context, Mangling, Sampling};

/// What a proxy does to trace headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracer {
    /// Envoy's Zipkin tracer, `USE_B3`.
    B3,
    /// Envoy's Zipkin tracer, `USE_B3_WITH_W3C_PROPAGATION`.
    Both,
    /// Envoy's OpenTelemetry tracer.
    Otel,
}

const TRACERS: [Tracer; 3] = [Tracer::B3, Tracer::Both, Tracer::Otel];

/// A hop of the model.
#[derive(Debug, Clone)]
struct App {
    mode: Propagation,
    /// `OTEL_PROPAGATORS`: what it reads and writes, in order. Empty for a hop that forwards.
    order: Vec<HeaderFamily>,
    drops: Vec<&'static str>,
    /// Turns the decision to "not sampled".
    unsamples: bool,
    /// Carries `x-request-id` of its own making.
    renames: bool,
}

fn forward() -> App {
    App { mode: Propagation::Forward, order: Vec::new(), drops: Vec::new(), unsamples: false, renames: false }
}

fn continues(order: &[HeaderFamily]) -> App {
    App { mode: Propagation::Continue, order: order.to_vec(), ..forward() }
}

const W3C_FIRST: [HeaderFamily; 2] = [HeaderFamily::W3c, HeaderFamily::B3];
const B3_FIRST: [HeaderFamily; 2] = [HeaderFamily::B3, HeaderFamily::W3c];

/// Between two hops: two sidecars of one tracer, something that removes headers, or both.
#[derive(Debug, Clone, Default)]
struct Between {
    tracer: Option<Tracer>,
    removes: Vec<&'static str>,
    /// Appends this to the value of a header.
    appends: Option<(&'static str, &'static str)>,
    /// Gives every request a new id.
    renames: bool,
    /// What the tracers decide about sampling, whatever the caller said: at a rate below 100 %.
    decides: Option<bool>,
    /// How many of the two sidecars are missing.
    missing: usize,
    /// The hop is called by a sidecar of its own, by its address.
    sidecar: bool,
    /// mTLS: the proxy reports the caller.
    vouches: bool,
}

fn sampling(sampled: bool) -> Sampling {
    if sampled { Sampling::Sample } else { Sampling::Drop }
}

fn set(headers: &mut Headers, name: &str, value: String) {
    headers.0.retain(|(known, _)| known != name);
    headers.0.push(one(name, value));
}

fn remove(headers: &mut Headers, name: &str) {
    headers.0.retain(|(known, _)| known != name);
}

fn write(headers: &mut Headers, format: HeaderFamily, context: &Context, parent: Option<SpanId>) {
    for (name, values) in written(format, &Context { parent_id: parent, ..*context }) {
        headers.0.retain(|(known, _)| *known != name);
        headers.0.push((name, values));
    }
}

/// One Envoy, as measured.
fn envoy(tracer: Tracer, decides: Option<bool>, headers: &mut Headers) {
    let (b3, w3c) = (HeaderFamily::B3.read(headers), HeaderFamily::W3c.read(headers));
    let (read, formats): (_, &[HeaderFamily]) = match tracer {
        Tracer::B3 => (b3, &[HeaderFamily::B3]),
        Tracer::Both => (b3.or(w3c), &[HeaderFamily::B3, HeaderFamily::W3c]),
        Tracer::Otel => (w3c, &[HeaderFamily::W3c]),
    };
    let parent = read.map(|context| context.span_id);
    let sampled = decides.or(read.and_then(|read| read.sampling.decision())).unwrap_or(true);
    let own = Context { span_id: ids::span_id(), sampling: sampling(sampled), ..read.unwrap_or_else(fresh) };
    for format in formats {
        write(headers, *format, &own, parent);
    }
    if tracer == Tracer::Otel && headers.get("tracestate").is_empty() {
        headers.0.push(one("tracestate", String::new()));
    }
    if let Some(id) = headers.first("x-request-id").map(str::to_owned) {
        let mut id = id;
        id.replace_range(14..15, "9");
        set(headers, "x-request-id", id);
    }
}

fn cross(between: &Between, headers: &mut Headers, edge: bool) {
    if edge && between.tracer.is_some() {
        set(headers, "x-request-id", fresh_request_id());
    }
    for _ in between.missing..2 {
        if let Some(tracer) = between.tracer {
            envoy(tracer, between.decides, headers);
        }
    }
    for name in &between.removes {
        remove(headers, name);
    }
    if let Some((name, more)) = between.appends {
        let values = headers.0.iter_mut().filter(|(known, _)| known == name).flat_map(|(_, values)| values);
        values.for_each(|value| value.push_str(more));
    }
    if between.renames {
        set(headers, "x-request-id", fresh_request_id());
    }
}

/// A hop: its reply, and what it sends on.
fn hop(index: usize, app: &App, received: Headers) -> (Tree, Headers) {
    let mut sent = Headers(received.0.iter().filter(|(name, _)| received.is_present(name)).cloned().collect());
    let mut tree = Tree {
        service: format!("service{}", index + 1),
        version: "v1".into(),
        lane: "base".into(),
        hostname: format!("host{}", index + 1),
        message: "".into(),
        path: "/".into(),
        status: 200,
        started_at: "".into(),
        duration_ms: 1.0,
        request_id: received.first("x-request-id").unwrap_or("made").to_owned(),
        trace_id: None,
        span_id: None,
        parent_span_id: None,
        sampled: None,
        propagation: app.mode,
        received: received.clone(),
        client: Client { ip: "127.0.0.1".into(), identity: None, identity_source: None },
        protocol: None,
        request_bytes: 0,
        node: None,
        zone: None,
        region: None,
        cluster: None,
        attempt: 1,
        injected: None,
        upstreams: Vec::new(),
    };
    if sent.first("x-request-id").is_none() || app.renames {
        set(&mut sent, "x-request-id", fresh_request_id());
    }
    if app.mode == Propagation::Continue {
        let read = app.order.iter().find_map(|format| format.read(&received));
        let is_new = read.is_none();
        tree.parent_span_id = read.map(|read| read.span_id.to_string());
        let read = read.unwrap_or_else(fresh);
        let sampled = !app.unsamples && read.sampling.decision().unwrap_or(true);
        let server = ids::span_id();
        tree.trace_id = Some(read.trace_id.to_string());
        tree.span_id = Some(server.to_string());
        tree.sampled = Some(sampled);
        let spoken: Vec<HeaderFamily> = HeaderFamily::ALL.into_iter().filter(|format| format.is_present(&received)).collect();
        for name in ["traceparent", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"] {
            remove(&mut sent, name);
        }
        if HeaderFamily::W3c.read(&received).is_none_or(|context| context.trace_id != read.trace_id)
            || !app.order.contains(&HeaderFamily::W3c)
        {
            remove(&mut sent, "tracestate");
        }
        let own = Context { span_id: ids::span_id(), sampling: sampling(sampled), ..read };
        for format in &app.order {
            if is_new || spoken.contains(format) {
                write(&mut sent, *format, &own, Some(server));
            }
        }
    } else if let Some(context) = HeaderFamily::W3c.read(&received).or_else(|| HeaderFamily::B3.read(&received)) {
        tree.trace_id = Some(context.trace_id.to_string());
        tree.span_id = Some(context.span_id.to_string());
        tree.sampled = context.sampling.decision();
    }
    for name in &app.drops {
        remove(&mut sent, name);
    }
    (tree, sent)
}

/// Sends a probe through the model; `between[i]` stands in front of hop `i`.
fn travel(probe: &Probe, apps: &[App], between: &[Between]) -> Tree {
    fn from(index: usize, mut headers: Headers, apps: &[App], between: &[Between]) -> Tree {
        cross(&between[index], &mut headers, index == 0);
        let (mut tree, sent) = hop(index, &apps[index], headers);
        if between[index].sidecar {
            tree.client.ip = "127.0.0.6".into();
        }
        if between[index].vouches {
            tree.client.identity = Some(format!("spiffe://cluster.local/ns/httpserver/sa/service{index}"));
        }
        if index + 1 < apps.len() {
            let reply = from(index + 1, sent.clone(), apps, between);
            tree.upstreams.push(Call {
                url: format!("http://service{0}/service{0}", index + 2),
                protocol: None,
                status: Some(200),
                duration_ms: 1.0,
                error: None,
                sent,
                reply: Some(Box::new(reply)),
                embedded: Vec::new(),
            });
        }
        tree
    }
    from(0, probe.headers.clone(), apps, between)
}

/// The whole examination, probes of one format included.
fn xray(apps: &[App], between: &[Between]) -> (Probe, Xray) {
    let probe = Probe::new(&HeaderFamily::ALL);
    let mut xray = examine(&probe, &travel(&probe, apps, between), "http://service1/service1");
    xray.settle(|format| Some(travel(&Probe::new(&[format]), apps, between)));
    (probe, xray)
}

fn report(apps: &[App], between: &[Between]) -> Vec<Finding> {
    let (probe, xray) = xray(apps, between);
    let hints = HintContext {
        namespace: "httpserver".into(),
        gateway_namespace: "istio-system".into(),
        url: "http://service1/service1".into(),
        loopback: false,
        is_outside: false,
        evidence: std::sync::Arc::default(),
    };
    propagation::findings(&probe, &xray, None, &hints)
}

fn mesh(tracer: Option<Tracer>) -> Vec<Between> {
    vec![Between { tracer, ..Between::default() }; 3]
}

/// Istio with a gateway and mTLS, whose hops have a sidecar or not.
fn istio(tracer: Option<Tracer>, sidecars: [bool; 3]) -> Vec<Between> {
    let one = |index: usize| {
        let caller = index == 0 || sidecars[index - 1];
        Between {
            tracer,
            missing: usize::from(!caller) + usize::from(!sidecars[index]),
            // A gateway reports the address of its own caller to the first hop.
            sidecar: sidecars[index] && index > 0,
            vouches: caller && sidecars[index],
            ..Between::default()
        }
    };
    (0..3).map(one).collect()
}

/// The only failure, as (id, from, to, side, text).
fn only_failure(findings: &[Finding]) -> (&'static str, String, String, Side, String) {
    let failures: Vec<&Finding> = findings.iter().filter(|finding| finding.status == Status::Fail).collect();
    assert_eq!(failures.len(), 1, "{failures:#?}");
    let seam = failures[0].seam.clone().unwrap();
    (failures[0].id.name(), seam.from, seam.to, seam.side.unwrap(), failures[0].text.clone())
}

fn failures(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.status == Status::Fail).collect()
}

#[test]
fn no_healthy_mesh_of_forwarding_hops_raises_an_alarm() {
    for tracer in TRACERS.into_iter().map(Some).chain([None]) {
        let findings = report(&[forward(), forward(), forward()], &mesh(tracer));
        assert!(failures(&findings).is_empty(), "{tracer:?}: {findings:#?}");
        assert!(
            findings.iter().any(|finding| finding.id.name() == "propagation.w3c" && finding.status == Status::Pass),
            "{tracer:?}"
        );
        assert!(
            findings.iter().any(|finding| finding.id.name() == "propagation.b3" && finding.status == Status::Pass),
            "{tracer:?}"
        );
    }
}

#[test]
fn no_healthy_mesh_of_continuing_hops_raises_an_alarm() {
    for (tracer, order) in [
        (None, W3C_FIRST),
        (None, B3_FIRST),
        (Some(Tracer::Otel), W3C_FIRST),
        (Some(Tracer::B3), B3_FIRST),
        (Some(Tracer::Both), W3C_FIRST),
        (Some(Tracer::Both), B3_FIRST),
    ] {
        let findings = report(&[continues(&order), continues(&order), continues(&order)], &mesh(tracer));
        assert!(failures(&findings).is_empty(), "{tracer:?} {order:?}: {findings:#?}");
    }
}

#[test]
fn mixed_chains_and_a_gateway_alone_raise_no_alarm() {
    for tracer in TRACERS {
        let order = if tracer == Tracer::B3 { B3_FIRST } else { W3C_FIRST };
        let gateway = vec![Between { tracer: Some(tracer), ..Between::default() }, Between::default(), Between::default()];
        for apps in [
            [forward(), continues(&order), forward()],
            [continues(&order), forward(), continues(&order)],
            [forward(), forward(), continues(&order)],
        ] {
            for between in [mesh(Some(tracer)), gateway.clone()] {
                let findings = report(&apps, &between);
                assert!(failures(&findings).is_empty(), "{tracer:?} {apps:?}: {findings:#?}");
            }
        }
    }
}

#[test]
fn a_chain_that_uses_one_format_by_configuration_is_healthy_where_no_proxy_speaks_the_other() {
    for (format, other) in [(HeaderFamily::W3c, "propagation.b3"), (HeaderFamily::B3, "propagation.w3c")] {
        let apps = vec![continues(&[format]); 3];
        let findings = report(&apps, &mesh(None));
        assert!(failures(&findings).is_empty(), "{findings:#?}");
        assert!(findings.iter().any(|finding| finding.id.name() == other && finding.status == Status::Skip), "{findings:#?}");
    }
    let findings = report(&vec![continues(&[HeaderFamily::W3c]); 3], &mesh(Some(Tracer::Otel)));
    assert!(failures(&findings).is_empty(), "{findings:#?}");
}

#[test]
fn the_dialect_of_the_mesh_is_named() {
    for (tracer, says) in [(Tracer::B3, "B3 (Zipkin tracer)"), (Tracer::Both, "B3 and W3C"), (Tracer::Otel, "W3C (OpenTelemetry")]
    {
        let findings = report(&[forward(), forward(), forward()], &mesh(Some(tracer)));
        assert!(findings[0].text.contains(says) && findings[0].text.contains("service3"), "{}", findings[0].text);
    }
}

#[test]
fn a_hop_that_drops_is_named_whatever_it_drops_and_whoever_stands_around_it() {
    const B3: [&str; 4] = ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"];
    let everything: Vec<&str> = [&["traceparent", "tracestate", "baggage", "x-request-id", "x-lane"][..], &B3].concat();
    for (drops, id, says) in [
        (vec!["traceparent", "tracestate"], "propagation.w3c", "traceparent"),
        (B3.to_vec(), "propagation.b3", "x-b3-*"),
        (vec!["x-request-id"], "propagation.request-id", "x-request-id"),
        (vec!["x-lane"], "propagation.lane", "x-lane"),
        (vec!["baggage"], "propagation.baggage", "baggage"),
        (everything, "propagation.trace", "traceparent"),
    ] {
        for tracer in TRACERS.into_iter().map(Some).chain([None]) {
            let mut apps = [forward(), forward(), forward()];
            apps[1].drops = drops.clone();
            let (found, from, to, side, text) = only_failure(&report(&apps, &mesh(tracer)));
            assert_eq!((found, from.as_str(), to.as_str(), side), (id, "service2", "service3", Side::Hop), "{tracer:?}: {text}");
            assert!(text.contains(says) && text.contains("did not send"), "{text}");
        }
    }
}

#[test]
fn a_continuing_hop_that_drops_everything_or_one_format_that_it_reads_is_named() {
    const B3: [&str; 4] = ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"];
    for (drops, id) in [(vec!["traceparent", "tracestate"], "propagation.w3c"), (B3.to_vec(), "propagation.b3")] {
        let mut apps = vec![continues(&W3C_FIRST); 3];
        apps[1].drops = drops;
        let (found, from, to, side, text) = only_failure(&report(&apps, &mesh(None)));
        assert_eq!((found, from.as_str(), to.as_str(), side), (id, "service2", "service3", Side::Hop), "{text}");
    }
    let mut apps = vec![continues(&W3C_FIRST); 3];
    apps[0].drops = [&["traceparent", "tracestate"][..], &B3].concat();
    let (found, from, to, side, text) = only_failure(&report(&apps, &mesh(None)));
    assert_eq!((found, from.as_str(), to.as_str(), side), ("propagation.trace", "service1", "service2", Side::Hop), "{text}");
}

#[test]
fn a_part_of_a_format_that_is_lost_breaks_it_and_the_part_alone_is_named() {
    let mut apps = vec![continues(&W3C_FIRST); 3];
    apps[1].drops = vec!["traceparent", "tracestate", "x-b3-traceid"];
    let (found, from, to, side, text) = only_failure(&report(&apps, &mesh(None)));
    assert_eq!((found, from.as_str(), to.as_str(), side), ("propagation.trace", "service2", "service3", Side::Hop), "{text}");
    assert!(text.contains("x-b3-traceid") && !text.contains("x-b3-*"), "{text}");
}

#[test]
fn something_between_two_hops_that_removes_headers_is_told_from_the_hop() {
    for (removes, id, says) in [
        (vec!["traceparent"], "propagation.w3c", "service2 sent traceparent"),
        (vec!["x-b3-traceid", "x-b3-spanid", "x-b3-sampled"], "propagation.b3", "service2 sent x-b3-*"),
        (vec!["x-request-id"], "propagation.request-id", "service2 sent x-request-id"),
        (vec!["x-lane"], "propagation.lane", "service2 sent x-lane"),
    ] {
        for app in [forward(), continues(&W3C_FIRST)] {
            for tracer in [None, Some(Tracer::Otel)] {
                let mut between = mesh(tracer);
                between[2].removes = removes.clone();
                let (found, from, to, side, text) = only_failure(&report(&[app.clone(), app.clone(), app.clone()], &between));
                assert_eq!((found, from.as_str(), to.as_str(), side), (id, "service2", "service3", Side::Between), "{text}");
                assert!(text.contains(says) && text.contains("service3 never got"), "{text}");
            }
        }
    }
}

#[test]
fn check_reads_every_context_as_the_hop_does_and_blames_only_a_hop_that_ignores_a_valid_one() {
    let probe = Probe::ordinary();
    let mut tree = travel(&probe, &[continues(&W3C_FIRST)], &mesh(None));
    tree.trace_id = Some(fresh().trace_id.to_string());
    for case in context_cases() {
        tree.received = Headers(case.values_by_name());
        let xray = examine(&probe, &tree, "http://service1/service1");
        let read = xray.rows[0].context(case.family).map(|context| {
            let parent_id = context.parent_id.map(|id| id.to_string());
            (context.trace_id.to_string(), context.span_id.to_string(), parent_id, context.sampling)
        });
        let expected = case.context.map(|valid| {
            let parent_id = valid.parent_id.map(str::to_owned);
            (valid.trace_id.to_owned(), valid.span_id.to_owned(), parent_id, valid.sampling)
        });
        assert_eq!(read, expected, "{:?}", case.headers);
        let blamed = xray.faults.iter().any(|fault| fault.side == Side::NewTrace);
        assert_eq!(blamed, case.context.is_some(), "{:?}: {:#?}", case.headers, xray.faults);
    }
}

#[test]
fn a_context_that_arrives_invalid_is_the_fault_of_whatever_stands_in_front_of_the_hop() {
    for (appends, id, says) in [
        (("traceparent", "-extra"), "propagation.w3c", "service1 sent a valid traceparent"),
        (("traceparent", "-extra"), "propagation.w3c", "the one that service2 received is invalid: 00-"),
        (("traceparent", "-extra"), "propagation.w3c", "-01-extra"),
        (("x-b3-spanid", "0"), "propagation.b3", "service1 sent a valid x-b3-spanid"),
    ] {
        let format = if appends.0 == "traceparent" { HeaderFamily::W3c } else { HeaderFamily::B3 };
        for app in [forward(), continues(&[format]), continues(&W3C_FIRST), continues(&B3_FIRST)] {
            let mut between = mesh(None);
            between[1].appends = Some(appends);
            let findings = report(&[app.clone(), app.clone(), app.clone()], &between);
            let (found, from, to, side, text) = only_failure(&findings);
            let seam = (from.as_str(), to.as_str(), side);
            assert_eq!((found, seam), (id, ("service1", "service2", Side::Between)), "{app:?}: {text}");
            assert!(text.contains(says), "{text}");
            let cause = failures(&findings)[0].cause.as_ref().unwrap();
            assert!(cause.contains("A proxy between service1 and service2 changes") && !cause.contains("OTEL_PROP"), "{cause}");
        }
    }
}

#[test]
fn a_hop_that_sends_an_invalid_context_is_named() {
    for mode in [Propagation::Forward, Propagation::Continue] {
        let app = if mode == Propagation::Forward { forward() } else { continues(&W3C_FIRST) };
        let probe = Probe::new(&HeaderFamily::ALL);
        let mut tree = travel(&probe, &[app.clone(), app], &mesh(None));
        let call = &mut tree.upstreams[0];
        let reply = call.reply.as_mut().unwrap();
        for headers in [&mut call.sent, &mut reply.received] {
            let value = headers.first("traceparent").unwrap().to_uppercase();
            set(headers, "traceparent", value);
        }
        reply.propagation = Propagation::Forward;
        let xray = examine(&probe, &tree, "http://service1/service1");
        let fault = &xray.faults[0];
        assert_eq!((xray.faults.len(), fault.from.name.as_str(), fault.side), (1, "service1", Side::Hop), "{:#?}", xray.faults);
        let how = Mangling::UpperCase;
        assert!(
            matches!(&fault.effects[..], [HeaderChange::Mangled { how: found, .. }] if *found == how),
            "{:#?}",
            fault.effects
        );
    }
}

#[test]
fn a_gateway_that_removes_the_trace_is_between_check_and_the_first_hop() {
    let mut between = mesh(None);
    between[0].removes = vec!["traceparent", "tracestate"];
    let (found, from, to, side, text) = only_failure(&report(&[forward(), forward(), forward()], &between));
    assert_eq!((found, from.as_str(), to.as_str(), side), ("propagation.w3c", "check", "service1", Side::Between), "{text}");
}

#[test]
fn a_flipped_decision_is_the_hops_that_flipped_it() {
    for tracer in [None, Some(Tracer::Both)] {
        let mut apps = vec![continues(&W3C_FIRST); 3];
        apps[1].unsamples = true;
        let (found, from, to, side, text) = only_failure(&report(&apps, &mesh(tracer)));
        assert_eq!(
            (found, from.as_str(), to.as_str(), side),
            ("propagation.sampled", "service2", "service3", Side::Hop),
            "{text}"
        );
    }
}

#[test]
fn a_hop_that_starts_a_new_trace_is_named() {
    let mut apps = vec![continues(&W3C_FIRST); 3];
    apps[1].order = Vec::new();
    let findings = report(&apps, &mesh(None));
    let first = failures(&findings)[0];
    let seam = first.seam.clone().unwrap();
    assert_eq!((seam.from.as_str(), seam.to.as_str(), seam.side), ("service1", "service2", Some(Side::NewTrace)), "{first:#?}");
    assert!(first.text.contains("started a new one"), "{}", first.text);
    assert!(first.cause.as_ref().unwrap().contains("OTEL_PROPAGATORS"), "{first:#?}");
}

#[test]
fn the_wrong_order_of_propagators_is_named_where_the_mesh_speaks_the_other_format() {
    for (tracer, order, fits) in
        [(Tracer::B3, W3C_FIRST, "b3multi,b3,tracecontext"), (Tracer::Otel, B3_FIRST, "tracecontext,baggage,b3multi")]
    {
        let findings = report(&vec![continues(&order); 3], &mesh(Some(tracer)));
        let first = failures(&findings)[0];
        assert_eq!((first.id.name(), first.hop.as_deref()), ("propagation.order", Some("service1")), "{findings:#?}");
        assert!(first.cause.as_ref().unwrap().contains(fits), "{first:#?}");
        assert_eq!(failures(&findings).len(), 1, "told once: {findings:#?}");
        assert!(first.detail[0].contains("service2, service3"), "{first:#?}");
    }
}

/// Where one hop lacks a format, one failure counts, and none where the trace goes on.
#[test]
fn a_hop_that_reads_one_format_alone_is_one_failure_at_most() {
    use HeaderFamily::{B3, W3c};
    let orders: [&[HeaderFamily]; 5] = [&[], &[W3c], &[B3], &W3C_FIRST, &B3_FIRST];
    for tracer in TRACERS.into_iter().map(Some).chain([None]) {
        let fits = if tracer == Some(Tracer::B3) { B3_FIRST } else { W3C_FIRST };
        for (count, at, order) in [3, 4]
            .into_iter()
            .flat_map(|count| (0..count).flat_map(move |at| orders.into_iter().map(move |order| (count, at, order))))
        {
            for usual in [continues(&fits), forward()] {
                let mut apps = vec![usual.clone(); count];
                apps[at] = continues(order);
                let findings = report(&apps, &vec![Between { tracer, ..Between::default() }; count]);
                let failed = failures(&findings);
                let case = format!("{tracer:?}, {order:?} at {at} of {count} beside {:?}: {findings:#?}", usual.mode);
                assert!(failed.len() <= 1, "{case}");
                let reads = match tracer {
                    Some(Tracer::Otel) => order.contains(&W3c),
                    Some(Tracer::B3) => order.contains(&B3),
                    Some(Tracer::Both) | None => !order.is_empty(),
                };
                if !reads {
                    assert_eq!(failed.len(), 1, "{case}");
                    assert_eq!(failed[0].hop.as_deref(), Some(format!("service{}", at + 1).as_str()), "{case}");
                    assert!(failed[0].cause.as_ref().unwrap().contains("OTEL_PROPAGATORS"), "{case}");
                } else if tracer.is_none()
                    || order == fits
                    || (tracer == Some(Tracer::Both) && usual.mode == Propagation::Continue)
                {
                    assert!(failed.is_empty(), "{case}");
                }
            }
        }
    }
}

#[test]
fn a_request_id_made_anew_between_hops_is_a_finding_and_at_the_edge_it_is_not() {
    let mut between = mesh(None);
    between[1].renames = true;
    let (found, from, to, side, text) = only_failure(&report(&[forward(), forward(), forward()], &between));
    assert_eq!(
        (found, from.as_str(), to.as_str(), side),
        ("propagation.request-id", "service1", "service2", Side::Between),
        "{text}"
    );
    let mut apps = [forward(), forward(), forward()];
    apps[1].renames = true;
    let (_, from, to, side, text) = only_failure(&report(&apps, &mesh(None)));
    assert_eq!((from.as_str(), to.as_str(), side), ("service2", "service3", Side::Hop), "{text}");
}

#[test]
fn behind_a_hop_that_never_answered_nothing_is_checked() {
    let probe = Probe::new(&HeaderFamily::ALL);
    let mut tree = travel(&probe, &[forward(), forward(), forward()], &mesh(None));
    tree.upstreams[0].reply = None;
    let xray = examine(&probe, &tree, "http://service1/service1");
    assert!(xray.faults.is_empty());
    assert_eq!(xray.unobserved.len(), 1);
    assert_eq!(xray.unobserved[0].1.name, "service2");
}

#[test]
fn a_request_id_stays_itself_when_envoy_writes_its_reason_into_it() {
    assert!(same_request("b7a284c4-0f16-48fa-9a3d-137c290a9ff1", "b7a284c4-0f16-98fa-9a3d-137c290a9ff1"));
    assert!(!same_request("b7a284c4-0f16-48fa-9a3d-137c290a9ff1", "b7a284c4-0f16-48fa-9a3d-137c290a9ff2"));
    assert!(!same_request("my-id", "my-ip"));
}

#[test]
fn a_call_that_no_sidecar_handles_as_http_is_a_finding_and_a_waypoint_for_some_services_is_not() {
    let mut between = mesh(Some(Tracer::Otel));
    between[1].tracer = None;
    let probe = Probe::new(&HeaderFamily::ALL);
    let mut tree = travel(&probe, &[forward(), forward(), forward()], &between);
    let hints = HintContext::for_tests();
    let findings = propagation::findings(&probe, &examine(&probe, &tree, "http://x/service1"), None, &hints);
    assert!(failures(&findings).is_empty(), "{findings:#?}");
    let Some(two) = &mut tree.upstreams[0].reply else { panic!() };
    let Some(three) = &mut two.upstreams[0].reply else { panic!() };
    three.client.identity = Some("spiffe://cluster.local/ns/httpserver/sa/service2".into());
    let findings = propagation::findings(&probe, &examine(&probe, &tree, "http://x/service1"), None, &hints);
    let failed = failures(&findings);
    assert_eq!(failed.len(), 1, "{findings:#?}");
    let seam = failed[0].seam.clone().unwrap();
    assert_eq!((failed[0].id.name(), seam.from.as_str(), seam.to.as_str()), ("propagation.coverage", "service1", "service2"));
    assert!(failed[0].cause.as_ref().unwrap().contains("appProtocol"), "{failed:#?}");
}

#[test]
fn a_hop_that_injection_left_out_is_named_and_its_neighbours_are_not() {
    for tracer in TRACERS.into_iter().map(Some).chain([None]) {
        for app in [forward(), continues(if tracer == Some(Tracer::B3) { &B3_FIRST } else { &W3C_FIRST })] {
            let apps = [app.clone(), app.clone(), app];
            for left_out in [0, 1, 2] {
                let mut sidecars = [true; 3];
                sidecars[left_out] = false;
                let findings = report(&apps, &istio(tracer, sidecars));
                let failed = failures(&findings);
                let name = format!("service{}", left_out + 1);
                assert_eq!(failed.len(), 1, "{name} {tracer:?}: {findings:#?}");
                let finding = failed[0];
                assert_eq!(
                    (finding.id.name(), finding.hop.as_deref()),
                    ("propagation.sidecar", Some(name.as_str())),
                    "{finding:#?}"
                );
                let says = if left_out < 2 {
                    format!("{name} has no sidecar")
                } else {
                    format!("No sidecar is seen in front of {name}")
                };
                assert!(finding.text.starts_with(&says), "{}", finding.text);
                assert_eq!(finding.text.contains("none behind it"), left_out < 2, "{}", finding.text);
                assert!(finding.cause.as_ref().unwrap().contains("Injection is missing"), "{finding:#?}");
                assert!(finding.next[0].starts_with(&format!("kubectl -n httpserver get pod -l app={name} ")), "{finding:#?}");
                assert!(finding.next.iter().any(|next| next.contains("namespace httpserver --show-labels")), "{finding:#?}");
            }
            let findings = report(&apps, &istio(tracer, [true; 3]));
            assert!(failures(&findings).is_empty(), "{tracer:?}: {findings:#?}");
        }
    }
}

#[test]
fn sidecars_without_mutual_tls_are_not_called_missing() {
    for tracer in TRACERS {
        let mut between = istio(Some(tracer), [true; 3]);
        between.iter_mut().for_each(|between| between.vouches = false);
        let findings = report(&[forward(), forward(), forward()], &between);
        assert!(failures(&findings).is_empty(), "{findings:#?}");
        // mTLS off for one hop alone.
        let mut between = istio(Some(tracer), [true; 3]);
        between[1].vouches = false;
        let findings = report(&[forward(), forward(), forward()], &between);
        assert!(failures(&findings).is_empty(), "{findings:#?}");
    }
}

#[test]
fn a_sidecar_that_takes_a_call_for_bytes_points_at_the_ports_name_alone() {
    for tracer in TRACERS {
        let mut between = istio(Some(tracer), [true; 3]);
        between[1].tracer = None;
        between[1].vouches = false;
        let findings = report(&[forward(), forward(), forward()], &between);
        let failed = failures(&findings);
        assert_eq!(failed.len(), 1, "{findings:#?}");
        let seam = failed[0].seam.clone().unwrap();
        assert_eq!((failed[0].id.name(), seam.from.as_str(), seam.to.as_str()), ("propagation.coverage", "service1", "service2"));
        let cause = failed[0].cause.as_ref().unwrap();
        assert!(cause.contains("appProtocol") && !cause.contains("no sidecar") && !cause.contains("has a sidecar"), "{cause}");
    }
}

#[test]
fn sidecars_that_do_not_trace_behind_a_gateway_that_does_point_at_the_telemetry() {
    for tracer in TRACERS {
        let mut between = istio(Some(tracer), [true; 3]);
        between[0].missing = 1;
        between[1].tracer = None;
        between[2].tracer = None;
        let findings = report(&[forward(), forward(), forward()], &between);
        let failed = failures(&findings);
        assert_eq!(failed.len(), 1, "{findings:#?}");
        assert!(failed[0].text.contains("sidecars in front of service2, service3 do not trace"), "{}", failed[0].text);
        assert!(failed[0].cause.as_ref().unwrap().contains("meshConfig.extensionProviders"), "{:#?}", failed[0]);
        assert!(failed[0].next.iter().any(|next| next.contains("kubectl get telemetry -A")), "{:#?}", failed[0]);
        assert!(failed[0].next.iter().any(|next| next.contains("extensionProviders")), "{:#?}", failed[0]);
    }
}

#[test]
fn proxies_that_decide_about_sampling_themselves_flip_nothing() {
    for tracer in TRACERS {
        let order = if tracer == Tracer::B3 { B3_FIRST } else { W3C_FIRST };
        for app in [forward(), continues(&order)] {
            let mut between = istio(Some(tracer), [true; 3]);
            between.iter_mut().for_each(|between| between.decides = Some(false));
            let (_, xray) = xray(&[app.clone(), app.clone(), app.clone()], &between);
            assert_eq!(xray.decided.len(), 1, "{tracer:?}: {:#?}", xray.decided);
            assert_eq!((xray.decided[0].from.name.as_str(), xray.decided[0].after), (CALLER, false));
            let findings = report(&[app.clone(), app.clone(), app], &between);
            assert!(failures(&findings).is_empty(), "{tracer:?}: {findings:#?}");
            let told = findings.iter().find(|finding| finding.id.name() == "propagation.sampled").unwrap();
            assert!(told.status == Status::Skip && told.text.contains("sampling rate"), "{told:#?}");
        }
    }
}
