//! What a collector answers, and what becomes of the spans: every one is exported, dropped for a reason, or queued.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use httpserver::server::shutdown::Stop;
use httpserver::telemetry::export::{Exporter, OtlpOptions, OtlpProtocol, Signal};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::common::http2::{Frame, literal};
use crate::common::ports::free_addr;
use crate::common::{Hop, InProcess, Mood, Samples, Sink, Upstream, answer, eventually, exchange, export_env};
use crate::tls::{Authority, Files, authority, issued};

/// The sinks of OTLP, by transport.
const OTLP: [&str; 2] = ["otlp", "grpc"];

const DROPPED: [&str; 4] = ["queue_full", "rejected", "unreachable", "shutdown"];

/// The counters of spans, and that they add up.
struct Counts {
    recorded: f64,
    exported: f64,
    rejected: f64,
    queued: f64,
}

fn counts(samples: &Samples) -> Counts {
    let dropped = |reason| samples.sum("httpserver_spans_dropped_total", &[("reason", reason)]);
    let counts = Counts {
        recorded: samples.sum("httpserver_spans_recorded_total", &[]),
        exported: samples.sum("httpserver_spans_exported_total", &[]),
        rejected: dropped("rejected"),
        queued: samples.sum("httpserver_spans_queued", &[]),
    };
    let parts = counts.exported + counts.queued + DROPPED.map(dropped).iter().sum::<f64>();
    assert_eq!(counts.recorded, parts, "{}", samples.0);
    counts
}

async fn counted(hop: &Hop) -> Counts {
    counts(&hop.metrics().await)
}

async fn settled(hop: &Hop) -> Counts {
    eventually("no span is queued", || async { Some(counted(hop).await).filter(|counts| counts.queued == 0.0) }).await
}

