//! What one hop shares between its requests. Nothing here is process-global: two nodes in one process are two services.

use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::hop::fault::Faults;
use crate::hop::identity::Identity;
use crate::hop::limits::MAX_RESPONSE;
use crate::hop::request_faults::RequestFaults;
use crate::hop::watch::Watch;
use crate::server::shutdown::Phase;
use crate::system::held::HeldBudgets;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tracer::Tracer;
use crate::trace_context::Propagator;
use crate::upstream::Upstreams;
use crate::values::SizeRange;

/// The place of a stream, as long as it lasts: an extension of the request.
pub(crate) type StreamPlace = Arc<OwnedSemaphorePermit>;

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
    /// `--request-faults`.
    pub(crate) request_faults: RequestFaults,
    /// `--seed`.
    pub(crate) seed: Option<u64>,
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
    /// Places beside them for requests that call nobody.
    pub(crate) spare_permits: Semaphore,
    /// Places of streams, which are no requests in flight: they last too long.
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) phase: Phase,
    /// Empty outside the demo, whose page shows requests as they pass.
    pub(crate) watch: OnceLock<Arc<dyn Watch>>,
}
