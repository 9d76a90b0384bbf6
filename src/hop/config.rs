//! The options of one hop as plain values.

use std::fmt;
use std::time::Duration;

use http::HeaderName;

use crate::hop::capacity::{Capacity, Resources};
use crate::hop::fault::FaultConfig;
use crate::hop::identity::{Identity, Locality};
use crate::hop::limits::{MAX_RESPONSE, RequestLimits};
use crate::hop::request_faults::RequestFaults;
use crate::net::tls::Roots;
use crate::server::options::ConnectionOptions;
use crate::server::shutdown::DrainOptions;
use crate::server::tls::ServerTls;
use crate::telemetry::access_log::LogFormat;
use crate::telemetry::export::{ExportOptions, ResourceOptions};
use crate::telemetry::tracer::Sampler;
use crate::trace_context::Propagators;
use crate::upstream::{FanOut, MAX_REQUEST, Target};
use crate::values::{BASE_LANE, Listen, SizeRange, parse_label};

/// One hop's configuration: what [`App`](crate::hop::app::App) is made from.
#[derive(Debug, Clone)]
pub struct HopConfig {
    /// `--addr`.
    pub listen: Listen,
    /// `--name`, `--service-version`, `--lane`, and the host's name.
    pub identity: Identity,
    /// `--upstream`.
    pub upstreams: Vec<Target>,
    /// `--fan-out`.
    pub fan_out: FanOut,
    /// `--grpc-reflection`.
    pub grpc_reflection: bool,
    /// `--forward-body`.
    pub forward_body: bool,
    /// `--request-size`.
    pub request_size: Option<SizeRange<MAX_REQUEST>>,
    /// `--response-size`.
    pub response_size: Option<SizeRange<MAX_RESPONSE>>,
    /// `--upstream-timeout`.
    pub upstream_timeout: Duration,
    /// `--latency`, `--fault` and `--break`.
    pub faults: FaultConfig,
    /// `--admin-addr`.
    pub admin: Option<AdminOptions>,
    /// `--request-faults`.
    pub request_faults: RequestFaults,
    /// `--seed`.
    pub seed: Option<u64>,
    /// `--ready-after`.
    pub ready_after: Duration,
    /// `--retries`.
    pub retries: u32,
    /// `--forward-header`.
    pub forward_headers: Vec<HeaderName>,
    /// `--drop-header`.
    pub drop_headers: Vec<HeaderName>,
    /// `--max-hops`.
    pub max_hops: u32,
    /// `--max-calls`.
    pub max_calls: u32,
    /// `--max-concurrency`.
    pub max_concurrency: usize,
    /// Bytes of answers that are held at once.
    pub held_bytes: usize,
    /// The fixed limits of a request.
    pub limits: RequestLimits,
    /// `--max-connections`, `--header-timeout`, `--idle-timeout`.
    pub connections: ConnectionOptions,
    /// `--tls-cert`, `--tls-key`, `--tls-client-ca`; `None` serves plain HTTP.
    pub tls: Option<ServerTls>,
    /// `--upstream-ca`.
    pub upstream_roots: Roots,
    /// `--drain-delay`, `--drain-timeout`, `--flush-timeout`.
    pub drain: DrainOptions,
    /// `--log-format`; `None` writes no access lines.
    pub access_log: Option<LogFormat>,
    /// What is exported, and where to.
    pub export: ExportOptions,
    /// `OTEL_PROPAGATORS`.
    pub propagators: Propagators,
    /// `OTEL_TRACES_SAMPLER`.
    pub sampler: Sampler,
}

/// The runtime API of a hop.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminOptions {
    /// Where it listens.
    pub listen: Listen,
    /// `ADMIN_TOKEN`.
    pub token: Option<String>,
}

impl fmt::Debug for AdminOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminOptions").field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl HopConfig {
    /// A hop with every default that is called `name` and listens at `listen`.
    pub fn new(name: &str, listen: Listen) -> Self {
        let identity = Identity {
            name: name.to_owned(),
            version: "v1".to_owned(),
            lane: BASE_LANE.to_owned(),
            hostname: hostname(),
            place: Locality::default(),
        };
        let capacity = Capacity::of(Resources::of_process(), 0, None, None);
        Self {
            listen,
            export: ExportOptions {
                resource: ResourceOptions { service_name: name.to_owned(), attributes: identity.attributes() },
                ..ExportOptions::default()
            },
            identity,
            upstreams: Vec::new(),
            fan_out: FanOut::default(),
            grpc_reflection: true,
            forward_body: false,
            request_size: None,
            response_size: None,
            upstream_timeout: Duration::from_secs(5),
            faults: FaultConfig::default(),
            admin: None,
            request_faults: RequestFaults::Off,
            seed: None,
            ready_after: Duration::ZERO,
            retries: 0,
            forward_headers: Vec::new(),
            drop_headers: Vec::new(),
            max_hops: 16,
            max_calls: 1000,
            max_concurrency: capacity.max_concurrency,
            held_bytes: capacity.held_bytes,
            limits: RequestLimits::default(),
            connections: ConnectionOptions { max_connections: capacity.max_connections, ..ConnectionOptions::default() },
            tls: None,
            upstream_roots: Roots::default(),
            drain: DrainOptions::default(),
            access_log: None,
            propagators: Propagators::default(),
            sampler: Sampler::default(),
        }
    }
}

impl HopConfig {
    pub(crate) fn set_capacity(&mut self, capacity: Capacity) {
        self.max_concurrency = capacity.max_concurrency;
        self.held_bytes = capacity.held_bytes;
        self.connections.max_connections = capacity.max_connections;
    }
}

/// The host's name, as the kernel has it: in a container the container's, in Kubernetes the pod's.
fn hostname() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).map(|name| name.trim().to_owned());
    name.filter(|name| parse_label(name).is_ok()).unwrap_or_else(|| "localhost".to_owned())
}
