//! What one hop shares between its requests. Nothing here is process-global: two nodes in one process are two services.

use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use tokio::sync::Semaphore;

use crate::hop::fault::Faults;
use crate::hop::limits::MAX_RESPONSE;
use crate::hop::watch::Watch;
use crate::server::shutdown::Phase;
use crate::system::held::HeldBudgets;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tracer::Tracer;
use crate::trace_context::Propagator;
use crate::upstream::Upstreams;
use crate::values::SizeRange;

/// The identity of a hop in replies, logs and metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// `--name`.
    pub name: String,
    /// `--service-version`.
    pub version: String,
    /// `--lane`; `base` is the baseline.
    pub lane: String,
    /// The host's name; in Kubernetes the pod's.
    pub hostname: String,
    /// Where it runs.
    pub place: Place,
}

/// Where a hop runs, as far as the resource attributes name it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Place {
    /// `k8s.node.name`.
    pub node: Option<String>,
    /// `cloud.availability_zone`.
    pub zone: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// `k8s.cluster.name`.
    pub cluster: Option<String>,
}

impl Place {
    /// From `OTEL_RESOURCE_ATTRIBUTES`.
    pub(crate) fn of(attributes: &[(String, String)]) -> Self {
        let value =
            |key: &str| attributes.iter().find(|(known, value)| known == key && !value.is_empty()).map(|(_, v)| v.clone());
        Self {
            node: value("k8s.node.name"),
            zone: value("cloud.availability_zone"),
            region: value("cloud.region"),
            cluster: value("k8s.cluster.name"),
        }
    }
}

impl Identity {
    /// The attributes of every span that the configuration does not set.
    pub(crate) fn attributes(&self) -> Vec<(String, String)> {
        [("service.version", &self.version), ("lane", &self.lane), ("host.name", &self.hostname)]
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .to_vec()
    }
}

/// One hop.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) identity: Identity,
    /// `identity.version` as every answer carries it.
    pub(crate) version_header: HeaderValue,
    pub(crate) propagator: Propagator,
    /// `None`: no exporter, trace headers pass through untouched.
    pub(crate) tracer: Option<Tracer>,
    pub(crate) metrics: Arc<Metrics>,
    /// `None`: no access lines.
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) faults: Faults,
    pub(crate) upstreams: Upstreams,
    /// The answers that are held.
    pub(crate) held: Arc<HeldBudgets>,
    /// `--grpc-reflection`.
    pub(crate) grpc_reflection: bool,
    /// `--response-size`.
    pub(crate) response_size: Option<SizeRange<MAX_RESPONSE>>,
    /// `--forward-body`.
    pub(crate) forward_body: bool,
    pub(crate) max_hops: u32,
    pub(crate) max_calls: u32,
    /// As many as `--max-concurrency`.
    pub(crate) permits: Semaphore,
    /// Places of streams, which are no requests in flight: they last too long.
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) phase: Phase,
    /// Empty outside the demo, whose page shows requests as they pass.
    pub(crate) watch: OnceLock<Arc<dyn Watch>>,
}
