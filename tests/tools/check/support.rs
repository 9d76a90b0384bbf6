//! What the tests of `check` need: real hops, and small servers that misbehave on purpose.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common;
pub(crate) use crate::common::httpserver;

/// Starts a hop on `addr`.
pub(crate) fn serve_at(addr: &str, name: &str, args: &[&str], vars: &[(&str, &str)]) -> common::Hop {
    common::Hop::start(&[&["--addr", addr, "--name", name, "--drain-delay", "0s"], args].concat(), vars)
}

/// Starts a hop on a free port of loopback.
pub(crate) fn serve(name: &str, args: &[&str], vars: &[(&str, &str)]) -> common::Hop {
    serve_at("127.0.0.1:0", name, args, vars)
}

/// How one hop of a chain differs from a plain one.
#[derive(Default, Clone)]
pub(crate) struct Hop {
    pub(crate) args: Vec<String>,
    pub(crate) vars: Vec<(String, String)>,
}

pub(crate) fn plain() -> Hop {
    Hop::default()
}

/// A hop with spans of its own, which nobody collects.
pub(crate) fn traced() -> Hop {
    Hop { args: vec!["--trace-exporter".into(), "console".into()], vars: Vec::new() }
}

/// A hop that reports its spans to a store in Zipkin's format.
pub(crate) fn reporting(store: &str) -> Hop {
    Hop {
        args: vec!["--trace-exporter".into(), "zipkin".into()],
        vars: vec![("OTEL_EXPORTER_ZIPKIN_ENDPOINT".into(), format!("{store}/api/v2/spans"))],
    }
}

impl Hop {
    pub(crate) fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A chain: `service1` calls `service2` calls …; the last first in time.
pub(crate) struct Chain {
    pub(crate) hops: Vec<common::Hop>,
}

impl Chain {
    pub(crate) fn start(hops: &[Hop]) -> Self {
        Self::start_via(hops, |_, addr| addr)
    }

    /// `via(index, address)`: where the caller of hop `index` is sent instead of to the hop itself.
    pub(crate) fn start_via(hops: &[Hop], mut via: impl FnMut(usize, SocketAddr) -> SocketAddr) -> Self {
        let mut running: Vec<common::Hop> = Vec::new();
        let mut next: Option<SocketAddr> = None;
        for (index, hop) in hops.iter().enumerate().rev() {
            let mut args: Vec<String> = hop.args.clone();
            if let Some(next) = next {
                args.extend(["--upstream".into(), format!("http://{next}/service{}", index + 2)]);
            }
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let vars: Vec<(&str, &str)> = hop.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let hop = serve(&format!("service{}", index + 1), &args, &vars);
            next = Some(via(index, hop.addr));
            running.push(hop);
        }
        running.reverse();
        Self { hops: running }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/service1", self.hops[0].addr)
    }
}

/// The report of one run.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn checks(&self) -> &Vec<Value> {
        self.json["checks"].as_array().unwrap_or_else(|| panic!("no report: {}", self.stderr))
    }

    pub(crate) fn failed(&self) -> Vec<&Value> {
        self.checks().iter().filter(|check| check["status"] == "fail").collect()
    }

    /// The check of this name; the failed one where several have it.
    pub(crate) fn check(&self, id: &str) -> &Value {
        let of = |status: Option<&str>| {
            self.checks().iter().find(|check| check["id"] == id && status.is_none_or(|status| check["status"] == status))
        };
        of(Some("fail")).or_else(|| of(None)).unwrap_or_else(|| panic!("no {id} in {:#}", self.json))
    }

    /// Asserts that nothing failed.
    pub(crate) fn fine(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{:#}\n{}", self.json, self.stderr);
        assert!(self.failed().is_empty() && self.json["ok"] == true, "{:#}", self.json);
        self
    }

    /// Asserts that this check failed, exit code 1, and that its text, cause and commands hold all of `says`.
    pub(crate) fn fails(&self, id: &str, says: &[&str]) -> &Value {
        let check = self.check(id);
        assert_eq!((self.code, check["status"].as_str()), (Some(1), Some("fail")), "{id}: {:#}", self.json);
        assert!(check["cause"].as_str().is_some_and(|cause| !cause.is_empty()), "no cause: {check:#}");
        let all = format!("{} | {} | {}", check["text"], check["cause"], check["next"]).replace("\\\"", "\"");
        for part in says {
            assert!(all.contains(part), "{part:?} not in {all}");
        }
        check
    }

    /// Asserts that this check did not pass because of the failure of another, and that its text holds all of `says`.
    pub(crate) fn follows(&self, id: &str, cause: &str, says: &[&str]) {
        let check = self.checks().iter().find(|check| check["id"] == id && check["status"] == "follows");
        let check = check.unwrap_or_else(|| panic!("no {id} that follows in {:#}", self.json));
        assert_eq!(check["follows"], cause, "{check:#}");
        let text = check["text"].as_str().unwrap();
        assert!(says.iter().all(|part| text.contains(part)), "{says:?} not in {text}");
    }

    /// The same, and the seam and its side.
    pub(crate) fn breaks_at(&self, id: &str, from: &str, to: &str, side: Option<&str>, says: &[&str]) {
        let check = self.fails(id, says);
        let seam = &check["seam"];
        assert_eq!(
            (seam["from"].as_str(), seam["to"].as_str(), seam["side"].as_str()),
            (Some(from), Some(to), side),
            "{check:#}"
        );
    }
}

