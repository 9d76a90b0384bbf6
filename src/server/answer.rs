//! An answer's body on its way into the socket: who counts the bytes, and how it ends.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use crate::server::activity::Cut;
use crate::server::activity::active::ActiveRequest;

/// Counts the bytes of one answer that were written to the connection. Its last clone is dropped when all were, or when the
/// rest will never be.
pub(crate) trait Account: Clone + Send + Unpin + 'static {
    /// So many further bytes were written.
    fn sent(&self, bytes: usize);
    /// The rest will not be written; `None`: as the connection ended.
    fn cut(&self, why: Option<Cut>);
}

impl Account for () {
    fn sent(&self, _: usize) {}
    fn cut(&self, _: Option<Cut>) {}
}

/// The body of an answer.
pub(crate) trait AnswerBody:
    Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>> + Send> + Send + Unpin + 'static
{
    /// What counts its bytes.
    type Account: Account;

    /// Called once, before the body is polled.
    fn take_account(&mut self) -> Option<Self::Account>;
}

impl AnswerBody for axum::body::Body {
    type Account = ();

    fn take_account(&mut self) -> Option<()> {
        None
    }
}

/// An answer that is no longer counts as written when it is handed over to a socket that takes more: who has read an answer
/// finds it in metrics and log.
pub(crate) const COUNTED_AT_ONCE: usize = 16 << 10;

/// Notified of what becomes of a [`Chunk`].
pub(crate) trait Guard {
    /// So many bytes of it were written.
    fn sent(&self, bytes: usize);
    /// It is dropped before it was written whole.
    fn cut(&self);
}

/// Bytes that the HTTP library owns until they are written.
#[derive(Debug)]
pub(crate) struct Chunk<G: Guard> {
    pub(crate) bytes: Bytes,
    pub(crate) guard: G,
}

impl<G: Guard> Buf for Chunk<G> {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.guard.sent(count);
    }
}

impl<G: Guard> Drop for Chunk<G> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.guard.cut();
        }
    }
}

/// What a chunk of HTTP/1 keeps alive until it is written.
pub(crate) struct Sending<A> {
    account: Option<A>,
    /// With the last chunk.
    _active: Option<ActiveRequest>,
}

impl<A: Account> Guard for Sending<A> {
    fn sent(&self, bytes: usize) {
        if let Some(account) = &self.account {
            account.sent(bytes);
        }
    }

    fn cut(&self) {
        if let Some(account) = &self.account {
            account.cut(None);
        }
    }
}

/// The body of an answer over HTTP/1: the request is active until the last of it was written.
pub(crate) struct TrackedBody<B: AnswerBody> {
    body: B,
    account: Option<B::Account>,
    active: Option<ActiveRequest>,
    /// hyper drops an empty body without polling it.
    is_empty: bool,
}

impl<B: AnswerBody> TrackedBody<B> {
    pub(crate) fn new(mut body: B, active: Option<ActiveRequest>) -> Self {
        Self { account: body.take_account(), is_empty: body.is_end_stream(), body, active }
    }
}

impl<B: AnswerBody> Body for TrackedBody<B> {
    type Data = Chunk<Sending<B::Account>>;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = &mut *self;
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)?) else {
            (this.account, this.active) = (None, None);
            return Poll::Ready(None);
        };
        let is_last = this.body.is_end_stream();
        Poll::Ready(Some(Ok(frame.map_data(|bytes| {
            let is_blocked = || this.active.as_ref().is_some_and(ActiveRequest::is_write_blocked);
            if is_last
                && bytes.len() <= COUNTED_AT_ONCE
                && !is_blocked()
                && let Some(account) = this.account.take()
            {
                account.sent(bytes.len());
            }
            let guard = if is_last {
                Sending { account: this.account.take(), _active: this.active.take() }
            } else {
                Sending { account: this.account.clone(), _active: None }
            };
            Chunk { bytes, guard }
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: AnswerBody> Drop for TrackedBody<B> {
    fn drop(&mut self) {
        if let Some(account) = self.account.take().filter(|_| !self.is_empty) {
            account.cut(None);
        }
    }
}
