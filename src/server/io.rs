//! A byte stream that publishes what its input has begun, when a write waits, and when the peer closes its side.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Interval, interval};

use crate::server::activity::Connection;
use crate::server::frames::FrameReader;

/// How long a request may still take whose client has closed its side. It may wait for the answer, or be gone: only a write
/// would find out.
const HALF_CLOSED: Duration = Duration::from_secs(1);
/// How often such a connection is read again, for a reset.
const RESET_POLL: Duration = Duration::from_millis(100);

/// A socket below TLS, what TLS makes of it, or both at once where there is no TLS.
#[derive(Debug)]
pub(crate) struct TrackedIo<S> {
    pub(crate) stream: S,
    connection: Arc<Connection>,
    /// Was read to recognise the protocol, and is read again.
    pub(crate) prefix: Bytes,
    input: Input,
    /// Of a socket, whose writes wait for the peer: makes its close a reset.
    make_reset: Option<fn(&S)>,
    is_blocked: bool,
    /// A write has waited.
    was_blocked: bool,
    /// The peer closed its side.
    end: Option<Box<WriteDeadline>>,
}

/// What the bytes that arrive are.
#[derive(Debug)]
enum Input {
    /// Not known yet, or encrypted.
    Opaque,
    Http1(HeadReader),
    Http2(Box<FrameReader>),
}

#[derive(Debug)]
struct WriteDeadline {
    deadline: Instant,
    poll: Interval,
}

impl TrackedIo<TcpStream> {
    pub(crate) fn socket(stream: TcpStream, connection: Arc<Connection>) -> Self {
        let make_reset = |stream: &TcpStream| _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        Self { make_reset: Some(make_reset), ..Self::decrypted(stream, connection) }
    }
}

impl<S> TrackedIo<S> {
    pub(crate) fn decrypted(stream: S, connection: Arc<Connection>) -> Self {
        let (prefix, input) = (Bytes::new(), Input::Opaque);
        Self { stream, connection, prefix, input, make_reset: None, is_blocked: false, was_blocked: false, end: None }
    }

    pub(crate) fn reads_http1(self) -> Self {
        Self { input: Input::Http1(HeadReader::default()), ..self }
    }

    /// What follows an upgrade is no HTTP.
    pub(crate) fn reads_any(self) -> Self {
        Self { input: Input::Opaque, ..self }
    }

    pub(crate) fn reads_http2(self) -> Self {
        Self { input: Input::Http2(Box::new(FrameReader::new())), ..self }
    }

    fn write_polled(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let Some(make_reset) = self.make_reset else { return polled };
        if self.connection.resets() {
            make_reset(&self.stream);
        }
        if self.is_blocked != polled.is_pending() {
            self.is_blocked = polled.is_pending();
            self.was_blocked |= self.is_blocked;
            self.connection.set_write_blocked(self.is_blocked);
        }
        // Over HTTP/2 the answers say what was taken of them: a reader of pongs alone is none.
        if self.was_blocked
            && !self.connection.is_multiplexed()
            && let Poll::Ready(Ok(bytes)) = &polled
        {
            self.connection.taken(*bytes);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> TrackedIo<S> {
    fn poll_stream(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let length = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..length]);
            self.prefix.advance(length);
            if self.prefix.is_empty() {
                // Frees the memory.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if self.end.is_none() {
            ready!(read(&mut self.stream, cx, buf))?;
            if buf.filled().len() > before || buf.remaining() == 0 || matches!(self.input, Input::Opaque) {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_end(cx, buf)
    }

    /// The end of the input is passed on when what came before it was answered: hyper and h2 drop every request at the end.
    fn poll_end(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let is_first = self.end.is_none();
        let new = || Box::new(WriteDeadline { deadline: Instant::now() + HALF_CLOSED, poll: interval(RESET_POLL) });
        let end = self.end.get_or_insert_with(new);
        if is_first {
            self.connection.set_half_closed();
            if matches!(self.input, Input::Http2(_)) {
                // The requests before it are not accepted yet.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        while self.connection.awaits_answer() && Instant::now() < end.deadline {
            ready!(end.poll.poll_tick(cx));
            ready!(read(&mut self.stream, cx, buf))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads; a client that closes TLS without `close_notify` has sent all that it will. Of what it sent, whole requests are answered as
/// they would be without TLS, and one that is not whole cannot become so.
fn read<S: AsyncRead + Unpin>(stream: &mut S, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    match ready!(Pin::new(stream).poll_read(cx, buf)) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
        read => Poll::Ready(read),
    }
}

/// Which part of HTTP/1's input comes after the end of a head.
#[derive(Debug, Default)]
struct HeadReader {
    /// The last bytes that came.
    tail: [u8; 3],
}

impl HeadReader {
    /// How many of these bytes come after the end of the head that they hold; 0 when they end with one. `None` when the end of
    /// a head is not among them.
    fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        let is_end = |at: usize| {
            let before = |n: usize| match at.checked_sub(n) {
                Some(i) => bytes[i],
                None => self.tail[3 + at - n],
            };
            bytes[at] == b'\n' && (before(1) == b'\n' || before(1) == b'\r' && before(2) == b'\n')
        };
        let last = bytes.len() - 1;
        let end = if is_end(last) { Some(last) } else { (0..last).find(|at| is_end(*at)) };
        let kept = bytes.len().min(3);
        self.tail.rotate_left(kept);
        self.tail[3 - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
        Some(last - end?)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TrackedIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(this.poll_stream(cx, buf))?;
        let bytes = &buf.filled()[before..];
        if !bytes.is_empty() {
            match &mut this.input {
                Input::Opaque => {}
                Input::Http1(_) if this.connection.closes_under_request() => return Poll::Ready(Err(closed_by_fault())),
                Input::Http1(heads) => this.connection.read_http1(bytes.len(), heads.read(bytes)),
                Input::Http2(frames) => {
                    let stream = frames.last_stream();
                    let unfinished = frames.read(bytes);
                    this.connection.read_http2(unfinished, frames.requests());
                    if frames.last_stream() > stream && this.connection.closes_under_request() {
                        return Poll::Ready(Err(closed_by_fault()));
                    }
                    if !this.connection.may_pin(frames.pinned()) {
                        return Poll::Ready(Err(io::Error::other("the heads of this connection hold too much memory")));
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What ends a connection that a `close` fault struck.
fn closed_by_fault() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "closed by an injected fault")
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
        if self.connection.resets() {
            // The end of the output would overtake the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
