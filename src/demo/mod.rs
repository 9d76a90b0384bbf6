//! What `httpserver demo` is made of: a trace store that anything which reports to Zipkin can report to.

pub mod store;
pub(crate) mod zipkin;

pub use zipkin::{Annotation, BadId, Endpoint, Kind, Span, SpanId, TraceId};
