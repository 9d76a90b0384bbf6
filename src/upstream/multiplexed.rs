//! The HTTP/2 connections to one next hop, each for many calls at once.

use std::future::poll_fn;
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
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::upstream::outcome::CallError;

/// Calls at once on one connection, also where the server allows more. Beyond it another connection is opened.
const MAX_STREAMS: usize = 100;
/// Connections to a server that allows few calls on each. Beyond it calls wait for a place.
const MAX_CONNECTIONS: usize = 64;
/// What a server may send unasked: of each answer, and in all.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;

/// The connections.
#[derive(Default)]
pub(super) struct Multiplexed {
    open: Mutex<Vec<Arc<Http2Connection>>>,
    /// Notified when a call that waits for a place may find one.
    pub(super) changed: Notify,
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
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the server.
    allowed: AtomicUsize,
    /// What the server has refused was beyond it.
    accepted: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// Where a call may be made.
pub(super) enum CallPlace {
    Free(Lease),
    /// A connection has to be opened.
    New,
    /// There are as many connections as there may be: when `changed` is notified.
    Later,
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
    pub(super) fn lease(self: &Arc<Self>) -> CallPlace {
        let now = Instant::now();
        let mut open = lock(&self.open);
        open.retain(|connection| connection.expires_at > now && !connection.sender.is_closed());
        if let Some(free) = open.iter().find(|connection| connection.calls() < connection.places()) {
            return CallPlace::Free(Lease::new(self.clone(), free.clone(), true));
        }
        if open.len() < MAX_CONNECTIONS { CallPlace::New } else { CallPlace::Later }
    }

    /// Speaks HTTP/2 on a new connection, once the server's SETTINGS are there: until then nobody knows how many calls it allows.
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
            .initial_max_send_streams(0)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(max_head);
        let (sender, serving) = http2.handshake(io).await.map_err(|error| CallError::Connect(error.into()))?;
        let mut serving = Box::pin(serving);
        // hyper does not say when they come.
        let mut pause = Duration::from_millis(1);
        while serving.current_max_send_streams() == 0 {
            if let Ok(ended) = tokio::time::timeout(pause, serving.as_mut()).await {
                let why = ended.err().map_or_else(|| "the connection was closed before SETTINGS".into(), Into::into);
                return Err(CallError::Broken(why));
            }
            pause = (2 * pause).min(Duration::from_millis(50));
        }
        let connection = Arc::new(Http2Connection {
            sender,
            expires_at,
            peer,
            calls: AtomicUsize::new(0),
            allowed: AtomicUsize::new(serving.current_max_send_streams()),
            accepted: AtomicUsize::new(MAX_STREAMS),
            idle_since: Mutex::new(Instant::now()),
        });
        let (pool, known) = (Arc::downgrade(self), Arc::downgrade(&connection));
        tokio::spawn(async move {
            // An error also reaches the calls that wait for an answer.
            let ended = poll_fn(|cx| {
                let ended = serving.as_mut().poll(cx);
                if ended.is_pending()
                    && let Some((pool, known)) = pool.upgrade().zip(known.upgrade())
                {
                    let allowed = serving.current_max_send_streams();
                    if known.allowed.swap(allowed, Ordering::Relaxed) != allowed {
                        pool.changed.notify_waiters();
                    }
                }
                ended
            });
            let _ = ended.await;
        });
        let lease = Lease::new(self.clone(), connection.clone(), false);
        lock(&self.open).push(connection);
        self.set_used(true);
        Ok(lease)
    }

    /// No further call begins on connections that are idle for too long or too old. Calls under way are finished.
    pub(super) fn close_overdue(&self, idle_timeout: Duration, now: Instant) {
        lock(&self.open).retain(|connection| {
            let is_idle = connection.calls() == 0;
            let is_overdue = is_idle && now - *lock(&connection.idle_since) >= idle_timeout;
            !is_overdue && now < connection.expires_at && !connection.sender.is_closed()
        });
    }

    fn retire(&self, connection: &Arc<Http2Connection>) {
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, connection));
    }
}

impl Http2Connection {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many calls may be made at once.
    fn places(&self) -> usize {
        self.allowed.load(Ordering::Relaxed).min(self.accepted.load(Ordering::Relaxed))
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
                if is_unprocessed && !is_dead {
                    // The other calls on the connection go on.
                    self.is_answered = true;
                    let others = self.connection.calls().saturating_sub(1);
                    self.connection.accepted.fetch_min(others.max(1), Ordering::Relaxed);
                }
                Err(Unanswered { error: CallError::Broken(error.into()), is_unprocessed, was_written, is_dead })
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *lock(&self.connection.idle_since) = Instant::now();
        self.connection.calls.fetch_sub(1, Ordering::Relaxed);
        if self.is_answered {
            self.pool.changed.notify_one();
        } else {
            // It may have met a connection on which no answer comes any more: the next call is made on another.
            self.pool.retire(&self.connection);
            self.pool.changed.notify_waiters();
        }
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
