//! `GET /ws`: a WebSocket. Its first message is the reply of this hop, which shows what the handshake received; then it echoes.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{HOST, HeaderMap, ORIGIN};
use http::{StatusCode, Uri};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use crate::hop::capacity::MAX_MESSAGE;
use crate::hop::chain::own_reply;
use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::layers::StreamPlace;
use crate::hop::streams::{LONGEST, MAX_MESSAGES};
use crate::server::answer::Account as _;
use crate::server::{Upgrade, UpgradedIo};

/// How long a peer may need to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers the handshake.
pub(crate) async fn open(
    Extension(exchange): Extension<Arc<Exchange>>,
    Extension(place): Extension<StreamPlace>,
    request: Request,
) -> Result<Response, Error> {
    let request = request.map(|_| ());
    let mut response = create_response(&request).map_err(|_| Error::UpgradeRequired)?;
    if !is_own_origin(request.headers()) {
        return Err(Error::ForeignOrigin);
    }
    response.extensions_mut().insert(Upgrade::new(move |io, read| {
        Box::pin(async move {
            let _place = place;
            serve(io, read, exchange).await;
        })
    }));
    Ok(response.map(|()| Body::empty()))
}

/// Browsers open WebSockets for the pages of every origin, with the cookies and the network of whoever reads the page.
fn is_own_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin.as_ref().and_then(Uri::authority).zip(host).is_some_and(|(origin, host)| origin.as_str().eq_ignore_ascii_case(host))
}

/// The socket of one request. Unless it was closed as the protocol has it, the answer counts as cut.
struct Socket<'a> {
    socket: WebSocketStream<&'a mut dyn UpgradedIo>,
    exchange: Arc<Exchange>,
    is_closed: bool,
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        if !self.is_closed {
            self.exchange.cut(None);
        }
    }
}

/// The limits of a connection.
pub(crate) fn config() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    (config.read_buffer_size, config.write_buffer_size, config.max_write_buffer_size) = (4 << 10, 0, 2 * MAX_MESSAGE);
    (config.max_message_size, config.max_frame_size) = (Some(MAX_MESSAGE), Some(MAX_MESSAGE));
    config
}

async fn serve(io: &mut dyn UpgradedIo, read: Bytes, exchange: Arc<Exchange>) {
    let end = Instant::now() + LONGEST;
    let socket = WebSocketStream::from_partially_read(io, read.into(), Role::Server, Some(config())).await;
    let mut socket = Socket { socket, exchange, is_closed: false };
    let close = match timeout_at(end, socket.echo()).await {
        Ok(Ok(close)) => Some(close),
        Ok(Err(error)) => socket.closes_with(&error),
        Err(_) => Some((CloseCode::Policy, "an hour is over")),
    };
    if let Some((code, reason)) = close {
        let _ = timeout(CLOSE_TIMEOUT, socket.close(code, reason)).await;
    }
}

impl Socket<'_> {
    async fn send(&mut self, message: Message) -> Result<(), SocketError> {
        let bytes = message.len();
        self.socket.send(message).await?;
        self.exchange.sent(bytes);
        Ok(())
    }

    /// Sends the reply, and then back what comes. What came before the hop stops accepting is still answered.
    async fn echo(&mut self) -> Result<(CloseCode, &'static str), SocketError> {
        let reply = own_reply(&self.exchange, StatusCode::SWITCHING_PROTOCOLS).to_json();
        self.send(Message::text(String::from_utf8(reply).unwrap_or_default())).await?;
        let node = self.exchange.node.clone();
        for _ in 0..MAX_MESSAGES {
            let message = tokio::select! {
                biased;
                message = self.socket.next() => message.unwrap_or(Err(SocketError::ConnectionClosed))?,
                _ = node.phase.closing() => return Ok((CloseCode::Away, "draining")),
            };
            // tungstenite answers the others.
            if matches!(message, Message::Text(_) | Message::Binary(_)) {
                self.send(message).await?;
            }
        }
        Ok((CloseCode::Policy, "10000 messages"))
    }

    /// What the peer is told of an error, if it can be.
    fn closes_with(&mut self, error: &SocketError) -> Option<(CloseCode, &'static str)> {
        match error {
            SocketError::ConnectionClosed => {
                self.is_closed = true;
                None
            }
            SocketError::Capacity(CapacityError::MessageTooLong { .. }) => {
                Some((CloseCode::Size, "a message has 16 KiB at most"))
            }
            SocketError::Capacity(_) => Some((CloseCode::Size, "too much")),
            SocketError::Utf8(_) => Some((CloseCode::Invalid, "a text is UTF-8")),
            SocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
            SocketError::Protocol(_) => Some((CloseCode::Protocol, "this is no WebSocket")),
            _ => None,
        }
    }

    /// Says why, and waits until the peer has closed, too.
    async fn close(&mut self, code: CloseCode, reason: &'static str) {
        let frame = CloseFrame { code, reason: reason.into() };
        self.is_closed = self.socket.close(Some(frame)).await.is_ok();
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}
