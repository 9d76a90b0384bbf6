//! Every check by its name: the one table of ids and of the groups that they belong to.

use serde::Serialize;

/// The parts of a run, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    /// DNS, TCP, TLS, HTTP.
    Reach,
    /// The hops, in their order.
    Chain,
    /// What happens to headers between the hops.
    Propagation,
    /// The trace in the backend.
    Traces,
    /// Swim lanes.
    Lanes,
    /// Statistics over many requests.
    Traffic,
    /// Constant load during a rollout.
    Watch,
    /// The objects of the cluster (`--cluster`).
    Cluster,
    /// What an app does to trace headers: `httpserver probe`.
    Probe,
}

impl Group {
    pub(crate) const ALL: [Self; 8] =
        [Self::Reach, Self::Chain, Self::Propagation, Self::Traces, Self::Lanes, Self::Traffic, Self::Watch, Self::Cluster];

    /// The name in JSON and in `--skip`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reach => "reach",
            Self::Chain => "chain",
            Self::Propagation => "propagation",
            Self::Traces => "traces",
            Self::Lanes => "lanes",
            Self::Traffic => "traffic",
            Self::Watch => "watch",
            Self::Cluster => "cluster",
            Self::Probe => "probe",
        }
    }

    /// The heading in the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Reach => "Reach",
            Self::Chain => "Chain",
            Self::Propagation => "Propagation",
            Self::Traces => "Traces",
            Self::Lanes => "Lanes",
            Self::Traffic => "Traffic",
            Self::Watch => "Rollout watch",
            Self::Cluster => "Cluster",
            Self::Probe => "From both sides",
        }
    }
}

macro_rules! check_ids {
    ($($id:ident $group:ident $name:literal)*) => {
        /// A check. Its name is stable: machines read it in JSON and JUnit, users write it after `--skip`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub(crate) enum CheckId {
            $(#[serde(rename = $name)] $id,)*
        }

        impl CheckId {
            pub(crate) const ALL: &[Self] = &[$(Self::$id),*];

            /// The name: `reach.tls`.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$id => $name,)* }
            }

            /// The group that the name begins with.
            pub(crate) fn group(self) -> Group {
                match self { $(Self::$id => Group::$group,)* }
            }
        }
    };
}

check_ids! {
    ReachDns Reach "reach.dns"
    ReachTcp Reach "reach.tcp"
    ReachTls Reach "reach.tls"
    ReachCertificate Reach "reach.certificate"
    ReachHttp Reach "reach.http"
    ReachRedirect Reach "reach.redirect"
    ReachHsts Reach "reach.hsts"
    ChainHops Chain "chain.hops"
    ChainOrder Chain "chain.order"
    ChainForeignApp Chain "chain.stranger"
    ChainAddress Chain "chain.address"
    PropagationProxies Propagation "propagation.proxies"
    PropagationSidecar Propagation "propagation.sidecar"
    PropagationCoverage Propagation "propagation.coverage"
    PropagationTrace Propagation "propagation.trace"
    PropagationW3c Propagation "propagation.w3c"
    PropagationB3 Propagation "propagation.b3"
    PropagationSampled Propagation "propagation.sampled"
    PropagationRequestId Propagation "propagation.request-id"
    PropagationBaggage Propagation "propagation.baggage"
    PropagationTracestate Propagation "propagation.tracestate"
    PropagationLane Propagation "propagation.lane"
    PropagationHeaders Propagation "propagation.headers"
    PropagationBare Propagation "propagation.bare"
    PropagationOrder Propagation "propagation.order"
    PropagationUnseen Propagation "propagation.unseen"
    TracesBackend Traces "traces.backend"
    TracesArrived Traces "traces.arrived"
    TracesOne Traces "traces.one"
    TracesServices Traces "traces.services"
    TracesOrphans Traces "traces.orphans"
    TracesParents Traces "traces.parents"
    TracesForeignApp Traces "traces.stranger"
    TracesCalls Traces "traces.calls"
    TracesProxies Traces "traces.proxies"
    TracesSpans Traces "traces.spans"
    TracesSampling Traces "traces.sampling"
    LanesBaseline Lanes "lanes.baseline"
    LanesLeak Lanes "lanes.leak"
    LanesWalk Lanes "lanes.walk"
    LanesCarry Lanes "lanes.carry"
    TrafficSuccess Traffic "traffic.success"
    TrafficLatency Traffic "traffic.latency"
    TrafficPropagation Traffic "traffic.propagation"
    TrafficVersions Traffic "traffic.versions"
    TrafficSplit Traffic "traffic.split"
    TrafficRetries Traffic "traffic.retries"
    TrafficIdentity Traffic "traffic.identity"
    TrafficTimes Traffic "traffic.times"
    TrafficSticky Traffic "traffic.sticky"
    WatchFailures Watch "watch.failures"
    WatchGap Watch "watch.gap"
    WatchInstances Watch "watch.instances"
    ClusterRead Cluster "cluster.read"
    ClusterMistake Cluster "cluster.mistake"
    ClusterDataPlane Cluster "cluster.data-plane"
    ClusterIstioctl Cluster "cluster.istioctl"
    ProbeReach Probe "probe.reach"
    ProbeCalls Probe "probe.calls"
    ProbeW3c Probe "probe.w3c"
    ProbeB3 Probe "probe.b3"
    ProbeB3Single Probe "probe.b3-single"
    ProbeShortIds Probe "probe.short-ids"
    ProbeContext Probe "probe.context"
    ProbeRequestId Probe "probe.request-id"
    ProbeBaggage Probe "probe.baggage"
    ProbeTracestate Probe "probe.tracestate"
    ProbeCarried Probe "probe.carried"
    ProbeSampling Probe "probe.sampling"
    ProbeAgreement Probe "probe.agreement"
    ProbePrecedence Probe "probe.precedence"
    ProbeInvalid Probe "probe.invalid"
    ProbeFailures Probe "probe.failures"
    ProbeCrossTalk Probe "probe.cross-talk"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_begins_with_its_group_and_the_guide_lists_it() {
        let guide = concat!(include_str!("../../docs/check.md"), include_str!("../../docs/probe.md"));
        for id in CheckId::ALL {
            let (group, rest) = id.name().split_once('.').unwrap();
            assert_eq!(group, id.group().name(), "{id:?}");
            let short = format!("`.{rest}`");
            assert!(
                guide.contains(&format!("`{}`", id.name())) || guide.contains(&short),
                "docs/check.md or docs/probe.md lacks {}",
                id.name()
            );
        }
    }
}
