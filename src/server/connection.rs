//! One connection: its protocol, its requests, its end.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use futures_util::TryFutureExt as _;
use http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use http::{Request, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, Parts};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::net::body::ReceivedBody;
use crate::server::activity::active::{ActiveRequest, BodyWait};
use crate::server::activity::{Connection, ConnectionState};
use crate::server::answer::TrackedBody;
use crate::server::frames::PREFACE;
use crate::server::io::TrackedIo;
use crate::server::service::{ClientCertificate, ConnectionInfo, HttpService, OnRefused, RequestBody};
use crate::server::tls::{AcceptorState, identity};
use crate::server::upgrade::Upgrade;
use crate::text::causes;

/// The largest request head that hyper accepts. A service whose own limit is below it answers in its own form; beyond it
/// hyper answers with a bare 431.
pub(crate) const MAX_HEAD: usize = 64 << 10;
/// As much of the input as hyper holds over HTTP/1; beyond it is too large a head, too.
const MAX_BUFFER: usize = 48 << 10;
/// How many header fields hyper accepts over HTTP/1.
const MAX_FIELDS: usize = 128;
/// How many bytes are still read after the last answer.
const MAX_LINGER: usize = 4 << 20;

/// What the protocols of one connection share.
pub(crate) struct Protocols<S> {
    pub(crate) connection: Arc<Connection>,
    pub(crate) peer: SocketAddr,
    pub(crate) is_tls: bool,
    pub(crate) service: TowerToHyperService<S>,
    pub(crate) on_refused: OnRefused,
    /// Places of HTTP/2 streams, for all connections together.
    pub(crate) streams: Arc<Semaphore>,
}

impl<S: HttpService> Protocols<S> {
    /// Serves the connection until the peer closes it, a timeout expires or the server closes it.
    pub(crate) async fn serve(self, stream: TcpStream, tls: Option<Arc<AcceptorState>>) {
        let socket = TrackedIo::socket(stream, self.connection.clone());
        self.connection
            .run(async {
                // The rare ways are boxed, because their size would be every connection's.
                let ended = match tls {
                    None => self.plain(socket).await,
                    Some(tls) => Box::pin(self.encrypted(socket, &tls)).await,
                };
                // The peer hung up, or did not speak HTTP.
                if let Err(error) = ended {
                    tracing::debug!(peer = %self.peer, error, "connection ended");
                }
            })
            .await;
    }

    async fn plain(&self, socket: TrackedIo<TcpStream>) -> Result<(), String> {
        // A silent connection needs no buffer yet.
        socket.stream.readable().await.map_err(|error| causes(&error))?;
        self.by_preface(socket, ClientCertificate::default()).await
    }

    /// Without ALPN the connection preface distinguishes HTTP/2 (prior knowledge, RFC 9113, 3.3) from HTTP/1.1.
    async fn by_preface<I: AsyncRead + AsyncWrite + Send + Unpin>(
        &self,
        mut io: TrackedIo<I>,
        certificate: ClientCertificate,
    ) -> Result<(), String> {
        // As much as a usual head takes, so that it needs no further read.
        let mut first = BytesMut::with_capacity(2048);
        loop {
            if io.read_buf(&mut first).await.map_err(|error| causes(&error))? == 0 {
                return Ok(());
            }
            let length = first.len().min(PREFACE.len());
            if first[..length] != PREFACE[..length] {
                io.prefix = first.freeze();
                return self.http1(io, certificate).await;
            }
            if length == PREFACE.len() {
                io.prefix = first.freeze();
                return Box::pin(self.http2(io.reads_http2(), certificate)).await;
            }
        }
    }