fn lines(hop: &Hop, part: &str) -> Vec<String> {
    hop.stderr().into_iter().filter(|line| line.contains(part)).collect()
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_its_target_is_named_once_without_its_secrets() {
    let sink = Sink::otlp().await;
    let elsewhere = Upstream::answering(answer("200 OK", "", "")).await;
    sink.set(Mood::Redirects(elsewhere.addr));
    let hop = Hop::start(&[], &[&sink.env()[..], &[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20k")]].concat());
    for spans in 1..=3 {
        hop.get("/hello", &[]).await;
        eventually("the loss is counted", || async { (counted(&hop).await.rejected == f64::from(spans)).then_some(()) }).await;
    }
    assert_eq!(elsewhere.heads().len(), 0, "nothing goes there, least of all the key");
    let named = lines(&hop, &format!("{}/login", elsewhere.addr));
    assert!(named.len() == 1 && named[0].contains("redirects are not followed"), "{named:#?}");
    assert_eq!(lines(&hop, "s3cret"), [""; 0]);
    // Once more, when it failed anew after it worked.
    sink.set(Mood::Takes);
    hop.get("/hello", &[]).await;
    eventually("it is exported", || async { (counted(&hop).await.exported == 1.0).then_some(()) }).await;
    sink.set(Mood::Redirects(elsewhere.addr));
    hop.get("/hello", &[]).await;
    eventually("it is named again", || async { (lines(&hop, "/login").len() == 2).then_some(()) }).await;
}

#[tokio::test]
async fn what_a_partial_success_rejects_is_counted_and_its_message_is_logged() {
    for exporter in OTLP {
        partial_success(Sink::any(exporter).await).await;
    }
}

async fn partial_success(sink: Sink) {
    sink.set(Mood::Rejects(1, "too old\u{1b}[31m"));
    let hop = Hop::start(&[], &sink.env());
    hop.get("/hello", &[]).await;
    let counts = settled(&hop).await;
    assert_eq!((counts.exported, counts.rejected), (0.0, 1.0));
    let line = eventually("it is logged", || async { lines(&hop, "too old").pop() }).await;
    assert!(line.contains("accepted a part of the spans") && line.contains("rejected=1") && !line.contains('\u{1b}'), "{line}");

    // A warning is none of the counters' business.
    sink.set(Mood::Rejects(0, "use the other endpoint"));
    hop.get("/hello", &[]).await;
    eventually("it is exported", || async { (counted(&hop).await.exported == 1.0).then_some(()) }).await;
    let line = eventually("it is logged", || async { lines(&hop, "use the other endpoint").pop() }).await;
    assert!(line.contains("accepted the spans with a warning") && !line.contains("=0"), "{line}");
    assert_eq!(counted(&hop).await.rejected, 1.0);
}

/// A collector that answers one request on each connection, and closes it without a word when a second one comes; how many were
/// answered, and how many were not.
async fn answers_once_a_connection(exporter: &'static str) -> (SocketAddr, Arc<[AtomicUsize; 2]>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let of_all = counts.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (of_all, asked, dying) = (of_all.clone(), AtomicUsize::new(0), Arc::new(Notify::new()));
            let died = dying.clone();
            let asked = Arc::new(asked);
            let router = Router::new().fallback(async move |_: Bytes| {
                let at = asked.fetch_add(1, Ordering::Relaxed).min(1);
                of_all[at].fetch_add(1, Ordering::Relaxed);
                if at == 1 {
                    dying.notify_one();
                    std::future::pending::<()>().await;
                }
                if exporter == "grpc" { crate::common::grpc::ok(&[]) } else { axum::response::Response::default() }
            });
            tokio::spawn(async move {
                tokio::select! {
                    () = crate::common::serve(stream, router, exporter) => {}
                    () = died.notified() => {}
                }
            });
        }
    });
    (addr, counts)
}

#[tokio::test]
async fn an_export_on_a_connection_that_died_while_it_was_idle_loses_nothing() {
    for exporter in ["zipkin", "otlp", "grpc"] {
        // It dies under the request.
        let (addr, counts) = answers_once_a_connection(exporter).await;
        let env = export_env(exporter, addr);
        let hop = Hop::start(&[], &env.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>());
        for exported in 1..=4 {
            hop.get("/hello", &[]).await;
            eventually(&format!("{exporter}: span {exported} is exported"), || async {
                (counted(&hop).await.exported == f64::from(exported)).then_some(())
            })
            .await;
        }
        let [answered, unanswered] = [0, 1].map(|at| counts[at].load(Ordering::Relaxed));
        assert!(answered == 4 && unanswered > 0, "{exporter}: {answered}, {unanswered}");
        // It is closed while it is idle.
        let sink = Sink::start(free_addr(), exporter).await;
        let addr = sink.addr;
        let hop = Hop::start(&[], &sink.env());
        hop.get("/hello", &[]).await;
        eventually("the first is exported", || async { (counted(&hop).await.exported == 1.0).then_some(()) }).await;
        drop(sink);
        eventually("it is gone", || async { TcpStream::connect(addr).await.is_err().then_some(()) }).await;
        let sink = Sink::start(addr, exporter).await;
        hop.get("/hello", &[]).await;
        eventually("the second is exported", || async { (counted(&hop).await.exported == 2.0).then_some(()) }).await;
        assert_eq!(sink.spans().len(), 1, "{exporter}");
    }
}

#[tokio::test]
async fn no_limit_and_no_delay_are_values_too() {
    for exporter in OTLP {
        let sink = Sink::any(exporter).await;
        let zero = [("OTEL_EXPORTER_OTLP_TIMEOUT", "0"), ("OTEL_BSP_SCHEDULE_DELAY", "0")];
        let hop = Hop::start(&[], &[&sink.env()[..3], &zero].concat());
        hop.get("/hello", &[]).await;
        eventually("the span arrives", || async { (sink.spans().len() == 1).then_some(()) }).await;
        assert_eq!(lines(&hop, "WARN"), [""; 0]);
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_no_reason_to_send_the_same_spans_again() {
    for (exporter, length) in [("otlp", 0), ("grpc", 70_000), ("grpc", u32::MAX), ("grpc", 65_530)] {
        let sink = Sink::any(exporter).await;
        sink.set(Mood::Overflows(length));
        let hop = Hop::start(&[], &sink.env());
        hop.get("/hello", &[]).await;
        eventually("the loss is counted", || async { (counted(&hop).await.rejected == 1.0).then_some(()) }).await;
        assert_eq!(sink.spans().len(), 1, "{exporter} {length}: once");
        let line = eventually("it is named", || async { lines(&hop, "the span collector rejected spans").pop() }).await;
        assert!(line.contains("with more than 65536 bytes"), "{exporter} {length}: {line}");
        // Nor does the connection fail the next one.
        sink.set(Mood::Takes);
        hop.get("/hello", &[]).await;
        eventually("the next one is exported", || async { (counted(&hop).await.exported == 1.0).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_collector_that_asks_for_time_gets_it() {
    for exporter in ["otlp", "zipkin"] {
        let sink = Sink::start(free_addr(), exporter).await;
        sink.set(Mood::Postpones(503, 2));
        let hop = Hop::start(&[], &sink.env());
        hop.get("/hello", &[]).await;
        eventually("an export arrives", || async { (!sink.requests().is_empty()).then_some(()) }).await;
        let asked = Instant::now();
        sink.set(Mood::Takes);
        eventually("it is asked again", || async { (counted(&hop).await.exported == 1.0).then_some(()) }).await;
        assert!(asked.elapsed() > Duration::from_millis(1500), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn the_counters_add_up_whatever_the_collector_does() {
    let ways = OTLP.map(add_up);
    futures_util::future::join_all(ways).await;
}

async fn add_up(exporter: &'static str) {
    let sink = Sink::start(free_addr(), exporter).await;
    let addr = sink.addr;
    let env: Vec<(String, String)> = sink.env().iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    env.extend([("OTEL_BSP_MAX_QUEUE_SIZE", "64"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "300")]);
    let hop = Hop::start(&[], &env);
    let moods = [
        Mood::Takes,
        Mood::Answers(503),
        Mood::Rejects(2, "some"),
        Mood::Dies,
        Mood::Takes,
        Mood::Redirects(addr),
        Mood::Answers(400),
        Mood::Hangs,
        Mood::Fails(14, None),
        Mood::Fails(3, None),
    ];
    let (mut sink, mut sent) = (Some(sink), 0.0);
    let mut kept = 0;
    for round in 0..30 {
        match (&sink, round % 6) {
            // The collector's host dies, and comes back.
            (Some(gone), 4) => {
                kept += gone.spans().len();
                sink = None;
            }
            (None, _) => sink = Some(Sink::start(addr, exporter).await),
            (Some(sink), _) => sink.set(moods[round % moods.len()]),
        }
        for _ in 0..10 {
            assert_eq!(hop.get("/hello", &[]).await.status, 200);
            sent += 1.0;
            assert_eq!(counted(&hop).await.recorded, sent);
        }
    }
    let sink = match sink {
        Some(sink) => sink,
        None => Sink::start(addr, exporter).await,
    };
    sink.set(Mood::Takes);
    let counts = settled(&hop).await;
    assert_eq!(counts.recorded, sent);
    assert!(counts.exported > 0.0);
    kept += sink.spans().len();
    // More than once at most: an answer may be lost, a span that counts as exported is there.
    assert!(kept as f64 >= counts.exported, "{kept} of {}", counts.exported);
}

#[tokio::test]
async fn each_of_several_exporters_gets_every_span_and_none_waits_for_another() {
    let (zipkin, otlp) = (Sink::zipkin().await, Sink::otlp().await);
    otlp.set(Mood::Hangs);
    let env = [&zipkin.env()[..], &otlp.env(), &[("OTEL_TRACES_EXPORTER", "zipkin,otlp,console")]].concat();
    let hop = Hop::start(&[], &env);
    let answer = hop.get("/hello", &[]).await;
    let trace = answer.header("traceresponse").unwrap().split('-').nth(1).unwrap().to_owned();
    zipkin.trace(&trace, 1).await;
    eventually("the console has it", || async { lines(&hop, &format!("span trace={trace}")).pop() }).await;
    eventually("each is counted", || async { (counted(&hop).await.exported == 2.0).then_some(()) }).await;
    assert_eq!(counted(&hop).await.queued, 1.0, "the third is still on its way");
}

#[tokio::test(start_paused = true)]
async fn spans_that_a_refused_collector_does_not_get_at_the_stop_are_reported_lost() {
    for exporter in ["zipkin", "otlp", "grpc"] {
        // Bound and not listening, so that nobody else gets the port.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = format!("http://{}/spans", nobody.local_addr().unwrap());
        let hop = InProcess::start(|config| {
            config.export.spans = vec![match exporter {
                "zipkin" => Exporter::Zipkin { endpoint },
                "grpc" => Exporter::Otlp(OtlpOptions { endpoint, ..OtlpOptions::new(Signal::Traces, OtlpProtocol::Grpc) }),
                _ => Exporter::Otlp(OtlpOptions { endpoint, ..OtlpOptions::new(Signal::Traces, OtlpProtocol::HttpProtobuf) }),
            }];
        })
        .await;
        for _ in 0..3 {
            assert_eq!(exchange(hop.addr, b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.status, 200);
        }
        assert_eq!(hop.stopped(Stop::Now).await.spans_lost, 3, "{exporter}");
    }
}

fn server_config(by: &Authority, clients: Option<&Authority>) -> rustls::ServerConfig {
    let (cert, key) = issued(by, "localhost");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        Some(clients) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.pem().as_bytes()).unwrap()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_collector_with_a_private_ca_is_trusted_by_the_standard_variables_and_gets_the_clients_certificate() {
    futures_util::future::join_all(OTLP.map(private_ca)).await;
}

async fn private_ca(exporter: &'static str) {
    let (files, ours, others) = (Files::new(&format!("collector-{exporter}")), authority("ours"), authority("others"));
    let (cert, key) = issued(&ours, "hop");
    let (cert, key, ca) = (files.write("c.crt", &cert), files.write("c.key", &key), files.write("ca.crt", &ours.pem()));
    let (other_ca, missing) = (files.write("other.crt", &others.pem()), files.path("nothing.crt"));
    let empty = files.write("empty.crt", "no certificate");
    let (other_cert, other_key) = issued(&others, "hop");
    let other_key = (files.write("o.crt", &other_cert), files.write("o.key", &other_key)).1;
    let all = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let traces = "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE";
    let pair = [("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", cert.as_str()), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key)];
    let traces_pair =
        [("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", cert.as_str()), ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", &key)];
    let wrong_pair = [("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", cert.as_str()), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &other_key)];
    for (asks, env, expected) in [
        (false, vec![(all, ca.as_str())], None),
        (false, vec![(all, &missing), (traces, &ca)], None),
        (true, [&[(all, ca.as_str())], &pair[..]].concat(), None),
        (true, [&[(all, ca.as_str())], &traces_pair[..]].concat(), None),
        // What goes wrong names the variable and the file, or the URL and the cause.
        (false, vec![], Some(vec!["UnknownIssuer", "OTEL_EXPORTER_OTLP_CERTIFICATE", "https://localhost:"])),
        (false, vec![(all, &other_ca)], Some(vec!["certificate", "https://localhost:"])),
        (false, vec![(all, &missing)], Some(vec!["nothing.crt", all, "No such file"])),
        (false, vec![(traces, &empty)], Some(vec!["empty.crt", traces, "no PEM certificate"])),
        (true, vec![(all, &ca)], Some(vec!["CertificateRequired", "https://localhost:"])),
        (true, [&[(all, ca.as_str())], &pair[..1]].concat(), Some(vec![pair[0].0, "needs", pair[1].0])),
        (true, [&[(all, ca.as_str())], &wrong_pair[..]].concat(), Some(vec!["o.key", "not the key of", pair[1].0])),
    ] {
        let sink = Sink::tls(exporter, server_config(&ours, asks.then_some(&ours))).await;
        let endpoint = format!("https://localhost:{}", sink.addr.port());
        let hop = Hop::start(&[], &[&sink.env()[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)], &env].concat());
        hop.get("/hello", &[]).await;
        match expected {
            None => _ = eventually("the span arrives", || async { (sink.spans().len() == 1).then_some(()) }).await,
            Some(parts) => {
                let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
                eventually(&format!("a line says {parts:?}"), || async { hop.stderr().into_iter().find(has_all) }).await;
                assert_eq!(sink.spans().len(), 0, "{env:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_collector_that_cannot_be_reached_is_named_with_the_cause_and_the_usual_mistake() {
    let tls = Sink::tls("otlp", server_config(&authority("a"), None)).await;
    let plain = Sink::otlp().await;
    let missing = format!("http://{}/v2/otlp", plain.addr);
    let silent = Upstream::answering(b"\0\0\x18\x04\0\0\0\0\0".to_vec()).await;
    let page = Upstream::answering(answer("200 OK", "content-type: text/html; charset=utf-8\r\n", "<html>login</html>")).await;
    let sealed = Upstream::answering(answer("401 Unauthorized", "", "no key")).await;
    for (endpoint, parts) in [
        ("http://127.0.0.1:4317".to_owned(), vec!["http://127.0.0.1:4317/v1/traces", "over gRPC", "4318"]),
        ("http://127.0.0.1:9411".to_owned(), vec!["http://127.0.0.1:9411/v1/traces", "Zipkin", "4318"]),
        ("http://nobody.invalid:4318".to_owned(), vec!["http://nobody.invalid:4318/v1/traces", "lookup"]),
        (format!("https://{}", plain.addr), vec!["does not speak TLS", "http://"]),
        (format!("http://{}", tls.addr), vec!["http://", "HTTP/1.1", "https://"]),
        (silent.url(), vec!["http://", "HTTP/1.1", "gRPC"]),
        (page.url(), vec!["answered 200 OK with a page"]),
        (sealed.url(), vec!["401", "(no key)", "OTEL_EXPORTER_OTLP_HEADERS"]),
    ] {
        let env =
            [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
        let hop = Hop::start(&[], &env);
        hop.get("/hello", &[]).await;
        let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
        eventually(&format!("a line says {parts:?}"), || async { hop.stderr().into_iter().find(has_all) }).await;
        assert_eq!(counted(&hop).await.exported, 0.0, "{endpoint}");
    }
    let env = [
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", missing.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let hop = Hop::start(&[], &env);
    hop.get("/hello", &[]).await;
    eventually("the path is named", || async {
        lines(&hop, "/v2/otlp answered 404 Not Found; the usual path is /v1/traces").pop()
    })
    .await;
}

#[tokio::test]
async fn a_collector_over_grpc_gets_headers_and_deadline_and_compressed_spans() {
    let sink = Sink::grpc().await;
    let more = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20k"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "9000"),
    ];
    let hop = Hop::start(&[], &[&sink.env()[..], &more].concat());
    let answer = hop.get("/hello", &[]).await;
    let trace = answer.header("traceresponse").unwrap().split('-').nth(1).unwrap().to_owned();
    assert_eq!(sink.trace(&trace, 1).await[0].tags["url.path"], "/hello");
    let headers = sink.requests().remove(0);
    let expected = [("authorization", "Bearer k"), ("grpc-encoding", "gzip"), ("grpc-timeout", "9000000u"), ("te", "trailers")];
    for (name, value) in expected {
        assert_eq!(headers.get(name).and_then(|value| value.to_str().ok()), Some(value), "{name}: {headers:?}");
    }
    assert!(headers["user-agent"].to_str().unwrap().starts_with("httpserver/"), "{headers:?}");
}

#[tokio::test]
async fn a_protocol_of_the_signals_own_wins_and_an_address_without_a_scheme_is_grpcs() {
    let sink = Sink::grpc().await;
    let endpoint = sink.addr.to_string();
    let env = [
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "GRPC"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let hop = Hop::start(&[], &env);
    hop.get("/hello", &[]).await;
    eventually("the span arrives", || async { (sink.spans().len() == 1).then_some(()) }).await;
}

/// A `google.rpc.Status` whose details are a `RetryInfo` of 1.5 s, in base64.
const RETRY_IN_1500_MS: &str = "GjYKKHR5cGUuZ29vZ2xlYXBpcy5jb20vZ29vZ2xlLnJwYy5SZXRyeUluZm8SCgoICAEQgMq17gE";

#[tokio::test]
async fn codes_of_grpc_are_retried_or_not_as_the_protocol_has_it() {
    let retried = [1, 4, 10, 11, 14, 15].map(|code| (code, None, true));
    let rejected = [2, 3, 5, 6, 7, 8, 9, 12, 13, 16].map(|code| (code, None, false));
    // Exhausted resources, with a word about when; and details that are no base64.
    let others = [(8, Some(RETRY_IN_1500_MS), true), (14, Some("%%%"), true), (3, Some("%%%"), false)];
    let in_head = retried.into_iter().chain(rejected).chain(others).map(|case| (case, Mood::Fails(case.0, case.1)));
    let late = others.into_iter().chain([(11, None, true)]);
    let cases = in_head.chain(late.map(|case| (case, Mood::FailsLate(case.0, case.1))));
    let cases = cases.map(|((code, details, is_retried), mood)| async move {
        let sink = Sink::grpc().await;
        sink.set(mood);
        let hop = Hop::start(&[], &sink.env());
        hop.get("/hello", &[]).await;
        if is_retried {
            let named = eventually("it is named", || async { lines(&hop, "is unavailable; retrying").pop() }).await;
            let url = format!("http://{} (gRPC) answered ", sink.addr);
            assert!(named.contains(&url) && named.contains("(no room)"), "{code}: {named}");
            let asked = Instant::now();
            sink.set(Mood::Takes);
            eventually("it is exported", || async { (counted(&hop).await.exported == 1.0).then_some(()) }).await;
            if details == Some(RETRY_IN_1500_MS) {
                assert!(asked.elapsed() > Duration::from_millis(1200), "{:?}", asked.elapsed());
            }
        } else {
            eventually("the loss is counted", || async { (counted(&hop).await.rejected == 1.0).then_some(()) }).await;
            assert_eq!(sink.requests().len(), 1, "{code}");
        }
        assert_eq!(lines(&hop, "panicked"), [""; 0], "{code}");
    });
    for case in cases {
        case.await;
    }
}

#[tokio::test]
async fn a_collector_over_grpc_that_cannot_be_reached_is_named_with_the_cause_and_the_usual_mistake() {
    let (plain, http) = (Sink::grpc().await, Sink::otlp().await);
    let tls = Sink::tls("grpc", server_config(&authority("a"), None)).await;
    let gone = free_addr();
    let page = Upstream::answering(answer("200 OK", "content-type: text/html\r\n", "<html>login</html>")).await;
    for (endpoint, parts) in [
        ("http://127.0.0.1:4318".to_owned(), vec!["http://127.0.0.1:4318 (gRPC)", "OTLP over HTTP", "4317"]),
        (format!("http://u:s3cret@{gone}/x?key=s3cret"), vec!["http://", "(gRPC)", "refused"]),
        ("http://nobody.invalid:4317".to_owned(), vec!["http://nobody.invalid:4317", "lookup"]),
        (format!("https://{}", plain.addr), vec!["does not speak TLS", "http://"]),
        (format!("https://localhost:{}", tls.addr.port()), vec!["UnknownIssuer", "OTEL_EXPORTER_OTLP_CERTIFICATE"]),
        (format!("http://{}", tls.addr), vec!["HTTP/2", "https://"]),
        (format!("http://{}", http.addr), vec!["HTTP/2", "http/protobuf"]),
        (page.url(), vec!["HTTP/2", "http/protobuf"]),
    ] {
        let env = [
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ];
        let hop = Hop::start(&[], &env);
        hop.get("/hello", &[]).await;
        let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
        eventually(&format!("a line says {parts:?}"), || async {
            let found = hop.stderr().into_iter().find(has_all);
            if found.is_none() && counted(&hop).await.queued == 0.0 {
                panic!("{endpoint}: {:#?}", hop.stderr());
            }
            found
        })
        .await;
        assert_eq!((counted(&hop).await.exported, lines(&hop, "s3cret").len()), (0.0, 0), "{endpoint}");
    }
}

/// A collector that answers with interim answers without end, and how many of its connections have ended.
async fn endless_interim_answers(is_grpc: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let early = Frame::bytes(Frame::HEADERS, Frame::END_HEADERS, 1, &literal(":status", "103"));
                let (first, endless) = match is_grpc {
                    true => (Frame::bytes(Frame::SETTINGS, 0, 0, &[]), early),
                    false => (Vec::new(), b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec()),
                };
                let (mut input, mut output) = stream.split();
                let write = async {
                    let _ = output.write_all(&first).await;
                    // As much as a client sends before it reads.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let endless = endless.repeat(100);
                    while output.write_all(&endless).await.is_ok() {
                        // What a build without optimisations parses in time.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let mut bytes = vec![0; 1 << 16];
                let read = async { while input.read(&mut bytes).await.is_ok_and(|read| read > 0) {} };
                tokio::select! {
                    () = write => {}
                    () = read => {}
                }
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    (addr, ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_sends_interim_answers_without_end_has_the_timeout_and_holds_nothing() {
    for exporter in OTLP {
        let (addr, ended) = endless_interim_answers(exporter == "grpc").await;
        let env = export_env(exporter, addr);
        let mut env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        env.push(("OTEL_EXPORTER_OTLP_TIMEOUT", "300"));
        let mut hop = Hop::start(&["--flush-timeout", "1s"], &env);
        assert_eq!(hop.get("/hello", &[]).await.status, 200);
        eventually(&format!("{exporter} gives up its connections"), || async {
            assert_eq!(hop.get("/hello", &[]).await.status, 200);
            (ended.load(Ordering::Relaxed) >= 2).then_some(())
        })
        .await;
        let line = eventually("it is named", || async { lines(&hop, "is unavailable; retrying").pop() }).await;
        assert!(line.contains(&addr.to_string()), "{line}");
        let counts = counted(&hop).await;
        assert_eq!((counts.exported, counts.rejected), (0.0, 0.0), "{exporter}");
        hop.signal("INT");
        assert!(hop.ended().success(), "{exporter}");
        assert_eq!(lines(&hop, "spans were not handed over").len(), 1, "{:#?}", hop.stderr());
    }
}
