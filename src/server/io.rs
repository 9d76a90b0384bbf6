//! A byte stream that publishes when a head begins and when a write waits.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::server::activity::Connection;

/// A socket below TLS, what TLS makes of it, or both at once where there is no TLS.
#[derive(Debug)]
pub(crate) struct TrackedIo<S> {
    pub(crate) stream: S,
    connection: Arc<Connection>,
    /// Was read to recognise the protocol, and is read again.
    pub(crate) prefix: Bytes,
    /// Bytes that arrive are a request's: HTTP/1.1, decrypted.
    pub(crate) reads_heads: bool,
    /// A write that waits here waits for the peer.
    is_socket: bool,
    is_blocked: bool,
}

impl<S> TrackedIo<S> {
    pub(crate) fn socket(stream: S, connection: Arc<Connection>) -> Self {
        Self { stream, connection, prefix: Bytes::new(), reads_heads: false, is_socket: true, is_blocked: false }
    }

    pub(crate) fn decrypted(stream: S, connection: Arc<Connection>) -> Self {
        Self { is_socket: false, ..Self::socket(stream, connection) }
    }

    fn write_polled<T>(&mut self, polled: Poll<T>) -> Poll<T> {
        if self.is_socket && self.is_blocked != polled.is_pending() {
            self.is_blocked = polled.is_pending();
            self.connection.set_write_blocked(self.is_blocked);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TrackedIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.prefix.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            let length = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..length]);
            self.prefix.advance(length);
            if self.prefix.is_empty() {
                // Frees the memory.
                self.prefix = Bytes::new();
            }
        }
        if self.reads_heads && buf.filled().len() > before {
            self.connection.bytes_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrackedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.write_polled(polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.write_polled(polled)
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
