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
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use crate::hop::capacity::MAX_MESSAGE;
use crate::hop::chain::own_reply;
use crate::hop::effects;
use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::fault::FaultKind;
use crate::hop::state::StreamPlace;
use crate::hop::streams::{LONGEST, MAX_MESSAGES};
use crate::server::answer::Account as _;
use crate::server::{Upgrade, UpgradedIo};

/// How long a peer may need to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers the handshake, and serves the socket.
pub(crate) async fn open(
    Extension(exchange): Extension<Arc<Exchange>>,
    Extension(place): Extension<StreamPlace>,
    request: Request,
) -> Result<Response, Error> {
    let mut response = handshake(&request)?;
    response.extensions_mut().insert(Upgrade::new(move |io, read| {
        Box::pin(async move {
            let _place = place;
            serve(io, read, exchange).await;
        })
    }));
    Ok(response)
}

/// The answer to a handshake.
///
/// # Errors
///
/// The request asks for no WebSocket, or a page of another origin does.
pub(crate) fn handshake(request: &Request) -> Result<Response, Error> {
    let response = create_response_with_body(request, Body::empty).map_err(|_| Error::UpgradeRequired)?;
    if is_own_origin(request.headers()) { Ok(response) } else { Err(Error::ForeignOrigin) }
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
    if timeout_at(end, begin(io, &exchange)).await != Ok(true) {
        exchange.cut(None);
        return;
    }
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

/// Whether the connection is reset under the caller's next message.
fn closes_under_message(exchange: &Exchange) -> bool {
    exchange.struck().is_some_and(|struck| struck.faults.contains(&FaultKind::Close))
}

/// Sends the reply as the first message, as faults have it. Returns whether the whole was sent.
async fn begin(io: &mut dyn UpgradedIo, exchange: &Arc<Exchange>) -> bool {
    let mut message = Vec::new();
    let reply = own_reply(exchange, StatusCode::SWITCHING_PROTOCOLS).to_json();
    if Frame::message(reply, OpCode::Data(Data::Text), true).format(&mut message).is_err() {
        return false;
    }
    let mut left = message.len();
    let mut body = Body::from(message);
    if let Some(struck) = exchange.struck() {
        if closes_under_message(exchange) {
            // Known at the socket before the last write.
            exchange.reset_on_close();
        }
        body = effects::to_body(exchange, struck, body);
    }
    while let Some(Ok(part)) = body.frame().await {
        let Ok(part) = part.into_data() else { continue };
        if io.write_all(&part).await.is_err() || io.flush().await.is_err() {
            return false;
        }
        exchange.sent(part.len());
        left -= part.len();
    }
    left == 0
}

impl Socket<'_> {
    async fn send(&mut self, message: Message) -> Result<(), SocketError> {
        let bytes = message.len();
        self.socket.send(message).await?;
        self.exchange.sent(bytes);
        Ok(())
    }

    /// Sends back what comes. What came before the hop stops accepting is still answered.
    async fn echo(&mut self) -> Result<(CloseCode, &'static str), SocketError> {
        let node = self.exchange.node.clone();
        let closes = closes_under_message(&self.exchange);
        for _ in 0..MAX_MESSAGES {
            let message = tokio::select! {
                biased;
                message = self.socket.next() => message.unwrap_or(Err(SocketError::ConnectionClosed))?,
                _ = node.phase.closing() => return Ok((CloseCode::Away, "draining")),
            };
            if closes {
                self.exchange.cut_by_fault();
                return Err(SocketError::AlreadyClosed);
            }
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
