//! The evidence of a trace: what proxies reported of a call names the cause that the answer alone does not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::support::*;

const SERVICE2: &str = "service2.httpserver.svc.cluster.local";
const INBOUND: &str = "inbound|8080||";

/// A span of a proxy; its flags, cluster and time are what tells one cause from another.
#[derive(Clone)]
pub(crate) struct ProxySpan {
    operation: String,
    cluster: String,
    flags: &'static str,
    status: u16,
    ms: u64,
}

impl ProxySpan {
    pub(crate) fn new(cluster: &str, flags: &'static str, status: u16) -> Self {
        Self { operation: format!("{SERVICE2}:80/*"), cluster: cluster.to_owned(), flags, status, ms: 2 }
    }

    fn operation(self, operation: &str) -> Self {
        Self { operation: operation.to_owned(), ..self }
    }

    fn ms(self, ms: u64) -> Self {
        Self { ms, ..self }
    }

    fn json(&self, trace: &str, id: &str, parent: &str, kind: &str, service: &str) -> Value {
        let mut tags = json!({"component": "proxy", "response_flags": self.flags, "http.status_code": self.status.to_string(),
            "http.url": "http://service2/service2", "node_id": format!("sidecar~10.0.0.1~{service}-7d4b9c6f5-x2x5z.httpserver~x")});
        if !self.cluster.is_empty() {
            tags["upstream_cluster"] = json!(self.cluster);
        }
        json!({"traceId": trace, "id": id, "parentId": parent, "kind": kind, "name": self.operation, "timestamp": 1_000_000,
            "duration": self.ms * 1000, "localEndpoint": {"serviceName": service}, "tags": tags})
    }
}

/// A Zipkin that answers for every trace with what `spans` makes of its id.
pub(crate) fn backend(spans: impl Fn(&str) -> Vec<Value> + Send + Sync + 'static) -> String {
    let addr = fake(move |request| match request.path.strip_prefix("/api/v2/trace/") {
        Some(id) => (200, vec![], Value::from(spans(id)).to_string()),
        None if request.path == "/api/v2/services" => (200, vec![], "[]".into()),
        None => (404, vec![], String::new()),
    });
    format!("http://{addr}")
}

/// The span that the caller sent along with each trace.
type Parents = Arc<Mutex<HashMap<String, String>>>;

/// Where the failing call of service1 goes.
pub(crate) struct Call {
    pub(crate) url: &'static str,
    pub(crate) status: Option<u16>,
    pub(crate) error: &'static str,
}

impl Call {
    fn answered(status: u16, error: &'static str) -> Self {
        Self { url: "http://service2/service2", status: Some(status), error }
    }
}

/// Checks service1 in a pod with a sidecar, whose call of service2 fails so, and of which the two proxies report this.
fn failing(call: Call, client: Option<ProxySpan>, server: Option<ProxySpan>) -> Run {
    let parents = Parents::default();
    let probes = parents.clone();
    let front = fake(move |request| {
        let context =
            request.header("traceparent").map_or_else(|| format!("00-{}-{}", "7".repeat(32), "8".repeat(16)), str::to_owned);
        let trace = &context[3..35];
        probes.lock().unwrap().insert(trace.to_owned(), context[36..52].to_owned());
        let mut hop = reply("service1", "v1", "base", request, vec![]);
        hop["received"]["traceparent"] = json!([format!("00-{trace}-1111111111111111-01")]);
        hop["upstreams"] = json!([{"url": call.url, "status": call.status, "duration_ms": 1.0, "error": call.error,
            "sent": hop["received"], "reply": null}]);
        hop["hostname"] = json!("service1-7d4b9c6f5-x2x5z");
        hop["status"] = json!(502);
        hop["sampled"] = json!(true);
        (502, vec![], hop.to_string())
    });
    let store = backend(move |trace| {
        let own = ProxySpan::new(INBOUND, "-", 502).json(
            trace,
            "1111111111111111",
            &parents.lock().unwrap()[trace],
            "SERVER",
            "service1",
        );
        let client = client.iter().map(|span| span.json(trace, "2222222222222222", "1111111111111111", "CLIENT", "service1"));
        let parent = if client.len() == 0 { "1111111111111111" } else { "2222222222222222" };
        let server = server.iter().map(|span| span.json(trace, "3333333333333333", parent, "SERVER", "service2"));
        std::iter::once(own).chain(client).chain(server).collect()
    });
    let url = format!("http://{front}/service1");
    check(&url, &["--traces", &store, "--traces-wait", "1s", "--count", "2", "--rate", "500"])
}

