//! One connection: what it is doing, its socket, its protocol.
//!
//! What a connection does is one word that the sweep in `server` reads; the request path pays a few relaxed stores for it.
//! The sweep only judges. The connection's own task looks again before it closes, because a request may have begun since.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::server::tls::Accepting;
use crate::server::{HttpService, OnRefused};
use crate::text::causes;

/// The largest request head that hyper accepts. A service whose own limit is below it answers in its own form; beyond it
/// hyper answers with a bare 431.
const MAX_HEAD: usize = 64 << 10;
/// How many header fields hyper accepts over HTTP/1.
const MAX_FIELDS: usize = 128;
/// How many requests one HTTP/2 connection may have in flight.
const MAX_STREAMS: u32 = 256;
/// What a client of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much of a refused request is still read and thrown away.
const MAX_LINGER: usize = 4 << 20;

/// What a connection does while no request is being answered on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Nothing was asked yet: a handshake, a first head, or silence.
    New = 0,
    /// Waiting for the first byte of its next request.
    Idle = 1,
    /// The head of a further request has begun.
    Head = 2,
    /// Refused and answered. What the caller still sends is read and thrown away for a moment: closing a socket with unread
    /// bytes resets it, and a reset can overtake the answer.
    Lingering = 3,
}

/// Nothing was judged.
const NONE: u64 = 0;
/// Close, whatever it is doing.
const CUT: u64 = u64::MAX;
/// Take no further request. Only HTTP/2 can say so (GOAWAY) without an answer to write it on.
const RETIRE: u64 = u64::MAX - 1;

/// One connection, as the sweep sees it. Times are milliseconds on the sweep's coarse clock.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What it is doing (two bits) and since when. One word, so that nobody sees the one without the other.
    state: AtomicU64,
    /// How many requests are being answered: at most one, unless it speaks HTTP/2.
    requests: AtomicUsize,
    /// When a write began to wait for its reader; 0 when none waits.
    stalled_since: AtomicU64,
    /// Speaks HTTP/2.
    multiplexed: AtomicBool,
    /// Was told to take no further request.
    retired: AtomicBool,
    /// The caller showed no certificate where one is wanted.
    anonymous: AtomicBool,
    clock: Arc<AtomicU64>,
    /// [`NONE`], [`CUT`], [`RETIRE`], or the state in which it deserves to be closed.
    verdict: AtomicU64,
    waker: AtomicWaker,
}

impl Connection {
    pub(crate) fn new(clock: Arc<AtomicU64>) -> Self {
        let connection = Self {
            state: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            stalled_since: AtomicU64::new(0),
            multiplexed: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            anonymous: AtomicBool::new(false),
            clock,
            verdict: AtomicU64::new(NONE),
            waker: AtomicWaker::new(),
        };
        connection.begin(Doing::New);
        connection
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    fn begin(&self, doing: Doing) {
        self.state.store(self.now() << 2 | doing as u64, Ordering::Release);
    }

    /// What it is doing and since when, as one word for [`Self::judge`].
    pub(crate) fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire)
    }

    /// Takes a state apart.
    pub(crate) fn read_state(state: u64) -> (Doing, u64) {
        let doing = match state & 3 {
            0 => Doing::New,
            1 => Doing::Idle,
            2 => Doing::Head,
            _ => Doing::Lingering,
        };
        (doing, state >> 2)
    }

    /// When a write began to wait for its reader.
    pub(crate) fn stalled_since(&self) -> Option<u64> {
        Some(self.stalled_since.load(Ordering::Relaxed)).filter(|since| *since != 0)
    }

    /// A request or an answer is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Acquire) > 0 || self.stalled_since().is_some()
    }

    /// Speaks HTTP/2: GOAWAY is its way to end.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Ordering::Relaxed)
    }

    /// Was told to take no further request.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    fn sentence(&self, verdict: u64) {
        self.verdict.store(verdict, Ordering::Release);
        self.waker.wake();
    }

    /// Closes the connection, unless it is no longer in this state.
    pub(crate) fn judge(&self, state: u64) {
        self.sentence(state);
    }

    /// Lets the connection finish its requests and take no other.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.sentence(RETIRE);
    }

    /// Closes the connection, whatever it is doing.
    pub(crate) fn cut(&self) {
        self.sentence(CUT);
    }

    /// Runs the connection's future until it ends or the sweep's verdict on the connection holds.
    async fn while_wanted(&self, run: impl Future<Output = ()>) {
        let mut run = pin!(run);
        std::future::poll_fn(|cx| {
            loop {
                if run.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                self.waker.register(cx.waker());
                if self.verdict.load(Ordering::Acquire) == NONE {
                    return Poll::Pending;
                }
                match self.verdict.swap(NONE, Ordering::AcqRel) {
                    CUT => return Poll::Ready(()),
                    // Once more, for HTTP/2 to see it.
                    RETIRE => {}
                    state if !self.is_busy() && self.state() == state => return Poll::Ready(()),
                    _ => return Poll::Pending,
                }
            }
        })
        .await;
    }
}

