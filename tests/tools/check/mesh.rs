//! A chain of three behind a gateway, each hop with a sidecar, as Istio's proxies trace it: who reports, and what a proxy did to a call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::signs::backend;
use super::support::*;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The sidecar of service2 reports nothing.
    SilentSidecar,
    /// No sidecar reports anything.
    SilentSidecars,
    /// The gateway writes ids and reports nothing.
    SilentGateway,
    /// The gateway does not trace.
    UntracedGateway,
    Passthrough,
    /// Neither side reads the call from service1 to service2.
    Bytes,
    Delay,
    /// The call from service2 to service3 leaves past its sidecar.
    ExcludedOutbound,
    /// Telemetry with match.mode CLIENT, and with SERVER.
    ClientsAlone,
    ServersAlone,
    /// service3 is reached under one request id, which is no UUID: its sidecar does not sample.
    FixedId,
    /// The sidecar of service2 reads and writes B3, the others W3C.
    OtherTracer,
    /// The spans that the sidecar of service3 writes get lost; what sidecars do not speak arrives as the apps sent it.
    LostInbound,
}

const OUTBOUND: &str = "outbound|80|base|x.httpserver.svc.cluster.local";

/// The spans of the proxies of one request: gateway, then in front of and behind each hop.
fn spans(fault: Fault, trace: &str, probe: &str) -> Vec<Value> {
    let mut rows = vec![
        ("a1", probe, "SERVER", "istio-ingressgateway", OUTBOUND, "-"),
        ("a2", "a1", "CLIENT", "istio-ingressgateway", OUTBOUND, "-"),
        ("11", "a2", "SERVER", "service1", "inbound|8080||", "-"),
        ("1f", "11", "CLIENT", "service1", OUTBOUND, "-"),
        ("21", "1f", "SERVER", "service2", "inbound|8080||", "-"),
        ("2f", "21", "CLIENT", "service2", OUTBOUND, "-"),
        ("31", "2f", "SERVER", "service3", "inbound|8080||", "-"),
    ];
    match fault {
        Fault::SilentSidecar => rows.retain(|row| !matches!(row.0, "21" | "2f")),
        Fault::SilentSidecars => rows.retain(|row| row.0.starts_with('a')),
        Fault::SilentGateway => rows.retain(|row| !row.0.starts_with('a')),
        Fault::UntracedGateway => {
            rows.retain(|row| !row.0.starts_with('a'));
            rows[0].1 = probe;
        }
        Fault::Passthrough => rows[5].4 = "PassthroughCluster",
        Fault::Bytes => {
            rows[3].4 = "PassthroughCluster";
            rows[5].1 = "1f";
            rows.remove(4);
        }
        Fault::Delay => rows[5].5 = "DI",
        Fault::ExcludedOutbound => {
            rows.retain(|row| row.0 != "2f");
            rows[5].1 = "21";
        }
        Fault::ClientsAlone => {
            rows.retain(|row| row.2 == "CLIENT" || row.0 == "a1");
            (rows[2].1, rows[3].1) = ("a2", "1f");
        }
        Fault::ServersAlone => {
            // A gateway counts as a client.
            rows.retain(|row| row.2 == "SERVER" && row.0 != "a1");
            (rows[0].1, rows[1].1, rows[2].1) = (probe, "11", "21");
        }
        Fault::FixedId | Fault::LostInbound => rows.retain(|row| row.0 != "31"),
        Fault::OtherTracer | Fault::None => {}
    }
    let id = |short: &str| if short.len() == 16 { short.to_owned() } else { short.repeat(8) };
    let span = |(own, parent, kind, service, cluster, flags): (&str, &str, &str, &str, &str, &str)| {
        let role = if service.starts_with("istio") { "router" } else { "sidecar" };
        json!({"traceId": trace, "id": id(own), "parentId": id(parent), "kind": kind, "name": "x:80/*", "timestamp": 1, "duration": 1,
            "localEndpoint": {"serviceName": service}, "tags": {"component": "proxy", "response_flags": flags,
            "upstream_cluster": cluster, "http.status_code": "200", "node_id": format!("{role}~10.0.0.1~{service}.x~x")}})
    };
    rows.into_iter().map(span).collect()
}

