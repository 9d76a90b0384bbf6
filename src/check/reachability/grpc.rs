//! `check grpc://…`: `Chain/Call` to the first hop, as a caller without a pool makes it: a connection for each call. Calls over one
//! connection show what such a connection is worth behind a load balancer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Url;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tonic::Code;

use crate::check::reachability::answer::{FrontAnswer, MAX_BODY, RequestFailure};
use crate::hop::reply::{Headers, MessageReply};
use crate::net::hosts::host_of;
use crate::net::hosts::is_tls;
use crate::rpc::status::of_headers;
use crate::rpc::{self, CALL, CONTENT_TYPE};
use crate::text::causes;
use crate::upstream::grpc::{message, request};
use crate::values::service_number;

/// The first hop.
pub(crate) struct GrpcFront {
    address: SocketAddr,
    host: String,
    authority: String,
    service: u16,
    /// `None`: plain text.
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
    extra: HeaderMap,
}

/// An open connection.
pub(crate) struct GrpcConnection {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

impl GrpcFront {
    pub(crate) fn new(url: &Url, address: SocketAddr, mut tls: ClientConfig, timeout: Duration, extra: HeaderMap) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let authority = [url.host_str().unwrap_or_default(), &url.port().map_or_else(String::new, |port| format!(":{port}"))];
        Self {
            address,
            host: host_of(url.as_str()),
            authority: authority.concat(),
            service: url.path().strip_prefix("/service").and_then(service_number).unwrap_or(1),
            tls: is_tls(url).then(|| Arc::new(tls)),
            timeout,
            extra,
        }
    }

    /// One call on a connection of its own.
    pub(crate) async fn call(&self, headers: &Headers) -> Result<FrontAnswer, RequestFailure> {
        let begun = Instant::now();
        let answered = timeout(self.timeout, async { self.connect().await?.call(self, headers).await }).await;
        let answer = answered.unwrap_or(Err(RequestFailure::TimedOut))?;
        Ok(FrontAnswer { took: begun.elapsed(), ..answer })
    }

    /// # Errors
    ///
    /// No connection, or one that speaks no HTTP/2.
    pub(crate) async fn connect(&self) -> Result<GrpcConnection, RequestFailure> {
        let failed = |error: &dyn std::error::Error| RequestFailure::Connect(causes(error));
        let stream = TcpStream::connect(self.address).await.map_err(|error| failed(&error))?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return open(stream).await };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| failed(&error))?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(|error| failed(&error))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(RequestFailure::NotHttp(
                "the server offers no HTTP/2 by ALPN, without which there is no gRPC".to_owned(),
            ));
        }
        open(stream).await
    }

    fn request(&self, headers: &Headers) -> Request<Full<Bytes>> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut built = Request::post(format!("{scheme}://{}{CALL}", self.authority))
            .header(header::CONTENT_TYPE, CONTENT_TYPE)
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, concat!("httpserver-check/", env!("CARGO_PKG_VERSION")))
            .header("grpc-timeout", rpc::timeout::format(self.timeout));
        for (name, value) in self.extra.iter().chain(&headers.to_map()) {
            built = built.header(name, value);
        }
        built.body(Full::new(request(self.service, Bytes::new()))).unwrap_or_default()
    }
}

async fn open<S>(stream: S) -> Result<GrpcConnection, RequestFailure>
where
    TokioIo<S>: Read + Write + Send + Unpin + 'static,
{
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, serving) = shaken.map_err(|error| RequestFailure::of_hyper(&error))?;
    tokio::spawn(async move {
        // An error also reaches the call that waits for an answer.
        let _ = serving.await;
    });
    Ok(GrpcConnection { sender, since: Instant::now() })
}

impl GrpcConnection {
    pub(crate) async fn call(&mut self, front: &GrpcFront, headers: &Headers) -> Result<FrontAnswer, RequestFailure> {
        let begun = Instant::now().max(self.since);
        let failed = |error: hyper::Error| RequestFailure::of_hyper(&error);
        let (head, mut body) = self.sender.send_request(front.request(headers)).await.map_err(failed)?.into_parts();
        let (mut bytes, mut trailers) = (BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
            match frame.map_err(failed)?.into_data() {
                Ok(data) if bytes.len() + data.len() > MAX_BODY => return Err(RequestFailure::TooLarge),
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let took = begun.elapsed();
        let (status, body) = read(head.status, &head.headers, trailers, bytes.freeze());
        Ok(FrontAnswer { status: status.as_u16(), headers: head.headers, body, took, waited: took })
    }
}

/// The answer as it is over HTTP: its status, and the reply as JSON; of a failed call without a reply its message.
fn read(status: StatusCode, headers: &HeaderMap, trailers: Option<HeaderMap>, body: Bytes) -> (StatusCode, Bytes) {
    let is_grpc = headers.get(header::CONTENT_TYPE).is_some_and(|kind| rpc::is_grpc(kind.as_bytes()));
    if status != StatusCode::OK || !is_grpc {
        return (status, body);
    }
    let called = trailers.as_ref().and_then(of_headers).or_else(|| of_headers(headers));
    let json = |reply: Bytes| MessageReply::read(&reply).map(|reply| Bytes::from(reply.to_json()));
    match called {
        Some(called) if called.code() == Code::Ok => (status, message(body).and_then(json).unwrap_or_default()),
        Some(called) => {
            let (status, reply) = rpc::status::read(&called);
            let message = || format!("{}: {}", rpc::status::name(called.code()), called.message()).into();
            (status, reply.and_then(json).unwrap_or_else(message))
        }
        None => (StatusCode::BAD_GATEWAY, Bytes::from_static(b"the answer has no grpc-status")),
    }
}
