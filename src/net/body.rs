//! Bodies as they arrive, over either version of HTTP.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tower::BoxError;

/// The body of a request or of an answer.
#[derive(Debug)]
pub(crate) enum ReceivedBody {
    Http1(Incoming),
    Http2(RecvStream),
}

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let stream = match &mut *self {
            Self::Http1(body) => return Pin::new(body).poll_frame(cx).map_err(BoxError::from),
            Self::Http2(stream) => stream,
        };
        match ready!(stream.poll_data(cx)) {
            Some(Ok(bytes)) => {
                // What was read makes room for more.
                let _ = stream.flow_control().release_capacity(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            // A server that needs no more of the request says so after its whole answer (RFC 9113, 8.1).
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(http2_error(&error)))),
            None => {
                let trailers = ready!(stream.poll_trailers(cx)).map_err(|error| http2_error(&error))?;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(stream) if stream.is_end_stream() => SizeHint::with_exact(0),
            Self::Http2(_) => SizeHint::default(),
        }
    }
}

/// As hyper words it.
pub(crate) fn http2_error(error: &h2::Error) -> BoxError {
    format!("http2 error: {error}").into()
}
