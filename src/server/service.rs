//! What the server calls: a tower service, with what it knows of the connection beside each request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;
use tower_service::Service;

use crate::net::body::ReceivedBody;
use crate::server::activity::active::BodyWait;
use crate::server::activity::{Connection, Cut};
use crate::server::answer::AnswerBody;

/// A request's connection: an extension of every request that the service receives.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionInfo {
    /// The other end of the socket.
    pub(crate) peer: SocketAddr,
    /// The server speaks TLS here.
    pub(crate) is_tls: bool,
    /// The peer's certificate.
    pub(crate) certificate: ClientCertificate,
    /// `None`: a request that came over no connection.
    pub(crate) connection: Option<Arc<Connection>>,
}

/// The certificate of a client.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientCertificate {
    /// Certificates are asked for (`--tls-client-ca`) and the peer presented none.
    pub(crate) is_missing: bool,
    /// A valid one was presented.
    pub(crate) is_presented: bool,
    /// Who the certificate names; `None` without one, and when it names nobody.
    pub(crate) identity: Option<Arc<str>>,
}

impl ConnectionInfo {
    /// Why a request that was not answered to the end was not.
    pub(crate) fn cut(&self) -> Cut {
        self.connection.as_ref().map_or(Cut::Client, |connection| connection.cut())
    }
}

/// The body of a request.
pub(crate) struct RequestBody {
    body: ReceivedBody,
    /// As long as the client has not sent all of it.
    wait: Option<Arc<BodyWait>>,
}

impl RequestBody {
    pub(crate) fn new(body: ReceivedBody, wait: Option<Arc<BodyWait>>) -> Self {
        Self { body, wait }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if self.wait.is_some()
            && (!matches!(frame, Some(Ok(_))) || self.is_end_stream())
            && let Some(wait) = self.wait.take()
        {
            wait.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Called with the status that hyper answered by itself, when a request head could not be read: there is no request that
/// the service could receive.
pub(crate) type OnRefused = Arc<dyn Fn(StatusCode) + Send + Sync>;

/// A tower service that the server can call: `axum::Router` is one.
pub(crate) trait HttpService:
    Service<Request<RequestBody>, Response = Response<Self::Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// The answer's body.
    type Body: AnswerBody;
}

impl<S, B> HttpService for S
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    B: AnswerBody,
{
    type Body = B;
}
