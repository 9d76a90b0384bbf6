//! What the black-box tests share. They start the real binary with real flags on port 0 and talk to it over a socket.
//!
//! - [`Hop`]: one running `httpserver serve`; [`chain`] starts several that call each other; [`Demo`]: one running `demo`; [`run`]
//!   runs any command to its end. [`process`] is what they have in common.
//! - [`Answer`]: what came back. [`Hop::get`], [`Hop::json`] and [`Hop::request`] send; [`exchange`] sends any bytes.
//! - [`Upstream`]: a next hop that does what a script says, byte by byte, and keeps the heads of the requests it got.
//! - [`Sink`]: a collector, Zipkin or OTLP (over HTTP or gRPC), that keeps the spans it got, answers Zipkin's API with them, and can be told to misbehave.
//! - [`http2`]: HTTP/2 in raw frames.
//! - [`eventually`], [`wait_until`]: the only ways to wait for something.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "every test binary uses its own part of this")]

pub mod foreign_app;
pub mod grpc;
pub mod http2;
mod in_process;
pub mod ports;
mod process;
pub mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric as OtlpMetric;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub use in_process::InProcess;
pub use process::{Demo, Process, Ran, binary, httpserver, run, run_command};

/// Headers that a hop carries: the contract's table.
pub const CARRIED: [&str; 22] = [
    "x-request-id",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-tags",
    "x-datadog-origin",
    "x-amzn-trace-id",
    "uber-trace-id",
    "sw8",
    "x-lane",
];

/// How long a condition may take to come true. Generous, because it is only used up when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Asks `probe` until it has something, and fails the test with `what` when it never has.
pub async fn eventually<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "in {PATIENCE:?} it did not happen that {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// [`eventually`] on a thread of its own.
pub fn wait_until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "in {PATIENCE:?} it did not happen that {what}");
        std::thread::sleep(POLL);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a hop's access lines go.
#[derive(Debug)]
pub enum AccessLog {
    /// To [`Hop::stdout`].
    Kept,
    /// Into a pipe that nobody reads.
    Unread,
    /// There.
    To(Stdio),
}

/// One running `httpserver serve`. It is killed when the value is dropped.
#[derive(Debug)]
pub struct Hop {
    process: Process,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl Hop {
    /// Starts a hop on a free loopback port (unless `flags` name an address) and returns when it serves.
    pub fn start(flags: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_with(flags, env, AccessLog::Kept)
    }

    /// Like [`Hop::start`], with a stdout that is a pipe and that nobody ever reads.
    pub fn start_unread(flags: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_with(flags, env, AccessLog::Unread)
    }

    /// Like [`Hop::start`], with the access lines elsewhere.
    pub fn start_with(flags: &[&str], env: &[(&str, &str)], access_log: AccessLog) -> Self {
        let mut command = binary(&["serve"], env);
        if !flags.contains(&"--addr") {
            command.args(["--addr", "127.0.0.1:0"]);
        }
        command.args(flags);
        let is_read = matches!(access_log, AccessLog::Kept);
        if let AccessLog::To(stdout) = access_log {
            command.stdout(stdout);
        }
        let process = if is_read { Process::start(command) } else { Process::start_unread(command) };
        Self { addr: process.serving_address(), process }
    }

    /// The URL of a path at this hop. An empty path is the URL without one.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// `GET path` with further headers.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request("GET", path, headers).await
    }

    /// `GET path` that prefers JSON; fails the test when the answer is not JSON.
    pub async fn json(&self, path: &str, headers: &[(&str, &str)]) -> (u16, serde_json::Value) {
        let headers: Vec<_> = [("accept", "application/json")].iter().chain(headers).copied().collect();
        let answer = self.get(path, &headers).await;
        (answer.status, answer.json())
    }

