//! Whether a trace goes on from a caller to the hop that it called, and if not, where it ended.

use opentelemetry::trace::TraceId;

use super::context::{Context, HeaderSource};
use super::format::HeaderFamily;

/// Where a trace ended between a caller and the hop that it called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TraceBreak {
    /// The caller sent no valid context.
    NotSent,
    /// The caller sent valid contexts in these families, and no valid one arrived: none at all, or only `invalid` ones.
    NotReceived { sent: Vec<HeaderFamily>, invalid: bool },
    /// What arrived in these families names none of the traces that were sent.
    Replaced(Vec<HeaderFamily>),
    /// The hop received valid contexts in these families and continued none of them.
    NotContinued(Vec<HeaderFamily>),
}

impl TraceBreak {
    /// Why a hop that received `received` is not in the trace of the caller that sent `sent`.
    pub(crate) fn between(sent: &impl HeaderSource, received: &impl HeaderSource) -> Self {
        let families = |contexts: &[(HeaderFamily, Context)]| contexts.iter().map(|(family, _)| *family).collect();
        let (before, after) = (HeaderFamily::read_all(sent), HeaderFamily::read_all(received));
        if before.is_empty() {
            Self::NotSent
        } else if after.is_empty() {
            let invalid = before.iter().any(|(family, _)| family.is_present(received));
            Self::NotReceived { sent: families(&before), invalid }
        } else if !after.iter().any(|(_, context)| names_trace(&before, context.trace_id)) {
            Self::Replaced(families(&after))
        } else {
            Self::NotContinued(families(&after))
        }
    }
}

/// Whether one of the contexts is of this trace.
pub(crate) fn names_trace(contexts: &[(HeaderFamily, Context)], trace: TraceId) -> bool {
    contexts.iter().any(|(_, context)| context.trace_id == trace)
}
