//! The body of an answer, with what counts its bytes until it was written.

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{Either, Full};

use crate::hop::watch::AnswerCopy;
use crate::server::answer;

/// The body of an answer: a problem document from outside the router, or what the router answered.
pub(crate) type HopBody<B> = Either<Full<Bytes>, B>;

/// The body of an answer, with what counts its bytes until it was written.
pub(crate) struct ObservedBody<B, A> {
    body: HopBody<B>,
    account: Option<A>,
    copy: Option<AnswerCopy>,
}

impl<B, A> ObservedBody<B, A> {
    pub(crate) fn new(body: HopBody<B>, account: A, copy: Option<AnswerCopy>) -> Self {
        Self { body, account: Some(account), copy }
    }
}

impl<B, A> HttpBody for ObservedBody<B, A>
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Unpin,
    A: Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let (Some(copy), Poll::Ready(Some(Ok(frame)))) = (&self.copy, &polled)
            && let Some(part) = frame.data_ref()
        {
            copy.push(part);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B, A> answer::AnswerBody for ObservedBody<B, A>
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + Unpin + 'static,
    A: answer::Account,
{
    type Account = A;

    fn take_account(&mut self) -> Option<A> {
        self.account.take()
    }
}
