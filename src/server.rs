//! Connections: accept, serve HTTP, close.
//!
//! `axum::serve` has no header timeout, no connection cap and no drain deadline, and hyper's own header timeout also closes
//! kept-alive idle connections, which Envoy's pool answers with a 503. So every connection tells in a word what it is doing,
//! and a sweep four times a second closes those that do it for too long. The request path pays two relaxed stores for it.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

use crate::error::{Error, PROBLEM_JSON};

/// How often connections are looked at; every timeout here is late by at most this.
const SWEEP: Duration = Duration::from_millis(250);
/// The largest request head.
pub(crate) const MAX_HEAD: usize = 32 << 10;
/// How many header fields a head may have.
const MAX_FIELDS: usize = 100;
/// How long an answer waits for its reader to take another byte.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// How many connections there may be, and how long they may do nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// At the cap the connection idle for longest is closed first.
    pub max_connections: usize,
    /// A request head must be whole this long after its first byte; after the connect, for the first.
    pub header_timeout: Duration,
    /// How long a kept-alive connection may wait for its next request.
    pub idle_timeout: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self { max_connections: 10_000, header_timeout: Duration::from_secs(10), idle_timeout: Duration::from_secs(65 * 60) }
    }
}

/// Waiting for the first byte of a request.
const IDLE: u8 = 0;
/// A request's head has begun; or the connection is new.
const HEAD: u8 = 1;
/// A request is being answered.
const BUSY: u8 = 2;

/// One connection, as the sweep sees it. Times are milliseconds on the [`Connections`]' coarse clock.
#[derive(Debug)]
struct Connection {
    doing: AtomicU8,
    since: AtomicU32,
    /// When a write began to wait for its reader; 0 when none waits.
    stalled_since: AtomicU32,
    clock: Arc<AtomicU32>,
    close: Mutex<Option<oneshot::Sender<()>>>,
}

impl Connection {
    fn now(&self) -> u32 {
        self.clock.load(Ordering::Relaxed)
    }

    fn begin(&self, doing: u8) {
        self.since.store(self.now(), Ordering::Relaxed);
        self.doing.store(doing, Ordering::Release);
    }

    fn close(&self) {
        if let Some(close) = self.close.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = close.send(());
        }
    }

    /// A request or an answer is under way.
    fn is_busy(&self) -> bool {
        self.doing.load(Ordering::Acquire) == BUSY || self.stalled_since.load(Ordering::Relaxed) != 0
    }
}

/// Marks a connection as busy for as long as a request on it lives.
#[derive(Debug)]
pub(crate) struct InUse(Arc<Connection>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.begin(IDLE);
    }
}

/// Every open connection.
#[derive(Debug)]
struct Connections {
    options: ConnectionOptions,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    clock: Arc<AtomicU32>,
    started: Instant,
    /// No longer accepting: what is idle is closed.
    ending: AtomicBool,
    /// Told when a connection closes.
    closed: Notify,
}

/// A request's way into the hop: what [`serve`] calls for each.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// The answer's body.
    type Body: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Answers one request that came from `peer`.
    fn handle(
        &self,
        in_use: InUse,
        peer: IpAddr,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Serves until `stop` resolves, then finishes what is in flight for at most `drain`. Returns how many requests were cut off.
pub(crate) async fn serve<H: Handler>(
    listener: TcpListener,
    options: ConnectionOptions,
    handler: H,
    stop: impl Future<Output = ()>,
    drain: Duration,
) -> usize {
    let connections = Arc::new(Connections::new(options));
    let sweep = tokio::spawn(connections.clone().sweep());
    {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => connections.clone().start(stream, peer, handler.clone()),
                    Err(error) => connections.survive(&error).await,
                },
            }
        }
    }
    drop(listener);
    connections.ending.store(true, Ordering::Release);
    for connection in connections.lock().values().filter(|connection| connection.doing.load(Ordering::Acquire) == IDLE) {
        if !connection.is_busy() {
            connection.close();
        }
    }
    let drained = tokio::time::timeout(drain, connections.clone().drained()).await;
    let cut = if drained.is_ok() { 0 } else { connections.lock().values().filter(|connection| connection.is_busy()).count() };
    for connection in connections.lock().values() {
        connection.close();
    }
    sweep.abort();
    cut
}

