//! `httpserver demo`, as a person starts it.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::common::{self, Demo, Ran, wait_until};

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Ran { code, stdout, stderr } = common::run(&[&["demo"], args].concat(), &[]);
    (code, stdout, stderr)
}

/// A minimal HTTP exchange: status and body.
fn http(address: SocketAddr, request: &str) -> (u16, String) {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    http(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n"))
}

#[test]
fn once_draws_a_complete_trace_and_exits_with_0() {
    let (code, stdout, stderr) = run(&["--once", "--latency", "1ms"]);
    assert!(!stdout.contains("Try it"), "what has ended cannot be tried: {stdout}");
    assert_eq!(code, Some(0), "{stdout}\n{stderr}");
    assert!(stdout.contains("1 trace, 3 services, 5 spans, no orphan"), "{stdout}");
    assert!(stdout.contains("http://127.0.0.1:"), "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "colours although stdout is no terminal: {stdout}");
}

#[test]
fn once_with_another_number_of_hops_expects_as_many_services() {
    let (code, stdout, _) = run(&["--once", "--hops", "5", "--latency", "0"]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("1 trace, 5 services, 9 spans, no orphan"), "{stdout}");
    let (code, stdout, _) = run(&["--once", "--hops", "4", "--fan-out", "sequential", "--latency", "0"]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("1 trace, 4 services, 7 spans, no orphan"), "{stdout}");
    assert!(stdout.contains("service1 --> service2, service3, service4"), "{stdout}");
    let (code, stdout, _) = run(&["--once", "--hops", "20", "--latency", "0"]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("1 trace, 20 services, 39 spans, no orphan"), "{stdout}");
    let (code, stdout, _) = run(&["--once", "--hops", "1", "--latency", "0"]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("1 trace, 1 service, 1 span, no orphan"), "{stdout}");
}

/// A reply nests three JSON levels a hop, and readers that recurse end at 128 levels, in the 43rd hop.
#[test]
fn every_hop_of_the_longest_chains_is_in_the_tree() {
    for hops in [43, 44, 50] {
        let (code, stdout, stderr) = run(&["--once", "--hops", &hops.to_string(), "--latency", "0"]);
        assert_eq!(code, Some(0), "{stdout}\n{stderr}");
        assert!(stdout.contains(&format!("1 trace, {hops} services, {} spans, no orphan", 2 * hops - 1)), "{stdout}");
        assert!(!stdout.contains("not a hop of ours"), "{stdout}");
    }
    let serving = Demo::start(&["--latency", "0", "--hops", "50"]);
    serving.process.until_printed("Every further trace");
    let (status, tree) = get(serving.front, "/service1", "");
    assert_eq!((status, tree.lines().filter(|line| line.contains("└─ service")).count()), (200, 49), "{tree}");
    assert!(tree.contains("└─ service50 v1") && tree.contains("received:"), "{tree}");
    let (status, reply) = get(serving.front, "/service1", "accept: application/json\r\n");
    assert_eq!((status, reply.matches("\"service\":\"service").count()), (200, 50));
}

#[test]
fn once_exits_with_1_and_says_why_when_a_hop_loses_the_trace() {
    let lose = ["--drop-header", "service2:traceparent", "--drop-header", "service2:x-b3-traceid"];
    let (code, stdout, _) = run(&[&["--once", "--latency", "0"][..], &lose].concat());
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("2 traces instead of 1"), "{stdout}");
    assert!(
        stdout.contains("Trace broke between service2 and service3: service2 received traceparent and x-b3-traceid"),
        "{stdout}"
    );
}

#[test]
fn a_break_at_a_hop_is_a_fault_of_the_demo_and_the_trace_shows_it() {
    let (code, stdout, stderr) = run(&["--once", "--latency", "0", "--fault", "service2:break=new-trace"]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("2 traces instead of 1"), "{stdout}");
    assert!(stderr.contains("breaks the trace on purpose (--break)") && stderr.contains("new-trace"), "{stderr}");
}

#[test]
fn once_exits_with_1_when_a_hop_answers_an_error_and_calls_nobody() {
    let (code, stdout, _) = run(&["--once", "--latency", "0", "--fault", "service2:abort=503@100%"]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("2 services instead of 3"), "{stdout}");
    let said = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let failure = "The request failed with 502: service2 answered 503, by its injected fault; so service3 was never called.";
    assert!(said.contains(failure) && !said.contains("on the way"), "{stdout}");
    let (code, stdout, _) = run(&["--once", "--latency", "0", "--hops", "6", "--fault", "service4:abort=503@100%"]);
    let said = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(code, Some(1), "{stdout}");
    assert!(
        said.contains("service4 answered 503, by its injected fault; so service5 and service6 were never called."),
        "{stdout}"
    );
    assert!(!said.contains("spans instead of") && !said.contains("on the way"), "{stdout}");
}

#[test]
fn a_whole_trace_of_a_request_that_failed_is_said_to_have_failed() {
    let (code, stdout, _) = run(&["--once", "--latency", "0", "--fault", "service3:delay=5s@100%"]);
    let said = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(code, Some(0), "{stdout}");
    assert!(said.contains("complete, but the request failed 1 trace, 3 services, 5 spans, no orphan"), "{stdout}");
    assert!(said.contains("The request failed with 504: service2 called service3 in vain (no whole answer within"), "{stdout}");
}

/// What `--once` prints with this fault, its white space as one blank.
fn once_with(fault: &str) -> String {
    let (_, stdout, _) = run(&["--once", "--quiet", "--latency", "0", "--fault", fault]);
    stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn an_answer_that_a_fault_cut_or_never_gave_is_said_to_be_its_doing() {
    for fault in ["reset", "truncate", "hang"] {
        let said = once_with(&format!("service3:{fault}"));
        assert!(said.contains("service3 gave service2 no whole answer, by its injected fault ("), "{fault}: {said}");
    }
}

#[test]
fn what_is_not_sampled_any_more_is_neither_lost_nor_on_the_way() {
    let said = once_with("service2:break=flip-sampled");
    assert!(said.contains("The sampling decision flipped between service2 and service3"), "{said}");
    assert!(said.contains("the rest is not sampled.") && !said.contains("on the way"), "{said}");
}

#[test]
fn once_listens_where_it_is_told_to() {
    let front = common::ports::free_addr().port();
    let (code, stdout, stderr) = run(&["--once", "--latency", "0", "--hops", "1", "--port", &front.to_string()]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains(&format!("http://127.0.0.1:{front}")), "{stdout}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flags in [["--port", &port], ["--store-port", &port]] {
        let (code, _, stderr) = run(&[&["--once", "--hops", "1"][..], &flags].concat());
        assert!(code == Some(1) && stderr.contains(&port), "{stderr}");
    }
}

#[test]
fn the_callers_own_span_counts_as_no_service_of_the_chain() {
    let (code, stdout, _) = run(&["--once", "--latency", "0", "--report-spans"]);
    assert_eq!(code, Some(0), "{stdout}");
    let head = stdout.lines().find(|line| line.starts_with("trace ")).unwrap();
    assert!(head.contains("3 services") && head.contains("5 spans"), "{head}");
    assert!(stdout.contains("httpserver-check"), "{stdout}");
}

#[test]
fn a_header_that_is_lost_on_purpose_is_warned_of_with_the_hops_name() {
    let (_, _, stderr) = run(&["--once", "--latency", "0", "--drop-header", "service2:traceparent"]);
    assert!(stderr.contains("service2") && stderr.contains("traceparent"), "{stderr}");
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // One hop, because the ports above this one may be anybody's.
    for args in [["--hops", "1", "--port", &port, "--store-port", "0"], ["--hops", "1", "--port", "0", "--store-port", &port]] {
        let (code, stdout, stderr) = run(&args);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.contains(&port) && stderr.contains("taken") && stderr.contains("--port 0"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_a_clear_error() {
    for (args, part) in [
        (&["--hops", "0"][..], "--hops"),
        (&["--fault", "service9:abort=503@10%"], "service9"),
        (&["--fault", "abort=503@10%"], "service2:"),
        (&["--fault", "service2:break=duplicate=x-nope"], "the header is not carried"),
        (&["--fault", "*:break=join=authorization@5%"], "the header is not carried"),
        (&["--fault", "service2/nope:abort=503"], "no hop is 'nope'"),
        (&["--fault", "*/v2:abort=503"], "no hop is 'v2'"),
        (&["--drop-header", "service1:host"], "not carried"),
        (&["--port", "65535"], "65535"),
        (&["--store-port", "x"], "--store-port"),
    ] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") || stderr.starts_with("httpserver: "), "{stderr}");
    }
}

#[test]
fn it_goes_on_serving_draws_further_traces_and_ends_on_ctrl_c() {
    let mut serving = Demo::start(&["--latency", "0"]);
    serving.process.until_printed("Every further trace");
    let (front, store) = (serving.front, serving.store);

    let trace = "463ac35c9f6413ad48485a3953bb6124";
    let (status, tree) = get(front, "/service1", &format!("b3: {trace}-a2fb4a1d1a96d312-1\r\n"));
    assert_eq!(status, 200, "{tree}");
    serving.process.until_printed(&format!("trace {trace}"));
    serving.process.until_printed("service3");

    // The same id again is drawn again.
    let (status, _) = get(front, "/service1", &format!("b3: {trace}-a2fb4a1d1a96d312-1\r\n"));
    assert_eq!(status, 200);
    serving.process.until_printed("2 requests used this trace id.");

    // One that fails, or breaks, says so.
    get(front, "/service1", "x-fault: service2:abort=503\r\n");
    serving.process.until_printed("The request failed with 502: service2 answered 503, by its injected fault");
    get(front, "/service1", "x-fault: service2:break=new-trace\r\n");
    serving.process.until_printed("- Trace broke between service2 and service3");

    // The same trace is there for everybody who speaks Zipkin's API, and so is what others report.
    let spans = wait_until("ten spans in the store", || {
        let (_, spans) = get(store, &format!("/api/v2/trace/{trace}"), "");
        let spans: Vec<serde_json::Value> = serde_json::from_str(dechunked(&spans).as_str()).ok()?;
        (spans.len() == 10).then_some(spans)
    });
    let services: std::collections::BTreeSet<_> =
        spans.iter().map(|span| span["localEndpoint"]["serviceName"].as_str().unwrap().to_owned()).collect();
    assert_eq!(services.into_iter().collect::<Vec<_>>(), ["service1", "service2", "service3"]);
    let body = r#"[{"traceId":"00000000000000aa","id":"00000000000000aa","name":"elsewhere","timestamp":1767323045678901,"duration":5,"localEndpoint":{"serviceName":"stranger"}}]"#;
    let length = body.len();
    let head = format!(
        "POST /api/v2/spans HTTP/1.1\r\nhost: {store}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    assert_eq!(http(store, &(head + body)).0, 202);
    serving.process.until_printed("stranger");

    serving.process.signal("INT");
    assert_eq!(serving.process.ended().code(), Some(0));
}

/// The store streams its answers in chunks.
fn dechunked(body: &str) -> String {
    let mut text = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        text.push_str(&after[..size.min(after.len())]);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    if text.is_empty() { body.to_owned() } else { text }
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_demo() {
    let mut serving = Demo::start(&["--latency", "0", "-v"]);
    serving.process.until_printed("Every further trace");
    let front = serving.front;
    serving.process.stop_reading();
    wait_until("nobody reads the demo's stdout", || {
        assert_eq!(get(front, "/service1", "").0, 200);
        serving.process.is_unread().then_some(())
    });
    for _ in 0..20 {
        assert_eq!(get(front, "/service1", "").0, 200);
    }
    assert!(serving.process.is_running());
}
