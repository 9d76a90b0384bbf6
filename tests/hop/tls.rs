//! TLS in the binary, HTTP/2, and certificates that change while the hop runs. Every certificate is made when the test runs.

use std::sync::Arc;
use std::time::Duration;

pub(crate) use crate::common::tls::{Authority, Files, Secure, authority, issued};
use crate::common::{Hop, PATIENCE, eventually, exchange, read_answer, run};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn h2_request(path: &str) -> http::Request<Empty<bytes::Bytes>> {
    http::Request::get(format!("https://localhost{path}")).body(Empty::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_with_a_certificate_serves_http_1_and_http_2_over_tls() {
    let secure = Secure::start("both", &["--name", "secure"]);
    let (status, body) = secure.get("/hello", None).await.unwrap();
    assert_eq!(status, 200);
    assert!(body.starts_with("Hello from secure"), "{body}");

    let stream = secure.connect(&[b"h2", b"http/1.1"], None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answers = (0..20).map(|_| send.send_request(h2_request("/hello"))).collect::<Vec<_>>();
    for answer in futures_util::future::join_all(answers).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["version"], "v1");
    }
    let plain = exchange_or_nothing(&secure.hop, b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await;
    assert!(!plain.starts_with(b"HTTP/1.1 200"), "plain HTTP is not served beside TLS");
}

async fn exchange_or_nothing(hop: &Hop, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(hop.addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_port_speaks_http_2_to_those_who_know() {
    let hop = Hop::start(&["--name", "plain", "--latency", "200ms"], &[]);
    let stream = TcpStream::connect(hop.addr).await.unwrap();
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let begun = std::time::Instant::now();
    let answers = (0..50).map(|_| send.send_request(h2_request("/service1"))).collect::<Vec<_>>();
    for answer in futures_util::future::join_all(answers).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("x-request-id"));
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "they were answered side by side: {:?}", begun.elapsed());
    assert_eq!(hop.get("/hello", &[]).await.status, 200, "and HTTP/1.1 to all others");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_heads_have_the_same_limits() {
    let hop = Hop::start(&[], &[]);
    let stream = TcpStream::connect(hop.addr).await.unwrap();
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut many = h2_request("/hello");
    for i in 0..101 {
        many.headers_mut().insert(http::HeaderName::try_from(format!("x-{i}")).unwrap(), "1".parse().unwrap());
    }
    assert_eq!(send.send_request(many).await.unwrap().status(), 431, "101 fields");
    let mut large = h2_request("/hello");
    large.headers_mut().insert("x-large", "x".repeat(33 << 10).parse().unwrap());
    assert_eq!(send.send_request(large).await.unwrap().status(), 431, "33 KiB");
    assert_eq!(hop.get("/hello", &[]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_says_goaway_and_finishes_every_stream_of_an_http_2_connection() {
    let mut hop = Hop::start(&["--latency", "1s", "--drain-delay", "300ms"], &[]);
    let stream = TcpStream::connect(hop.addr).await.unwrap();
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let answers = (0..10).map(|_| send.send_request(h2_request("/hello"))).collect::<Vec<_>>();
    let answers = tokio::spawn(futures_util::future::join_all(answers));
    eventually("the requests are in flight", || async {
        (hop.metrics().await.sum("http_server_active_requests", &[]) >= 11.0).then_some(())
    })
    .await;
    hop.signal("TERM");
    eventually("no further request is taken", || {
        let mut send = send.clone();
        async move {
            tokio::time::timeout(Duration::from_millis(100), send.ready()).await.is_ok_and(|ready| ready.is_err()).then_some(())
        }
    })
    .await;
    for answer in answers.await.unwrap() {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(hop.ended().code(), Some(0), "{:#?}", hop.stderr());
    connection.await.unwrap().expect("an orderly end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_http_2_connection_does_not_hold_the_exit_even_when_its_client_is_gone() {
    let mut hop = Hop::start(&["--drain-delay", "0", "--drain-timeout", "10m"], &[]);
    // A client that says hello and then nothing more, not even to GOAWAY.
    let mut stream = TcpStream::connect(hop.addr).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).await.expect("the hop's settings");
    hop.signal("TERM");
    assert_eq!(hop.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_never_ends_is_closed_after_the_header_timeout() {
    let secure = Secure::start("slow", &["--header-timeout", "300ms"]);
    let mut silent = TcpStream::connect(secure.hop.addr).await.unwrap();
    let mut half = TcpStream::connect(secure.hop.addr).await.unwrap();
    // The first bytes of a ClientHello.
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    for stream in [&mut silent, &mut half] {
        let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("it is closed");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}

#[test]
fn a_bad_certificate_or_key_fails_the_start_with_one_line_that_names_it() {
    let files = Files::new("bad");
    let authority = authority("test");
    let (cert, key) = issued(&authority, "localhost");
    let (_, other_key) = issued(&authority, "localhost");
    let (cert, key) = (files.write("tls.crt", &cert), files.write("tls.key", &key));
    let other_key = files.write("other.key", &other_key);
    let nothing = files.write("nothing.pem", "no PEM\n");
    let missing = files.path("missing.pem");
    for (args, parts) in [
        (&["--tls-cert", &cert, "--tls-key", &other_key][..], &["--tls-key", "TLS_KEY", &other_key, "not the key of"][..]),
        (&["--tls-cert", &missing, "--tls-key", &key], &["--tls-cert", "TLS_CERT", &missing, "cannot be read"]),
        (&["--tls-cert", &nothing, "--tls-key", &key], &["--tls-cert", &nothing, "no PEM certificate"]),
        (&["--tls-cert", &cert, "--tls-key", &nothing], &["--tls-key", &nothing, "no PEM private key"]),
        (&["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &nothing], &["--tls-client-ca", "TLS_CLIENT_CA", &nothing]),
        (&["--upstream-ca", &missing], &["--upstream-ca", "UPSTREAM_CA", &missing]),
        (&["--tls-cert", &cert], &["--tls-key"]),
        (&["--tls-key", &key], &["--tls-cert", "TLS_CERT"]),
        (&["--tls-client-ca", &cert], &["--tls-client-ca", "--tls-cert", "--tls-key"]),
    ] {
        let args: Vec<_> = ["serve", "--addr", "127.0.0.1:0"].iter().chain(args).copied().collect();
        let ran = run(&args, &[]);
        assert_eq!((ran.code, ran.stderr.lines().count()), (Some(2), 1), "{args:?}: {}", ran.stderr);
        assert!(parts.iter().all(|part| ran.stderr.contains(part)), "{args:?}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_up_without_dropping_a_connection_and_a_bad_one_is_not() {
    let secure = Secure::start("reload", &[]);
    let stream = secure.connect(&[b"http/1.1"], None).await.unwrap();
    let first = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut still_answers = async || {
        let request = http::Request::get("/hello").header("host", "localhost").body(Empty::<bytes::Bytes>::new()).unwrap();
        let answer = send.send_request(request).await.expect("the old connection lives");
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
    };
    still_answers().await;

    secure.files.write("tls.crt", "rubbish\n");
    eventually("the hop says that the new file is no good", || async {
        secure.hop.stderr().iter().any(|line| line.contains("was not reloaded") && line.contains("tls.crt")).then_some(())
    })
    .await;
    still_answers().await;
    assert_eq!(secure.get("/hello", None).await.unwrap().0, 200, "the old pair stays");

    let (cert, key) = issued(&secure.authority, "localhost");
    secure.files.write("tls.crt", &cert);
    secure.files.write("tls.key", &key);
    eventually("new connections see the new certificate", || async {
        let stream = secure.connect(&[b"http/1.1"], None).await.unwrap();
        let now = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        (now != first).then_some(())
    })
    .await;
    still_answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_ca_only_the_probes_answer_without_a_certificate() {
    let files = Files::new("mutual-ca");
    let callers = authority("callers");
    let ca = files.write("callers.crt", &callers.pem());
    let secure = Secure::start("mutual", &["--tls-client-ca", &ca]);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(secure.get(path, None).await.unwrap().0, 200, "{path}: a kubelet has no certificate");
    }
    for path in ["/", "/hello", "/service1", "/headers", "/metrics", "/nowhere"] {
        let (status, body) = secure.get(path, None).await.unwrap();
        assert_eq!(status, 403, "{path}");
        assert!(body.contains("client certificate"), "{body}");
    }
    let known = issued(&callers, "caller");
    assert_eq!(secure.get("/hello", Some(&known)).await.unwrap().0, 200);
    let unknown = issued(&authority("others"), "caller");
    assert!(secure.get("/healthz", Some(&unknown)).await.is_err(), "a certificate that is shown must be good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_client_ca_is_taken_up_and_a_bad_one_is_not() {
    let files = Files::new("client-ca-reload");
    let (old, new) = (authority("old callers"), authority("new callers"));
    let (of_old, of_new) = (issued(&old, "caller"), issued(&new, "caller"));
    let ca = files.write("callers.crt", &old.pem());
    let secure = Secure::start("client-ca-reload-server", &["--tls-client-ca", &ca]);
    assert_eq!(secure.get("/hello", Some(&of_old)).await.unwrap().0, 200);
    assert!(secure.get("/hello", Some(&of_new)).await.is_err(), "not yet");

    files.write("callers.crt", "rubbish\n");
    eventually("the hop reports the file", || async {
        secure.hop.stderr().iter().any(|line| line.contains("was not reloaded") && line.contains("callers.crt")).then_some(())
    })
    .await;
    assert_eq!(secure.get("/hello", Some(&of_old)).await.unwrap().0, 200, "the old CA stays");

    files.write("callers.crt", &new.pem());
    eventually("callers of the new CA are let in", || async {
        secure.get("/hello", Some(&of_new)).await.ok().filter(|(status, _)| *status == 200)
    })
    .await;
    assert!(secure.get("/hello", Some(&of_old)).await.is_err(), "callers of the old one no longer are");
}

#[tokio::test(flavor = "multi_thread")]
async fn hops_call_each_other_over_mutual_tls() {
    let files = Files::new("chain");
    let authority = authority("mesh");
    let ca = files.write("ca.crt", &authority.pem());
    let (cert, key) = issued(&authority, "127.0.0.1");
    let (cert, key) = (files.write("tls.crt", &cert), files.write("tls.key", &key));
    let last = Hop::start(&["--name", "service2", "--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca], &[]);
    let below = format!("https://{}", last.addr);
    let front = |flags: &[&str]| {
        let all: Vec<_> = ["--name", "service1", "--upstream", &below].iter().chain(flags).copied().collect();
        Hop::start(&all, &[])
    };
    let trusted = front(&["--upstream-ca", &ca, "--tls-cert", &cert, "--tls-key", &key]);
    let client = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(trusting(&authority)).build().unwrap();
    let reply = client.get(format!("https://{}/service1", trusted.addr)).header("accept", "application/json").send().await;
    let reply: serde_json::Value = serde_json::from_str(&reply.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(reply["upstreams"][0]["reply"]["service"], "service2", "{reply:#}");
    assert_eq!(reply["upstreams"][0]["protocol"], "http/2", "by ALPN: {reply:#}");

    // The certificate names the caller, whatever a header says: the subject, because it has no URI.
    let client_of = &reply["upstreams"][0]["reply"]["client"];
    assert_eq!(client_of["identity_source"], "tls", "{reply:#}");
    assert!(client_of["identity"].as_str().is_some_and(|name| name.starts_with("CN=")), "{reply:#}");
    assert_eq!(reply["client"]["identity_source"], serde_json::Value::Null, "the client has no certificate");

    let (status, reply) = front(&["--upstream-ca", &ca]).json("/service1", &[]).await;
    assert_eq!((status, &reply["upstreams"][0]["status"]), (502, &403.into()), "no certificate: {reply:#}");
    let (status, reply) = front(&[]).json("/service1", &[]).await;
    assert_eq!(status, 502);
    let error = reply["upstreams"][0]["error"].as_str().unwrap();
    assert!(error.contains("certificate"), "a signer that is not trusted: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_names_the_caller_and_a_header_does_not() {
    let files = Files::new("identity");
    let callers = authority("callers");
    let ca = files.write("callers.crt", &callers.pem());
    let secure = Secure::start("identity", &["--tls-client-ca", &ca]);
    let uri = |uri: &str| rcgen::SanType::URI(uri.try_into().unwrap());
    let uris = [uri("https://other.example/"), uri("spiffe://mesh/ns/a/sa/caller")];
    // The last two have an empty subject, and the last no name at all.
    for (names, uris, has_subject, identity) in [
        (&["caller.example"][..], &uris[..], true, r#""spiffe://mesh/ns/a/sa/caller""#),
        (&["caller.example"], &[], true, r#""CN=rcgen self signed cert""#),
        (&["caller.example"], &[], false, r#""caller.example""#),
        (&["127.0.0.1"], &[], false, "null"),
    ] {
        let mut params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.extend_from_slice(uris);
        if !has_subject {
            params.distinguished_name = rcgen::DistinguishedName::new();
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let own = (params.signed_by(&key, &callers).unwrap().pem(), key.serialize_pem());
        let mut stream = secure.connect(&[b"http/1.1"], Some(&own)).await.unwrap();
        let request = "GET /service1?format=json HTTP/1.1\r\nhost: hop\r\nconnection: close\r\n\
                       x-forwarded-client-cert: By=spiffe://a;URI=spiffe://made/up\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(&format!(r#""identity":{identity},"identity_source":"tls""#)), "{identity}: {answer}");
    }
}

fn trusting(authority: &Authority) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_root_certificates(roots).with_no_client_auth()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_speaks_tls_to_the_hop_beside_it_also_when_certificates_are_wanted() {
    let files = Files::new("health-ca");
    let ca = files.write("callers.crt", &authority("callers").pem());
    let secure = Secure::start("health", &["--tls-client-ca", &ca]);
    let (addr, cert) = (format!(":{}", secure.hop.addr.port()), secure.files.path("tls.crt"));
    let health = |args: Vec<String>, env: Vec<(&str, &str)>| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let ran = run(&args, &env);
        (ran.code, ran.stderr)
    };
    let by_variables = health(vec!["health".into()], vec![("ADDR", &addr), ("TLS_CERT", &cert)]);
    assert_eq!(by_variables.0, Some(0), "{}", by_variables.1);
    let by_url = health(vec!["health".into(), format!("https://{}/healthz", secure.hop.addr)], vec![]);
    assert_eq!(by_url.0, Some(0), "{}", by_url.1);
    let plain = health(vec!["health".into()], vec![("ADDR", &addr)]);
    assert_eq!(plain.0, Some(1), "without the variable it asks by plain HTTP: {}", plain.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_still_gets_its_first_bytes_when_they_come_one_by_one() {
    // The protocol is told by the first bytes; `P` alone could be either.
    let hop = Hop::start(&[], &[]);
    for request in ["POST /hello HTTP/1.1\r\nhost: hop\r\ncontent-length: 0\r\n\r\n", "PRI /hello HTTP/1.1\r\nhost: hop\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(hop.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in request.as_bytes() {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let answer = read_answer(&mut stream, false).await.expect("an answer");
        assert_eq!(answer.status, 405, "{request}");
    }
    let answer = exchange(hop.addr, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await;
    assert_eq!(answer.status, 400, "not quite the preface");
}
