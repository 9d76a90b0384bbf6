//! `--admin-addr`: who may use the runtime API, and what it changes.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use crate::common::{Answer, Hop, eventually, exchange, run};

/// Where the API listens.
fn admin_of(hop: &Hop) -> SocketAddr {
    let line = hop.stderr().into_iter().find(|line| line.contains("admin API")).expect("the line of the API");
    let address = line.split("address=").nth(1).expect("an address").split_whitespace().next().unwrap();
    address.parse().unwrap()
}

async fn send(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if headers.iter().all(|(name, _)| *name != "host") {
        head += "host: localhost\r\n";
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    exchange(at, format!("{head}\r\n{body}").as_bytes()).await
}

fn assert_refused(answer: &Answer, status: u16) {
    assert_eq!((answer.status, answer.header("content-type")), (status, Some("application/problem+json")), "{}", answer.text());
    assert_eq!((&answer.json()["status"], answer.header("x-content-type-options")), (&json!(status), Some("nosniff")));
}

async fn started(flags: &[&str], env: &[(&str, &str)]) -> (Hop, SocketAddr) {
    let hop = Hop::start(&[&["--admin-addr", "127.0.0.1:0"], flags].concat(), env);
    eventually("the API listens", async || hop.stderr().iter().any(|line| line.contains("admin API")).then_some(())).await;
    let at = admin_of(&hop);
    (hop, at)
}

#[tokio::test]
async fn faults_change_for_a_time_and_come_back() {
    let (hop, at) = started(&["--fault", "delay=1ms"], &[]).await;
    let at_start = send(at, "GET", "/faults", &[], "").await.json();
    assert_eq!((&at_start["faults"], &at_start["breaks"]), (&json!(["delay=1ms"]), &json!([])));
    assert!(at_start["accepted"]["faults"].as_array().unwrap().len() >= 10);
    let order = r#"{"faults": ["abort=503@100%"], "breaks": ["new-trace@5%"]}"#;
    let changed = send(at, "PUT", "/faults", &[], order).await;
    assert_eq!((changed.status, &changed.json()["faults"]), (200, &json!(["abort=503"])));
    let (status, reply) = hop.json("/service1", &[]).await;
    assert_eq!((status, &reply["injected"]), (503, &json!({"abort_status": 503})));
    assert_eq!(send(at, "DELETE", "/faults", &[], "").await.json()["faults"], json!(["delay=1ms"]));
    assert_eq!(hop.json("/service1", &[]).await.0, 200);
    let order = r#"{"faults": ["abort=418"], "ttl": "200ms"}"#;
    assert_eq!(send(at, "PUT", "/faults", &[], order).await.status, 200);
    eventually("what was there comes back", async || {
        (send(at, "GET", "/faults", &[], "").await.json()["faults"] == json!(["delay=1ms"])).then_some(())
    })
    .await;
    eventually("every change is logged", async || {
        let changes = hop.stderr().iter().filter(|line| line.contains("were changed (admin API)")).count();
        (changes == 4).then_some(())
    })
    .await;
    for (bad, says) in [
        ("", "accepted is"),
        (r#"{"faults": ["explode"]}"#, "accepted are abort=503"),
        (r#"{"breaks": ["join=x-mine"]}"#, "x-mine"),
        (r#"{"faults": [], "ttl": "soon"}"#, "ttl 'soon'"),
        (r#"{"fault": []}"#, "accepted is"),
        ("[]", "accepted is"),
        (" [[], []]", "accepted is"),
        ("null", "accepted is"),
    ] {
        let refused = send(at, "PUT", "/faults", &[], bad).await;
        assert_refused(&refused, 400);
        assert!(refused.text().contains(says), "{bad}: {}", refused.text());
    }
    assert_refused(&send(at, "PUT", "/faults", &[], &" ".repeat(40 << 10)).await, 413);
}

#[tokio::test]
async fn readiness_and_the_level_of_the_log_change_by_order() {
    let (hop, at) = started(&[], &[]).await;
    assert_eq!(send(at, "PUT", "/ready", &[], "false").await.status, 200);
    let readyz = hop.get("/readyz", &[]).await;
    assert_eq!((readyz.status, readyz.text().as_str()), (503, "not ready by order\n"));
    assert_eq!(hop.get("/hello", &[]).await.status, 200, "it still serves");
    assert_eq!(send(at, "PUT", "/ready", &[], "true").await.json(), json!({"ready": true}));
    assert_eq!(hop.get("/readyz", &[]).await.status, 200);
    assert_refused(&send(at, "PUT", "/ready", &[], "perhaps").await, 400);
    assert_eq!(send(at, "PUT", "/log-level", &[], "error").await.status, 200);
    let levels = || hop.stderr().iter().filter(|line| line.contains("the level of the log")).count();
    eventually("it is logged, although the new level hides it", async || (levels() == 1).then_some(())).await;
    // Diagnostics are written beside the answers: both orders have to be there before anything is counted.
    let readiness = || hop.stderr().iter().filter(|line| line.contains("readiness")).count();
    eventually("two orders are logged", async || (readiness() == 2).then_some(())).await;
    let lines = hop.stderr().len();
    assert_eq!(send(at, "PUT", "/ready", &[], "true").await.status, 200);
    assert_eq!(send(at, "PUT", "/log-level", &[], "info").await.status, 200);
    eventually("it is logged again", async || {
        hop.stderr()[lines..].iter().any(|line| line.contains("the level of the log")).then_some(())
    })
    .await;
    assert_eq!(readiness(), 2, "{:?}", hop.stderr());
    assert_eq!(levels(), 2, "{:?}", hop.stderr());
    for bad in ["loud=er=s", "loud", "", "info,", "nonsense=", "info,nonsense=", "=info"] {
        let refused = send(at, "PUT", "/log-level", &[], bad).await;
        assert_refused(&refused, 400);
        assert!(refused.text().contains("accepted: error, warn"), "{bad}: {}", refused.text());
    }
    assert_refused(&send(at, "POST", "/log-level", &[], "info").await, 405);
}

#[tokio::test]
async fn the_configuration_is_shown_without_secrets() {
    let env = [("REQUEST_FAULTS_TOKEN", "s3cret"), ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret")];
    let flags = [
        "--upstream",
        "20%=http://127.0.0.1:1/x?token=s3cret",
        "--fan-out",
        "parallel=3",
        "--seed",
        "7",
        "--request-size",
        "10",
        "--response-size",
        "1KiB..2KiB",
        "--request-faults",
        "token",
        "--trace-exporter",
        "otlp",
        "--retries",
        "2",
    ];
    let (hop, at) = started(&flags, &env).await;
    let answer = send(at, "GET", "/config", &[], "").await;
    let config: Value = answer.json();
    assert_eq!((&config["retries"], &config["request_faults"], &config["ready"]), (&json!(2), &json!("token"), &json!(true)));
    assert_eq!(config["upstreams"], json!(["20%=http://127.0.0.1:1/x"]));
    assert_eq!((&config["fan_out"], &config["seed"]), (&json!("parallel=3"), &json!(7)));
    assert_eq!((&config["request_size"], &config["response_size"]), (&json!("10"), &json!("1KiB..2KiB")));
    let serving = hop.stderr().into_iter().find(|line| line.contains("serving address=")).unwrap();
    for shown in ["20%=http://127.0.0.1:1/x", "fan_out=parallel=3", "seed=\"7\"", "retries=2"] {
        assert!(serving.contains(shown), "{shown}: {serving}");
    }
    assert!(!answer.text().contains("s3cret"), "{}", answer.text());
}

#[tokio::test]
async fn only_who_may_enters() {
    let (hop, at) = started(&[], &[]).await;
    let asked = async |headers: &[(&str, &str)]| send(at, "GET", "/config", headers, "").await;
    for host in ["localhost:9901", "127.0.0.1", "[::1]:9901", "LOCALHOST"] {
        assert_eq!(asked(&[("host", host)]).await.status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", ""] {
        assert_refused(&asked(&[("host", host)]).await, 421);
    }
    assert_refused(&asked(&[("host", "localhost"), ("host", "localhost")]).await, 400);
    assert_refused(&asked(&[("host", "local host")]).await, 400);
    // The authority of a target wins over Host.
    let target = async |target: &str, host: &str| send(at, "GET", target, &[("host", host)], "").await;
    assert_eq!(target("http://localhost:9901/config", "evil.example").await.status, 200);
    assert_refused(&target("http://evil.example/config", "localhost").await, 421);
    let stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let (mut h2c, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (authority, status) in [("localhost:9901", 200), ("evil.example", 421)] {
        let request = http::Request::get(format!("http://{authority}/config")).body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(h2c.send_request(request).await.unwrap().status(), status, "{authority}");
    }
    assert_refused(&asked(&[("origin", "http://localhost:9901")]).await, 403);
    assert_refused(&send(at, "GET", "/other", &[], "").await, 404);
    assert_eq!(send(at, "POST", "/faults", &[], "{}").await.status, 405);
    assert_eq!(hop.get("/config", &[]).await.status, 404, "not at the hop's own port");
    let (_hop, at) = started(&[], &[("ADMIN_TOKEN", "s3cret")]).await;
    let asked = async |headers: &[(&str, &str)]| send(at, "GET", "/config", headers, "").await;
    for headers in
        [&[][..], &[("authorization", "Bearer s3cre")], &[("authorization", "Basic s3cret")], &[("authorization", "s3cret")]]
    {
        let refused = asked(headers).await;
        assert_refused(&refused, 401);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
    let right = ("authorization", "Bearer s3cret");
    assert_eq!(asked(&[right, ("host", "service3.example")]).await.status, 200);
    for scheme in ["bearer", "BEARER", "Bearer "] {
        assert_eq!(asked(&[("authorization", &format!("{scheme} s3cret"))]).await.status, 200, "{scheme}");
    }
    assert_refused(&asked(&[right, ("origin", "http://localhost")]).await, 403);
}

#[test]
fn beyond_loopback_it_needs_a_token() {
    for addr in [":0", "0.0.0.0:0", "[::]:0"] {
        let ran = run(&["serve", "--addr", "127.0.0.1:0", "--admin-addr", addr], &[]);
        assert_eq!(ran.code, Some(2), "{addr}: {}", ran.stderr);
        assert!(ran.stderr.contains("--admin-addr (ADMIN_ADDR) needs the variable ADMIN_TOKEN"), "{addr}: {}", ran.stderr);
    }
    let ran = run(&["serve", "--addr", "127.0.0.1:0", "--request-faults", "token"], &[]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("needs the variable REQUEST_FAULTS_TOKEN"), "{}", ran.stderr);
}
