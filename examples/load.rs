//! Load with a fixed rate, whatever the server makes of it: what `scripts/overload.sh` and `scripts/soak.sh` measure with.
//!
//! A client that sends its next request when the last one was answered slows down with the server and hides an overload. This
//! one sends on schedule, on as many connections as that takes, and counts a request's time from when it was due. It prints
//! one JSON object: counts and percentiles by status, errors by kind, and how every second went. SIGTERM ends it early, with its
//! last requests answered and everything told.
//!
//! `cargo run --release --example load -- --rate 500 --seconds 10 http://127.0.0.1:8080/hello`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(about = "Sends requests at a fixed rate and tells how they fared")]
struct Args {
    /// Where to: http://address:port/path
    url: String,
    /// Requests a second; 0 sends each connection's next request when the last one was answered
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How many connections at most
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How long
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// When a request is given up
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
    /// A header, `name: value`, repeatable
    #[arg(long)]
    header: Vec<String>,
}

/// How one request ended.
enum Outcome {
    Status(u16),
    Error(&'static str),
}

struct Ended {
    due: Instant,
    took: Duration,
    outcome: Outcome,
}

struct Shared {
    addr: SocketAddr,
    request: Vec<u8>,
    timeout: Duration,
    idle: Mutex<Vec<TcpStream>>,
    ended: Mutex<Vec<Ended>>,
    /// Requests that were sent again because a kept connection had been closed before they got there, as every client does.
    resent: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    async fn send(self: &Arc<Self>, due: Instant) {
        let outcome = tokio::time::timeout(self.timeout, self.exchange()).await.unwrap_or(Outcome::Error("timeout"));
        lock(&self.ended).push(Ended { due, took: due.elapsed(), outcome });
    }

    async fn exchange(&self) -> Outcome {
        let kept = lock(&self.idle).pop();
        if let Some(mut stream) = kept {
            match self.on(&mut stream).await {
                Ok((status, keep)) => {
                    if keep {
                        lock(&self.idle).push(stream);
                    }
                    return Outcome::Status(status);
                }
                // Not a byte of an answer: closed while it was idle.
                Err("closed") => self.resent.fetch_add(1, Ordering::Relaxed),
                Err(error) => return Outcome::Error(error),
            };
        }
        let Ok(mut stream) = TcpStream::connect(self.addr).await else { return Outcome::Error("connect") };
        let _ = stream.set_nodelay(true);
        match self.on(&mut stream).await {
            Ok((status, keep)) => {
                if keep {
                    lock(&self.idle).push(stream);
                }
                Outcome::Status(status)
            }
            Err(error) => Outcome::Error(error),
        }
    }