fn run(fault: Fault, args: &[&str]) -> Run {
    let parents: Arc<Mutex<HashMap<String, String>>> = Arc::default();
    let (probes, turn) = (parents.clone(), AtomicU64::new(1));
    let front = fake(move |request| {
        let context = request.header("traceparent").map_or_else(
            || format!("00-{:032x}-{}-01", 0xabcd_0000 + turn.fetch_add(1, Ordering::SeqCst), "9".repeat(16)),
            str::to_owned,
        );
        let (trace, is_bare) = (context[3..35].to_owned(), request.header("traceparent").is_none());
        probes.lock().unwrap().insert(trace.clone(), context[36..52].to_owned());
        let mut below: Option<Value> = None;
        for n in (1..=3).rev() {
            let mut hop = reply(&format!("service{n}"), "v1", "base", request, vec![]);
            let sampled = !(fault == Fault::FixedId && n == 3);
            let flag = if sampled { "01" } else { "00" };
            let received = &mut hop["received"];
            let above = match (fault, n) {
                (Fault::ClientsAlone, 1) => "a2".to_owned(),
                (Fault::Bytes, 2) => "1f".to_owned(),
                (Fault::ClientsAlone, _) => format!("{}f", n - 1),
                _ => format!("{n}1"),
            };
            received["traceparent"] = json!([format!("00-{trace}-{}-{flag}", above.repeat(8))]);
            received["x-request-id"] =
                json!([request.header("x-request-id").unwrap_or("0af1f2f3-1111-9111-8111-111111111111").to_owned()]);
            if is_bare {
                received["x-request-id"] = json!([format!("{}-1111-9111-8111-111111111111", &trace[24..])]);
            }
            if fault == Fault::FixedId && n == 3 {
                received["x-request-id"] = json!(["the-one"]);
            }
            if fault == Fault::LostInbound {
                received["x-b3-traceid"] = json!([trace]);
                received["x-b3-spanid"] = json!(["1".repeat(16)]);
                received["x-b3-sampled"] = json!(["1"]);
            }
            if fault == Fault::OtherTracer && is_bare && n >= 2 {
                received["x-b3-traceid"] = json!(["5".repeat(32)]);
                received["x-b3-spanid"] = json!(["6".repeat(16)]);
                received["x-b3-sampled"] = json!(["1"]);
            }
            let sent = hop["received"].clone();
            if let Some(next) = below.take() {
                let url = format!("http://service{}/service{}", n + 1, n + 1);
                hop["upstreams"] =
                    json!([{"url": url, "status": 200, "duration_ms": 0.5, "error": null, "sent": sent, "reply": next}]);
            }
            hop["hostname"] = json!(format!("service{n}-7d4b9c6f5-x2x5z"));
            hop["sampled"] = json!(sampled);
            let caller = if n == 1 { "istio-ingressgateway".to_owned() } else { format!("service{}", n - 1) };
            let plain = match fault {
                Fault::Passthrough | Fault::ExcludedOutbound => n == 3,
                Fault::Bytes => n == 2,
                _ => false,
            };
            let identity = (!plain).then(|| format!("spiffe://cluster.local/ns/httpserver/sa/{caller}"));
            hop["client"] = json!({"ip": if n == 1 { "10.9.9.9" } else { "127.0.0.6" }, "identity": identity});
            below = Some(hop);
        }
        (200, vec![("server", "istio-envoy".into())], below.unwrap().to_string())
    });
    let store = backend(move |trace| {
        let probe = parents.lock().unwrap().get(trace).cloned().unwrap_or_default();
        spans(fault, trace, &probe)
    });
    let all = ["--traces", &store, "--traces-wait", "1s", "--count", "10", "--rate", "500", "--skip", "reach.hsts"];
    check(&format!("http://{front}/service1"), &[&all[..], args].concat())
}

