//! Constant load on the chain behind a real Envoy while its hops are restarted: no request may fail, no span may be lost, memory must stay
//! flat. Every hop runs twice, as a Deployment would.
//!
//!     load -> Envoy -> service1 (2) -> Envoy -> service2 (2) -> Envoy -> service3 (2)
//!
//! Envoy asks for `/readyz` and takes a hop that drains out of rotation, as Kubernetes would. Hops report their spans by Zipkin to a
//! collector that counts them.
//!
//! Variables, with the defaults of the short run: `SOAK_MINUTES=1`; `SOAK_EVERY=15`, a restart this often, in seconds, of one hop after the
//! other; `SOAK_ROUNDS=0`, instead of the minutes: restart every hop so often, one after the other, as a rollout does; `SOAK_RATE=30`
//! requests a second, with 0 half of what the chain takes, measured first; `SOAK_DRAIN_DELAY=10s`, twice the usual one: where compilers run
//! beside it, Envoy's probes can come seconds late; `SOAK_SCHEME=http`, with grpc or h2c the hops call each other so.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::claims::Claims;
use crate::common::ports::free_addr;
use crate::common::{AccessLog, Hop, eventually, exchange};
use crate::load::{Load, Report};
use crate::mesh::{Envoy, folder};

const HOPS: usize = 3;
const COPIES: usize = 2;
const SPANS_A_REQUEST: u64 = 2 * HOPS as u64 - 1;

/// Memory. A life is one process from its start to its restart. One shorter than this is all warming up and proves nothing. Of the others
/// the median of the last quarter is held against the median of the second: a leak makes every life grow, so the life in the middle may
/// grow by no more than `TYPICAL`; the allocator's and the connections' coming and going makes one or the other grow, but none by more
/// than `WORST`.
const LONG: Duration = Duration::from_secs(240);
const TYPICAL: i64 = 1536;
const WORST: i64 = 6 << 10;
const PEAK: i64 = 64 << 10;

/// A variable of the environment, or the default.
pub(crate) fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |value| value.parse().ok().unwrap_or_else(|| panic!("{name}={value}")))
}

type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// A collector that counts the spans of each service.
async fn counting_collector() -> (SocketAddr, Counts) {
    async fn count(State(counts): State<Counts>, body: String) -> StatusCode {
        // Cheaper than reading all of it as JSON: one localEndpoint a span.
        for rest in body.split("\"localEndpoint\":{\"serviceName\":\"").skip(1) {
            let service = rest.split('"').next().unwrap_or_default();
            *counts.lock().unwrap().entry(service.to_owned()).or_default() += 1;
        }
        StatusCode::ACCEPTED
    }
    let (listener, counts) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Counts::default());
    let (addr, router) =
        (listener.local_addr().unwrap(), Router::new().route("/api/v2/spans", post(count)).with_state(counts.clone()));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (addr, counts)
}

/// One copy of one hop. It keeps its address over restarts.
#[derive(Debug)]
struct Copy {
    number: usize,
    copy: usize,
    addr: SocketAddr,
    flags: Vec<String>,
    collector: String,
    log: PathBuf,
    process: Option<Hop>,
    /// Of each process in turn: when, and its resident memory in KiB.
    lives: Vec<Vec<(Instant, i64)>>,
    exits: Vec<Option<i32>>,
}

impl Copy {
    async fn start(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        let env = [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", &self.collector)];
        let hop = Hop::start_with(&flags, &env, AccessLog::To(log.into()));
        let ready = || async { (hop.get("/readyz", &[]).await.status == 200).then_some(()) };
        eventually(&format!("service{} is ready", self.number), ready).await;
        self.process = Some(hop);
        self.lives.push(Vec::new());
    }

    fn stop(&mut self) {
        let mut hop = self.process.take().unwrap();
        hop.signal("TERM");
        self.exits.push(tokio::task::block_in_place(|| hop.ended()).code());
    }

    fn weigh(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.as_ref().unwrap().pid())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        self.lives.last_mut().unwrap().push((Instant::now(), kib.unwrap()));
    }