/// Runs `check URL` with a JSON report.
pub(crate) fn check(url: &str, args: &[&str]) -> Run {
    check_with(url, args, &[])
}

/// The same with environment variables.
pub(crate) fn check_with(url: &str, args: &[&str], vars: &[(&str, &str)]) -> Run {
    let mut command = httpserver();
    command.arg("check").arg(url).args(["--output", "json"]).args(args).envs(vars.iter().copied());
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    Run {
        code: output.status.code(),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A request that a fake server got: its head as it came, split.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Status, headers, body.
pub(crate) type Response = (u16, Vec<(&'static str, String)>, String);

/// A server that answers what `answer` says, one request per connection, until the test ends.
pub(crate) fn fake(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> SocketAddr {
    serve_streams(move |stream| {
        let mut stream = stream;
        if let Some(request) = read_request(&mut stream) {
            let _ = stream.write_all(&response(&answer(&request)));
        }
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut [0; 1]);
    })
}

/// Calls `serve` with every connection, each in a thread of its own.
pub(crate) fn serve_streams(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
            std::thread::spawn(move || serve(stream));
        }
    });
    addr
}

pub(crate) fn response((status, headers, body): &Response) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

pub(crate) fn read_request(stream: &mut impl std::io::Read) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some(Request { method, path, headers })
}

/// A proxy to `to` that removes headers from every request.
pub(crate) fn removing(to: SocketAddr, names: &[&str]) -> SocketAddr {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    rewriting(to, move |name, value| (!names.iter().any(|known| known == name)).then_some(value))
}

