//! Chains over gRPC and HTTP/2: the first hop by `grpc://` and `grpcs://`, the protocol of each seam, and calls that stick to a pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::Message as _;
use tokio::net::TcpListener;

use super::*;
use crate::common::grpc::{failed, ok};
use crate::common::tls::Secure;

#[allow(clippy::all, dead_code, unreachable_pub, rust_2018_idioms, reason = "generated")]
mod messages {
    include!("../../../proto/httpserver/v1/generated/httpserver.v1.rs");
}

/// What a check says of `traffic.sticky`: its status and its text.
fn sticky(run: &Run) -> (String, String) {
    let finding = run.check("traffic.sticky");
    (finding["status"].as_str().unwrap().to_owned(), finding["text"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_chain_is_checked_over_grpc_and_shows_the_protocol_of_each_seam() {
    let three = serve("service3", &[], &[]);
    let two = serve("service2", &["--upstream", &format!("h2c://{}", three.addr)], &[]);
    let one = serve("service1", &["--upstream", &two.url("")], &[]);
    for url in [format!("grpc://{}", one.addr), format!("grpc://localhost:{}/service1", one.addr.port())] {
        let run = quick(&url, &[]);
        run.fine();
        let proxies = run.check("propagation.proxies");
        let over: Vec<&str> = proxies["detail"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
        for (line, over) in over[2..].iter().zip(["grpc", "http1", "http2"]) {
            assert_eq!(line.split_whitespace().nth(1), Some(over), "{line}");
        }
        let (status, text) = sticky(&run);
        assert!(status == "skip" && text.contains("no other pod is known"), "{text}");
    }
    let broken = serve("service1", &["--fault", "abort=503@100%"], &[]);
    let run = check(&format!("grpc://{}", broken.addr), &FEW);
    assert!(run.code == Some(1) && run.failed()[0].to_string().contains("fault injection"), "{:?}", run.failed());
    assert_eq!(
        run.failed()[0]["next"][0].as_str().unwrap().split("  #").next(),
        Some(&*format!("grpcurl -plaintext {} httpserver.v1.Chain/Call", broken.addr))
    );
    for bad in ["grpc://", "grpc://a/x", "grpc://u@a", "grpcx://a"] {
        let ran = crate::common::run(&["check", bad], &[]);
        assert!(ran.code == Some(2) && ran.stderr.contains("grpc"), "{bad}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_hop_is_checked_over_grpc_and_tls() {
    let secure = Secure::start("check-grpcs", &["--name", "service1"]);
    let (url, ca) = (format!("grpcs://localhost:{}", secure.hop.addr.port()), secure.files.path("ca.crt"));
    check(&url, &[&FEW[..], &["--cacert", &ca]].concat()).fine();
    let distrusted = check(&url, &FEW);
    assert_eq!(distrusted.failed()[0]["id"], "reach.certificate");
    // A server by TLS that has no HTTP/2 is no gRPC server.
    let plain = serve("service1", &[], &[]);
    assert_eq!(check(&format!("grpcs://{}", plain.addr), &FEW).code, Some(1));
}

/// A Service without a mesh: each connection leads to the next of some pods, with all of its calls. `calls_spread`: to the next with each
/// call, as a proxy balances them.
async fn service(pods: &'static [&'static str], calls_spread: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, next) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (next, own) = (next.clone(), next.fetch_add(1, Ordering::SeqCst));
            let service = tower::service_fn(move |request: Request| {
                let pod = pods[if calls_spread { next.fetch_add(1, Ordering::SeqCst) } else { own } % pods.len()];
                async move { Ok::<_, std::convert::Infallible>(reply(pod, &request)) }
            });
            let service = tower::ServiceExt::<Request>::map_request(service, |request: http::Request<hyper::body::Incoming>| {
                request.map(axum::body::Body::new)
            });
            tokio::spawn(async move {
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = http2.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
            });
        }
    });
    addr
}

fn reply(pod: &str, request: &Request) -> axum::response::Response {
    let header = |name: &str, value: &str| messages::Header { name: name.to_owned(), values: vec![value.to_owned()] };
    let received = request.headers().iter().filter(|(name, _)| crate::common::CARRIED.contains(&name.as_str()));
    if !request.headers().contains_key("x-request-id") && request.uri().path() != "/httpserver.v1.Chain/Call" {
        return failed(12, "no such method", None, false);
    }
    let reply = messages::Reply {
        service: "service2".to_owned(),
        hostname: pod.to_owned(),
        version: "v1".to_owned(),
        lane: "base".to_owned(),
        status: 200,
        propagation: "forward".to_owned(),
        protocol: Some("grpc".to_owned()),
        attempt: 1,
        received: received.map(|(name, value)| header(name.as_str(), value.to_str().unwrap())).collect(),
        client: Some(messages::Client { ip: "127.0.0.1".to_owned(), ..messages::Client::default() }),
        ..messages::Reply::default()
    };
    ok(&reply.encode_to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_stay_at_one_of_several_pods_are_a_finding_with_its_cause() {
    const MANY: [&str; 4] = ["--count", "40", "--rate", "500"];
    let plain = service(&["pod-a", "pod-b", "pod-c"], false).await;
    let run = check(&format!("grpc://{plain}"), &MANY);
    let (status, text) = sticky(&run);
    assert_eq!(status, "fail", "{text}");
    assert!(text.contains("All 20 calls of check over one connection went to one of 3 pods of service2"), "{text}");
    let hint = run.check("traffic.sticky")["hint"].to_string() + &run.check("traffic.sticky").to_string();
    assert!(hint.contains("balances connections, not calls") && hint.contains("appProtocol"), "{hint}");
    let balanced = service(&["pod-a", "pod-b", "pod-c"], true).await;
    let run = check(&format!("grpc://{balanced}"), &MANY);
    assert_eq!(sticky(&run).0, "pass", "{:?}", sticky(&run));
    // Between two hops; a hop that is balanced is asked once for each request as well.
    for (addr, expected) in [(plain, "skip"), (balanced, "pass")] {
        let front = serve("service1", &["--upstream", &format!("grpc://{addr}")], &[]);
        let run = check(&front.url("/service1"), &MANY);
        let (status, text) = sticky(&run);
        assert!(status == expected && text.contains("calls of service1"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_mixed_chain_is_whole_and_a_failed_call_has_its_code() {
    let demo = crate::common::Demo::start(&["--hops", "1"]);
    let store = format!("http://{}", demo.store);
    let report = reporting(&store);
    let (args, vars) = (report.args.clone(), report.vars.clone());
    let vars: Vec<_> = vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let hop = |name: &str, more: &[&str]| {
        let all: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        serve(name, &all, &vars)
    };
    for fault in [&[][..], &["--fault", "abort=429@100%"]] {
        let three = hop("service3", fault);
        let two = hop("service2", &["--upstream", &format!("h2c://{}", three.addr)]);
        let one = hop("service1", &["--upstream", &format!("grpc://{}", two.addr)]);
        let (_, reply) = one.json("/service1", &[]).await;
        let file = File::new("json", &reply.to_string());
        let ran = crate::common::run(&["trace", file.path(), "--traces", &store, "--traces-wait", "30s"], &[]);
        assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    }
}
