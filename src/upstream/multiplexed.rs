//! The HTTP/2 connections to one next hop, each for many calls at once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use crate::upstream::outcome::CallError;

/// Calls at once on one connection: what servers usually allow. Beyond it another connection is opened.
const MAX_STREAMS: usize = 100;
/// What a server may send unasked: of each answer, and in all.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;

/// The connections.
#[derive(Default)]
pub(super) struct Multiplexed {
    open: Mutex<Vec<Arc<Http2Connection>>>,
    /// One call connects at a time: those that come meanwhile share its connection.
    pub(super) connecting: tokio::sync::Mutex<()>,
    /// The next hop speaks HTTP/2, as far as is known.
    is_used: AtomicBool,
}

struct Http2Connection {
    sender: SendRequest<Full<Bytes>>,
    expires_at: Instant,
    peer: Option<SocketAddr>,
    calls: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// One call's place on a connection.
pub(crate) struct Lease {
    pool: Arc<Multiplexed>,
    connection: Arc<Http2Connection>,
    /// Other calls were made on it before.
    pub(super) is_reused: bool,
    is_answered: bool,
}

/// A request that has no answer.
pub(super) struct Unanswered {
    pub(super) error: CallError,
    /// The next hop cannot have processed it: it was not written, or HTTP/2 says so (RFC 9113, 8.7).
    pub(super) is_unprocessed: bool,
    pub(super) was_written: bool,
    /// The whole connection ended.
    pub(super) is_dead: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Multiplexed {
    pub(super) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    pub(super) fn set_used(&self, is_used: bool) {
        self.is_used.store(is_used, Ordering::Relaxed);
    }

    /// A place on an open connection.
    pub(super) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let now = Instant::now();
        let mut open = lock(&self.open);
        open.retain(|connection| connection.expires_at > now && !connection.sender.is_closed());
        let free = open.iter().find(|connection| connection.calls.load(Ordering::Relaxed) < MAX_STREAMS)?;
        Some(Lease::new(self.clone(), free.clone(), true))
    }

    /// Speaks HTTP/2 on a new connection.
    pub(super) async fn open(
        self: &Arc<Self>,
        io: impl Read + Write + Send + Unpin + 'static,
        expires_at: Instant,
        peer: Option<SocketAddr>,
        max_head: u32,
    ) -> Result<Lease, CallError> {
        let mut http2 = Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(max_head);
        let (sender, serving) = http2.handshake(io).await.map_err(|error| CallError::Connect(error.into()))?;
        tokio::spawn(async move {
            // An error also reaches the calls that wait for an answer.
            let _ = serving.await;
        });
        let idle_since = Mutex::new(Instant::now());
        let connection = Arc::new(Http2Connection { sender, expires_at, peer, calls: AtomicUsize::new(0), idle_since });
        lock(&self.open).push(connection.clone());
        self.set_used(true);
        Ok(Lease::new(self.clone(), connection, false))
    }

    /// No further call begins on connections that are idle for too long or too old. Calls under way are finished.
    pub(super) fn close_overdue(&self, idle_timeout: Duration, now: Instant) {
        lock(&self.open).retain(|connection| {
            let is_idle = connection.calls.load(Ordering::Relaxed) == 0;
            let is_overdue = is_idle && now - *lock(&connection.idle_since) >= idle_timeout;
            !is_overdue && now < connection.expires_at && !connection.sender.is_closed()
        });
    }

    fn retire(&self, connection: &Arc<Http2Connection>) {
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, connection));
    }
}

impl Lease {
    fn new(pool: Arc<Multiplexed>, connection: Arc<Http2Connection>, is_reused: bool) -> Self {
        connection.calls.fetch_add(1, Ordering::Relaxed);
        Self { pool, connection, is_reused, is_answered: false }
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.connection.peer
    }

    /// `target` has scheme and authority.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>, target: &Uri) -> Result<Response<Incoming>, Unanswered> {
        let mut sender = self.connection.sender.clone();
        match sender.try_send_request(absolute(request, target)).await {
            Ok(response) => {
                self.is_answered = true;
                Ok(response)
            }
            Err(mut error) => {
                let was_written = error.take_message().is_none();
                let error = error.into_error();
                let is_unprocessed = !was_written || is_refused(&error);
                let is_dead = sender.is_closed();
                Err(Unanswered { error: CallError::Broken(error.into()), is_unprocessed, was_written, is_dead })
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A call that got no answer may have met a connection on which none comes any more: the next one is made on another.
        if !self.is_answered {
            self.pool.retire(&self.connection);
        }
        *lock(&self.connection.idle_since) = Instant::now();
        self.connection.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// HTTP/2 has the host in the target.
fn absolute(mut request: Request<Full<Bytes>>, target: &Uri) -> Request<Full<Bytes>> {
    request.headers_mut().remove(HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    (parts.scheme, parts.authority) = (target.scheme().cloned(), target.authority().cloned());
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request
}

/// Whether the server says that it has not processed this request: the stream is refused, or its number is above the last one
/// that a GOAWAY names.
fn is_refused(error: &hyper::Error) -> bool {
    let http2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    http2.is_some_and(|error| {
        error.is_remote() && (error.is_go_away() || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}
