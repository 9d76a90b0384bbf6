//! Trace context on the wire: one parser and one writer for W3C and B3, and the headers that a hop carries.
//!
//! Every header that a hop passes on is one line of the table in `carried`. With no exporter the hop forwards them untouched;
//! with one it continues the trace: [`Propagator::extract`] reads the first valid context in the configured order, and
//! `Propagator::outgoing` writes the hop's own context in every configured format that the request spoke, so that no stale
//! context travels beside a fresh one. Whoever else reads trace headers (`check`, `probe`, the demo's waterfall) reads them with
//! `HeaderFamily::read` or `WireFormat::parse`, which are the same parsers.
//!
//! Imports the leaves only. In reading order: `context`; `w3c` and `b3`; `format`; `carried`; `mangling`; `breaks`; `dropped`; `secrets`; `propagator`.

mod b3;
mod breaks;
mod carried;
#[cfg(test)]
pub(crate) mod cases_for_tests;
mod context;
mod dropped;
mod format;
mod mangling;
mod propagator;
mod secrets;
mod w3c;

pub(crate) use breaks::{BREAKS, BreakInput, break_headers};
pub use breaks::{Break, BreakKind};
pub(crate) use carried::is_carried;
pub use carried::{Carried, carried_names, is_never_carried, is_valid_request_id};
pub(crate) use carried::{
    HeaderPairs, RedactedHeaders, X_CALL_BUDGET, X_HOP_COUNT, X_REQUEST_ID, is_foreign_tracer, is_trace_context,
};
pub(crate) use context::HeaderSource;
pub use context::{Context, Incoming, Sampling};
pub use dropped::Dropped;
pub(crate) use format::{HeaderFamily, WireFormat, names_trace};
pub(crate) use mangling::Mangling;
pub use propagator::{Propagator, Propagators};
pub use secrets::is_secret;
pub(crate) use secrets::{redacted, redacted_value};
pub(crate) use w3c::{flags, is_valid_tracestate, traceresponse};
