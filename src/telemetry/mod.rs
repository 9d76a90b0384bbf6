//! Spans, metrics, access lines, and the way each leaves the process.

pub(crate) mod access_log;
pub mod export;
pub(crate) mod ids;
pub mod line_writer;
pub(crate) mod metrics;
pub mod tracer;
