//! An HTTP server over a tower service: accepts connections, serves HTTP/1.1 and HTTP/2, limits, shuts down.
//!
//! It knows nothing of what the service answers. What a service needs to know of the connection is the request extension
//! [`ConnectionInfo`].

mod connection;
pub(crate) mod listener;
pub mod shutdown;
pub mod tls;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;

pub(crate) use connection::ConnectionInfo;
pub(crate) use listener::serve;

/// What [`serve`] runs on.
pub(crate) struct ServerConfig {
    pub(crate) listener: TcpListener,
    pub(crate) options: listener::ConnectionOptions,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<tls::ServerTls>,
    /// While it drains, HTTP/2 connections are shut down gracefully.
    pub(crate) phase: shutdown::Phase,
    /// Called for each request head that hyper refuses by itself.
    pub(crate) on_refused: OnRefused,
}

/// Called with the status that hyper answered: there is no request that a service could see.
pub(crate) type OnRefused = Arc<dyn Fn(StatusCode) + Send + Sync>;

impl ServerConfig {
    /// Plain HTTP with every default.
    pub(crate) fn plain(listener: TcpListener) -> Self {
        Self {
            listener,
            options: listener::ConnectionOptions::default(),
            tls: None,
            phase: shutdown::Phase::default(),
            on_refused: Arc::new(|_| {}),
        }
    }
}

/// A tower service that [`serve`] can call: `axum::Router` is one.
pub(crate) trait HttpService:
    tower_service::Service<Request<Incoming>, Response = Response<Self::Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// The answer's body.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + Send + 'static;
}

impl<S, B> HttpService for S
where
    S: tower_service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + Send + 'static,
{
    type Body = B;
}