    /// Any request without a body, on a connection of its own.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.addr);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        exchange(self.addr, format!("{head}\r\n").as_bytes()).await
    }

    /// What `/metrics` says now.
    pub async fn metrics(&self) -> Samples {
        Samples(self.get("/metrics", &[]).await.text())
    }

    /// The access lines so far.
    pub fn stdout(&self) -> Vec<String> {
        self.process.stdout()
    }

    /// The diagnostics so far.
    pub fn stderr(&self) -> Vec<String> {
        self.process.stderr()
    }

    /// The access line of the request with this id.
    pub async fn access_line(&self, request_id: &str) -> String {
        eventually(&format!("request {request_id} is logged"), || async {
            self.stdout().into_iter().find(|line| line.contains(request_id))
        })
        .await
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends the process a signal: `TERM`, `INT`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for the process's end.
    pub fn ended(&mut self) -> ExitStatus {
        self.process.ended()
    }

    /// Ends the process without a chance to say anything.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// `service1` to `service<n>`, each calling the next; the front is the first. `flags` and `env` are for all of them.
pub fn chain(n: usize, flags: &[&str], env: &[(&str, &str)]) -> Vec<Hop> {
    chain_over("http", n, flags, env)
}

/// The same, each calling the next by a URL of this scheme.
pub fn chain_over(scheme: &str, n: usize, flags: &[&str], env: &[(&str, &str)]) -> Vec<Hop> {
    let mut hops: Vec<Hop> = Vec::new();
    for i in (1..=n).rev() {
        let (name, below) = (format!("service{i}"), hops.last().map(|hop| format!("{scheme}://{}", hop.addr)));
        let mut all = vec!["--name", &name];
        if let Some(below) = &below {
            all.extend(["--upstream", below]);
        }
        all.extend(flags);
        hops.push(Hop::start(&all, env));
    }
    hops.reverse();
    hops
}

/// An HTTP answer. Header names are in lower case.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; fails the test when it is not, or is not declared as such.
    pub fn json(&self) -> serde_json::Value {
        let declared = self.header("content-type").unwrap_or_default();
        assert!(declared == "application/json" || declared == "application/problem+json", "{declared}: {}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Asserts that this is a problem document (RFC 9457) with this status, and that it has what every answer has.
    pub fn assert_problem(&self, status: u16) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{status}");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"), "{status}");
        for name in ["x-request-id", "version"] {
            assert!(self.header(name).is_some(), "{status} has no {name}");
        }
    }
}

/// Sends `request` as it is on a connection of its own and reads one answer.
pub async fn exchange(addr: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(addr).await.expect("the server listens");
    // A server that answers early may have closed its side: the answer is there all the same.
    let _ = stream.write_all(request).await;
    let answer = tokio::time::timeout(PATIENCE, read_answer(&mut stream, request.starts_with(b"HEAD "))).await;
    answer.expect("an answer in time").expect("a whole answer")
}

/// Reads one answer from a connection; `None` when it ends before the answer is whole.
pub async fn read_answer(stream: &mut TcpStream, to_head: bool) -> Option<Answer> {
    let mut bytes = Vec::new();
    let (line, headers, rest) = read_head(stream, &mut bytes).await?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = headers.into_iter().map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned())).collect();
    let mut body = rest;
    let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, value)| value.parse::<usize>());
    match length {
        _ if to_head => {}
        Some(length) => {
            let length = length.ok()?;
            while body.len() < length {
                if stream.read_buf(&mut body).await.ok()? == 0 {
                    return None;
                }
            }
        }
        None if headers.contains(&("transfer-encoding".to_owned(), "chunked".to_owned())) => body = chunks(stream, body).await?,
        None => while stream.read_buf(&mut body).await.ok()? > 0 {},
    }
    Some(Answer { status, headers, body })
}

/// The content of a chunked body, of which some bytes were read.
async fn chunks(stream: &mut TcpStream, mut read: Vec<u8>) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let line = read.windows(2).position(|two| two == b"\r\n");
        let size = line.and_then(|line| usize::from_str_radix(std::str::from_utf8(&read[..line]).ok()?, 16).ok());
        if let Some((line, size)) = line.zip(size).filter(|(line, size)| read.len() >= line + size + 4) {
            content.extend_from_slice(&read[line + 2..][..size]);
            read.drain(..line + size + 4);
            if size == 0 {
                return Some(content);
            }
        } else if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

type RawHead = (String, Vec<(String, Vec<u8>)>, Vec<u8>);

