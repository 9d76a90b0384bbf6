//! Attacks on one hop in a cgroup of 128 MiB, with every default, each beside a client that behaves: the hop must live, no request of
//! that client may fail, and the memory must be back below 40 MiB within a minute.
//!
//! `scripts/attack.sh` makes the cgroup. Variables: `ATTACK_CGROUP`, its directory, for the peak of the memory; `ATTACK_ONLY`, a part of
//! the names of those to run; `ATTACK_SHARE=1`, of the connections that each has.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::claims::Claims;
use crate::common::http2::{Frame, GET, PREFACE, literal};
use crate::common::ports::free_addr;
use crate::common::tls::Secure;
use crate::common::{AccessLog, Hop};
use crate::load::Load;
use crate::restarts::variable;

/// What the memory must fall below again, and how soon.
const BACK: f64 = 40.0;
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Requests of the client that are answered meanwhile.
const FEWEST: usize = 20;
/// How long an attack goes on when all its connections are open.
const HELD: Duration = Duration::from_secs(8);
/// Connections that are opened at once.
const OPENERS: usize = 16;
const HALF_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: hop\r\nx: yyyyyyyyyyyy";
const WHOLE: &[u8] = b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n";

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Whatever an attack holds open.
type Held = Box<dyn Any + Send>;

#[derive(Clone)]
struct Target {
    addr: SocketAddr,
    /// And the protocol that ALPN names.
    tls: Option<(TlsConnector, &'static str)>,
    share: f64,
}

impl Target {
    async fn connect(&self, receive_buffer: Option<u32>) -> Option<Box<dyn Stream>> {
        let socket = TcpSocket::new_v4().ok()?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).ok()?;
        }
        let stream = timeout(Duration::from_secs(2), socket.connect(self.addr)).await.ok()?.ok()?;
        match &self.tls {
            None => Some(Box::new(stream)),
            Some((connector, _)) => {
                let name = ServerName::try_from("localhost").ok()?;
                let shaken = timeout(Duration::from_secs(10), connector.connect(name, stream)).await.ok()?.ok()?;
                Some(Box::new(shaken))
            }
        }
    }
}

/// Connections that send the same, and stay.
#[derive(Clone)]
struct Flood {
    count: usize,
    bytes: Arc<[u8]>,
    /// How often it is sent, or until nothing more is taken for a moment.
    times: usize,
    reads_first: bool,
    /// A byte a second is read of what comes.
    trickles: bool,
    receive_buffer: Option<u32>,
}

impl Flood {
    fn of(count: usize, bytes: impl Into<Vec<u8>>) -> Self {
        Self { count, bytes: bytes.into().into(), times: 1, reads_first: false, trickles: false, receive_buffer: None }
    }

    fn start(self, target: Target) -> BoxFuture<'static, Held> {
        async move {
            let mut openers = JoinSet::new();
            let count = (self.count as f64 * target.share) as usize;
            for _ in 0..OPENERS {
                let (flood, target) = (self.clone(), target.clone());
                openers.spawn(async move {
                    let mut held = Vec::new();
                    for _ in 0..count.div_ceil(OPENERS) {
                        held.extend(flood.open(&target).await);
                    }
                    held
                });
            }
            let held: Vec<_> = openers.join_all().await.into_iter().flatten().collect();
            if !self.trickles {
                return Box::new(held) as Held;
            }
            let mut readers = JoinSet::new();
            for mut stream in held {
                readers.spawn(async move {
                    while stream.read_u8().await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                });
            }
            Box::new(readers)
        }
        .boxed()
    }

    async fn open(&self, target: &Target) -> Option<Box<dyn Stream>> {
        let mut stream = target.connect(self.receive_buffer).await?;
        for _ in 0..self.times {
            let patience = if self.times > 1 { Duration::from_millis(300) } else { Duration::from_secs(2) };
            if timeout(patience, stream.write_all(&self.bytes)).await.is_err() {
                break;
            }
        }
        let _ = timeout(Duration::from_secs(2), stream.flush()).await;
        if self.reads_first {
            let _ = timeout(Duration::from_secs(2), stream.read(&mut [0; 4096])).await;
        }
        Some(stream)
    }
}

