//! `check` behind a real Envoy as sidecar of every hop, in each tracer mode.
//!
//!     ENVOY=/path/to/envoy cargo test --test tools -- --ignored envoy

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::*;
use crate::common;
use crate::common::ports::free_addr;

/// A sidecar, gone when dropped.
struct Envoy {
    child: Child,
    _config: File,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three hops, each with a sidecar; the front's URL.
struct Mesh {
    url: String,
    _hops: Vec<common::Hop>,
    _sidecars: Vec<Envoy>,
}

fn sidecar(name: &str, values: &[(&str, String)]) -> Envoy {
    let binary = std::env::var("ENVOY").expect("ENVOY names the Envoy binary");
    let mut render = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/istio/local/render.sh"));
    render.arg("sidecar").arg(format!("NAME={name}")).args(values.iter().map(|(key, value)| format!("{key}={value}")));
    let rendered = render.output().unwrap();
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let config = File::new("yaml", &String::from_utf8(rendered.stdout).unwrap());
    let child = Command::new(binary)
        .args(["-c", config.path(), "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Envoy { child, _config: config }
}

fn mesh(tracer: &str, store: &str, hop: impl Fn(usize) -> Hop) -> Mesh {
    let collector = store.trim_start_matches("http://").to_owned();
    let (mut hops, mut sidecars) = (Vec::new(), Vec::new());
    let mut next: Option<u16> = None;
    for n in (1..=3).rev() {
        let name = format!("service{n}");
        let (inbound, outbound) = (free_addr().port(), free_addr().port());
        let Hop { mut args, vars } = hop(n);
        if next.is_some() {
            args.extend(["--upstream".into(), format!("http://127.0.0.1:{outbound}/service{}", n + 1)]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let vars: Vec<(&str, &str)> = vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let app = serve(&name, &args, &vars);
        let mut values = vec![
            ("TRACER", tracer.to_owned()),
            ("COLLECTOR", collector.clone()),
            ("APP", app.addr.to_string()),
            ("INBOUND_PORT", inbound.to_string()),
            ("OUTBOUND_PORT", outbound.to_string()),
        ];
        values.extend(next.map(|port| ("NEXT", format!("127.0.0.1:{port}"))));
        sidecars.push(sidecar(&name, &values));
        let up: SocketAddr = ([127, 0, 0, 1], inbound).into();
        let begun = Instant::now();
        while TcpStream::connect(up).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "Envoy of {name} does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        hops.push(app);
        next = Some(inbound);
    }
    Mesh { url: format!("http://127.0.0.1:{}/service1", next.unwrap()), _hops: hops, _sidecars: sidecars }
}

fn run(mesh: &Mesh, more: &[&str]) -> Run {
    let mut args = vec!["--expect", "service1,service2,service3", "--count", "5"];
    args.extend(more);
    check(&mesh.url, &args)
}

const B3_FIRST: &str = "b3multi,b3,tracecontext,baggage";

#[test]
#[ignore = "needs a real Envoy: ENVOY=/path/to/envoy"]
fn a_healthy_chain_behind_envoy_is_fine_in_every_tracer_mode() {
    let demo = Demo::start();
    for (tracer, order, says) in
        [("zipkin", None, "B3 and W3C"), ("zipkin-b3", Some(B3_FIRST), "B3 (Zipkin"), ("otel", None, "W3C (OpenTelemetry")]
    {
        for reports in [true, false] {
            let hop = if reports { reporting(&demo.store) } else { plain() };
            let mesh = mesh(tracer, &demo.store, |_| {
                order.map_or_else(|| hop.clone(), |order| hop.clone().var("OTEL_PROPAGATORS", order))
            });
            // The demo's store reads Zipkin's format only.
            let traces = if tracer == "otel" { vec![] } else { vec!["--traces", demo.store.as_str()] };
            let run = run(&mesh, &traces);
            run.fine();
            assert!(run.check("propagation.proxies")["text"].as_str().unwrap().contains(says), "{tracer}: {:#}", run.json);
            if tracer != "otel" {
                let app = if reports { 5 } else { 0 };
                assert_eq!(
                    run.check("traces.spans")["data"],
                    serde_json::json!({"spans": 5 + app, "app": app, "proxies": 5}),
                    "{tracer}"
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a real Envoy: ENVOY=/path/to/envoy"]
fn a_broken_chain_behind_envoy_is_named_in_every_tracer_mode() {
    let demo = Demo::start();
    let b3 = ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"];
    for (tracer, drops, id) in
        [("otel", &["traceparent", "tracestate"][..], "propagation.w3c"), ("zipkin-b3", &b3[..], "propagation.b3")]
    {
        let broken = drops.iter().fold(plain(), |hop, name| hop.arg("--drop-header", name));
        let mesh = mesh(tracer, &demo.store, |n| if n == 2 { broken.clone() } else { plain() });
        let traces = if tracer == "otel" { vec![] } else { vec!["--traces", demo.store.as_str()] };
        let run = run(&mesh, &traces);
        run.breaks_at(id, "service2", "service3", Some("hop"), &["did not send", "they start a new trace behind it"]);
        if tracer != "otel" {
            run.follows("traces.one", id, &["2 traces"]);
        }
    }
    for (tracer, order, fits) in [
        ("zipkin-b3", "tracecontext,baggage,b3multi,b3", "b3multi,b3,tracecontext,baggage"),
        ("otel", B3_FIRST, "tracecontext,baggage,b3multi,b3"),
    ] {
        let mesh = mesh(tracer, &demo.store, |_| reporting(&demo.store).var("OTEL_PROPAGATORS", order));
        let run = run(&mesh, &[]);
        let found = run.fails("propagation.order", &["joined the other trace", "OTEL_PROPAGATORS at service1", fits]);
        assert_eq!(found["hop"], "service1");
        assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    }
}
