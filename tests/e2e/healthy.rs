//! `check` against healthy chains, over the wire, many times: a single ✗ is a false alarm.
//!
//! `HEALTHY_RUNS` (1,000) against the demo with its latencies, a twentieth of them against Envoy for each tracer; some at a time. The cluster's runs are in
//! `cluster_faults`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::common::{Demo, binary, run_command};
use crate::mesh::{ChainOptions, HOST, Mesh, certificates};

fn runs() -> usize {
    std::env::var("HEALTHY_RUNS").map_or(1000, |runs| runs.parse().expect("HEALTHY_RUNS is a number"))
}

/// Runs `check` so many times, and returns what was not healthy.
fn alarms(runs: usize, at_a_time: usize, arguments: &[String]) -> Vec<String> {
    let (next, alarms) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < runs {
                    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                    let ran = run_command(binary(&[&["check"], &arguments[..], &["--output", "json"]].concat(), &[]));
                    let report: Value =
                        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stderr));
                    let not_right = |finding: &&Value| ["fail", "follows"].contains(&finding["status"].as_str().unwrap());
                    let failed: Vec<&Value> = report["checks"].as_array().unwrap().iter().filter(not_right).collect();
                    if ran.code != Some(0) || !failed.is_empty() {
                        alarms.lock().unwrap().push(format!("{}: {failed:#?}", report["verdict"]));
                    }
                }
            });
        }
    });
    alarms.into_inner().unwrap()
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[test]
#[ignore = "takes some minutes: scripts/e2e.sh healthy"]
fn a_thousand_runs_against_the_demo_raise_no_alarm() {
    for (flags, expect) in [
        (&[][..], "service1,service2,service3"),
        (&["--hops", "5"], "service1,service2,service3,service4,service5"),
        (&["--hops", "4", "--fan-out", "parallel"], "service1(service2,service3,service4)"),
        (&["--hops", "4", "--fan-out", "sequential"], "service1(service2,service3,service4)"),
    ] {
        let demo = Demo::start(flags);
        let line = format!("http://{}/service1 --expect {expect} --traces http://{} --count 60", demo.front, demo.store);
        let runs = runs().div_ceil(4);
        let alarms = alarms(runs, 8, &words(&line));
        println!("{flags:?}: {runs} runs, {} alarms", alarms.len());
        assert!(alarms.is_empty(), "{} of {runs}: {}", alarms.len(), alarms[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an Envoy: scripts/e2e.sh healthy"]
async fn runs_against_envoys_raise_no_alarm() {
    for tracer in ["otel", "zipkin", "zipkin-b3"] {
        for exporter in ["otlp", "none"] {
            let mut mesh = Mesh::new(&format!("healthy-{tracer}-{exporter}"), tracer).await;
            let env = &[("LATENCY", "5ms..60ms")];
            mesh.chain(ChainOptions { exporter, more_copies: 1, env, ..ChainOptions::default() }).await;
            let (https, http, runs) = (mesh.https.port(), mesh.http.port(), runs().div_ceil(20));
            let line = format!(
                "https://{HOST}:{https}/hello/service1 --resolve {HOST}:{https}:127.0.0.1 --plain-port {http} --cacert {} \
                 --expect service1,service2,service3 --traces {} --count 60",
                certificates().join("ca.crt").display(),
                mesh.backend(),
            );
            let alarms = tokio::task::spawn_blocking(move || alarms(runs, 2, &words(&line))).await.unwrap();
            println!("{tracer}, {exporter}: {runs} runs, {} alarms", alarms.len());
            assert!(alarms.is_empty(), "{} of {runs}: {}", alarms.len(), alarms[0]);
        }
    }
}