impl Connections {
    fn new(options: ConnectionOptions) -> Self {
        Self {
            options,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            // Starts above 0, which means "never" in `stalled_since`.
            clock: Arc::new(AtomicU32::new(1)),
            started: Instant::now(),
            ending: AtomicBool::new(false),
            closed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Out of file descriptors, most likely: room is made, and a moment is waited, because accept would fail again at once.
    async fn survive(&self, error: &io::Error) {
        let per_connection = matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
        );
        if !per_connection {
            tracing::warn!(%error, "cannot accept connections");
            self.close_idlest();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Closes the connection that has been idle for longest; one in a request is never closed for room.
    fn close_idlest(&self) {
        let open = self.lock();
        let waiting = open.values().filter(|connection| !connection.is_busy());
        if let Some(connection) = waiting.min_by_key(|connection| connection.since.load(Ordering::Relaxed)) {
            connection.close();
        }
    }

    fn start<H: Handler>(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, handler: H) {
        if self.lock().len() >= self.options.max_connections {
            self.close_idlest();
        }
        // Answers are small and whole: waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);
        let (close, closing) = oneshot::channel();
        let connection = Arc::new(Connection {
            doing: AtomicU8::new(HEAD),
            since: AtomicU32::new(self.clock.load(Ordering::Relaxed)),
            stalled_since: AtomicU32::new(0),
            clock: self.clock.clone(),
            close: Mutex::new(Some(close)),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection.clone());
        tokio::spawn(async move {
            let entry = Entry { connections: self, id };
            let service = service_fn(|request| {
                connection.begin(BUSY);
                let in_use = InUse(connection.clone());
                let handler = &handler;
                async move { Ok::<_, std::convert::Infallible>(handler.handle(in_use, peer.ip(), request).await) }
            });
            let io = Watched { stream, connection: &connection };
            let mut http = hyper::server::conn::http1::Builder::new();
            // hyper's own timeout is off: see the top of this file.
            http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
            let serving = http.serve_connection(TokioIo::new(io), service);
            tokio::select! {
                biased;
                // What goes wrong on a connection is the caller's business: it hung up, or did not speak HTTP.
                ended = serving => if let Err(error) = ended { tracing::debug!(%peer, error = crate::error::causes(&error), "connection ended") },
                _ = closing => {}
            }
            drop(entry);
        });
    }

    /// Closes what has been doing the same thing for too long.
    async fn sweep(self: Arc<Self>) {
        let over = |now: u32, since: u32, limit: Duration| u128::from(now.saturating_sub(since)) > limit.as_millis();
        let mut turns = tokio::time::interval(SWEEP);
        loop {
            turns.tick().await;
            let now = u32::try_from(self.started.elapsed().as_millis()).unwrap_or(u32::MAX).max(1);
            self.clock.store(now, Ordering::Relaxed);
            let ending = self.ending.load(Ordering::Acquire);
            for connection in self.lock().values() {
                let since = connection.since.load(Ordering::Relaxed);
                let stalled = connection.stalled_since.load(Ordering::Relaxed);
                let close = match connection.doing.load(Ordering::Acquire) {
                    _ if stalled != 0 => over(now, stalled, WRITE_STALL),
                    BUSY => false,
                    IDLE => ending || over(now, since, self.options.idle_timeout),
                    // A head on its way when the end came may still arrive; a connection that only opened has nothing to lose.
                    _ => over(now, since, if ending { SWEEP * 2 } else { self.options.header_timeout }),
                };
                if close {
                    connection.close();
                }
            }
        }
    }

    /// Resolves when no connection is left.
    async fn drained(self: Arc<Self>) {
        loop {
            let closed = self.closed.notified();
            if self.lock().is_empty() {
                return;
            }
            closed.await;
        }
    }
}

/// Takes a connection off the list when its task ends, however it ends.
struct Entry {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
        self.connections.closed.notify_one();
    }
}

/// A stream that tells its connection when a head begins and when a write waits.
struct Watched<'a> {
    stream: TcpStream,
    connection: &'a Connection,
}

impl Watched<'_> {
    fn wrote<T>(&self, polled: Poll<T>) -> Poll<T> {
        let stalled = &self.connection.stalled_since;
        match &polled {
            Poll::Pending if stalled.load(Ordering::Relaxed) == 0 => stalled.store(self.connection.now(), Ordering::Relaxed),
            Poll::Ready(_) if stalled.load(Ordering::Relaxed) != 0 => stalled.store(0, Ordering::Relaxed),
            _ => {}
        }
        polled
    }

    /// hyper answers a head that it cannot read with a bare status. That is the only answer that is written while no request
    /// is under way; it is written as a problem document instead.
    fn problem(&self, answer: &[u8]) -> Option<String> {
        if self.connection.doing.load(Ordering::Relaxed) == BUSY {
            return None;
        }
        let error = match answer.get(..12)? {
            b"HTTP/1.1 431" | b"HTTP/1.0 431" | b"HTTP/1.1 414" | b"HTTP/1.0 414" => Error::HeadTooLarge,
            b"HTTP/1.1 400" | b"HTTP/1.0 400" => Error::BadRequest,
            _ => return None,
        };
        if !answer.windows(21).any(|line| line.eq_ignore_ascii_case(b"\r\ncontent-length: 0\r\n")) {
            return None;
        }
        let (status, _) = error.parts();
        let body = error.problem();
        Some(format!(
            "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\nx-content-type-options: nosniff\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        ))
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if buf.filled().len() > before && self.connection.doing.load(Ordering::Relaxed) == IDLE {
            self.connection.begin(HEAD);
        }
        Poll::Ready(polled)
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(problem) = self.problem(buf) {
            // A few hundred bytes fit a socket that has been written nothing; what does not fit is lost with the connection.
            let polled = ready!(Pin::new(&mut self.stream).poll_write(cx, problem.as_bytes()));
            return Poll::Ready(polled.map(|_| buf.len()));
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(problem) = bufs.first().and_then(|head| self.problem(head)) {
            let polled = ready!(Pin::new(&mut self.stream).poll_write(cx, problem.as_bytes()));
            return Poll::Ready(polled.map(|_| bufs.iter().map(|buf| buf.len()).sum()));
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