/// First line, headers, and what came after the head.
async fn read_head(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<RawHead> {
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    };
    let rest = bytes.split_off(end + 4);
    let head = std::mem::take(bytes);
    let mut lines = head[..end].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = String::from_utf8_lossy(lines.next()?).into_owned();
    let headers = lines.filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
        Some((name, line[colon + 1..].trim_ascii().to_vec()))
    });
    Some((first, headers.collect(), rest))
}

/// A scrape in the text format.
#[derive(Debug, Clone)]
pub struct Samples(pub String);

impl Samples {
    /// The sum of the samples of this name that have all of these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// How many samples of this name have all of these labels.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> usize {
        self.matching(name, labels).count()
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &str> {
        self.0.lines().filter(move |line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|(label, value)| {
                    [format!("{{{label}=\"{value}\""), format!(",{label}=\"{value}\"")].iter().any(|pair| line.contains(pair))
                })
        })
    }
}

/// A request's head as an [`Upstream`] got it. Names are in lower case, values as they came.
#[derive(Debug, Clone)]
pub struct Head {
    /// `GET /service2 HTTP/1.1`
    pub line: String,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// Every value of a header, as text.
    pub fn all(&self, name: &str) -> Vec<String> {
        let values = self.headers.iter().filter(|(known, _)| known == name);
        values.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The value of a header that may be there once; fails the test when it is there more often.
    pub fn one(&self, name: &str) -> Option<String> {
        let mut values = self.all(name);
        assert!(values.len() <= 1, "{name}: {values:?}");
        values.pop()
    }

    /// The names that are there, sorted, each once.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.headers.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// What a scripted [`Upstream`] does next on a connection.
#[derive(Debug, Clone)]
pub enum Act {
    /// Writes these bytes.
    Send(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Holds the connection open and never says anything again.
    Hang,
    /// Closes the connection.
    Close,
}

/// An answer's bytes, whole.
pub fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A next hop that does what its script says for each request. It ends with the value.
#[derive(Debug)]
pub struct Upstream {
    pub addr: SocketAddr,
    heads: Arc<Mutex<Vec<Head>>>,
    task: JoinHandle<()>,
}

impl Upstream {
    /// `script` is asked once for each request; after its last act the connection waits for the next request.
    pub async fn start(script: impl Fn(&Head) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", script).await
    }

    /// The same at a given address.
    pub async fn start_at(addr: &str, script: impl Fn(&Head) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (kept, script) = (heads.clone(), Arc::new(script));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (kept, script) = (kept.clone(), script.clone());
                connections.spawn(async move {
                    let mut bytes = Vec::new();
                    while let Some((line, headers, rest)) = read_head(&mut stream, &mut bytes).await {
                        bytes = rest;
                        let head = Head { line, headers };
                        let acts = script(&head);
                        lock(&kept).push(head);
                        for act in acts {
                            match act {
                                Act::Send(bytes) => {
                                    if stream.write_all(&bytes).await.is_err() {
                                        return;
                                    }
                                }
                                Act::Pause(pause) => tokio::time::sleep(pause).await,
                                Act::Hang => std::future::pending().await,
                                Act::Close => return,
                            }
                        }
                    }
                });
            }
        });
        Self { addr, heads, task }
    }

    /// One that always answers the same.
    pub async fn answering(bytes: Vec<u8>) -> Self {
        Self::start(move |_| vec![Act::Send(bytes.clone())]).await
    }

