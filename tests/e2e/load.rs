//! Load with a fixed rate, whatever the server makes of it.
//!
//! A client that sends its next request when the last one was answered slows down with the server and hides an overload. This one sends
//! on schedule, on as many connections as that takes, and counts a request's time from when it was due.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// When a request is given up.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) addr: SocketAddr,
    pub(crate) path: &'static str,
    /// Requests a second; 0 sends each connection's next request when the last one was answered.
    pub(crate) rate: f64,
    /// How many at most.
    pub(crate) connections: usize,
    pub(crate) duration: Duration,
}

impl Load {
    /// Begins, on a thread of its own.
    pub(crate) fn start(self) -> Loading {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let shared = Arc::new(Shared {
                addr: self.addr,
                request: format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", self.path, self.addr).into_bytes(),
                idle: Mutex::default(),
                ended: Mutex::default(),
            });
            let unsent = runtime.block_on(self.drive(&shared, &stopped));
            shared.report(unsent)
        });
        Loading { stop, thread }
    }

    /// Returns how many requests were due when no connection was left for them.
    async fn drive(self, shared: &Arc<Shared>, stopped: &Arc<AtomicBool>) -> u64 {
        let begun = Instant::now();
        let stopped = stopped.clone();
        let goes_on = move || begun.elapsed() < self.duration && !stopped.load(Ordering::Relaxed);
        let mut tasks = tokio::task::JoinSet::new();
        let mut unsent = 0;
        if self.rate <= 0.0 {
            for _ in 0..self.connections {
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
                let due = (begun.elapsed().as_secs_f64() * self.rate) as u64 + 1;
                while sent < due {
                    let due = begun + Duration::from_secs_f64(sent as f64 / self.rate);
                    sent += 1;
                    if tasks.len() >= self.connections {
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
}

/// A load that has begun.
#[derive(Debug)]
pub(crate) struct Loading {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Report>,
}

impl Loading {
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Sends nothing more; the report counts what is under way, too.
    pub(crate) fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.report()
    }

    /// Waits for the end.
    pub(crate) fn report(self) -> Report {
        tokio::task::block_in_place(|| self.thread.join()).expect("the load ran")
    }
}

/// How many requests, and how long they took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) requests: u64,
    pub(crate) statuses: BTreeMap<u16, Times>,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    /// Due when no connection was left for them.
    pub(crate) unsent: u64,
}

impl Report {
    pub(crate) fn of(&self, status: u16) -> Times {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    /// Whatever has none of these statuses: answers by status, and errors.
    pub(crate) fn others(&self, wanted: &[u16]) -> BTreeMap<String, u64> {
        let statuses = self.statuses.iter().filter(|(status, _)| !wanted.contains(status));
        let statuses = statuses.map(|(status, times)| (status.to_string(), times.count));
        statuses.chain(self.errors.iter().map(|(error, count)| ((*error).to_owned(), *count))).collect()
    }
}

#[derive(Debug)]
struct Shared {
    addr: SocketAddr,
    request: Vec<u8>,
    idle: Mutex<Vec<TcpStream>>,
    ended: Mutex<Vec<(Duration, Result<u16, &'static str>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    async fn send(&self, due: Instant) {
        let outcome = tokio::time::timeout(TIMEOUT, self.exchange()).await.unwrap_or(Err("timeout"));
        lock(&self.ended).push((due.elapsed(), outcome));
    }

    async fn exchange(&self) -> Result<u16, &'static str> {
        let kept = lock(&self.idle).pop();
        if let Some(stream) = kept {
            match self.on(stream).await {
                // Not a byte of an answer: closed while it was idle, so it is sent again, as every client does.
                Err("closed") => {}
                ended => return ended,
            }
        }
        let stream = TcpStream::connect(self.addr).await.map_err(|_| "connect")?;
        let _ = stream.set_nodelay(true);
        self.on(stream).await
    }

    /// One request and its answer; the connection is kept when it can be used again.
    async fn on(&self, mut stream: TcpStream) -> Result<u16, &'static str> {
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
        let length = text.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let chunked = text.contains("\r\ntransfer-encoding: chunked\r\n");
        let is_whole = |bytes: &[u8]| match length {
            _ if chunked => bytes.ends_with(b"\r\n0\r\n\r\n") || bytes[head..].starts_with(b"0\r\n\r\n"),
            length => length.is_none_or(|length| bytes.len() >= head + length),
        };
        if length.is_none() && !chunked {
            return Err("broken");
        }
        while !is_whole(&bytes) {
            if stream.read_buf(&mut bytes).await.map_err(|_| "broken")? == 0 {
                return Err("broken");
            }
        }
        if !text.contains("\r\nconnection: close\r\n") {
            lock(&self.idle).push(stream);
        }
        Ok(status)
    }

    fn report(&self, unsent: u64) -> Report {
        let mut took: BTreeMap<u16, Vec<Duration>> = BTreeMap::new();
        let mut errors = BTreeMap::new();
        let ended = lock(&self.ended);
        for (duration, outcome) in ended.iter() {
            match outcome {
                Ok(status) => took.entry(*status).or_default().push(*duration),
                Err(error) => *errors.entry(*error).or_default() += 1,
            }
        }
        let statuses = took.into_iter().map(|(status, took)| (status, times(took))).collect();
        Report { requests: ended.len() as u64, statuses, errors, unsent }
    }
}

fn times(mut took: Vec<Duration>) -> Times {
    took.sort_unstable();
    let at = |share: f64| (took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6).round() / 1e3;
    Times { count: took.len() as u64, p50_ms: at(0.5), p99_ms: at(0.99) }
}
