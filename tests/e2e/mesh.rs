//! A gateway, hops and their sidecars (`istio/local`), and a collector for the spans of all of them. Everything ends with the value.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::common::ports::free_addr;
use crate::common::{Hop, Sink, binary, eventually, run_command};

/// The host that the gateway has routes for.
pub(crate) const HOST: &str = "service1.cncamp.io";

/// A folder of this test's own, for logs and configurations.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The certificates that `scripts/certificate.sh` makes, once for all tests.
pub(crate) fn certificates() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = folder("certs");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/certificate.sh");
        let made = Command::new(script).args(["--local", "--dir"]).arg(&folder).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        folder
    })
}

/// A running Envoy.
#[derive(Debug)]
pub(crate) struct Envoy {
    child: Child,
    log: PathBuf,
}

impl Envoy {
    /// Starts one with the configuration in this file; its log is beside it.
    pub(crate) fn start(config: &Path) -> Self {
        let log = config.with_extension("log");
        let out = File::create(&log).unwrap();
        let child = Command::new(std::env::var_os("ENVOY").expect("ENVOY names an Envoy"))
            .arg("-c")
            .arg(config)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "warn", "--drain-time-s", "1"])
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .expect("Envoy starts");
        Self { child, log }
    }

    /// Nothing to wait for when what should answer is gone.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            panic!("{} ended with {status}: {}", self.log.display(), &log[log.len().saturating_sub(2000)..]);
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The app of one hop, with what it takes to start it again.
#[derive(Debug)]
struct App {
    hop: Hop,
    service: String,
    env: Vec<(String, String)>,
}

/// What a chain is made of, beyond its three hops.
#[derive(Debug, Default)]
pub(crate) struct ChainOptions {
    /// Of every app: `otlp` or `none`.
    pub(crate) exporter: &'static str,
    /// Headers that an app with a next hop does not forward.
    pub(crate) drop_headers: &'static str,
    /// Further copies of service2.
    pub(crate) more_copies: usize,
    /// A gray service1 and service3.
    pub(crate) gray: bool,
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// service1 calls over gRPC, and service2 over HTTP/2.
    pub(crate) mixed: bool,
}

#[derive(Debug)]
pub(crate) struct Mesh {
    tracer: &'static str,
    folder: PathBuf,
    sink: Sink,
    envoys: Vec<Envoy>,
    apps: BTreeMap<String, App>,
    pub(crate) https: SocketAddr,
    pub(crate) http: SocketAddr,
}

impl Mesh {
    /// `tracer`: `otel`, `zipkin` or `zipkin-b3`, as `istio/local/render.sh` names them.
    pub(crate) async fn new(name: &str, tracer: &'static str) -> Self {
        Self {
            tracer,
            folder: folder(name),
            sink: Sink::otlp().await,
            envoys: Vec::new(),
            apps: BTreeMap::new(),
            https: free_addr(),
            http: free_addr(),
        }
    }

    fn envoy(&mut self, file: &str, template: &str, values: &[(&str, String)]) {
        let config = self.folder.join(format!("{file}.yaml"));
        let render = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/istio/local/render.sh"))
            .args([template, &format!("TRACER={}", self.tracer), &format!("COLLECTOR={}", self.sink.addr)])
            .args(values.iter().map(|(key, value)| format!("{key}={value}")))
            .output()
            .unwrap();
        assert!(render.status.success(), "{}", String::from_utf8_lossy(&render.stderr));
        std::fs::write(&config, render.stdout).unwrap();
        self.envoys.push(Envoy::start(&config));
    }

    fn assert_alive(&mut self) {
        self.envoys.iter_mut().for_each(Envoy::assert_alive);
    }

