//! The trace store: keeps the newest spans in memory and answers Zipkin's v2 API (`api`, `query`); takes OTLP, too, over HTTP (`otlp`) and
//! over gRPC (`grpc`).
//!
//! It forgets rather than grows. Whatever is sent to it, spans, text and bookkeeping together stay within [`Limits`]. The work
//! for a batch is linear in its size.

mod api;
pub(crate) mod forward;
mod grpc;
mod otlp;
mod query;
mod receive;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit, broadcast};

use crate::traces::{Kind, Span, SpanId, Trace, TraceId};

pub use receive::{MAX_BODY, MAX_POSTS};

/// Notifications that a slow subscriber may fall behind before it loses the oldest.
const NOTIFICATIONS: usize = 1024;

/// Memory for one span beside the span itself: its place in its trace and in the trace's index, the allocator's share.
const SPAN_OVERHEAD: usize = 128;

/// How much the store keeps. When a bound of the whole store is passed, the trace whose first span arrived earliest goes.
///
/// Age is arrival, not what spans claim: a timestamp from the year 3000 must not make a trace immortal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Traces. 1,000: more than a person reads.
    pub traces: usize,
    /// Spans of all traces. 50,000: what a list of 1,000 traces of 50 spans needs; a query reads all of them in milliseconds.
    pub spans: usize,
    /// Bytes of all spans, text and bookkeeping included. 32 MiB: nobody minds that on a laptop or in a small container.
    pub bytes: usize,
    /// Spans of one trace. 5,000: a waterfall that long is no longer read, and one runaway trace cannot push all others out.
    pub trace_spans: usize,
    /// Bytes of one trace. 4 MiB, for the same reason.
    pub trace_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { traces: 1_000, spans: 50_000, bytes: 32 << 20, trace_spans: 5_000, trace_bytes: 4 << 20 }
    }
}

/// What the store holds and what it had to let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Traces stored.
    pub traces: usize,
    /// Spans stored.
    pub spans: usize,
    /// Bytes stored, about.
    pub bytes: usize,
    /// Traces that made room for newer ones.
    pub evicted_traces: u64,
    /// Spans not kept because their trace was at its own bound.
    pub dropped_spans: u64,
}

/// A handle to the store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<StoreState>,
}

#[derive(Debug)]
struct StoreState {
    // A std mutex: it is never held across an await, and what is done under it is short.
    stored: Mutex<StoredSpans>,
    limits: Limits,
    arrivals: broadcast::Sender<TraceId>,
    posts: Semaphore,
    /// What is decoded takes many times the memory of its body.
    decoding: tokio::sync::Mutex<()>,
    services: RandomState,
}

#[derive(Debug, Default)]
struct StoredSpans {
    traces: HashMap<TraceId, Entry>,
    /// The ids of `traces`, oldest arrival first.
    order: VecDeque<TraceId>,
    spans: usize,
    bytes: usize,
    evicted_traces: u64,
    dropped_spans: u64,
}

#[derive(Debug, Default)]
struct Entry {
    spans: Vec<Arc<Span>>,
    index: HashMap<TraceKey, usize>,
    bytes: usize,
    dropped: u64,
}