    /// One request and its answer: the status, and whether the connection can be used again.
    async fn on(&self, stream: &mut TcpStream) -> Result<(u16, bool), &'static str> {
        stream.write_all(&self.request).await.map_err(|_| "closed")?;
        let mut bytes = Vec::with_capacity(2048);
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read_buf(&mut bytes).await {
                Ok(read) if read > 0 => {}
                _ if bytes.is_empty() => return Err("closed"),
                _ => return Err("broken"),
            }
        };
        let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("broken")?;
        let keep = !text.contains("\r\nconnection: close\r\n");
        if text.contains("\r\ntransfer-encoding: chunked\r\n") {
            while !bytes.ends_with(b"\r\n0\r\n\r\n") && !bytes[head..].starts_with(b"0\r\n\r\n") {
                if stream.read_buf(&mut bytes).await.map_err(|_| "broken")? == 0 {
                    return Err("broken");
                }
            }
            return Ok((status, keep));
        }
        let length = text.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let length = length.ok_or("broken")?;
        while bytes.len() < head + length {
            if stream.read_buf(&mut bytes).await.map_err(|_| "broken")? == 0 {
                return Err("broken");
            }
        }
        Ok((status, keep))
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let target = args.url.strip_prefix("http://").and_then(|rest| {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some((authority.parse::<SocketAddr>().ok()?, if path.is_empty() { "/" } else { path }))
    });
    let Some((addr, path)) = target else {
        eprintln!("load: '{}' is not http://address:port/path", args.url);
        return ExitCode::from(2);
    };
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\n");
    for header in &args.header {
        request += &format!("{header}\r\n");
    }
    let shared = Arc::new(Shared {
        addr,
        request: format!("{request}\r\n").into_bytes(),
        timeout: Duration::from_secs_f64(args.timeout),
        idle: Mutex::default(),
        ended: Mutex::default(),
        resent: 0.into(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let begun = Instant::now();
    let unsent = runtime.block_on(drive(&args, &shared, begun));
    println!("{}", report(&shared, begun, unsent));
    ExitCode::SUCCESS
}

/// Returns how many requests were due when no connection was left for them.
async fn drive(args: &Args, shared: &Arc<Shared>, begun: Instant) -> u64 {
    let end = begun + Duration::from_secs_f64(args.seconds);
    let stopped = Arc::new(AtomicBool::new(false));
    let mut terminate = signal(SignalKind::terminate()).expect("signals");
    let stop = stopped.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        stop.store(true, Ordering::Relaxed);
    });
    let goes_on = move || Instant::now() < end && !stopped.load(Ordering::Relaxed);
    let mut tasks = tokio::task::JoinSet::new();
    let mut unsent = 0;
    if args.rate <= 0.0 {
        for _ in 0..args.connections {
            let (shared, goes_on) = (shared.clone(), goes_on.clone());
            tasks.spawn(async move {
                while goes_on() {
                    shared.send(Instant::now()).await;
                }
            });
        }
    } else {
        let mut sent = 0_u64;
        let mut turns = tokio::time::interval(Duration::from_millis(1));
        while goes_on() {
            turns.tick().await;
            while tasks.try_join_next().is_some() {}
            // The first is due at once.
            let due = (begun.elapsed().as_secs_f64() * args.rate) as u64 + 1;
            while sent < due {
                let due = begun + Duration::from_secs_f64(sent as f64 / args.rate);
                sent += 1;
                if tasks.len() >= args.connections {
                    unsent += 1;
                    continue;
                }
                let shared = shared.clone();
                tasks.spawn(async move { shared.send(due).await });
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    unsent
}

fn summary(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let rounded = |ms: f64| (ms * 1e3).round() / 1e3;
    json!({ "count": took.len(), "p50_ms": rounded(at(0.5)), "p99_ms": rounded(at(0.99)), "max_ms": rounded(at(1.0)) })
}

fn report(shared: &Shared, begun: Instant, unsent: u64) -> Value {
    let mut by_status: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    let mut seconds: BTreeMap<u64, (u64, Vec<Duration>)> = BTreeMap::new();
    let ended = lock(&shared.ended);
    for Ended { due, took, outcome } in ended.iter() {
        let second = seconds.entry(due.saturating_duration_since(begun).as_secs()).or_default();
        match outcome {
            Outcome::Status(status) => {
                by_status.entry(status.to_string()).or_default().push(*took);
                if *status == 200 {
                    second.1.push(*took);
                } else {
                    second.0 += 1;
                }
            }
            Outcome::Error(kind) => {
                *errors.entry(kind).or_default() += 1;
                second.0 += 1;
            }
        }
    }
    let seconds = seconds.into_iter().map(|(second, (other, took))| {
        let ok = if took.is_empty() { json!({ "count": 0 }) } else { summary(took) };
        json!({ "second": second, "ok": ok, "other": other })
    });
    json!({
        "requests": ended.len(),
        "statuses": by_status.into_iter().map(|(status, took)| (status, summary(took))).collect::<BTreeMap<_, _>>(),
        "errors": errors,
        "resent": shared.resent.load(Ordering::Relaxed),
        "unsent": unsent,
        "seconds": seconds.collect::<Vec<_>>(),
    })
}
