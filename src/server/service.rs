//! What the server calls: a tower service, with what it knows of the connection beside each request.

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use tower_service::Service;

/// A request's connection: an extension of every request that the service receives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionInfo {
    /// The address of the other end of the socket.
    pub(crate) peer: IpAddr,
    /// Client certificates are asked for (`--tls-client-ca`) and the peer presented none.
    pub(crate) without_client_certificate: bool,
}

/// Called with the status that hyper answered by itself, when a request head could not be read: there is no request that
/// the service could receive.
pub(crate) type OnRefused = Arc<dyn Fn(StatusCode) + Send + Sync>;

/// A tower service that the server can call: `axum::Router` is one.
pub(crate) trait HttpService:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// The answer's body.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;
}