    /// A server span for each traced request, and a client span where there is a next hop.
    fn expected_spans(&self) -> u64 {
        let traced = std::fs::read_to_string(&self.log).unwrap().lines().filter(|line| line.contains(" trace=")).count() as u64;
        traced * if self.number < HOPS { 2 } else { 1 }
    }
}

/// How hops call each other.
fn scheme() -> String {
    variable("SOAK_SCHEME", "http".to_owned())
}

/// What Envoy speaks to the hops behind the first.
fn protocol_options(number: usize) -> Value {
    const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let protocol = if number > 1 && scheme() != "http" { "http2_protocol_options" } else { "http_protocol_options" };
    json!({ OPTIONS: { "@type": format!("type.googleapis.com/{OPTIONS}"), "explicit_http_config": { protocol: {} } } })
}

fn envoy_config(copies: &[Copy], fronts: &[SocketAddr]) -> Value {
    let socket = |addr: SocketAddr| json!({ "socket_address": { "address": "127.0.0.1", "port_value": addr.port() } });
    let cluster = |number: usize| {
        let endpoints = copies.iter().filter(|copy| copy.number == number);
        let endpoints: Vec<_> = endpoints.map(|copy| json!({ "endpoint": { "address": socket(copy.addr) } })).collect();
        json!({
            "name": format!("service{number}"),
            "typed_extension_protocol_options": protocol_options(number),
            "type": "STATIC",
            "connect_timeout": "5s",
            // One copy of two is what a rollout leaves: that is no panic, in which Envoy would send to copies that are not ready.
            "common_lb_config": { "healthy_panic_threshold": { "value": 0 } },
            // The kubelet's patience with a probe, and the speed at which a Terminating pod leaves its Service.
            "health_checks": [{
                "timeout": "10s", "interval": "0.5s", "no_traffic_interval": "0.5s", "unhealthy_threshold": 1, "healthy_threshold": 1,
                "http_health_check": { "path": "/readyz" },
            }],
            "load_assignment": { "cluster_name": format!("service{number}"), "endpoints": [{ "lb_endpoints": endpoints }] },
        })
    };
    let listener = |number: usize| {
        let only_errors = json!({ "status_code_filter": { "comparison": { "op": "GE", "value": { "default_value": 500, "runtime_key": "soak" } } } });
        let format = "%START_TIME% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% \
                      %UPSTREAM_TRANSPORT_FAILURE_REASON% %DURATION%ms";
        let errors = json!({
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": { "text_format_source": { "inline_string": format!("service{number} {format}\n") } },
        });
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": format!("service{number}"),
            "generate_request_id": true,
            "access_log": [{ "name": "envoy.access_loggers.stdout", "filter": only_errors, "typed_config": errors }],
            // No retries: a request that a restart loses must show.
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                { "match": { "prefix": "/" }, "route": { "cluster": format!("service{number}"), "timeout": "0s" } }
            ] }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        });
        json!({
            "name": format!("service{number}"),
            "address": socket(fronts[number - 1]),
            "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }] }],
        })
    };
    json!({
        "admin": { "address": socket(fronts[HOPS]) },
        "static_resources": {
            "listeners": (1..=HOPS).map(listener).collect::<Vec<_>>(),
            "clusters": (1..=HOPS).map(cluster).collect::<Vec<_>>(),
        },
    })
}

/// The copies, and the Envoy between them.
struct Rollout {
    copies: Vec<Copy>,
    front: SocketAddr,
    admin: SocketAddr,
    envoy: Envoy,
    collected: Counts,
}

impl Rollout {
    async fn start(folder: &Path) -> Self {
        let (collector, collected) = counting_collector().await;
        // The listeners before each service, and the admin's.
        let fronts: Vec<_> = (0..=HOPS).map(|_| free_addr()).collect();
        let drain_delay = variable("SOAK_DRAIN_DELAY", "10s".to_owned());
        let mut copies = Vec::new();
        for number in (1..=HOPS).rev() {
            for copy in 0..COPIES {
                let addr = free_addr();
                let mut flags = format!(
                    "--addr {addr} --name service{number} --drain-delay {drain_delay} --upstream-timeout {}s",
                    20 - 2 * number
                );
                if number < HOPS {
                    flags += &format!(" --upstream {}://{}/service{}", scheme(), fronts[number], number + 1);
                }
                let mut copy = Copy {
                    number,
                    copy,
                    addr,
                    flags: flags.split(' ').map(str::to_owned).collect(),
                    collector: format!("http://{collector}/api/v2/spans"),
                    log: folder.join(format!("service{number}-{copy}.log")),
                    process: None,
                    lives: Vec::new(),
                    exits: Vec::new(),
                };
                copy.start().await;
                copies.push(copy);
            }
        }
        let config = folder.join("envoy.json");
        std::fs::write(&config, envoy_config(&copies, &fronts).to_string()).unwrap();
        let mut this = Self { copies, front: fronts[0], admin: fronts[HOPS], envoy: Envoy::start(&config), collected };
        this.all_healthy().await;
        this
    }

