//! Metrics and access lines: what they tell, and that no request can make them tell something else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::{Act, Hop, Samples, Sink, Upstream, answer, eventually, exchange};
use tokio::io::AsyncWriteExt as _;

const SERVER: &str = "http_server_request_duration_seconds";
const CLIENT: &str = "http_client_request_duration_seconds";

/// The label names of the first sample of a family, without `le`.
fn labels(samples: &Samples, name: &str) -> BTreeSet<String> {
    let line = samples.0.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("no {name}"));
    let inside = line.split_once('{').unwrap().1.rsplit_once('}').unwrap().0;
    inside.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())).filter(|name| name != "le").collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// The labels that the conventions give to a metric, by Prometheus's names; not those that are opt-in.
fn of_convention(metric: &str, without: &[&str]) -> BTreeSet<String> {
    let levels = crate::conventions::table(metric);
    // The protocol is always HTTP.
    let is_meant = |name: &str| name != "network.protocol.name" && !without.contains(&name);
    let names = levels.into_iter().filter(|(name, level)| *level != "opt_in" && is_meant(name));
    names.map(|(name, _)| name.replace('.', "_")).collect()
}

#[tokio::test]
async fn every_family_is_there_with_its_labels() {
    let upstream = Upstream::answering(answer("200 OK", "", "")).await;
    let flags = ["--name", "a\"b\\c", "--service-version", "v7", "--lane", "gray", "--upstream", &upstream.url()];
    let hop = Hop::start(&flags, &[]);
    hop.get("/service1", &[]).await;
    let samples = hop.metrics().await;
    for (family, kind) in [
        (SERVER, "histogram"),
        (CLIENT, "histogram"),
        ("http_server_active_requests", "gauge"),
        ("httpserver_spans_exported_total", "counter"),
        ("httpserver_spans_dropped_total", "counter"),
        ("httpserver_log_lines_dropped_total", "counter"),
        ("httpserver_build_info", "gauge"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_open_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ] {
        assert!(samples.0.contains(&format!("# TYPE {family} {kind}\n")), "{family}: {}", samples.0);
        assert!(samples.0.contains(&format!("# HELP {family} ")), "{family}");
    }
    assert_eq!(labels(&samples, &format!("{SERVER}_bucket")), of_convention("metric.http.server.request.duration", &[]));
    assert_eq!(
        labels(&samples, &format!("{CLIENT}_bucket")),
        of_convention("metric.http.client.request.duration", &["http.route"])
    );
    assert_eq!(labels(&samples, "http_server_active_requests"), of_convention("metric.http.server.active_requests", &[]));
    assert_eq!(labels(&samples, "httpserver_spans_dropped_total"), set(["reason"]));
    let build = labels(&samples, "httpserver_build_info");
    assert!(build.is_superset(&set(["version", "service", "service_version", "lane"])), "{build:?}");
    let version = env!("CARGO_PKG_VERSION");
    let own = [("version", version), ("service", r#"a\"b\\c"#), ("service_version", "v7"), ("lane", "gray")];
    assert_eq!(samples.sum("httpserver_build_info", &own), 1.0, "{}", samples.0);
    let chain = [("http_request_method", "GET"), ("http_route", "/service{n}"), ("http_response_status_code", "200")];
    assert_eq!(samples.sum(&format!("{SERVER}_count"), &chain), 1.0);
    let call = [("http_request_method", "GET"), ("server_address", "127.0.0.1"), ("http_response_status_code", "200")];
    assert_eq!(samples.sum(&format!("{CLIENT}_count"), &call), 1.0);
    // The scrape itself is in flight.
    assert_eq!(samples.sum("http_server_active_requests", &[]), 1.0);
}

#[tokio::test]
async fn labels_come_from_a_fixed_set_whatever_callers_send() {
    let hop = Hop::start(&[], &[]);
    for i in 0..50 {
        hop.get(&format!("/nothing/{i}"), &[]).await;
        hop.get(&format!("/hello/{i}"), &[]).await;
        hop.get(&format!("/service{i}"), &[]).await;
        hop.get(&format!("/service{i}x"), &[]).await;
        hop.get(&format!("/hello/service{i}x"), &[]).await;
        hop.get(&format!("/hello?x={i}"), &[]).await;
        hop.request(&format!("BREW{i}"), "/hello", &[]).await;
        exchange(hop.addr, format!("GET http://h{i}/hello HTTP/1.1\r\nhost: h{i}\"}} 1\r\n\r\n").as_bytes()).await;
    }
    let samples = hop.metrics().await;
    let count = format!("{SERVER}_count");
    assert_eq!(samples.sum(&count, &[]), 400.0);
    let of = |route, method, status| {
        samples.sum(&count, &[("http_route", route), ("http_request_method", method), ("http_response_status_code", status)])
    };
    assert_eq!(of("unmatched", "GET", "404"), 100.0, "{}", samples.0);
    assert_eq!(of("/hello/{who}", "GET", "200"), 100.0);
    assert_eq!(of("/service{n}", "GET", "200"), 50.0);
    assert_eq!(of("/hello", "_OTHER", "405"), 50.0);
    assert_eq!(of("/hello", "GET", "200"), 50.0);
    assert_eq!(of("unmatched", "GET", "400"), 50.0, "no valid host");
    assert_eq!(samples.count(&count, &[]), 6);
}

#[tokio::test]
async fn failed_calls_are_counted_without_a_status() {
    let upstream = Upstream::start(|_| vec![Act::Hang]).await;
    let hop = Hop::start(&["--upstream", &upstream.url(), "--upstream-timeout", "100ms"], &[]);
    assert_eq!(hop.get("/service1", &[]).await.status, 504);
    let samples = hop.metrics().await;
    assert_eq!(samples.sum(&format!("{CLIENT}_count"), &[("http_response_status_code", "")]), 1.0);
    assert_eq!(samples.sum(&format!("{SERVER}_count"), &[("http_response_status_code", "504")]), 1.0);
    assert!(samples.sum(&format!("{CLIENT}_sum"), &[]) >= 0.1, "seconds");
}

#[tokio::test]
async fn openmetrics_has_exemplars_and_the_plain_text_has_none() {
    let sink = Sink::zipkin().await;
    let hop = Hop::start(&[], &sink.env());
    let answer = hop.get("/hello", &[]).await;
    let ids: Vec<_> = answer.header("traceresponse").unwrap().split('-').collect();
    let (trace, span) = (ids[1].to_owned(), ids[2]);
    let plain = hop.get("/metrics", &[]).await;
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(!plain.text().contains(&trace) && !plain.text().contains("# EOF"));
    // As Prometheus asks.
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    let open = hop.get("/metrics", &[("accept", accept)]).await;
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = open.text();
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE httpserver_spans_exported counter\n"), "{text}");
    let exemplar = text
        .lines()
        .find(|line| line.contains(&trace) && line.starts_with(SERVER))
        .unwrap_or_else(|| panic!("no exemplar: {text}"));
    assert!(exemplar.starts_with(&format!("{SERVER}_bucket{{")) && exemplar.contains("/hello"), "{exemplar}");
    assert!(exemplar.contains(&format!(" # {{trace_id=\"{trace}\",span_id=\"{span}\"}} 0.")), "{exemplar}");
    // The counters of spans have the trace that they counted last.
    let exported = eventually("the span is exported", || async {
        let text = hop.get("/metrics", &[("accept", accept)]).await.text();
        text.lines().find(|line| line.starts_with("httpserver_spans_exported_total 1 ")).map(str::to_owned)
    })
    .await;
    assert!(exported.contains(&format!(" # {{trace_id=\"{trace}\"}} 1 ")), "{exported}");
    // One set of instruments feeds both forms, and the filter is theirs.
    let without = Hop::start(&[], &[&sink.env()[..], &[("OTEL_METRICS_EXEMPLAR_FILTER", "always_off")]].concat());
    without.get("/hello", &[]).await;
    eventually("the span is exported", || async {
        (without.metrics().await.sum("httpserver_spans_exported_total", &[]) == 1.0).then_some(())
    })
    .await;
    let text = without.get("/metrics", &[("accept", accept)]).await.text();
    assert!(text.ends_with("# EOF\n") && text.contains("/hello") && !text.contains(" # {"), "{text}");
    // The one with the higher q, whatever the order.
    for (accept, openmetrics) in [
        ("application/openmetrics-text;q=0.4, text/plain;q=0.5", false),
        ("text/plain;q=0.4, application/openmetrics-text;q=0.5", true),
        ("text/*, application/openmetrics-text;version=1.0.0; Q=0.9", false),
        ("application/openmetrics-text, text/plain", true),
        ("*/*", false),
    ] {
        let answer = hop.get("/metrics", &[("accept", accept)]).await;
        assert_eq!(answer.text().ends_with("# EOF\n"), openmetrics, "{accept}");
    }
    // What is refused by its q is not sent.
    let refused = hop.get("/metrics", &[("accept", "application/openmetrics-text;q=0, text/plain")]).await;
    assert_eq!(refused.header("content-type"), plain.header("content-type"));
}

#[tokio::test]
async fn a_text_line_tells_everything_about_its_request() {
    let upstream = Upstream::answering(answer("503 Down", "", "")).await;
    let hop = Hop::start(&["--lane", "gray", "--upstream", &upstream.url()], &[]);
    let trace = ("463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312");
    let headers = [("x-request-id", "r-1"), ("x-b3-traceid", trace.0), ("x-b3-spanid", trace.1), ("x-real-ip", "10.0.0.7")];
    let answer = hop.get("/service1?token=s3cret", &headers).await;
    let line = hop.access_line("r-1").await;
    let parts: Vec<_> = line.split(' ').collect();
    assert!(parts[0].len() == 27 && parts[0].ends_with('Z'), "{line}");
    assert_eq!(parts[1..5], ["10.0.0.7", "\"GET", "/service1\"", "502"], "{line}");
    assert!(parts[5].strip_suffix("ms").unwrap().parse::<f64>().unwrap() > 0.0, "{line}");
    assert_eq!(parts[6], format!("{}B", answer.body.len()), "{line}");
    let rest = ["request=r-1", &format!("trace={}", trace.0), &format!("span={}", trace.1), "lane=gray", "upstream=503"];
    assert_eq!(parts[7..], rest, "{line}");
}

#[tokio::test]
async fn a_json_line_is_an_object_that_tells_everything() {
    let sink = Sink::zipkin().await;
    let upstream = Upstream::answering(answer("200 OK", "", "")).await;
    let hop = Hop::start(&["--log-format", "json", "--upstream", &upstream.url()], &sink.env());
    let (_, reply) = hop.json("/service1", &[("x-request-id", "r-1")]).await;
    let line: serde_json::Value = serde_json::from_str(&hop.access_line("r-1").await).unwrap();
    for (name, value) in [
        ("client", "127.0.0.1".into()),
        ("method", "GET".into()),
        ("path", "/service1".into()),
        ("status", 200.into()),
        ("request_id", "r-1".into()),
        ("trace_id", reply["trace_id"].clone()),
        ("span_id", reply["span_id"].clone()),
        ("lane", "base".into()),
        ("upstream_status", 200.into()),
    ] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
    assert!(line["duration_ms"].as_f64().unwrap() > 0.0 && line["bytes"].as_u64().unwrap() > 0);
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn of_several_upstreams_the_first_that_failed_is_logged() {
    let fine = Upstream::answering(answer("200 OK", "", "")).await;
    let (down, gone) =
        (Upstream::answering(answer("503 Down", "", "")).await, Upstream::answering(answer("404 Gone", "", "")).await);
    let list = [&fine, &down, &gone, &fine].map(Upstream::url).join(",");
    let hop = Hop::start(&["--upstream", &list], &[]);
    hop.get("/service1", &[("x-request-id", "r-1")]).await;
    let line = hop.access_line("r-1").await;
    assert!(line.ends_with(" upstream=503"), "{line}");
}

#[tokio::test]
async fn every_request_is_one_line_whatever_it_holds() {
    for format in ["text", "json"] {
        let hop = Hop::start(&["--log-format", format], &[]);
        let hostile: &[&[u8]] = &[
            b"\" 200 0.001ms 0B request=forged",
            b"forged\t2026-01-02T03:04:05Z",
            "forged\u{9b}31m".as_bytes(),
            "forged\u{2028}forged".as_bytes(),
            "forged\u{202e}degrof".as_bytes(),
            b"forged\xff\xfe",
            br#"","status":200,"x":""#,
            br"\n\r\u000aforged",
        ];
        let mut sent = 0;
        for value in hostile {
            for name in [
                "x-request-id",
                "x-real-ip",
                "x-forwarded-for",
                "traceparent",
                "b3",
                "x-b3-traceid",
                "x-lane",
                "host",
                "user-agent",
            ] {
                let mut request = b"GET /hello HTTP/1.1\r\n".to_vec();
                if name != "host" {
                    request.extend(b"host: a\r\n");
                }
                request.extend(name.as_bytes());
                request.extend(b": ");
                request.extend(*value);
                request.extend(b"\r\n\r\n");
                let answer = exchange(hop.addr, &request).await;
                // What is no host is refused by the hop, and logged.
                let is_logged = answer.status == 200 || name == "host" && answer.header("x-request-id").is_some();
                sent += usize::from(is_logged);
            }
            // In the path, as far as it is one at all.
            let path: Vec<u8> = value.iter().copied().filter(|byte| !b" \t".contains(byte)).collect();
            let answer = exchange(hop.addr, &[b"GET /hello/", &path[..], b" HTTP/1.1\r\nhost: a\r\n\r\n"].concat()).await;
            sent += usize::from(answer.status != 400);
        }
        // Line ends in a head make further fields or nothing valid, never a line in the log.
        for bytes in [
            &b"GET /hello HTTP/1.1\r\nhost: a\r\nx-request-id: a\nforged\r\n\r\n"[..],
            b"GET /hello HTTP/1.1\r\nhost: a\r\nx-request-id: a\rforged\r\n\r\n",
            b"GET /he\x0bllo HTTP/1.1\r\nhost: a\r\n\r\n",
        ] {
            assert_eq!(exchange(hop.addr, bytes).await.status, 400, "{}", String::from_utf8_lossy(bytes));
        }
        assert!(sent > hostile.len() * 8, "{sent}");
        hop.get("/hello", &[("x-request-id", "the-last")]).await;
        hop.access_line("the-last").await;
        let lines = hop.stdout();
        // Bad heads are counted or not; whatever is there is a line of ours.
        let ours = lines.iter().filter(|line| line.contains("/hello")).count();
        assert_eq!(ours, sent + 1, "{lines:#?}");
        for line in &lines {
            assert!(!line.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{202e}')), "{line:?}");
            if format == "json" {
                let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                let status = line["status"].as_u64().unwrap();
                assert!(status == 200 || status >= 400, "{line}");
                assert_eq!(line.as_object().unwrap().len(), 12, "{line}");
            } else {
                assert!(line.starts_with("20") && line[27..].starts_with(" 127.0.0.1 \"GET /"), "{line}");
                // A quote inside is escaped, so the path's end is found.
                let after = line.split_once("\"GET ").unwrap().1;
                let end = after.replace("\\\"", "__").find('"').unwrap();
                assert!(["200 ", "404 ", "400 "].contains(&&after[end + 2..end + 6]), "{line}");
            }
        }
        let samples = hop.metrics().await;
        assert!(!samples.0.contains("forged"));
    }
}

#[tokio::test]
async fn a_caller_who_hangs_up_is_counted_as_cut_and_logged_as_499() {
    let hanging = Upstream::start(|_| vec![Act::Hang]).await;
    let hop = Hop::start(&["--upstream", &hanging.url(), "--upstream-timeout", "60s"], &[]);
    let mut caller = tokio::net::TcpStream::connect(hop.addr).await.unwrap();
    caller.write_all(b"GET /service1 HTTP/1.1\r\nhost: a\r\nx-request-id: r-gone\r\n\r\n").await.unwrap();
    eventually("the call is under way", || async { (!hanging.heads().is_empty()).then_some(()) }).await;
    assert_eq!(hop.metrics().await.sum("http_server_active_requests", &[]), 2.0);
    drop(caller);
    let line = hop.access_line("r-gone").await;
    assert!(line.contains("\"GET /service1\" 499 ") && line.contains(" 0B "), "{line}");
    let samples = hop.metrics().await;
    let cut = [("http_response_status_code", ""), ("error_type", "client_closed_request")];
    assert_eq!(samples.sum(&format!("{SERVER}_count"), &cut), 1.0, "no status: none was sent");
    assert_eq!(samples.sum(&format!("{CLIENT}_count"), &[("http_response_status_code", "")]), 1.0, "the call too");
    assert_eq!(samples.sum("http_server_active_requests", &[]), 1.0);
}

#[tokio::test]
async fn an_answer_whose_reader_hangs_up_in_the_middle_is_logged_with_what_was_sent_of_it() {
    // HTTP/2's window makes a hop wait with the rest of an answer: an answer of some KiB would fit into a socket's buffers.
    const WINDOW: usize = 1000;
    let hop = Hop::start(&[], &[]);
    let stream = tokio::net::TcpStream::connect(hop.addr).await.unwrap();
    let mut client = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    client.initial_stream_window_size(WINDOW as u32);
    let (mut send, connection) = client.handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("http://hop/headers?{}", "x".repeat(100)))
        .header("x-request-id", "r-middle")
        .header("x-large", "x".repeat(20 << 10))
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    drop((answer, send));
    connection.abort();
    let line = hop.access_line("r-middle").await;
    let sent = format!(" {WINDOW}B ");
    assert!(line.contains("\"GET /headers\" 499 ") && line.contains(&sent), "{line}");
    assert!(line.ends_with(" error=client_closed_request"), "{line}");
    let samples = hop.metrics().await;
    let counted = |error| {
        let labels = [("http_route", "/headers"), ("http_response_status_code", "200"), ("error_type", error)];
        samples.sum(&format!("{SERVER}_count"), &labels)
    };
    assert_eq!((counted("client_closed_request"), counted("")), (1.0, 0.0), "the status that was sent, and that it failed");
    assert_eq!(hop.metrics().await.sum("http_server_active_requests", &[]), 1.0);
}

#[tokio::test]
async fn what_is_refused_is_counted_and_logged_too() {
    let hop = Hop::start(&["--max-hops", "1"], &[]);
    let large = "x".repeat(33 << 10);
    let body =
        format!("GET /hello HTTP/1.1\r\nhost: a\r\nx-request-id: r-413\r\ncontent-length: 70000\r\n\r\n{}", "x".repeat(70000));
    exchange(hop.addr, body.as_bytes()).await;
    hop.get("/service1", &[("x-hop-count", "1"), ("x-request-id", "r-508")]).await;
    hop.get("/nothing", &[("x-request-id", "r-404")]).await;
    hop.request("POST", "/hello", &[("x-request-id", "r-405")]).await;
    for status in ["413", "508", "404", "405"] {
        let line = hop.access_line(&format!("r-{status}")).await;
        assert!(line.contains(&format!("\" {status} ")), "{line}");
    }
    let samples = hop.metrics().await;
    for status in ["413", "508", "404", "405"] {
        assert_eq!(samples.sum(&format!("{SERVER}_count"), &[("http_response_status_code", status)]), 1.0, "{status}");
    }
    assert_eq!(hop.get("/hello", &[("x-large", &large)]).await.status, 431);
}

#[tokio::test]
async fn a_stdout_that_nobody_reads_stops_nothing_and_the_losses_are_counted() {
    let hop = Hop::start_unread(&[], &[]);
    // 16 KiB of path in each line: the pipe and both halves of the buffer are full long before the end.
    let path = format!("/hello/{}", "x".repeat(16 << 10));
    let mut slowest = Duration::ZERO;
    for _ in 0..300 {
        let begun = Instant::now();
        assert_eq!(hop.get(&path, &[]).await.status, 200);
        slowest = slowest.max(begun.elapsed());
    }
    // A line that waited would wait for ever.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let dropped = hop.metrics().await.sum("httpserver_log_lines_dropped_total", &[]);
    // 64 KiB in the pipe, at most 1 MiB being written and 1 MiB waiting: about 132 lines of 300 fit at most.
    assert!((150.0..300.0).contains(&dropped), "{dropped}");
}

#[tokio::test]
async fn a_stdout_that_is_read_loses_nothing() {
    let hop = Hop::start(&[], &[]);
    for i in 0..200 {
        hop.get("/hello", &[("x-request-id", &format!("r-{i}."))]).await;
    }
    eventually("every line is there", || async { (hop.stdout().len() >= 200).then_some(()) }).await;
    assert_eq!(hop.metrics().await.sum("httpserver_log_lines_dropped_total", &[]), 0.0);
}

#[tokio::test]
async fn over_http_1_a_reader_that_hangs_up_in_the_middle_is_no_200_either() {
    let hop = Hop::start(&[], &[]);
    let mut greedy = tokio::net::TcpStream::connect(hop.addr).await.unwrap();
    let request = format!("GET /headers HTTP/1.1\r\nhost: hop\r\nx-large: {}\r\n\r\n", "x".repeat(30 << 10));
    // Answers that nobody reads, until one waits for the socket.
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_secs(1), greedy.write(&request.as_bytes()[sent % request.len()..])).await
    {
        sent += written.expect("the hop keeps the connection");
    }
    drop(greedy);
    let cut = eventually("it is logged", || async { hop.stdout().into_iter().find(|line| line.contains(" 499 ")) }).await;
    let bytes = |line: &str| line.split(' ').find_map(|part| part.strip_suffix('B')?.parse::<usize>().ok()).unwrap();
    assert!(bytes(&cut) < 30 << 10 && cut.ends_with(" error=client_closed_request"), "{cut}");
    let whole: Vec<_> = hop.stdout().into_iter().filter(|line| line.contains(" 200 ")).collect();
    assert!(!whole.is_empty() && whole.iter().all(|line| bytes(line) > 30 << 10), "{whole:?}");
    assert_eq!(hop.metrics().await.sum(&format!("{SERVER}_count"), &[("error_type", "client_closed_request")]), 1.0);
}
