//! Spans, metrics and access lines, and their export.
//!
//! A request meets [`tracer`] (its span's context), and when it ends `metrics`, `span_queue` and `access_log`. [`export`]
//! sends queued spans to a collector, [`line_writer`] writes lines to stdout and stderr; neither ever blocks a request.
//! Imports `trace_context`, `traces` and the leaves. In reading order: [`tracer`] and `ids`; `span_queue`; [`export`];
//! `metrics`, with `duration_histogram` and `openmetrics`; `access_log`; [`line_writer`]. `client_tracing` is for callers
//! (`--report-spans`) and never on a hop's request path.

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
