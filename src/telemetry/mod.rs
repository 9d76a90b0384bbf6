//! Spans, metrics and access lines, and their export.
//!
//! A request meets [`tracer`] (its span's context), and when it ends `metrics`, `span_queue` and `access_log`. [`export`]
//! sends queued spans to a collector, [`line_writer`] writes lines to stdout and stderr; neither ever blocks a request.

pub(crate) mod access_log;
pub(crate) mod client_tracing;
pub(crate) mod duration_histogram;
pub mod export;
pub(crate) mod ids;
pub mod line_writer;
pub(crate) mod metrics;
pub(crate) mod openmetrics;
pub(crate) mod span_queue;
pub mod tracer;
