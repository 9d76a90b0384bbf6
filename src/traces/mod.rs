//! A collected trace: its spans, their tree, whether it is whole, and which service called which.
//!
//! One [`Span`] is read and written everywhere: by the trace store, by `check` and by the demo; the exporter's encoder is held
//! to it by a test. A [`Trace`] is the tree of the spans of one trace id; a [`Verdict`] lists what is wrong with the traces
//! of one request.
//!
//! Imports the leaves only. In reading order: [`ids`]; `span`, with `lenient`; [`otlp`]; `trace`; `failure`; `verdict`; [`dependencies`].

pub mod dependencies;
mod failure;
pub mod ids;
pub(crate) mod jaeger;
mod lenient;
pub mod otlp;
mod span;
mod trace;
mod verdict;

pub use failure::{Failure, Origin};
pub use ids::{InvalidId, SpanId, TraceId};
pub use span::{Annotation, DecodeError, Endpoint, Kind, Link, Span, decode, decode_traces};
pub(crate) use span::{HOST_TAGS, REQUEST_ID_TAGS, URL_TAGS};
pub use trace::{PlacedSpan, Trace};
pub use verdict::{Caller, ExpectedSpan, ExpectedTrace, Misplaced, Orphan, Verdict};
