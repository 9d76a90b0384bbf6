//! Spans, metrics and access lines, and their export.
//!
//! A request meets [`tracer`] (its span's context), and when it ends `metrics`, `span_queue`, `access_log` and `log_queue`.
//! [`export`] sends queued spans, log records and the metrics to a collector, [`line_writer`] writes lines to stdout and stderr;
//! neither ever blocks a request. Imports `trace_context`, `traces` and the leaves. In reading order: [`tracer`] and `ids`; `queue`,
//! `span_queue` and [`log_queue`]; [`export`]; `metrics`, with `duration_histogram` and `openmetrics`; `access_log`; [`line_writer`]. `client_tracing` is for callers
//! (`--report-spans`) and never on a hop's request path.

pub(crate) mod access_log;
pub(crate) mod client_tracing;
pub(crate) mod draws;
pub(crate) mod duration_histogram;
pub mod export;
pub(crate) mod ids;
pub mod line_writer;
pub mod log_level;
pub mod log_queue;
pub(crate) mod metrics;
pub(crate) mod openmetrics;
pub(crate) mod queue;
pub(crate) mod span_queue;
pub mod tracer;