    /// Until Envoy sends to every copy.
    async fn all_healthy(&mut self) {
        let (admin, count) = (self.admin, self.copies.len());
        let envoy = Mutex::new(&mut self.envoy);
        eventually("Envoy sees every hop", || async {
            envoy.lock().unwrap().assert_alive();
            tokio::net::TcpStream::connect(admin).await.ok()?;
            let clusters = exchange(admin, b"GET /clusters HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await.text();
            (clusters.matches("::health_flags::healthy").count() == count).then_some(())
        })
        .await;
    }

    fn load(&self, rate: f64, connections: usize, duration: Duration) -> crate::load::Loading {
        Load { addr: self.front, path: "/service1", rate, connections, duration }.start()
    }

    /// Restarts under load; returns how many there were, how many there should have been, and how the load fared.
    async fn soak(&mut self, rate: f64, every: f64, rounds: usize, minutes: f64) -> (usize, usize, Report) {
        // Hop after hop, the front first: its restarts are the ones that callers would see. By the clock every service in turn, so that
        // the shortest run restarts one of each.
        let mut order: Vec<_> = (0..self.copies.len()).collect();
        order.sort_by_key(|i| {
            let (number, copy) = (self.copies[*i].number, self.copies[*i].copy);
            if rounds > 0 { (number, copy) } else { (copy, number) }
        });
        let seconds = minutes * 60.0;
        // By the clock none begins so late that the load would end before it has.
        let wanted = if rounds > 0 { rounds * order.len() } else { ((seconds - 30.0).max(0.0) / every) as usize + 1 };
        // It is stopped when all is done; this is only to end, should all else fail.
        let loading = self.load(rate, 200, Duration::from_secs(24 * 3600));
        let (begun, mut restarts) = (Instant::now(), 0);
        let mut turns = tokio::time::interval(Duration::from_millis(200));
        while restarts < wanted || rounds == 0 && begun.elapsed().as_secs_f64() < seconds {
            assert!(!loading.has_ended(), "the load ended early");
            let due = if rounds > 0 { 1.0 } else { 1.0 + restarts as f64 * every };
            if restarts < wanted && begun.elapsed().as_secs_f64() >= due {
                let copy = &mut self.copies[order[restarts % order.len()]];
                copy.stop();
                copy.start().await;
                // In again before the next one goes out: a rollout waits for ready.
                self.all_healthy().await;
                restarts += 1;
            }
            turns.tick().await;
            self.copies.iter_mut().for_each(Copy::weigh);
        }
        (restarts, wanted, loading.stop())
    }

    /// How much each life that was long enough has grown from its second quarter to its last, in KiB, the smallest first.
    fn growth(&self) -> Vec<i64> {
        let lives = self.copies.iter().flat_map(|copy| &copy.lives).filter(|life| !life.is_empty());
        let length = |life: &Vec<(Instant, i64)>| life[life.len() - 1].0 - life[0].0;
        let median = |life: &Vec<(Instant, i64)>, from: f64| {
            let part = |when: Instant| (when - life[0].0).as_secs_f64() / length(life).as_secs_f64();
            let quarter = life.iter().filter(|(when, _)| (from..=from + 0.25).contains(&part(*when)));
            middle(quarter.map(|(_, kib)| *kib).collect())
        };
        let mut grown: Vec<_> =
            lives.filter(|life| length(life) >= LONG).map(|life| median(life, 0.75) - median(life, 0.25)).collect();
        grown.sort_unstable();
        grown
    }
}

fn middle(mut values: Vec<i64>) -> i64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn mib(kib: i64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs an Envoy: scripts/e2e.sh reliability"]
async fn restarts_under_load_lose_no_request_and_no_span() {
    let (minutes, every, rounds) = (variable("SOAK_MINUTES", 1.0), variable("SOAK_EVERY", 15.0), variable("SOAK_ROUNDS", 0));
    let folder = folder("restarts");
    let mut rollout = Rollout::start(&folder).await;
    let (mut rate, mut measured) = (variable("SOAK_RATE", 30.0), 0);
    if rate <= 0.0 {
        measured = rollout.load(0.0, 32, Duration::from_secs(10)).report().requests;
        rate = measured as f64 / 10.0 / 2.0;
        println!("the chain takes {:.0} requests a second here, so the load is {rate:.0}", 2.0 * rate);
    }
    let begun = Instant::now();
    let (restarts, wanted, report) = rollout.soak(rate, every, rounds, minutes).await;
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    rollout.copies.iter_mut().for_each(Copy::stop);

    let mut claims = Claims::default();
    let (ok, failed) = (report.of(200), report.others(&[200]));
    let text = format!(
        "no request failed: {} at {rate:.0} a second ({} not sent for want of connections), p50 {} ms, p99 {} ms",
        ok.count, report.unsent, ok.p50_ms, ok.p99_ms
    );
    claims.holds(text, failed.is_empty() && ok.count > 0, (&failed, &folder));
    let codes: Vec<_> = rollout.copies.iter().flat_map(|copy| copy.exits.clone()).collect();
    let text =
        format!("every restart was made under load and every process ended with 0: {restarts} restarts, {} ends", codes.len());
    let all_ended = codes.len() == restarts + rollout.copies.len() && codes.iter().all(|code| *code == Some(0));
    claims.holds(text, restarts == wanted && all_ended, (wanted, &codes));
    let mut logged = BTreeMap::new();
    for copy in &rollout.copies {
        *logged.entry(format!("service{}", copy.number)).or_default() += copy.expected_spans();
    }
    let collected = rollout.collected.lock().unwrap().clone();
    let (arrived, expected) = (collected.values().sum::<u64>(), SPANS_A_REQUEST * (ok.count + measured));
    let text = format!("no span was lost: {arrived}, which is {SPANS_A_REQUEST} a request");
    claims.holds(text, collected == logged && (arrived == expected || !failed.is_empty()), (expected, &logged, &collected));
    let grown = rollout.growth();
    let peak = rollout.copies.iter().flat_map(|copy| copy.lives.iter().flatten()).map(|(_, kib)| *kib).max().unwrap();
    let (typical, worst) = (middle(grown.clone()), grown.last().copied().unwrap_or_default());
    let memory = if grown.is_empty() {
        format!("at most {} a hop; no life was long enough to look for a leak", mib(peak))
    } else {
        format!(
            "of {} lives of {} minutes or more the one in the middle grew by {} from its second quarter to its last, the most by {}; at \
             most {} a hop",
            grown.len(),
            LONG.as_secs() / 60,
            mib(typical),
            mib(worst),
            mib(peak)
        )
    };
    claims.holds(format!("memory is flat: {memory}"), typical <= TYPICAL && worst <= WORST && peak <= PEAK, &grown);

    let envoy = Command::new(std::env::var_os("ENVOY").unwrap()).arg("--version").output().unwrap();
    let envoy =
        String::from_utf8_lossy(&envoy.stdout).split('/').find(|part| part.starts_with("1.")).unwrap_or_default().to_owned();
    let how =
        if rounds > 0 { format!("every hop restarted {rounds} times") } else { format!("one restarted every {every:.0} s") };
    println!(
        "\nfor docs/reliability.md:\n| {minutes:.0} minutes at {rate:.0} requests a second through a real Envoy {envoy}, three hops of two copies \
         by {}, {how} | {} requests, {} failed; {restarts} restarts and {} stops; {arrived} spans, {} lost; {memory} |",
        scheme(),
        ok.count,
        failed.values().sum::<u64>(),
        rollout.copies.len(),
        expected as i64 - arrived as i64
    );
    claims.end();
}