/// What makes two reports the same span: its id, its side of the call, and a hash of who reported it. Both halves of a call
/// may have one id, so the id alone does not do; the hash has a random key, so that nobody can prepare a collision.
type TraceKey = (SpanId, Option<Kind>, u64);

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store with the default [`Limits`].
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// An empty store with limits of its own.
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            shared: Arc::new(StoreState {
                stored: Mutex::default(),
                limits,
                arrivals: broadcast::Sender::new(NOTIFICATIONS),
                posts: Semaphore::new(MAX_POSTS),
                decoding: tokio::sync::Mutex::default(),
                services: RandomState::new(),
            }),
        }
    }

    fn stored(&self) -> MutexGuard<'_, StoredSpans> {
        // A panic under the lock could at worst leave the counts off by one batch; a demo goes on.
        self.shared.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores spans, notifies the subscribers, and returns how many were not stored because their trace was at its limit.
    pub fn insert(&self, spans: Vec<Span>) -> u64 {
        let mut touched = HashSet::new();
        let mut arrived = Vec::new();
        let mut dropped = 0;
        let mut stored = self.stored();
        for span in spans {
            let trace = span.trace_id;
            let service = self.shared.services.hash_one(span.service());
            if stored.insert(span, service, &self.shared.limits) {
                if touched.insert(trace) {
                    arrived.push(trace);
                }
            } else {
                dropped += 1;
            }
        }
        drop(stored);
        for trace in arrived {
            // An error only says that nobody listens.
            let _ = self.shared.arrivals.send(trace);
        }
        dropped
    }

    /// The spans of a trace in the order in which they arrived; `None` when the store has none.
    pub fn trace(&self, id: TraceId) -> Option<Vec<Arc<Span>>> {
        self.stored().traces.get(&id).map(|entry| entry.spans.clone())
    }

    /// The tree of a trace as the store has it now.
    pub fn tree(&self, id: TraceId) -> Option<Trace> {
        let (spans, dropped) = self.stored().traces.get(&id).map(|entry| (entry.spans.clone(), entry.dropped))?;
        Some(Trace::new(spans)?.with_dropped(dropped))
    }

    /// How many reports of spans of this trace were not kept because it was at its bound. 0 for a trace that is whole.
    pub fn dropped(&self, id: TraceId) -> u64 {
        self.stored().traces.get(&id).map_or(0, |entry| entry.dropped)
    }

    /// The ids of all traces, the latest arrival first.
    pub fn trace_ids(&self) -> Vec<TraceId> {
        self.stored().order.iter().rev().copied().collect()
    }

    /// A notification for every trace of every batch that arrives from now on. A receiver that falls more than 1,024
    /// notifications behind loses the oldest of them (`Lagged`), never spans: ask [`trace_ids`](Self::trace_ids) then.
    pub fn subscribe(&self) -> broadcast::Receiver<TraceId> {
        self.shared.arrivals.subscribe()
    }

    /// What is stored, and what had to go.
    pub fn stats(&self) -> Stats {
        let stored = self.stored();
        Stats {
            traces: stored.traces.len(),
            spans: stored.spans,
            bytes: stored.bytes,
            evicted_traces: stored.evicted_traces,
            dropped_spans: stored.dropped_spans,
        }
    }

    /// The Zipkin v2 API: `POST /api/v2/spans`, the `GET`s below `/api/v2` and `/health`; and `POST /v1/traces`, and the same
    /// over gRPC.
    ///
    /// No cross-origin access is granted. Errors are plain text. Whoever serves it decides who may reach it.
    pub fn router(&self) -> Router {
        api::router(self.clone())
    }

    /// OTLP alone, for OpenTelemetry's usual ports.
    pub(crate) fn otlp_router(&self) -> Router {
        api::otlp_router(self.clone())
    }

    fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Permission to read one batch; `None` never comes while the store is there.
    async fn post_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.shared.posts.acquire().await.ok()
    }

    /// Held while a body is decoded and stored: one at a time.
    async fn turn_to_decode(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.decoding.lock().await
    }

    /// The spans of every trace, in no order.
    fn snapshot(&self) -> Vec<Vec<Arc<Span>>> {
        self.stored().traces.values().map(|entry| entry.spans.clone()).collect()
    }
}

impl StoredSpans {
    /// Returns whether the span is now part of its trace.
    fn insert(&mut self, span: Span, service: u64, limits: &Limits) -> bool {
        let id = span.trace_id;
        let weight = span.weight() + SPAN_OVERHEAD;
        if !self.traces.contains_key(&id) {
            if weight > limits.trace_bytes || limits.trace_spans == 0 {
                self.dropped_spans += 1;
                return false;
            }
            self.order.push_back(id);
        }
        let entry = self.traces.entry(id).or_default();
        let before = entry.bytes;
        let known = entry.find(&span, service);
        let kept = match known {
            Some((key, at)) => {
                let old = &entry.spans[at];
                let new = old.updated(span);
                let bytes = entry.bytes - old.weight() + new.weight();
                let fits = bytes <= limits.trace_bytes;
                if fits {
                    if key.1 != new.kind {
                        entry.index.remove(&key);
                        entry.index.insert((new.id, new.kind, service), at);
                    }
                    entry.bytes = bytes;
                    entry.spans[at] = Arc::new(new);
                }
                fits
            }
            None => {
                let fits = entry.spans.len() < limits.trace_spans && entry.bytes + weight <= limits.trace_bytes;
                if fits {
                    entry.index.insert((span.id, span.kind, service), entry.spans.len());
                    entry.bytes += weight;
                    entry.spans.push(Arc::new(span));
                    self.spans += 1;
                }
                fits
            }
        };
        if !kept {
            entry.dropped += 1;
            self.dropped_spans += 1;
        }
        self.bytes = self.bytes - before + entry.bytes;
        while self.traces.len() > limits.traces || self.spans > limits.spans || self.bytes > limits.bytes {
            self.evict_oldest();
        }
        kept
    }

    fn evict_oldest(&mut self) {
        let Some(entry) = self.order.pop_front().and_then(|id| self.traces.remove(&id)) else { return };
        self.spans -= entry.spans.len();
        self.bytes -= entry.bytes;
        self.evicted_traces += 1;
    }
}

impl Entry {
    /// The earlier report of the same span.
    fn find(&self, span: &Span, service: u64) -> Option<(TraceKey, usize)> {
        span.kinds_of_reports().find_map(|kind| {
            let key = (span.id, kind, service);
            self.index.get(&key).map(|at| (key, *at))
        })
    }
}