#[test]
fn a_whole_trace_of_seven_spans_is_healthy() {
    let run = run(Fault::None, &[]);
    run.fine();
    assert!(run.check("traces.services")["text"].as_str().unwrap().starts_with("Everybody reports"), "{:#}", run.json);
    for id in ["traces.calls", "propagation.bare", "traffic.identity"] {
        assert_eq!(run.check(id)["status"], "pass", "{id}: {:#}", run.json);
    }
}

#[test]
fn who_does_not_report_is_named_with_what_is_due_and_what_came() {
    for (fault, says, due) in [
        (Fault::SilentSidecar, "2 of 2 spans of the proxy at service2 never arrived", Some("7 spans are due, 5 came")),
        (Fault::SilentSidecars, "No span of the sidecars of service1, service2, service3 arrived", None),
        (
            Fault::SilentGateway,
            "No span of the gateway arrived: it writes span ids and reports no span",
            Some("7 spans are due, 5 came"),
        ),
        (Fault::UntracedGateway, "No span of the gateway arrived: it does not trace", None),
        (
            Fault::LostInbound,
            "1 of 1 spans of the proxy at service3 never arrived, while it writes their ids",
            Some("7 spans are due, 6 came"),
        ),
    ] {
        let run = run(fault, &[]);
        let found = run.fails("traces.services", &[says, "Telemetry"]);
        assert!(due.is_none_or(|due| found["detail"].to_string().contains(due)), "{found:#}");
        assert_eq!(run.failed().len(), 1, "{fault:?}: {:#}", run.json);
        assert!(!run.json.to_string().contains("Everybody reports"), "{:#}", run.json);
    }
}

#[test]
fn what_a_proxy_does_to_a_call_that_succeeds_is_read_from_its_span() {
    for (fault, says, cause) in [
        (Fault::Passthrough, "does not know service3 and passes the call on", "egress.hosts of a Sidecar resource"),
        (Fault::Delay, "The call from service2 to service3 is held on purpose (flag DI)", "fault.delay"),
        (Fault::ExcludedOutbound, "The call from service2 to service3 bypasses the sidecar of service2", "excludeOutboundPorts"),
    ] {
        let run = run(fault, &[]);
        run.breaks_at("traces.calls", "service2", "service3", None, &[says, cause]);
        assert_eq!(run.failed().len(), 1, "{fault:?}: {:#}", run.json);
        if fault != Fault::Delay {
            run.follows("traffic.identity", "traces.calls", &["service3 is called without mTLS"]);
        }
    }
}

#[test]
fn a_call_that_neither_side_reads_is_one_finding_about_the_port() {
    let run = run(Fault::Bytes, &[]);
    let says = ["that of service2 does not read it, either", "name must begin with http"];
    run.breaks_at("traces.calls", "service1", "service2", None, &says);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
}

#[test]
fn sidecars_that_trace_one_side_alone_are_no_bypass() {
    for (fault, says, mode) in [
        (Fault::ClientsAlone, "No sidecar reports a call that its app receives", "match.mode CLIENT"),
        (Fault::ServersAlone, "No sidecar reports a call that its app makes", "match.mode SERVER"),
    ] {
        let run = run(fault, &[]);
        run.fails("traces.calls", &[says, mode]);
        assert_eq!(run.failed().len(), 1, "{fault:?}: {:#}", run.json);
        assert!(!run.json.to_string().contains("bypass"), "{:#}", run.json);
    }
}

#[test]
fn a_request_id_that_something_fixes_is_the_cause_of_spans_that_are_missing_behind_it() {
    let run = run(Fault::FixedId, &[]);
    run.breaks_at(
        "propagation.request-id",
        "service2",
        "service3",
        None,
        &["Every request reaches service3 with one request id", "headers.request.set of a VirtualService", "no UUID"],
    );
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    assert!(!run.json.to_string().contains("use_remote_address"), "{:#}", run.json);
    run.follows("traces.sampling", "propagation.request-id", &["the decision ends between service2 and service3"]);
}

#[test]
fn a_bare_request_is_judged_too() {
    let run = run(Fault::OtherTracer, &[]);
    run.breaks_at(
        "propagation.bare",
        "service1",
        "service2",
        None,
        &["is two traces at service2", "The proxy in front of service2 speaks B3, and those before it W3C", "provider"],
    );
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
}
