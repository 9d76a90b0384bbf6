//! Which checks fail because another has failed.

use crate::report::ids::CheckId;

/// Where the context of a trace is lost.
const CONTEXT: &[CheckId] =
    &[CheckId::PropagationTrace, CheckId::PropagationW3c, CheckId::PropagationB3, CheckId::PropagationOrder];

/// Checks that fail where another has failed at the same place: first the consequence, then what it may follow from.
pub(super) static CONSEQUENCES: &[(CheckId, &[CheckId])] = {
    use CheckId as Id;
    &[
        (Id::PropagationBare, CONTEXT),
        (Id::PropagationSampled, &[Id::PropagationRequestId]),
        (Id::TracesCalls, &[Id::ChainAddress, Id::PropagationSidecar, Id::PropagationCoverage]),
        (Id::TracesServices, &[Id::PropagationRequestId, Id::PropagationTrace, Id::PropagationSidecar, Id::PropagationCoverage]),
        (Id::TrafficSuccess, &[Id::ChainHops]),
        // A cache, or whoever mixes requests up, strikes the others as it struck the probe.
        (Id::TrafficPropagation, &[Id::PropagationTrace]),
        (
            Id::TrafficIdentity,
            &[Id::ChainHops, Id::ChainOrder, Id::ChainAddress, Id::PropagationSidecar, Id::PropagationCoverage, Id::TracesCalls],
        ),
        // A call that is let pass waits for those that are not.
        (Id::TrafficTimes, &[Id::TracesCalls, Id::ChainHops, Id::TrafficSuccess]),
        (Id::LanesCarry, &[Id::PropagationLane]),
    ]
};

/// The same where the place does not matter: a context that is lost anywhere makes two traces of one, hangs spans in the wrong
/// place or below nobody; a request id that is replaced takes the proxies' decision about sampling with it; a hop that decides about
/// sampling by itself decides about each request; a failure anywhere below a hop is why a proxy calls that hop again.
pub(super) static ANYWHERE: &[(CheckId, &[CheckId])] = &[
    (CheckId::TracesOne, CONTEXT),
    (CheckId::TracesParents, CONTEXT),
    (CheckId::TracesOrphans, CONTEXT),
    (CheckId::TracesSampling, &[CheckId::PropagationSampled, CheckId::PropagationRequestId]),
    (CheckId::TrafficRetries, &[CheckId::ChainHops, CheckId::ReachHttp, CheckId::TrafficSuccess]),
];