/// HTTP/2 requests for `/headers` with a field of `field` bytes on windows of 0.
fn closed_windows(streams: u32, field: usize, is_indexed: bool) -> Vec<u8> {
    let mut large = literal("x-large", &"x".repeat(field));
    large[0] = if is_indexed { 0x40 } else { 0 };
    let head = [GET, &literal(":path", "/headers"), &literal(":authority", "hop"), &large].concat();
    let mut bytes = [PREFACE, &Frame::bytes(Frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    for i in 0..streams {
        bytes.extend(Frame::bytes(Frame::HEADERS, Frame::END_STREAM | Frame::END_HEADERS, 2 * i + 1, &head));
    }
    bytes
}

fn http2(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = [PREFACE, &Frame::bytes(Frame::SETTINGS, 0, 0, &[])].concat();
    bytes.extend(frames.into_iter().flatten());
    bytes
}

fn http2_get() -> Vec<u8> {
    [GET, &literal(":path", "/hello"), &literal(":authority", "hop")].concat()
}

/// What a client that behaves has seen.
#[derive(Debug, Default, Clone)]
struct Seen {
    took: Vec<Duration>,
    failed: Vec<String>,
}

impl Seen {
    fn p99_ms(&mut self) -> f64 {
        self.took.sort_unstable();
        let at = self.took.len().saturating_sub(1) * 99 / 100;
        self.took.get(at).map_or(0.0, |took| (took.as_secs_f64() * 1e5).round() / 1e2)
    }
}

/// A request every 20 ms, each on a new connection, until it is stopped.
async fn behaves(target: Target, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let request = b"GET /hello HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let target = Target { tls: target.tls.map(|(connector, _)| (without_h2(&connector), "http/1.1")), ..target };
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let exchange = async {
            let stream = TcpStream::connect(target.addr).await.map_err(|error| format!("connect: {error}"))?;
            let mut stream: Box<dyn Stream> = match &target.tls {
                None => Box::new(stream),
                Some((connector, _)) => {
                    let shaken = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await;
                    Box::new(shaken.map_err(|error| format!("TLS: {error}"))?)
                }
            };
            let mut answer = Vec::new();
            stream.write_all(request).await.map_err(|error| format!("write: {error}"))?;
            while stream.read_buf(&mut answer).await.map_err(|error| format!("read: {error}"))? > 0 {}
            let is_ok = answer.starts_with(b"HTTP/1.1 200 ");
            if is_ok { Ok(()) } else { Err(String::from_utf8_lossy(&answer).lines().next().unwrap_or("nothing").to_owned()) }
        };
        match timeout(Duration::from_secs(10), exchange).await.unwrap_or_else(|_| Err("no answer in 10 s".to_owned())) {
            Ok(()) => seen.took.push(begun.elapsed()),
            Err(why) => seen.failed.push(why),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen
}

fn without_h2(connector: &TlsConnector) -> TlsConnector {
    let mut config = rustls::ClientConfig::clone(connector.config());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Resident memory in MiB; `None` when the process is gone.
fn resident(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: f64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    Some(kib / 1024.0)
}

/// A file of the cgroup, in MiB: of version 2, else of version 1.
fn cgroup(v2: &str, v1: &str) -> Option<f64> {
    let directory = std::env::var("ATTACK_CGROUP").ok()?;
    let read = |name: &str| std::fs::read_to_string(format!("{directory}/{name}")).ok()?.trim().parse::<f64>().ok();
    Some(read(v2).or_else(|| read(v1))? / f64::from(1 << 20))
}

/// What sockets of this machine hold, in MiB; pages of 4 KiB.
fn sockets() -> f64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let pages = text.lines().find_map(|line| line.strip_prefix("TCP: ")?.rsplit_once("mem ")?.1.trim().parse::<f64>().ok());
    pages.unwrap_or_default() * 4.0 / 1024.0
}

struct Attack {
    name: &'static str,
    start: Box<dyn FnOnce(Target) -> BoxFuture<'static, Held> + Send>,
    tls: Option<&'static str>,
    flags: Vec<String>,
    env: Vec<(&'static str, String)>,
}

impl Attack {
    fn new(name: &'static str, start: impl FnOnce(Target) -> BoxFuture<'static, Held> + Send + 'static) -> Self {
        Self { name, start: Box::new(start), tls: None, flags: Vec::new(), env: Vec::new() }
    }

    fn flood(name: &'static str, flood: Flood) -> Self {
        Self::new(name, |target| flood.start(target))
    }

    fn over_tls(self, alpn: &'static str) -> Self {
        Self { tls: Some(alpn), ..self }
    }

    async fn run(self, claims: &mut Claims) {
        let mut flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        flags.extend(["--name", "service1"]);
        let secure = self.tls.map(|_| Secure::start_with("attack", &flags, AccessLog::To(std::process::Stdio::null())));
        let env: Vec<_> = self.env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let plain = || Hop::start_with(&flags, &env, AccessLog::To(std::process::Stdio::null()));
        let plain = secure.is_none().then(plain);
        let hop = plain.as_ref().or(secure.as_ref().map(|secure| &secure.hop)).expect("one of both");
        let tls = secure.as_ref().zip(self.tls).map(|(secure, alpn)| (secure.connector(&[alpn.as_bytes()], None), alpn));
        let target = Target { addr: hop.addr, tls, share: variable("ATTACK_SHARE", 1.0) };
        let before = (resident(hop.pid()), sockets());
        let watch = |stop: &Arc<AtomicBool>| tokio::spawn(behaves(target.clone(), stop.clone()));

        let stop = Arc::new(AtomicBool::new(false));
        let quiet = watch(&stop);
        tokio::time::sleep(Duration::from_secs(2)).await;
        stop.store(true, Ordering::Relaxed);
        let mut quiet = quiet.await.unwrap();

        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped, pid) = (watch(&stop), stop.clone(), hop.pid());
        let peaks = tokio::spawn(async move {
            let (mut memory, mut kernel, mut tcp) = (0_f64, 0_f64, 0_f64);
            while !stopped.load(Ordering::Relaxed) {
                memory = memory.max(resident(pid).unwrap_or_default());
                kernel = kernel.max(sockets());
                tcp = tcp.max(cgroup("memory.sock", "memory.kmem.tcp.usage_in_bytes").unwrap_or_default());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (memory, kernel, tcp)
        });
        let held = timeout(Duration::from_secs(90), (self.start)(target.clone())).await;
        tokio::time::sleep(HELD).await;
        let is_alive = resident(hop.pid()).is_some();
        drop(held);
        stop.store(true, Ordering::Relaxed);
        let (mut seen, peaks) = (seen.await.unwrap(), peaks.await.unwrap());
        let (ended, mut after) = (Instant::now(), f64::NAN);
        while is_alive && ended.elapsed() < BACK_WITHIN {
            after = resident(hop.pid()).unwrap_or(f64::NAN);
            if after < BACK {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let back = ended.elapsed().as_secs_f64();
        let charged =
            cgroup("memory.peak", "memory.max_usage_in_bytes").map_or(String::new(), |mib| format!(", cgroup {mib:.0}"));
        let text = format!(
            "{}: {:.0} MiB, at most {:.0}{charged}, sockets of both sides {:.0} (charged {:.0}); {:.0} after {back:.0} s; {} of the client's requests ok, p99 {} -> {} ms",
            self.name,
            before.0.unwrap_or_default(),
            peaks.0,
            peaks.1 - before.1,
            peaks.2,
            after,
            seen.took.len(),
            quiet.p99_ms(),
            seen.p99_ms()
        );
        let mut failed: Vec<_> = seen.failed.iter().chain(&quiet.failed).collect();
        let count = failed.len();
        failed.sort();
        failed.dedup();
        claims.holds(
            text,
            is_alive && count == 0 && seen.took.len() >= FEWEST && after < BACK,
            format!("alive {is_alive}, {count} failed: {failed:?}"),
        );
        if let Ok(directory) = std::env::var("ATTACK_CGROUP") {
            for file in ["memory.max_usage_in_bytes", "memory.peak"] {
                let _ = std::fs::write(format!("{directory}/{file}"), "0");
            }
        }
    }
}

/// Heads, bodies, answers.
fn http1_attacks() -> Vec<Attack> {
    let head30 = [b"GET /hello HTTP/1.1\r\nhost: hop\r\nx: ".as_slice(), &[b'x'; 30_000]].concat();
    let headers = [b"GET /headers HTTP/1.1\r\nhost: hop\r\nx: ".as_slice(), &[b'x'; 8000], b"\r\n\r\n"].concat();
    let half_body =
        [b"POST /service1 HTTP/1.1\r\nhost: hop\r\ncontent-length: 60000\r\n\r\n".as_slice(), &[b'x'; 30_000]].concat();
    let chunked = b"POST /service1 HTTP/1.1\r\nhost: hop\r\ntransfer-encoding: chunked\r\n\r\n400\r\n".as_slice();
    let unread = Flood { times: 200, ..Flood::of(2000, headers) };
    vec![
        Attack::flood("half heads", Flood::of(8000, HALF_HEAD)),
        Attack::flood("used and idle", Flood { reads_first: true, ..Flood::of(8000, WHOLE) }),
        Attack::flood("silent", Flood::of(8000, b"")),
        Attack::flood("heads of 30 KB without an end", Flood::of(8000, head30)),
        Attack::flood("half bodies", Flood::of(4000, half_body)),
        Attack::flood("half chunks", Flood::of(4000, chunked)),
        Attack::flood("answers that nobody reads", unread.clone()),
        Attack::flood("answers that nobody reads, small windows", Flood { receive_buffer: Some(4096), ..unread.clone() }),
        Attack::flood("answers that are read by the byte", Flood { receive_buffer: Some(4096), trickles: true, ..unread }),
        Attack::new("requests whose clients hang up", |target| {
            async move {
                for _ in 0..10 {
                    drop(Flood::of(800, WHOLE).start(target.clone()).await);
                }
                Box::new(()) as Held
            }
            .boxed()
        }),
    ]
}

fn http2_attacks() -> Vec<Attack> {
    let post = [&b"\x83\x86"[..], &literal(":path", "/service1"), &literal(":authority", "hop")].concat();
    let half_bodies = http2((0..50).flat_map(|i| {
        let head = Frame::bytes(Frame::HEADERS, Frame::END_HEADERS, 2 * i + 1, &post);
        [head, Frame::bytes(Frame::DATA, 0, 2 * i + 1, &[b'x'; 1024])]
    }));
    let rapid_reset = http2((0..20_000).flat_map(|i| {
        let head = Frame::bytes(Frame::HEADERS, Frame::END_STREAM | Frame::END_HEADERS, 2 * i + 1, &http2_get());
        [head, Frame::bytes(Frame::RST_STREAM, 0, 2 * i + 1, &8_u32.to_be_bytes())]
    }));
    let begun = Frame::bytes(Frame::HEADERS, Frame::END_STREAM, 1, &http2_get());
    let line = literal("x-a", &"x".repeat(1000));
    let endless_head = http2([begun, Frame::bytes(Frame::CONTINUATION, 0, 1, &line).repeat(5000)]);
    let pings = http2([Frame::bytes(Frame::PING, 0, 0, &[0; 8]).repeat(50_000)]);
    let settings = http2([Frame::bytes(Frame::SETTINGS, 0, 0, &[]).repeat(50_000)]);
    vec![
        Attack::flood("HTTP/2 prefaces", Flood::of(8000, http2([]))),
        Attack::flood("HTTP/2 closed windows, heads of 10 KB", Flood::of(400, closed_windows(50, 10_000, false))),
        Attack::flood("HTTP/2 closed windows, heads of 10 KB, indexed", Flood::of(400, closed_windows(50, 10_000, true))),
        Attack::flood("HTTP/2 closed windows, one stream each", Flood::of(4000, closed_windows(1, 1000, false))),
        Attack::flood("HTTP/2 closed windows, small indexed fields", Flood::of(400, closed_windows(100, 30, true))),
        Attack::flood("HTTP/2 half bodies", Flood::of(2000, half_bodies)),
        Attack::flood("HTTP/2 rapid reset", Flood::of(200, rapid_reset)),
        Attack::flood("HTTP/2 heads that do not end", Flood::of(200, endless_head)),
        Attack::flood("HTTP/2 pings", Flood::of(200, pings)),
        Attack::flood("HTTP/2 settings", Flood::of(200, settings)),
    ]
}

fn tls_attacks() -> Vec<Attack> {
    /// The header of a record of 512 bytes with a handshake, and the beginning of a ClientHello.
    const HALF_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let raw = |name, flood: Flood| Attack::new(name, |target| flood.start(Target { tls: None, ..target })).over_tls("http/1.1");
    let unread = [b"GET /headers HTTP/1.1\r\nhost: hop\r\nx: ".as_slice(), &[b'x'; 8000], b"\r\n\r\n"].concat();
    vec![
        raw("TLS: half handshakes", Flood::of(8000, HALF_HELLO)),
        raw("TLS: silent", Flood::of(8000, b"")),
        Attack::flood("TLS: used and idle", Flood { reads_first: true, ..Flood::of(2000, WHOLE) }).over_tls("http/1.1"),
        Attack::flood("TLS: half heads", Flood::of(2000, HALF_HEAD)).over_tls("http/1.1"),
        Attack::flood("TLS: answers that nobody reads", Flood { times: 50, ..Flood::of(1000, unread) }).over_tls("http/1.1"),
        Attack::flood("TLS: HTTP/2 closed windows, heads of 10 KB", Flood::of(400, closed_windows(50, 10_000, true)))
            .over_tls("h2"),
    ]
}

/// A server that does this with each connection.
async fn server<F>(act: impl Fn(TcpStream) -> F + Send + Sync + Clone + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(act(stream));
        }
    });
    addr
}

async fn loaded(target: Target, path: &'static str, connections: usize) -> Held {
    let load = Load { addr: target.addr, path, rate: 0.0, connections, duration: Duration::from_secs(5) };
    let report = load.start().report();
    println!("        {path}: {:?} {:?}", report.statuses, report.errors);
    Box::new(())
}

async fn neighbour_attacks() -> Vec<Attack> {
    let megabyte = server(|mut stream| async move {
        let answer = [b"HTTP/1.1 200 OK\r\ncontent-length: 1048000\r\n\r\n".as_slice(), &vec![b'x'; 1_048_000]].concat();
        let mut head = [0; 4096];
        while stream.read(&mut head).await.is_ok_and(|read| read > 0) && stream.write_all(&answer).await.is_ok() {}
    });
    let deaf = server(|mut stream| async move {
        let mut bytes = vec![0; 1 << 16];
        while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    let endless = server(|mut stream| async move {
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(2000);
        let _ = stream.read(&mut [0; 4096]).await;
        while stream.write_all(&interim).await.is_ok() {}
    });
    let (megabyte, deaf, endless) = (megabyte.await, deaf.await, endless.await);
    let endless_collector =
        [("OTEL_TRACES_EXPORTER", "otlp".to_owned()), ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{endless}"))];
    let itself = free_addr();
    let upstreams = (0..10).flat_map(|_| ["--upstream".to_owned(), format!("http://{itself}/service1")]);
    let otlp = [("OTEL_TRACES_EXPORTER", "otlp".to_owned()), ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{deaf}"))];
    let calls = |name, path, connections| Attack::new(name, move |target| loaded(target, path, connections).boxed());
    vec![
        Attack {
            flags: vec!["--upstream".to_owned(), format!("http://{megabyte}")],
            ..calls("next hop answers 1 MiB, 200 at once", "/service1", 200)
        },
        Attack {
            flags: vec!["--upstream".to_owned(), format!("http://{deaf}")],
            ..calls("next hop hangs, 200 at once", "/service1", 200)
        },
        Attack {
            flags: vec!["--upstream".to_owned(), format!("http://{endless}")],
            env: endless_collector.into(),
            ..calls("next hop and collector send interim answers without end", "/service1", 16)
        },
        Attack { env: otlp.into(), ..calls("collector hangs", "/hello", 64) },
        Attack {
            flags: ["--addr".to_owned(), itself.to_string()].into_iter().chain(upstreams).collect(),
            ..calls("a hop that calls itself ten times", "/service1", 16)
        },
        Attack::new("all at once", |target| {
            async move {
                let few = Target { share: target.share / 4.0, ..target };
                let floods = [http1_attacks(), http2_attacks()].into_iter().flatten();
                let held: Vec<_> = floods.map(|attack| (attack.start)(few.clone())).collect();
                Box::new(futures_util::future::join_all(held).await) as Held
            }
            .boxed()
        }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs a release build and a cgroup: scripts/attack.sh"]
async fn no_client_kills_a_hop_or_fails_another() {
    let only = variable("ATTACK_ONLY", String::new());
    let mut claims = Claims::default();
    let all = [http1_attacks(), http2_attacks(), tls_attacks(), neighbour_attacks().await];
    for attack in all.into_iter().flatten().filter(|attack| attack.name.contains(&only)) {
        attack.run(&mut claims).await;
    }
    claims.end();
}