#[test]
fn what_proxies_report_of_a_failed_call_names_its_cause() {
    let reset = "answered 503 Service Unavailable: upstream connect error or disconnect/reset before headers. reset reason: remote connection failure [server envoy]";
    let ended = "answered 503 Service Unavailable: upstream connect error or disconnect/reset before headers. reset reason: connection termination [server envoy]";
    let empty = "answered 503 Service Unavailable, empty body [server envoy]";
    let nobody = "no whole answer within 3s";
    let outbound = format!("outbound|80|base|{SERVICE2}");
    let span = ProxySpan::new;
    let other = |url| Call { url, status: None, error: "broken answer: connection closed before message completed" };
    let unanswered = || Call { url: "http://service2/service2", status: None, error: nobody };
    let cases = [
        (
            Call::answered(502, "answered 502 Bad Gateway, empty body [server envoy]"),
            Some(span("", "-", 502).operation("egress service2")),
            None,
            "REGISTRY_ONLY",
        ),
        (
            Call::answered(503, ended),
            Some(span("PassthroughCluster", "UC", 503)),
            None,
            "does not know service2 and passes the call on",
        ),
        (
            Call::answered(503, reset),
            Some(span(&outbound, "-", 503)),
            Some(span("inbound|9999||", "URX,UF", 503)),
            "its app does not listen on port 9999",
        ),
        (
            Call::answered(503, ended),
            Some(span(&outbound, "UC", 503)),
            None,
            "accepts only mutual TLS (PeerAuthentication STRICT)",
        ),
        (
            Call::answered(503, ended),
            Some(span(&outbound, "-", 503)),
            Some(span(INBOUND, "UC", 503)),
            "The app of service2 ended",
        ),
        (Call::answered(503, reset), Some(span(&outbound, "UF", 503)), None, "do not agree on TLS (flag UF)"),
        (Call::answered(503, reset), Some(span(&outbound, "UF", 503).ms(2000)), None, "the endpoint is nobody's"),
        (unanswered(), Some(span(&outbound, "DC", 0).ms(3000)), None, "the endpoint is nobody's"),
        (unanswered(), Some(span(&outbound, "DI,DC", 0).ms(3000)), None, "on purpose (flag DI)"),
        (
            unanswered(),
            Some(span(&outbound, "DC", 0).ms(3000)),
            Some(span(INBOUND, "DC", 0).ms(3000)),
            "service2 hangs or is slower than the UPSTREAM_TIMEOUT",
        ),
        (
            Call::answered(503, empty),
            Some(span("", "NC", 503).operation(&format!("{SERVICE2}:81/*"))),
            None,
            "leads to service2.httpserver.svc.cluster.local:81, and the Service has no such port",
        ),
        (
            Call::answered(503, empty),
            Some(span("", "NC", 503).operation("servcie2.httpserver.svc.cluster.local:80/*")),
            None,
            "servcie2.httpserver.svc.cluster.local:80, which the mesh does not know",
        ),
        (Call::answered(503, empty), Some(span("", "NC", 503)), None, "in a subset that no DestinationRule gives it"),
        (
            Call::answered(503, "answered 503 Service Unavailable: maintenance [server envoy]"),
            Some(span("", "-", 503).operation("service2:80/*")),
            None,
            "directResponse",
        ),
        (
            Call::answered(404, "answered 404 Not Found, empty body [server envoy]"),
            Some(span("", "NR", 404).operation("egress service2")),
            None,
            "no match of a VirtualService of service2 fits the call",
        ),
        (
            Call::answered(404, "answered 404 Not Found, empty body [server envoy]"),
            Some(span(&outbound, "-", 404)),
            Some(span(INBOUND, "-", 404)),
            "service2 does not serve this path",
        ),
        (other("http://service2:8080/service2"), None, None, "a port that the Service service2 does not have"),
        (other("http://10.244.0.17:8080/service2"), None, None, "UPSTREAM of service1 is the address 10.244.0.17"),
        (
            Call::answered(401, "answered 401 Unauthorized: Jwt is missing [server envoy]"),
            Some(span(&outbound, "-", 401)),
            Some(span(INBOUND, "-", 401)),
            "RequestAuthentication at service2 demands a token",
        ),
    ];
    std::thread::scope(|scope| {
        for (call, client, server, says) in cases {
            scope.spawn(move || {
                let run = failing(call, client, server);
                run.breaks_at("chain.hops", "service1", "service2", None, &[says]);
                assert_eq!(run.failed().len(), 1, "one cause, one failure: {:#}", run.json);
                let traffic = run.check("traffic.success");
                assert_eq!((&traffic["status"], &traffic["follows"]), (&json!("follows"), &json!("chain.hops")), "{traffic:#}");
            });
        }
    });
}