    async fn encrypted(&self, socket: TrackedIo<TcpStream>, tls: &AcceptorState) -> Result<(), String> {
        let accepted = TlsAcceptor::from(tls.config.clone()).accept(socket).await;
        let stream = accepted.map_err(|error| format!("TLS: {}", causes(&error)))?;
        let session = stream.get_ref().1;
        let presented = session.peer_certificates().and_then(|chain| chain.first());
        let certificate = ClientCertificate {
            is_missing: tls.asks_for_certificate && presented.is_none(),
            is_presented: presented.is_some(),
            identity: presented.and_then(identity),
        };
        let agreed = session.alpn_protocol().map(|name| name == b"h2");
        let io = TrackedIo::decrypted(stream, self.connection.clone());
        match agreed {
            Some(true) => self.http2(io.reads_http2(), certificate).await,
            Some(false) => self.http1(io, certificate).await,
            None => self.by_preface(io, certificate).await,
        }
    }

    /// A request with what the service may know of its connection.
    pub(crate) fn with_connection_info(
        &self,
        mut request: Request<RequestBody>,
        certificate: &ClientCertificate,
    ) -> Request<RequestBody> {
        let connection = Some(self.connection.clone());
        request.extensions_mut().insert(ConnectionInfo {
            peer: self.peer,
            is_tls: self.is_tls,
            certificate: certificate.clone(),
            connection,
        });
        request
    }

    async fn http1(
        &self,
        io: TrackedIo<impl AsyncRead + AsyncWrite + Send + Unpin>,
        certificate: ClientCertificate,
    ) -> Result<(), String> {
        let upgraded = OnceLock::new();
        let service = service_fn(|request: Request<Incoming>| {
            // hyper ignores and removes a length beside it, and another server may have used that length: what follows on
            // this connection is not read as a request (RFC 9112, 6.1).
            let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
            let active = ActiveRequest::new(&self.connection, request.body().size_hint().exact());
            let wait = (!request.body().is_end_stream()).then(|| BodyWait::new(&self.connection));
            let body = |body| RequestBody::new(ReceivedBody::Http1(body), wait.clone());
            let request = self.with_connection_info(request.map(body), &certificate);
            let upgraded = &upgraded;
            // Futures that `map_ok` wraps are polled in place; an `async` block would move the whole call once more.
            self.service.call(request).map_ok(move |mut response| {
                if let Some(wait) = wait {
                    wait.end();
                }
                if is_chunked {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                let active = match response.extensions_mut().remove::<Upgrade>() {
                    Some(upgrade) => {
                        let _ = upgraded.set((upgrade, active));
                        None
                    }
                    None => Some(active),
                };
                response.map(|body| TrackedBody::new(body, active))
            })
        });
        let mut http = http1::Builder::new();
        // hyper's own timeout would also close idle connections.
        http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_BUFFER).max_headers(MAX_FIELDS);
        let mut serving = http.serve_connection(TokioIo::new(io.reads_http1()), service);
        let ended = (&mut serving).await;
        match &ended {
            Err(error) if error.is_parse_too_large() => (self.on_refused)(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) if error.is_parse() => (self.on_refused)(StatusCode::BAD_REQUEST),
            Err(error) => return Err(causes(error)),
            Ok(()) => {}
        }
        if self.connection.resets() {
            return Ok(());
        }
        let Parts { io, read_buf, .. } = serving.into_parts();
        let mut io = io.into_inner().reads_any();
        if let Some((upgrade, _active)) = upgraded.into_inner().filter(|_| ended.is_ok()) {
            upgrade.run(&mut io, read_buf).await;
            if self.connection.resets() {
                return Ok(());
            }
            let _ = io.shutdown().await;
        }
        self.connection.begin(ConnectionState::Lingering);
        linger(io).await;
        ended.map_err(|error| causes(&error))
    }
}

/// Reads what the peer still sends after the last answer, until it closes its side. Closing a socket with unread bytes
/// resets it, and a reset can overtake the answer.
async fn linger(mut stream: impl AsyncRead + Unpin) {
    let mut unread = [0; 4096];
    let mut drained_bytes = 0;
    while drained_bytes < MAX_LINGER {
        match stream.read(&mut unread).await {
            Ok(read) if read > 0 => drained_bytes += read,
            _ => return,
        }
    }
}
