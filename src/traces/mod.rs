//! A collected trace: its spans in Zipkin's format.

pub mod zipkin;

pub use zipkin::{Annotation, BadId, Endpoint, Kind, Span, SpanId, TraceId};
