//! Whether a connection has read anything since its last request was sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Set by the first byte that a stream reads. hyper reports a connection that died the same way before and after it.
#[derive(Debug, Clone, Default)]
pub(super) struct AnswerBegun(Arc<AtomicBool>);

impl AnswerBegun {
    pub(super) fn reset(&self) {
        self.0.store(false, Ordering::Release);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Reads in a row after which other tasks have a turn. hyper skips interim answers in one poll for as long as there are any, and a next
/// hop that sends them without end would hold a worker of the runtime.
const TURN: u8 = 4;

/// A stream that sets [`AnswerBegun`].
pub(super) struct TrackedStream<S> {
    stream: S,
    begun: AnswerBegun,
    reads: u8,
}

impl<S> TrackedStream<S> {
    pub(super) fn new(stream: S, begun: AnswerBegun) -> Self {
        Self { stream, begun, reads: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TrackedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let reads = std::mem::take(&mut self.reads);
        if reads == TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.reads = reads + 1;
        if buffer.filled().len() > before {
            self.begun.0.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrackedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
