//! The chain reports to a real Zipkin and a real Jaeger 2, and each returns one whole trace for every request. `scripts/e2e.sh zipkin jaeger`
//! gets the servers and names them in `ZIPKIN_JAR` and `JAEGER_BIN`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::claims::{Claims, same};
use crate::common::ports::free_addr;
use crate::common::{Hop, Process, binary, chain, eventually};
use crate::mesh::folder;

/// How long a condition may take. It passes only when something is wrong: a JVM alone starts in five seconds, and beside two compilers on two
/// cores in more than a minute.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server that is no hop, and the log of it that a failed test leaves behind.
pub(crate) struct Backend {
    process: Process,
    log: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Backend {
    /// Starts it, with a folder of its own below target/tmp/e2e and this process's environment.
    pub(crate) fn start(name: &str, command: impl FnOnce(&Path) -> Command) -> Self {
        let folder = folder(name);
        let log = folder.join("log");
        let out = std::fs::File::create(&log).unwrap();
        let mut command = command(&folder);
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Self { process: Process::start(command), log, folder }
    }

    /// What it has written so far.
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What stands between these two in its log, as soon as it does: where it listens.
    pub(crate) async fn says(&mut self, before: &str, after: char) -> String {
        self.until(before, async |log: &str| Some(log.split_once(before)?.1.split_once(after)?.0.to_owned())).await
    }

    /// Waits for an answer of 200.
    pub(crate) async fn ready(&mut self, url: &str) {
        self.until(url, async |_: &str| try_get(url).await.ok()).await;
    }

    async fn until<T>(&mut self, what: &str, probe: impl AsyncFn(&str) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            // Asked before the log is read: whatever it wrote before its end is there by then.
            let running = self.process.is_running();
            let log = self.log();
            if let Some(found) = probe(&log).await {
                return found;
            }
            assert!(running && begun.elapsed() < PATIENCE, "not ready ({what}): {}", &log[log.len().saturating_sub(4000)..]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn try_get(url: &str) -> Result<String, String> {
    // reqwest has none of its own; a second call is refused, and the first one counts.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
    let answer =
        client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(|error| format!("{error:?}"))?;
    answer.text().await.map_err(|error| format!("{error:?}"))
}

pub(crate) async fn json(url: &str) -> Result<Value, String> {
    try_get(url).await.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()))
}

/// Polls until it is that, or panics with what it was at last.
pub(crate) async fn becomes(want: &str, got: impl AsyncFn() -> Result<String, String>) -> String {
    let begun = Instant::now();
    loop {
        let last = got().await;
        if last.as_deref() == Ok(want) {
            return want.to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "wanted {want}, got {last:?} after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The texts of an array of JSON, sorted, in one line.
fn sorted(array: &Value, text: impl Fn(&Value) -> Option<String>) -> Result<String, String> {
    let mut texts: Vec<_> =
        array.as_array().into_iter().flatten().map(|one| text(one).ok_or(one.to_string())).collect::<Result<_, _>>()?;
    texts.sort();
    Ok(texts.join(" "))
}

fn link(link: &Value) -> Option<String> {
    Some(format!("{}>{}={}", link["parent"].as_str()?, link["child"].as_str()?, link["callCount"]))
}

fn epoch_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

/// Hex digits.
pub(crate) fn new_id(bytes: usize) -> String {
    let mut random = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    random[..bytes].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Three hops that end as soon as they are asked to.
pub(crate) fn hops(env: &[(&str, &str)]) -> Vec<Hop> {
    chain(3, &["--drain-delay", "0s", "--upstream-timeout", "30s"], env)
}

/// One request through the front.
pub(crate) async fn send(hops: &[Hop], headers: &[(&str, &str)]) -> Value {
    let (status, reply) = hops[0].json("/service1", headers).await;
    assert_eq!(status, 200, "{reply}");
    reply
}

/// SIGTERM, the front first: whoever is called must outlive the caller. Returns the exit codes.
pub(crate) fn stop(hops: &mut [Hop]) -> String {
    let codes = hops.iter_mut().map(|hop| {
        hop.signal("TERM");
        hop.ended().code().map_or_else(|| "a signal".to_owned(), |code| code.to_string())
    });
    codes.collect::<Vec<_>>().join(" ")
}

/// The three hops answered 200 one below the other, each sampled and continuing the one trace, which `header` brought to each of them.
/// Returns the trace id.
fn one_chain<'a>(front: &'a Value, header: Option<&str>) -> &'a str {
    let trace = front["trace_id"].as_str().unwrap();
    let mut hop = front;
    for number in 1..=3 {
        let told = [&hop["service"], &hop["status"], &hop["sampled"], &hop["propagation"], &hop["trace_id"]];
        let want = [format!("service{number}").into(), 200.into(), true.into(), Value::from("continue"), trace.into()];
        assert!(told.into_iter().eq(&want), "{told:?}, not {want:?}");
        let values = header.and_then(|header| hop["received"].get(header)).and_then(Value::as_array);
        let short = trace.strip_prefix("0000000000000000").unwrap_or(trace);
        let brought = values.is_some_and(|values| values.len() == 1 && values[0].as_str().unwrap().contains(short));
        assert!(brought || header.is_none(), "{header:?}: {hop}");
        let calls = hop["upstreams"].as_array().unwrap();
        assert_eq!(calls.len(), usize::from(number < 3), "{hop}");
        if let Some(call) = calls.first() {
            assert!(call["status"] == 200 && call["error"].is_null(), "{call}");
            hop = &call["reply"];
        }
    }
    trace
}

/// What `httpserver` prints with exit code 0; panics with the report otherwise. Its own options bound it.
async fn product(mut command: Command) -> String {
    let ran = tokio::task::spawn_blocking(move || command.output().expect("the binary starts")).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{}: {out}{err}", ran.status);
    out.trim().to_owned()
}

/// A chain and the API that is asked for its traces.
struct Observed<'a> {
    hops: Vec<Hop>,
    api: &'a str,
    folder: &'a Path,
}

impl Observed<'_> {
    fn trace(&self, reply: &Value, more: &[&str]) -> Command {
        let file = self.folder.join("reply.json");
        std::fs::write(&file, reply.to_string()).unwrap();
        let mut command = binary(&["trace", file.to_str().unwrap(), "--traces", self.api], &[]);
        command.args(more);
        command
    }

    /// The reply is [`one_chain`]'s, each hop's access line has its trace, and the trace is whole, as `httpserver trace` judges.
    async fn whole(&self, reply: &Value, header: Option<&str>, more: &[&str]) -> String {
        let trace = one_chain(reply, header);
        let words = format!("request={} trace={trace} ", reply["request_id"].as_str().unwrap());
        for hop in &self.hops {
            // The line is written when the answer has been; the caller may be here sooner.
            eventually(&words, || async { hop.stdout().iter().any(|line| line.contains(&words)).then_some(()) }).await;
            assert_eq!(hop.stdout().iter().filter(|line| line.contains(&words)).count(), 1, "{words}");
        }
        let mut command = self.trace(reply, more);
        command.args(["--traces-wait", "300s", "--expect-spans", "5", "--expect-services", "3"]);
        if let Some(caller) = reply["parent_span_id"].as_str() {
            command.args(["--caller", caller]);
        }
        product(command).await
    }

    /// Requests of every kind of caller, each one whole trace; then a last one, after which the hops end at once: its spans must arrive all
    /// the same. Six traces in all.
    async fn whole_traces(&mut self, claims: &mut Claims, name: &str) {
        type Headers = fn(&str, &str) -> Vec<(&'static str, String)>;
        let b3: Headers = |trace, span| {
            vec![("x-b3-traceid", trace.to_owned()), ("x-b3-spanid", span.to_owned()), ("x-b3-sampled", "1".to_owned())]
        };
        let callers: [(&str, &str, usize, Headers); 4] = [
            ("B3", "x-b3-traceid", 16, b3),
            ("B3 in one header", "b3", 16, |trace, span| vec![("b3", format!("{trace}-{span}-1"))]),
            ("B3 with a trace id of 64 bits", "x-b3-traceid", 8, b3),
            ("W3C", "traceparent", 16, |trace, span| vec![("traceparent", format!("00-{trace}-{span}-01"))]),
        ];
        let mut first = None;
        for (what, header, bytes, headers) in callers {
            let (trace, caller) = (new_id(bytes), new_id(8));
            let headers = headers(&trace, &caller);
            let reply = send(&self.hops, &headers.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>()).await;
            assert_eq!(reply["parent_span_id"], caller.as_str(), "{reply}");
            let whole = async { self.whole(&reply, Some(header), &["--trace-id", &trace]).await };
            claims.claim(format!("{name}, the caller sends {what}"), whole).await;
            first.get_or_insert((reply, header));
        }
        let reply = send(&self.hops, &[]).await;
        claims.claim(format!("{name}, the caller sends nothing"), self.whole(&reply, None, &[])).await;
        let reply = send(&self.hops, &[]).await;
        let codes = stop(&mut self.hops);
        claims.claim(format!("{name}: SIGTERM ends every hop with exit code 0"), async { same("0 0 0", codes.as_str()) }).await;
        claims.claim(format!("{name}: the spans of the last request before SIGTERM"), self.whole(&reply, None, &[])).await;
        let (reply, header) = first.unwrap();
        claims.claim(format!("{name}: nothing was added to the first trace since"), self.whole(&reply, Some(header), &[])).await;
    }

    /// A run of `httpserver check`, which reads the same API.
    fn check(&self, wait: &str) -> Command {
        let url = self.hops[0].url("/service1");
        binary(
            &[
                "check",
                &url,
                "--expect",
                "service1,service2,service3",
                "--traces",
                self.api,
                "--traces-wait",
                wait,
                "--count",
                "20",
            ],
            &[],
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Zipkin: scripts/e2e.sh zipkin"]
async fn zipkin() {
    let mut claims = Claims::default();
    let mut server = Backend::start("zipkin", |_| {
        let mut java = Command::new("java");
        // Port 0: it picks one and says which. The flags make a short-lived JVM start sooner.
        java.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"]);
        java.arg(std::env::var_os("ZIPKIN_JAR").expect("ZIPKIN_JAR names the server's jar"));
        java.args(["ip=127.0.0.1", "port=0", "protocols[0]=http"].map(|option| format!("--armeria.ports[0].{option}")));
        java.envs([("STORAGE_TYPE", "mem"), ("SELF_TRACING_ENABLED", "false")]);
        java
    });
    let address = server.says("Serving HTTP at /", ' ').await;
    let api = format!("http://127.0.0.1:{}", address.trim_end_matches('/').rsplit(':').next().unwrap());
    server.ready(&format!("{api}/health")).await;
    let endpoint = format!("{api}/api/v2/spans");
    let env = [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", endpoint.as_str())];

    let mut observed = Observed { hops: hops(&env), api: &api, folder: &server.folder };
    observed.whole_traces(&mut claims, "Zipkin").await;
    let services = async || sorted(&json(&format!("{api}/api/v2/services")).await?, |name| name.as_str().map(str::to_owned));
    claims.claim("Zipkin lists the three services, and no other", becomes("service1 service2 service3", services)).await;
    let links = async || sorted(&json(&format!("{api}/api/v2/dependencies?endTs={}", epoch_ms())).await?, link);
    claims.claim("Zipkin draws who calls whom", becomes("service1>service2=6 service2>service3=6", links)).await;

    // Whoever looks for a fault reads the same Zipkin. Exit code 0: whole, every hop's spans there, parents right, all sampled.
    observed.hops = hops(&env);
    let healthy = async { verdict(&product(observed.check("300s")).await) };
    claims.claim("httpserver check reads a healthy chain's trace from Zipkin", healthy).await;
    let text = "on a terminal httpserver check shows its progress, and takes it away again";
    claims.claim(text, progress(&observed.hops[0].url("/service1"), &server.folder)).await;
    let nothing_beside = async {
        let mut command = observed.check("5s");
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(ran.status.success(), "{}", ran.status);
        same("", std::str::from_utf8(&ran.stderr).unwrap())
    };
    claims.claim("elsewhere it writes nothing beside the report", nothing_beside).await;

    // A check that finds nothing wrong in a chain that is wrong would be worth nothing.
    let lost = ("DROP_HEADERS", "traceparent,x-b3-traceid,x-b3-spanid,x-b3-parentspanid,x-b3-sampled");
    observed.hops = hops(&[&env[..], &[lost]].concat());
    let found_out = async {
        let reply = send(&observed.hops, &[]).await;
        assert_ne!(reply["trace_id"], reply["upstreams"][0]["reply"]["trace_id"], "{reply}");
        let ran = observed.trace(&reply, &["--traces-wait", "3s"]).output().unwrap();
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        String::from_utf8(ran.stderr).unwrap().lines().next().unwrap_or_default().to_owned()
    };
    claims.claim("negative control: a chain whose hops lose the trace headers is found out", found_out).await;
    let names_the_place = async {
        let ran = observed.check("5s").output().unwrap();
        let out = String::from_utf8(ran.stdout).unwrap();
        let place = out.lines().find(|line| line.contains("✗ Trace broke between service1 and service2"));
        assert_eq!(ran.status.code(), Some(1), "{out}");
        place.unwrap_or_else(|| panic!("{out}")).trim().to_owned()
    };
    claims.claim("negative control: httpserver check says where", names_the_place).await;
    claims.end();
}

/// The last line of a report.
fn verdict(report: &str) -> String {
    report.trim().lines().last().unwrap_or_default().to_owned()
}

/// Somebody who waits at a terminal sees how far it is, and then a report without a trace of that.
async fn progress(url: &str, folder: &Path) -> String {
    let seen = folder.join("terminal");
    let check = binary(&["check", url, "--count", "40"], &[]);
    let words: Vec<_> =
        [check.get_program()].into_iter().chain(check.get_args()).map(|word| format!("'{}'", word.display())).collect();
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" ")]).arg(&seen).env("TERM", "xterm").stdin(Stdio::null());
    product(terminal).await;
    let text = std::fs::read_to_string(&seen).unwrap();
    let last = format!("{} 40/40 requests", "█".repeat(24));
    assert!(text.contains(&last), "no whole bar, taken away, in {text:?}");
    // Requests with headers may have had a bar of their own after it.
    let (_, report) = text.rsplit_once("\u{1b}[2K").unwrap_or_else(|| panic!("nothing was taken away in {text:?}"));
    assert!(!report.contains('█') && report.contains("Verdict"), "{text:?}");
    "40/40, then the report".to_owned()
}

/// Jaeger cannot pick ports itself.
async fn start_jaeger() -> (Backend, [String; 3]) {
    let [query, grpc, otlp, zipkin, health] = [(); 5].map(|()| free_addr());
    let config = format!(
        r#"service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  pipelines:
    traces: {{receivers: [otlp, zipkin], exporters: [jaeger_storage_exporter]}}
  telemetry:
    metrics: {{level: none}}
extensions:
  healthcheckv2: {{use_v2: true, http: {{endpoint: "{health}"}}}}
  jaeger_query:
    http: {{endpoint: "{query}"}}
    grpc: {{endpoint: "{grpc}"}}
    storage: {{traces: memory}}
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 1000}}}}}}}}
receivers:
  otlp: {{protocols: {{http: {{endpoint: "{otlp}"}}}}}}
  zipkin: {{endpoint: "{zipkin}"}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"#
    );
    let mut server = Backend::start("jaeger", |folder| {
        let file = folder.join("jaeger.yaml");
        std::fs::write(&file, config).unwrap();
        let mut jaeger = Command::new(std::env::var_os("JAEGER_BIN").expect("JAEGER_BIN names a Jaeger 2"));
        // Its traces of itself go to no collector here.
        jaeger.arg("--config").arg(file).env("OTEL_TRACES_SAMPLER", "always_off");
        jaeger
    });
    server.ready(&format!("http://{health}/status")).await;
    (server, [format!("http://{query}"), format!("http://{otlp}"), format!("http://{zipkin}/api/v2/spans")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Jaeger 2: scripts/e2e.sh jaeger"]
async fn jaeger() {
    let mut claims = Claims::default();
    let (server, [api, otlp, zipkin]) = start_jaeger().await;
    let otlp = [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.as_str())];
    let zipkin = [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", zipkin.as_str())];
    let services = async || sorted(&json(&format!("{api}/api/services")).await?["data"], |name| name.as_str().map(str::to_owned));
    let links =
        async || sorted(&json(&format!("{api}/api/dependencies?endTs={}&lookback=3600000", epoch_ms())).await?["data"], link);

    let mut observed = Observed { hops: hops(&otlp), api: &api, folder: &server.folder };
    observed.whole_traces(&mut claims, "Jaeger, by OTLP").await;
    claims.claim("Jaeger lists the three services, and no other", becomes("service1 service2 service3", services)).await;
    claims.claim("Jaeger draws who calls whom", becomes("service1>service2=6 service2>service3=6", links)).await;
    observed.hops = hops(&zipkin);
    observed.whole_traces(&mut claims, "Jaeger, in Zipkin's format").await;
    claims.claim("Jaeger counts both kinds of reports", becomes("service1>service2=12 service2>service3=12", links)).await;

    // Exit code 0: whole, every hop's spans there, parents right, all sampled.
    let texts = ["httpserver check reads a healthy chain's trace from Jaeger", "httpserver check does, in Zipkin's format"];
    for (env, text) in [otlp, zipkin].into_iter().zip(texts) {
        observed.hops = hops(&env);
        claims.claim(text, async { verdict(&product(observed.check("300s")).await) }).await;
    }
    claims.end();
}