/// What a request's connection is known by: an extension of every request that [`crate::server::serve`] passes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionInfo {
    /// The address of the other end of the socket.
    pub(crate) peer: IpAddr,
    /// Client certificates are asked for (`--tls-client-ca`) and the peer presented none.
    pub(crate) without_client_certificate: bool,
}

/// Marks a connection as busy from a request's head to the end of its answer.
#[derive(Debug)]
struct ActiveRequest(Arc<Connection>);

impl ActiveRequest {
    fn new(connection: &Arc<Connection>) -> Self {
        connection.requests.fetch_add(1, Ordering::AcqRel);
        Self(connection.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        // In this order: whoever sees no request sees since when.
        self.0.begin(Doing::Idle);
        self.0.requests.fetch_sub(1, Ordering::Release);
    }
}

/// An answer's body, with the guard that ends the request when hyper drops it.
struct TrackedBody<B> {
    body: B,
    _request: ActiveRequest,
}

impl<B: Body + Unpin> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves one connection until the peer closes it, a timeout expires or the server drains.
pub(crate) async fn serve<S: HttpService>(
    connection: Arc<Connection>,
    stream: TcpStream,
    peer: IpAddr,
    tls: Option<Arc<Accepting>>,
    service: S,
    on_refused: OnRefused,
) {
    let socket = Socket { stream, connection: &connection, prefix: Bytes::new() };
    let service = TowerToHyperService::new(service);
    let serving = Serving { connection: &connection, peer, service, on_refused };
    let ended = connection.while_wanted(async {
        // The ways that are rare are boxed: their size would be every connection's.
        let ended = match tls {
            None => serving.plain(socket).await,
            Some(tls) => Box::pin(serving.encrypted(socket, &tls)).await,
        };
        // The peer hung up, or did not speak HTTP.
        if let Err(error) = ended {
            tracing::debug!(%peer, error, "connection ended");
        }
    });
    ended.await;
}

/// What the protocols of one connection share.
struct Serving<'a, S> {
    connection: &'a Arc<Connection>,
    peer: IpAddr,
    service: TowerToHyperService<S>,
    on_refused: OnRefused,
}

