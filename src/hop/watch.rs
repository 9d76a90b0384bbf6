//! Who observes the requests of a hop from within its process: the demo's page.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

/// The longest body that is copied.
const MAX_BODY: usize = 512 << 10;

/// Observes requests. Called on the request path: an implementation must not block.
pub trait Watch: fmt::Debug + Send + Sync {
    /// A request of the chain arrived.
    fn began(&self);
    /// A request of the chain ended: the status that was answered (499 when the caller hung up first) and the duration.
    fn ended(&self, status: u16, took: Duration);
    /// Whether a request that has passed so many hops is to be copied.
    fn keeps(&self, hops: u32) -> bool;
    /// Takes the copy of a request when it has ended; never one of a probe or a scrape.
    fn record(&self, seen: WatchedRequest);
}

/// A request with its answer.
#[derive(Debug, Clone, Default)]
pub struct WatchedRequest {
    /// The method as it arrived.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// As the reply shows it.
    pub protocol: &'static str,
    /// The status, and 499 for an answer that was not written to its end.
    pub status: u16,
    /// From the head to the end of the answer.
    pub duration: Duration,
    /// 32 hex digits: the trace that the hop's span is in.
    pub trace_id: Option<String>,
    /// 16 hex digits: the hop's span.
    pub span_id: Option<String>,
    /// The carried headers, as JSON, with secrets masked.
    pub received: Vec<u8>,
    /// What the hop answered.
    pub answer: WatchedAnswer,
}

/// What a hop answered.
#[derive(Debug, Clone, Default)]
pub struct WatchedAnswer {
    /// The reply as JSON, also where the answer is a text or a message drawn from it; empty without one.
    pub reply: Vec<u8>,
    /// The body as it was sent.
    pub body: Vec<u8>,
    /// The body is longer than what was copied.
    pub is_cut: bool,
}

/// The copy of an answer while it is made. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AnswerCopy(Arc<Mutex<WatchedAnswer>>);

impl AnswerCopy {
    fn lock(&self) -> MutexGuard<'_, WatchedAnswer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_reply(&self, json: &[u8]) {
        self.lock().reply = json.to_vec();
    }

    /// A part of the body is on its way.
    pub(crate) fn push(&self, part: &Bytes) {
        let mut answer = self.lock();
        let room = MAX_BODY - answer.body.len();
        answer.is_cut |= part.len() > room;
        answer.body.extend_from_slice(&part[..part.len().min(room)]);
    }

    pub(crate) fn take(&self) -> WatchedAnswer {
        std::mem::take(&mut self.lock())
    }
}