    /// Its URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The requests so far.
    pub fn heads(&self) -> Vec<Head> {
        lock(&self.heads).clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A span as a collector got it, in either format.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// As it was written: 32 hex digits, in Zipkin 16 for a 64-bit id.
    pub trace_id: String,
    pub id: String,
    pub parent: Option<String>,
    /// `SERVER` or `CLIENT`.
    pub kind: String,
    pub name: String,
    /// `localEndpoint.serviceName`, or `service.name` of the resource.
    pub service: String,
    /// Tags; in OTLP the attributes of the span and of its resource.
    pub tags: BTreeMap<String, String>,
    /// Microseconds since the epoch.
    pub start_us: u64,
    pub duration_us: u64,
    /// Zipkin's debug flag.
    pub debug: bool,
    /// OTLP's status is an error, or Zipkin's tag `error` is there.
    pub failed: bool,
    /// OTLP: the attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// OTLP: the attributes of the span alone.
    pub attributes: BTreeMap<String, String>,
    /// OTLP's flags.
    pub flags: u32,
    /// OTLP's `trace_state`.
    pub trace_state: String,
}

/// How a [`Sink`] treats what is sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Keeps the spans and answers 202.
    Takes,
    /// Answers with this status and keeps nothing.
    Answers(u16),
    /// Answers with this status and `Retry-After`, and keeps nothing.
    Postpones(u16, u64),
    /// Never answers and keeps nothing.
    Hangs,
    /// Answers 302 to a login page at this address.
    Redirects(SocketAddr),
    /// Keeps all but the first so many spans of each request and says why: OTLP's partial success.
    Rejects(usize, &'static str),
    /// Keeps nothing, answers 200 and closes the connection in the middle of the answer.
    Dies,
    /// Keeps the spans, and answers with 70,000 bytes; over gRPC as a message that is said to have so many.
    Overflows(u32),
    /// gRPC: answers this code, with these details (base64 of a `google.rpc.Status`), and keeps nothing.
    Fails(u16, Option<&'static str>),
    /// The same, in trailers.
    FailsLate(u16, Option<&'static str>),
}

#[derive(Debug)]
struct Collected {
    mood: Mood,
    spans: Vec<Span>,
    metrics: Vec<OtlpMetric>,
    records: Vec<LogRecord>,
    requests: Vec<HeaderMap>,
    bodies: Vec<Bytes>,
}

/// A collector. It ends with the value.
#[derive(Debug)]
pub struct Sink {
    pub addr: SocketAddr,
    env: Vec<(&'static str, String)>,
    collected: Arc<Mutex<Collected>>,
    task: JoinHandle<()>,
}

async fn any_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

impl Sink {
    /// One that speaks Zipkin v2 JSON.
    pub async fn zipkin() -> Self {
        Self::on(any_port().await, "zipkin", None)
    }

    /// One that speaks OTLP over HTTP, protobuf.
    pub async fn otlp() -> Self {
        Self::on(any_port().await, "otlp", None)
    }

    /// One that speaks OTLP over gRPC.
    pub async fn grpc() -> Self {
        Self::on(any_port().await, "grpc", None)
    }

    /// One of any kind.
    pub async fn any(exporter: &'static str) -> Self {
        Self::on(any_port().await, exporter, None)
    }

    /// One of any kind at a given address: for a collector that comes late or comes back.
    pub async fn start(addr: SocketAddr, exporter: &'static str) -> Self {
        Self::on(TcpListener::bind(addr).await.unwrap(), exporter, None)
    }

    /// One that speaks OTLP over TLS, `otlp` or `grpc`.
    pub async fn tls(exporter: &'static str, mut config: rustls::ServerConfig) -> Self {
        if exporter == "grpc" {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        Self::on(any_port().await, exporter, Some(Arc::new(config).into()))
    }

    fn on(listener: TcpListener, exporter: &'static str, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let addr = listener.local_addr().unwrap();
        let collected = Arc::new(Mutex::new(Collected {
            mood: Mood::Takes,
            spans: Vec::new(),
            metrics: Vec::new(),
            records: Vec::new(),
            requests: Vec::new(),
            bodies: Vec::new(),
        }));
        let router = Router::new()
            .route("/api/v2/spans", post(take))
            .route("/v1/traces", post(take))
            .route("/v1/metrics", post(take))
            .route("/v1/logs", post(take))
            .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", post(take))
            .route("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", post(take))
            .route("/opentelemetry.proto.collector.logs.v1.LogsService/Export", post(take))
            .route("/api/v2/services", get(services))
            .route("/api/v2/trace/{id}", get(trace_by_id))
            .route("/api/v2/traces", get(traces_by_tag))
            .with_state(collected.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (router, tls) = (router.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, router, exporter).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            serve(stream, router, exporter).await;
                        }
                    }
                });
            }
        });
        Self { addr, env: export_env(exporter, addr), collected, task }
    }

    /// The variables that make a hop report to this collector, every 20 ms.
    pub fn env(&self) -> Vec<(&str, &str)> {
        self.env.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// From now on.
    pub fn set(&self, mood: Mood) {
        lock(&self.collected).mood = mood;
    }

    /// The spans so far, in the order of their start.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = lock(&self.collected).spans.clone();
        spans.sort_by_key(|span| span.start_us);
        spans
    }

    /// The metrics of every OTLP request so far, each as often as it came.
    pub fn metrics(&self) -> Vec<OtlpMetric> {
        lock(&self.collected).metrics.clone()
    }

    /// The log records so far.
    pub fn records(&self) -> Vec<LogRecord> {
        lock(&self.collected).records.clone()
    }

    /// The headers of every request so far, also of those that were not taken.
    pub fn requests(&self) -> Vec<HeaderMap> {
        lock(&self.collected).requests.clone()
    }

    /// The bodies of every request so far, as far as they are JSON.
    pub fn bodies(&self) -> Vec<Value> {
        lock(&self.collected).bodies.iter().filter_map(|body| serde_json::from_slice(body).ok()).collect()
    }

    /// Waits until `count` spans of a trace are there; there may not be more.
    pub async fn trace(&self, trace_id: &str, count: usize) -> Vec<Span> {
        let of_trace = || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace_id == trace_id);
            spans
        };
        let spans = eventually(&format!("{count} spans of trace {trace_id} arrive"), || async {
            Some(of_trace()).filter(|spans| spans.len() >= count)
        })
        .await;
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection of a collector.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, exporter: &str) {
    let (io, service) = (TokioIo::new(stream), TowerToHyperService::new(router));
    if exporter == "grpc" {
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        _ = http.serve_connection(io, service).await;
    } else {
        _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

/// The variables that make a hop report to `addr`, whether somebody listens there or not.
pub fn export_env(exporter: &'static str, addr: SocketAddr) -> Vec<(&'static str, String)> {
    let endpoint = match exporter {
        "zipkin" => ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", format!("http://{addr}/api/v2/spans")),
        _ => ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{addr}")),
    };
    let protocol = if exporter == "grpc" { "grpc" } else { "http/protobuf" };
    let exporter = if exporter == "grpc" { "otlp" } else { exporter };
    let names =
        [("OTEL_TRACES_EXPORTER", exporter), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
    [endpoint].into_iter().chain(names.map(|(name, value)| (name, value.to_owned()))).collect()
}

async fn take(
    State(collected): State<Arc<Mutex<Collected>>>,
    path: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    let mood = {
        let mut collected = lock(&collected);
        collected.requests.push(headers.clone());
        collected.bodies.push(body.clone());
        collected.mood
    };
    let status = |status| StatusCode::from_u16(status).unwrap();
    let declared = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_grpc = declared == "application/grpc";
    let (mut rejected, mut message) = (0, "");
    match mood {
        Mood::Takes | Mood::Overflows(_) => {}
        Mood::Answers(code) => return status(code).into_response(),
        Mood::Postpones(code, seconds) => return (status(code), [("retry-after", seconds.to_string())]).into_response(),
        Mood::Hangs => std::future::pending().await,
        Mood::Redirects(to) => {
            return (status(302), [("location", format!("http://u:s3cret@{to}/login?code=s3cret"))]).into_response();
        }
        Mood::Rejects(spans, why) => (rejected, message) = (spans, why),
        Mood::Fails(code, details) if is_grpc => return grpc::failed(code, "no room", details, false),
        Mood::FailsLate(code, details) if is_grpc => return grpc::failed(code, "no room", details, true),
        Mood::Fails(..) | Mood::FailsLate(..) => return status(503).into_response(),
        Mood::Dies if is_grpc => return grpc::dies(),
        Mood::Dies => {
            let broken = http_body_util::StreamBody::new(futures_util::stream::iter([
                Ok(hyper::body::Frame::data(Bytes::from_static(b"\n"))),
                Err(std::io::Error::other("dies")),
            ]));
            return axum::body::Body::new(broken).into_response();
        }
    }
    let payload = match declared {
        "application/grpc" => grpc::message(&headers, &body),
        "application/json" | "application/x-protobuf" => Some(body.to_vec()),
        _ => None,
    };
    let taken = payload.and_then(|message| {
        let mut collected = lock(&collected);
        match path.path().to_ascii_lowercase() {
            path if path.contains("metrics") => otlp_metrics(&message).map(|metrics| {
                // A data point each, so that they can be rejected one by one.
                rejected = rejected.min(metrics.len());
                collected.metrics.extend(metrics.into_iter().skip(rejected));
            }),
            path if path.contains("logs") => otlp_records(&message).map(|records| {
                rejected = rejected.min(records.len());
                collected.records.extend(records.into_iter().skip(rejected));
            }),
            _ => if declared == "application/json" { zipkin_spans(&message) } else { otlp_spans(&message) }.map(|spans| {
                rejected = rejected.min(spans.len());
                collected.spans.extend(spans.into_iter().skip(rejected));
            }),
        }
    });
    if taken.is_none() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    if let Mood::Overflows(length) = mood {
        let large = vec![0x1a; 70_000];
        return if is_grpc { grpc::announced(length, &large) } else { large.into_response() };
    }
    if declared == "application/json" {
        StatusCode::ACCEPTED.into_response()
    } else if is_grpc {
        grpc::ok(&otlp_answer(rejected, message))
    } else {
        otlp_answer(rejected, message).into_response()
    }
}

/// The metrics of a request, one for each of their data points.
fn otlp_metrics(body: &[u8]) -> Option<Vec<OtlpMetric>> {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    use prost::Message as _;

    let request = ExportMetricsServiceRequest::decode(body).ok()?;
    let mut points = Vec::new();
    for metric in request.resource_metrics.into_iter().flat_map(|of| of.scope_metrics).flat_map(|of| of.metrics) {
        let data: Vec<Data> = match metric.data.clone()? {
            Data::Sum(sum) => {
                let one =
                    |point| Data::Sum(opentelemetry_proto::tonic::metrics::v1::Sum { data_points: vec![point], ..sum.clone() });
                sum.data_points.clone().into_iter().map(one).collect()
            }
            Data::Gauge(gauge) => {
                let one = |point| Data::Gauge(opentelemetry_proto::tonic::metrics::v1::Gauge { data_points: vec![point] });
                gauge.data_points.into_iter().map(one).collect()
            }
            Data::Histogram(histogram) => {
                let one = |point| {
                    Data::Histogram(opentelemetry_proto::tonic::metrics::v1::Histogram {
                        data_points: vec![point],
                        ..histogram.clone()
                    })
                };
                histogram.data_points.clone().into_iter().map(one).collect()
            }
            other => panic!("{other:?}"),
        };
        points.extend(data.into_iter().map(|data| OtlpMetric { data: Some(data), ..metric.clone() }));
    }
    Some(points)
}

fn otlp_records(body: &[u8]) -> Option<Vec<LogRecord>> {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use prost::Message as _;

    let request = ExportLogsServiceRequest::decode(body).ok()?;
    let scopes = request.resource_logs.into_iter().flat_map(|of| of.scope_logs);
    Some(scopes.flat_map(|of| of.log_records).collect())
}

fn otlp_answer(rejected: usize, message: &str) -> Vec<u8> {
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
    use prost::Message as _;

    let partial = ExportTracePartialSuccess { rejected_spans: rejected as i64, error_message: message.to_owned() };
    let partial_success = Some(partial).filter(|_| rejected > 0 || !message.is_empty());
    ExportTraceServiceResponse { partial_success }.encode_to_vec()
}

type OfSink = State<Arc<Mutex<Collected>>>;

/// Zipkin's API, as far as `httpserver trace` asks it: the services,
async fn services(State(collected): OfSink) -> axum::Json<BTreeSet<String>> {
    axum::Json(lock(&collected).spans.iter().map(|span| span.service.clone()).collect())
}

/// the spans of a trace,
async fn trace_by_id(State(collected): OfSink, Path(id): Path<String>) -> (StatusCode, axum::Json<Vec<Value>>) {
    let spans: Vec<_> = lock(&collected).spans.iter().filter(|span| same_trace(&span.trace_id, &id)).map(as_zipkin).collect();
    (if spans.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK }, axum::Json(spans))
}

/// and the traces in which a span has a tag with a value.
async fn traces_by_tag(State(collected): OfSink, Query(query): Query<BTreeMap<String, String>>) -> axum::Json<Vec<Vec<Value>>> {
    let tag = query.get("annotationQuery").and_then(|query| query.split_once('='));
    let spans = &lock(&collected).spans;
    let has_tag = |span: &&Span| tag.is_some_and(|(name, value)| span.tags.get(name).is_some_and(|found| found == value));
    let ids: BTreeSet<_> = spans.iter().filter(has_tag).map(|span| &span.trace_id).collect();
    let trace = |id: &String| spans.iter().filter(|span| same_trace(&span.trace_id, id)).map(as_zipkin).collect();
    axum::Json(ids.into_iter().map(trace).collect())
}

/// An id of 64 bits is one of 128 bits with zeros in front.
fn same_trace(one: &str, other: &str) -> bool {
    format!("{one:0>32}") == format!("{other:0>32}")
}

fn as_zipkin(span: &Span) -> Value {
    let mut json = serde_json::json!({
        "traceId": span.trace_id, "id": span.id, "name": span.name, "localEndpoint": { "serviceName": span.service },
        "timestamp": span.start_us, "duration": span.duration_us, "tags": span.tags,
    });
    if let Some(parent) = &span.parent {
        json["parentId"] = parent.as_str().into();
    }
    if ["SERVER", "CLIENT"].contains(&span.kind.as_str()) {
        json["kind"] = span.kind.as_str().into();
    }
    json
}

fn zipkin_spans(body: &[u8]) -> Option<Vec<Span>> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let span = |span: &Value| {
        let text = |name: &str| span[name].as_str().map(str::to_owned);
        let tags = span["tags"].as_object()?.iter();
        let tags =
            tags.map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect::<Option<BTreeMap<_, _>>>()?;
        Some(Span {
            trace_id: text("traceId")?,
            id: text("id")?,
            parent: text("parentId"),
            kind: text("kind")?,
            name: text("name")?,
            service: span["localEndpoint"]["serviceName"].as_str()?.to_owned(),
            start_us: span["timestamp"].as_u64()?,
            duration_us: span["duration"].as_u64()?,
            debug: span["debug"].as_bool().unwrap_or(false),
            failed: tags.contains_key("error"),
            tags,
            resource: BTreeMap::new(),
            attributes: BTreeMap::new(),
            flags: 0,
            trace_state: String::new(),
        })
    };
    json.as_array()?.iter().map(span).collect()
}

fn otlp_spans(body: &[u8]) -> Option<Vec<Span>> {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
    use prost::Message as _;

    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let pair = |pair: &KeyValue| {
        let value = match pair.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        Some((pair.key.clone(), value))
    };
    let request = ExportTraceServiceRequest::decode(body).ok()?;
    let mut spans = Vec::new();
    for of_resource in &request.resource_spans {
        let resource: BTreeMap<_, _> = of_resource.resource.as_ref()?.attributes.iter().filter_map(pair).collect();
        for span in of_resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            spans.push(Span {
                trace_id: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
                kind: match span.kind {
                    2 => "SERVER".to_owned(),
                    3 => "CLIENT".to_owned(),
                    other => other.to_string(),
                },
                name: span.name.clone(),
                service: resource.get("service.name")?.clone(),
                tags: resource.clone().into_iter().chain(span.attributes.iter().filter_map(pair)).collect(),
                start_us: span.start_time_unix_nano / 1000,
                duration_us: (span.end_time_unix_nano - span.start_time_unix_nano) / 1000,
                debug: false,
                failed: span.status.as_ref().is_some_and(|status| status.code == 2),
                resource: resource.clone(),
                attributes: span.attributes.iter().filter_map(pair).collect(),
                flags: span.flags,
                trace_state: span.trace_state.clone(),
            });
        }
    }
    Some(spans)
}