impl<S: HttpService> Serving<'_, S> {
    /// Without TLS the first bytes tell HTTP/2 (prior knowledge, RFC 9113, 3.3) from HTTP/1.1.
    async fn plain(&self, mut socket: Socket<'_>) -> Result<(), String> {
        // As much as a usual head takes, so that telling costs no further read.
        let mut first = BytesMut::with_capacity(2048);
        loop {
            if socket.read_buf(&mut first).await.map_err(|error| causes(&error))? == 0 {
                return Ok(());
            }
            let known = first.len().min(PREFACE.len());
            if first[..known] != PREFACE[..known] {
                socket.prefix = first.freeze();
                return self.http1(socket).await;
            }
            if known == PREFACE.len() {
                socket.prefix = first.freeze();
                return Box::pin(self.http2(socket)).await;
            }
        }
    }

    /// With TLS the handshake tells (ALPN).
    async fn encrypted(&self, socket: Socket<'_>, tls: &Accepting) -> Result<(), String> {
        let accepted = tokio_rustls::TlsAcceptor::from(tls.config.clone()).accept(socket).await;
        let stream = accepted.map_err(|error| format!("TLS: {}", causes(&error)))?;
        let session = stream.get_ref().1;
        self.connection.anonymous.store(tls.wants_client && session.peer_certificates().is_none(), Ordering::Relaxed);
        match session.alpn_protocol() {
            Some(b"h2") => self.http2(stream).await,
            _ => self.http1(stream).await,
        }
    }

    /// Passes one request to the service.
    fn call(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<TrackedBody<S::Body>>, Infallible>> + use<S> {
        let active = ActiveRequest::new(self.connection);
        let without_client_certificate = self.connection.anonymous.load(Ordering::Relaxed);
        request.extensions_mut().insert(ConnectionInfo { peer: self.peer, without_client_certificate });
        let call = self.service.call(request);
        async move { Ok(call.await?.map(|body| TrackedBody { body, _request: active })) }
    }

    async fn http1(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
        let service = service_fn(|request: Request<Incoming>| {
            // A length beside it is ignored by hyper and gone by now, and another server may have gone by the length:
            // whatever follows on this connection is not taken for a request (RFC 9112, 6.1).
            let chunked = request.headers().contains_key(TRANSFER_ENCODING);
            let call = self.call(request);
            async move {
                let mut response = call.await?;
                if chunked {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let io = Http1 { stream, connection: self.connection };
        let mut http = hyper::server::conn::http1::Builder::new();
        // hyper's own timeout is off: see the top of `server`.
        http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
        let mut serving = http.serve_connection(TokioIo::new(io), service);
        let ended = (&mut serving).await;
        match &ended {
            Err(error) if error.is_parse_too_large() => (self.on_refused)(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) if error.is_parse() => (self.on_refused)(StatusCode::BAD_REQUEST),
            Err(error) => return Err(causes(error)),
            Ok(()) => {}
        }
        self.connection.begin(Doing::Lingering);
        linger(serving.into_parts().io.into_inner().stream).await;
        ended.map_err(|error| causes(&error))
    }

    async fn http2(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
        let connection = self.connection;
        connection.multiplexed.store(true, Ordering::Relaxed);
        // The handshake is done. From here on requests tell what it does: frames that are no request (PING, WINDOW_UPDATE)
        // come at any time.
        connection.begin(Doing::Idle);
        let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).max_header_list_size(MAX_HEAD as u32).max_concurrent_streams(MAX_STREAMS);
        let service = service_fn(|request| self.call(request));
        let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut told = false;
        let ended = std::future::poll_fn(|cx| {
            if !told && connection.is_retired() {
                told = true;
                serving.as_mut().graceful_shutdown();
            }
            serving.as_mut().poll(cx)
        });
        ended.await.map_err(|error| causes(&error))
    }
}

/// Reads what the peer still sends after the last answer, until it closes its side too. Closing a socket with unread bytes
/// resets it, and a reset can overtake the answer.
async fn linger(mut stream: impl AsyncRead + Unpin) {
    let mut unwanted = [0; 4096];
    let mut drained_bytes = 0;
    while drained_bytes < MAX_LINGER {
        match stream.read(&mut unwanted).await {
            Ok(read) if read > 0 => drained_bytes += read,
            _ => return,
        }
    }
}

/// A socket that tells its connection when a write waits.
struct Socket<'a> {
    stream: TcpStream,
    connection: &'a Connection,
    /// What was read to tell the protocol.
    prefix: Bytes,
}

impl Socket<'_> {
    fn wrote<T>(&self, polled: Poll<T>) -> Poll<T> {
        let stalled = &self.connection.stalled_since;
        match &polled {
            Poll::Pending if stalled.load(Ordering::Relaxed) == 0 => stalled.store(self.connection.now(), Ordering::Relaxed),
            Poll::Ready(_) if stalled.load(Ordering::Relaxed) != 0 => stalled.store(0, Ordering::Relaxed),
            _ => {}
        }
        polled
    }
}

impl AsyncRead for Socket<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let length = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..length]);
            self.prefix.advance(length);
            if self.prefix.is_empty() {
                // Gives the memory back.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
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

/// A stream of HTTP/1.1: marks the start of each request head.
struct Http1<'a, S> {
    stream: S,
    connection: &'a Connection,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Http1<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let connection = self.connection;
        if buf.filled().len() > before
            && Connection::read_state(connection.state.load(Ordering::Relaxed)).0 == Doing::Idle
            && connection.requests.load(Ordering::Relaxed) == 0
        {
            connection.begin(Doing::Head);
        }
        Poll::Ready(polled)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Http1<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