    /// Starts the app of one hop at `addr`, and returns when it is ready.
    pub(crate) async fn hop(&mut self, key: &str, service: &str, addr: SocketAddr, env: &[(&str, String)]) {
        let mut env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        env.push(("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://{}", self.sink.addr)));
        env.push(("ADDR".to_owned(), addr.to_string()));
        self.start(key, service.to_owned(), env).await;
    }

    async fn start(&mut self, key: &str, service: String, env: Vec<(String, String)>) {
        let addr = env.iter().find(|(name, _)| name == "ADDR").unwrap().1.clone();
        let pairs: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let hop = Hop::start(&["--name", &service, "--addr", &addr], &pairs);
        eventually(&format!("{key} is ready"), || async { (hop.get("/readyz", &[]).await.status == 200).then_some(()) }).await;
        self.apps.insert(key.to_owned(), App { hop, service, env });
    }

    /// As Kubernetes does it: SIGTERM, the end, a new process.
    pub(crate) async fn restart(&mut self, key: &str) {
        let mut app = self.apps.remove(key).unwrap();
        app.hop.signal("TERM");
        let status = tokio::task::block_in_place(|| app.hop.ended());
        assert_eq!(status.code(), Some(0), "{key}");
        self.start(key, app.service, app.env).await;
    }

    /// How many requests of the chain the app has answered since its start.
    pub(crate) fn calls(&self, key: &str) -> usize {
        self.apps[key].hop.stdout().iter().filter(|line| line.contains("\"GET /service")).count()
    }

    pub(crate) fn gateway(&mut self, service1: String, gray: Option<String>) {
        let mut values = vec![
            ("NAME", "istio-ingressgateway".to_owned()),
            ("SERVICE1", service1),
            ("HTTPS_PORT", self.https.port().to_string()),
            ("HTTP_PORT", self.http.port().to_string()),
            ("PUBLIC_PORT", self.https.port().to_string()),
            ("CERTS", certificates().display().to_string()),
        ];
        values.extend(gray.map(|gray| ("SERVICE1_GRAY", gray)));
        self.envoy("istio-ingressgateway", "gateway", &values);
    }

    /// The app of hop `number` with its sidecar, which calls `next`; returns where the sidecar listens.
    pub(crate) async fn pod(
        &mut self,
        key: &str,
        number: usize,
        next: Option<(&str, Option<&str>)>,
        options: &ChainOptions,
    ) -> String {
        let (service, app, inbound, outbound) = (format!("service{number}"), free_addr(), free_addr(), free_addr());
        let mut values = vec![("NAME", service.clone()), ("APP", app.to_string()), ("INBOUND_PORT", inbound.port().to_string())];
        let mut env = vec![("OTEL_TRACES_EXPORTER", options.exporter.to_owned()), ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned())];
        env.extend(options.env.iter().map(|(name, value)| (*name, (*value).to_owned())));
        if self.tracer == "zipkin-b3" {
            env.push(("OTEL_PROPAGATORS", "b3multi,b3,tracecontext,baggage".to_owned()));
        }
        if key.ends_with("gray") {
            env.push(("LANE", "gray".to_owned()));
        }
        if let Some((next, next_gray)) = next {
            let scheme = ["http", "grpc", "h2c"][if options.mixed { number } else { 0 }];
            env.push(("UPSTREAM", format!("{scheme}://{outbound}/service{}", number + 1)));
            env.push(("UPSTREAM_TIMEOUT", format!("{}s", 5 - number)));
            if !options.drop_headers.is_empty() {
                env.push(("DROP_HEADERS", options.drop_headers.to_owned()));
            }
            values.extend([("OUTBOUND_PORT", outbound.port().to_string()), ("NEXT", next.to_owned())]);
            values.extend(next_gray.map(|gray| ("NEXT_GRAY", gray.to_owned())));
        }
        self.envoy(key, "sidecar", &values);
        self.hop(key, &service, app, &env).await;
        inbound.to_string()
    }

    /// gateway, sidecar, service1, sidecar, service2, sidecar, service3; returns when the chain answers.
    pub(crate) async fn chain(&mut self, options: ChainOptions) {
        let third = self.pod("service3", 3, None, &options).await;
        let third_gray = if options.gray { Some(self.pod("service3-gray", 3, None, &options).await) } else { None };
        let mut second = Vec::new();
        for copy in 0..=options.more_copies {
            second.push(self.pod(&format!("service2-{copy}"), 2, Some((&third, third_gray.as_deref())), &options).await);
        }
        let second = second.join(",");
        let first = self.pod("service1", 1, Some((&second, None)), &options).await;
        let first_gray =
            if options.gray { Some(self.pod("service1-gray", 1, Some((&second, None)), &options).await) } else { None };
        self.gateway(first, first_gray);
        let client = self.client(HOST);
        self.until("the chain answers", || async {
            client.try_get("/hello/service1", &[]).await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Waits for the condition; fails at once when an Envoy ended. A dozen Envoys that start at once on two busy cores take their time.
    pub(crate) async fn until<F: Future<Output = bool>>(&mut self, what: &str, mut holds: impl FnMut() -> F) {
        let begun = Instant::now();
        while !holds().await {
            self.assert_alive();
            assert!(begun.elapsed() < Duration::from_secs(120), "in 120 s it did not happen that {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The URL of what has every span.
    pub(crate) fn backend(&self) -> String {
        format!("http://{}", self.sink.addr)
    }

    pub(crate) fn client(&self, host: &str) -> Client {
        Client::new(host, self.https)
    }

    /// One request, and what `httpserver trace` says of its spans.
    pub(crate) async fn trace(&self, spans: usize, traces: usize, caller: Option<(&str, &str)>) -> String {
        let traceparent = caller.map(|(trace, span)| format!("00-{trace}-{span}-01"));
        let headers: Vec<_> = traceparent.iter().map(|value| ("traceparent", value.as_str())).collect();
        let reply = self.client(HOST).chain("/hello/service1", &headers).await;
        let file = self.folder.join("reply.json");
        std::fs::write(&file, reply.to_string()).unwrap();
        let (store, spans, traces) = (self.backend(), spans.to_string(), traces.to_string());
        let mut args =
            vec!["trace", file.to_str().unwrap(), "--traces", &store, "--settle", "3s", "--traces-wait", "60s", "--sidecars"];
        args.extend(["--expect-spans", &spans, "--expect-services", "4", "--expect-traces", &traces]);
        // Proxies that read B3 alone begin a trace of their own.
        if let Some((trace, span)) = caller.filter(|_| self.tracer != "zipkin-b3") {
            args.extend(["--trace-id", trace, "--caller", span]);
        }
        let command = binary(&args, &[]);
        let ran = tokio::task::spawn_blocking(move || run_command(command)).await.unwrap();
        assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
        ran.stdout.trim().to_owned()
    }
}

/// An answer of the gateway.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

/// HTTPS to the gateway, by a name that its certificate has; connections are kept.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    fn new(host: &str, gateway: SocketAddr) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificates().join("ca.crt")).unwrap()).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .resolve(host, gateway)
            .tls_backend_preconfigured(tls)
            .build()
            .unwrap();
        Self { http, base: format!("https://{host}:{}", gateway.port()) }
    }

    pub(crate) async fn try_get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, reqwest::Error> {
        let request = self.http.get(format!("{}{path}", self.base));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.text().await? })
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_get(path, headers).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// The reply tree.
    pub(crate) async fn chain(&self, path: &str, headers: &[(&str, &str)]) -> Value {
        let headers: Vec<_> = [("accept", "application/json")].iter().chain(headers).copied().collect();
        let answer = self.get(path, &headers).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }
}

/// The lanes of the hops of a reply: `gray base gray`.
pub(crate) fn lanes(reply: &Value) -> String {
    let mut lanes = reply["lane"].as_str().unwrap().to_owned();
    for call in reply["upstreams"].as_array().unwrap().iter().filter(|call| !call["reply"].is_null()) {
        lanes = format!("{lanes} {}", self::lanes(&call["reply"]));
    }
    lanes
}
