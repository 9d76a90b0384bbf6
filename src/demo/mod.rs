//! What `httpserver demo` is made of: a trace store that anything which reports to Zipkin can report to, and the waterfall
//! that shows a trace in a terminal.
//!
//! [`store`] takes spans in and answers questions about them; [`waterfall`] explains one trace. Neither asks who made the
//! spans, so both work for every tracer that speaks Zipkin's v2 API.

pub mod store;
pub mod waterfall;
pub(crate) mod zipkin;

pub use zipkin::{Annotation, BadId, Endpoint, Kind, Span, SpanId, TraceId};