/// A gateway that answers 503 itself, and what it and the first hop's sidecar report.
#[test]
fn what_a_gateway_and_the_first_hops_sidecar_report_names_the_cause() {
    let reset = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
    let outbound = "outbound|80|base|service1.httpserver.svc.cluster.local";
    let (istio, other) = ("router~10.0.0.9~istio-ingressgateway-x.istio-system~x", "gateway");
    let first = |flags| Some(ProxySpan::new("inbound|9999||", flags, 503));
    for (node, (status, body), flags, server, says) in [
        (istio, (503, reset), "UF", None, "The gateway cannot agree on TLS with the first hop (503, flag UF)"),
        (istio, (503, reset), "UC", None, "PeerAuthentication STRICT"),
        (istio, (503, reset), "-", first("UF"), "its app does not listen on port 9999"),
        // Not every gateway is Istio's.
        (other, (503, reset), "UF", None, "The gateway cannot reach the first hop (503"),
        (other, (404, ""), "NR", None, "The gateway has no route for this host and path"),
        (other, (503, ""), "NC", None, "The gateway's route leads to a cluster that does not exist"),
        (other, (404, ""), "-", first("NR"), "The proxy in front of the first hop has no route for this host and path"),
        (other, (500, "fault filter abort"), "-", first("FI"), "The proxy in front of the first hop aborts this on purpose"),
    ] {
        let parents = Parents::default();
        let probes = parents.clone();
        let front = fake(move |request| {
            if let Some(context) = request.header("traceparent") {
                probes.lock().unwrap().insert(context[3..35].to_owned(), context[36..52].to_owned());
            }
            (status, vec![("server", "istio-envoy".into())], body.to_owned())
        });
        let store = backend(move |trace| {
            let probe = parents.lock().unwrap()[trace].clone();
            let is_routed = !matches!(flags, "NR" | "NC");
            let gateway = |flags, id: &str, parent: &str, kind| {
                let cluster = if is_routed { outbound } else { "" };
                let mut span = ProxySpan::new(cluster, flags, status).json(trace, id, parent, kind, "istio-ingressgateway");
                span["tags"]["node_id"] = json!(node);
                span
            };
            let whole = gateway(if is_routed { "-" } else { flags }, "1111111111111111", &probe, "SERVER");
            let attempt = is_routed.then(|| gateway(flags, "2222222222222222", "1111111111111111", "CLIENT"));
            let server = server.iter().map(|span| span.json(trace, "3333333333333333", "2222222222222222", "SERVER", "service1"));
            std::iter::once(whole).chain(attempt).chain(server).collect()
        });
        let run = check(&format!("http://{front}/service1"), &["--traces", &store, "--traces-wait", "1s", "--count", "2"]);
        run.fails("reach.http", &[says]);
    }
}