/// A proxy to `to` that sends every header with the value that `rewrite` makes of its name and value, or without it.
pub(crate) fn rewriting(to: SocketAddr, rewrite: impl Fn(&str, String) -> Option<String> + Send + Sync + 'static) -> SocketAddr {
    serve_streams(move |mut stream| {
        let Some(request) = read_request(&mut stream) else { return };
        let mut head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", request.method, request.path);
        for (name, value) in request.headers.into_iter().filter(|(name, _)| name != "connection") {
            if let Some(value) = rewrite(&name, value) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head.push_str("\r\n");
        let mut upstream = TcpStream::connect(to).unwrap();
        upstream.write_all(head.as_bytes()).unwrap();
        let _ = std::io::copy(&mut upstream, &mut stream);
    })
}

/// A hop's reply as it is on the wire.
pub(crate) fn reply(service: &str, version: &str, lane: &str, request: &Request, upstreams: Vec<Value>) -> Value {
    let received: serde_json::Map<String, Value> = request
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-") || matches!(name.as_str(), "traceparent" | "tracestate" | "baggage" | "b3"))
        .map(|(name, value)| (name.clone(), json!([value])))
        .collect();
    json!({
        "service": service, "version": version, "lane": lane, "hostname": format!("{service}-{version}-{lane}"),
        "message": "Hello!", "path": request.path, "status": 200, "started_at": "2026-01-02T03:04:05.678901Z", "duration_ms": 1.0,
        "request_id": request.header("x-request-id").unwrap_or("made"), "trace_id": null, "span_id": null, "parent_span_id": null,
        "sampled": null, "propagation": "forward", "received": received, "client": {"ip": "127.0.0.1", "identity": null},
        "attempt": 1, "injected": null, "upstreams": upstreams,
    })
}

/// A call to a hop that got exactly what the caller received.
pub(crate) fn call(service: &str, reply: Value) -> Value {
    json!({"url": format!("http://{service}/{service}"), "status": 200, "duration_ms": 0.5, "error": null, "sent": reply["received"], "reply": reply})
}

/// A certificate authority of the test.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "cncamp test CA");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A server's certificate as `change` leaves it.
    pub(crate) fn issue(&self, names: &[&str], change: impl FnOnce(&mut rcgen::CertificateParams)) -> Identity {
        let (params, key) = server_params(names, change);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { pem: certificate.pem(), der: certificate.der().to_vec(), key: key.serialize_der() }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }
}

fn server_params(
    names: &[&str],
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> (rcgen::CertificateParams, rcgen::KeyPair) {
    let mut params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "chain.test");
    change(&mut params);
    (params, rcgen::KeyPair::generate().unwrap())
}

/// A certificate that vouches for itself.
pub(crate) fn self_signed(names: &[&str], change: impl FnOnce(&mut rcgen::CertificateParams)) -> Identity {
    let (params, key) = server_params(names, change);
    let certificate = params.self_signed(&key).unwrap();
    Identity { pem: certificate.pem(), der: certificate.der().to_vec(), key: key.serialize_der() }
}

/// A server's certificate and key.
pub(crate) struct Identity {
    pub(crate) pem: String,
    der: Vec<u8>,
    key: Vec<u8>,
}

/// A TLS server in front of `to`, which speaks plain HTTP.
pub(crate) fn tls_front(identity: &Identity, to: SocketAddr) -> SocketAddr {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(identity.der.clone())],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone())),
        )
        .unwrap();
    let config = Arc::new(config);
    serve_streams(move |mut stream| {
        let mut tls = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut tls = rustls::Stream::new(&mut tls, &mut stream);
        let Some(request) = read_request(&mut tls) else { return };
        let mut head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", request.method, request.path);
        for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut upstream = TcpStream::connect(to).unwrap();
        upstream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = upstream.read_to_end(&mut answer);
        let _ = tls.write_all(&answer);
        tls.conn.send_close_notify();
        let _ = tls.flush();
    })
}

/// A file that is gone when the test is.
pub(crate) struct File(pub(crate) std::path::PathBuf);

impl File {
    pub(crate) fn new(kind: &str, content: &str) -> Self {
        static NEXT: Mutex<u32> = Mutex::new(0);
        let mut next = NEXT.lock().unwrap();
        *next += 1;
        let path = std::env::temp_dir().join(format!("httpserver-check-{}-{next}.{kind}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `httpserver demo`, for its chain and for its store.
pub(crate) struct Demo {
    _process: common::Process,
    pub(crate) url: String,
    pub(crate) store: String,
}

impl Demo {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(args: &[&str]) -> Self {
        let common::Demo { process, front, store, .. } = common::Demo::start(args);
        Self { _process: process, url: format!("http://{front}/service1"), store: format!("http://{store}") }
    }
}
