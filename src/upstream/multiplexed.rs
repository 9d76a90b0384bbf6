//! The HTTP/2 connections to one next hop, each for many calls at once.
//!
//! Over the `h2` crate: with hyper's client each call passes two more tasks.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::Reason;
use h2::client::{Builder, SendRequest};
use http::header::{CONTENT_LENGTH, HOST};
use http::{Request, Response, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::net::body::{ReceivedBody, http2_error};
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
    sender: SendRequest<Bytes>,
    is_closed: AtomicBool,
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
    Free(PooledCall),
    /// A connection has to be opened.
    New,
    /// There are as many connections as there may be: when `changed` is notified.
    Later,
}

/// One call's place on a connection.
pub(crate) struct PooledCall {
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

impl Unanswered {
    /// The stream is refused, or its number is above the last one that a GOAWAY names: it was not processed.
    fn new(error: &h2::Error, was_written: bool) -> Self {
        let is_dead = error.is_io() || error.is_go_away();
        let is_refused = error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        let is_unprocessed = is_refused || is_dead && !was_written;
        Self { error: CallError::Broken(http2_error(error)), is_unprocessed, was_written, is_dead }
    }
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
    pub(super) fn take_place(self: &Arc<Self>) -> CallPlace {
        let now = Instant::now();
        let mut open = lock(&self.open);
        open.retain(|connection| connection.expires_at > now && !connection.is_closed());
        if let Some(free) = open.iter().find(|connection| connection.calls() < connection.places()) {
            return CallPlace::Free(PooledCall::new(self.clone(), free.clone(), true));
        }
        if open.len() < MAX_CONNECTIONS { CallPlace::New } else { CallPlace::Later }
    }

    /// Speaks HTTP/2 on a new connection, once the server's SETTINGS are there: until then nobody knows how many calls it allows.
    pub(super) async fn open(
        self: &Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        expires_at: Instant,
        peer: Option<SocketAddr>,
        max_head: u32,
    ) -> Result<PooledCall, CallError> {
        let mut http2 = Builder::new();
        http2
            .enable_push(false)
            .initial_max_send_streams(0)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(max_head);
        let (sender, mut serving) = http2.handshake(io).await.map_err(|error| CallError::Connect(http2_error(&error)))?;
        let settings = poll_fn(|cx| match serving.poll_unpin(cx) {
            Poll::Pending if serving.max_concurrent_send_streams() == 0 => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
            Poll::Ready(ended) => Poll::Ready(Err(ended.err())),
        });
        settings.await.map_err(|error| {
            let closed = || "the connection was closed before SETTINGS".into();
            CallError::Broken(error.as_ref().map_or_else(closed, http2_error))
        })?;
        let connection = Arc::new(Http2Connection {
            sender,
            is_closed: AtomicBool::new(false),
            expires_at,
            peer,
            calls: AtomicUsize::new(0),
            allowed: AtomicUsize::new(serving.max_concurrent_send_streams()),
            accepted: AtomicUsize::new(MAX_STREAMS),
            idle_since: Mutex::new(Instant::now()),
        });
        let (pool, known) = (Arc::downgrade(self), Arc::downgrade(&connection));
        tokio::spawn(async move {
            // An error also reaches the calls that wait for an answer.
            let ended = poll_fn(|cx| {
                let ended = serving.poll_unpin(cx);
                if let Some((pool, known)) = pool.upgrade().zip(known.upgrade()) {
                    let allowed = serving.max_concurrent_send_streams();
                    known.is_closed.store(ended.is_ready(), Ordering::Relaxed);
                    if known.allowed.swap(allowed, Ordering::Relaxed) != allowed {
                        pool.changed.notify_waiters();
                    }
                }
                ended
            });
            let _ = ended.await;
        });
        let lease = PooledCall::new(self.clone(), connection.clone(), false);
        lock(&self.open).push(connection);
        self.set_used(true);
        Ok(lease)
    }

    /// No further call begins on connections that are idle for too long or too old. Calls under way are finished.
    pub(super) fn close_overdue(&self, idle_timeout: Duration, now: Instant) {
        lock(&self.open).retain(|connection| {
            let is_idle = connection.calls() == 0;
            let is_overdue = is_idle && now - *lock(&connection.idle_since) >= idle_timeout;
            !is_overdue && now < connection.expires_at && !connection.is_closed()
        });
    }

    fn stop_new_calls(&self, connection: &Arc<Http2Connection>) {
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, connection));
    }
}

impl Http2Connection {
    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many calls may be made at once.
    fn places(&self) -> usize {
        self.allowed.load(Ordering::Relaxed).min(self.accepted.load(Ordering::Relaxed))
    }
}

impl PooledCall {
    fn new(pool: Arc<Multiplexed>, connection: Arc<Http2Connection>, is_reused: bool) -> Self {
        connection.calls.fetch_add(1, Ordering::Relaxed);
        Self { pool, connection, is_reused, is_answered: false }
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.connection.peer
    }

    /// `target` has scheme and authority.
    pub(super) async fn send(&mut self, request: Request<Bytes>, target: &Uri) -> Result<Response<ReceivedBody>, Unanswered> {
        let (head, body) = absolute(request, target).into_parts();
        let mut sender = self.connection.sender.clone();
        let sent = sender.send_request(Request::from_parts(head, ()), body.is_empty());
        let (answer, mut stream) = sent.map_err(|error| Unanswered::new(&error, false))?;
        if !body.is_empty() {
            // Why it fails is why there is no answer.
            let _ = stream.send_data(body, true);
        }
        match answer.await {
            Ok(answer) => {
                self.is_answered = true;
                Ok(answer.map(ReceivedBody::Http2))
            }
            Err(error) => {
                let unanswered = Unanswered::new(&error, true);
                if unanswered.is_unprocessed && !unanswered.is_dead {
                    // The other calls on the connection go on.
                    self.is_answered = true;
                    let others = self.connection.calls().saturating_sub(1);
                    self.connection.accepted.fetch_min(others.max(1), Ordering::Relaxed);
                }
                Err(unanswered)
            }
        }
    }
}

impl Drop for PooledCall {
    fn drop(&mut self) {
        *lock(&self.connection.idle_since) = Instant::now();
        self.connection.calls.fetch_sub(1, Ordering::Relaxed);
        if self.is_answered {
            self.pool.changed.notify_one();
        } else {
            // It may have met a connection on which no answer comes any more: the next call is made on another.
            self.pool.stop_new_calls(&self.connection);
            self.pool.changed.notify_waiters();
        }
    }
}

/// HTTP/2 has the host in the target.
fn absolute(mut request: Request<Bytes>, target: &Uri) -> Request<Bytes> {
    request.headers_mut().remove(HOST);
    if !request.body().is_empty() {
        let length = request.body().len().into();
        request.headers_mut().insert(CONTENT_LENGTH, length);
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    (parts.scheme, parts.authority) = (target.scheme().cloned(), target.authority().cloned());
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request
}
