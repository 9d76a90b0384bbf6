//! The line `serving`: the configuration that is in force, whether it is from a flag, a variable or a default.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use crate::hop::config::HopConfig;
use crate::hop::identity::Identity;
use crate::system::memory;
use crate::telemetry::export::{Exporter, LogOptions, MetricOptions};
use crate::upstream::FanOut;

/// What the line shows beside the hop's identity, taken before the configuration is divided among the parts.
#[derive(Debug)]
pub(crate) struct StartLine {
    tls: bool,
    upstreams: String,
    fan_out: FanOut,
    retries: u32,
    upstream_timeout: Duration,
    seed: Option<u64>,
    traces: String,
    metrics: String,
    logs: String,
    propagators: String,
    sampler: String,
    max_hops: u32,
    max_calls: u32,
    max_connections: usize,
    max_concurrency: usize,
    held_bytes: usize,
}

impl StartLine {
    pub(crate) fn of(config: &HopConfig) -> Self {
        let export = &config.export;
        Self {
            tls: config.tls.is_some(),
            upstreams: list(config.upstreams.iter()),
            fan_out: config.fan_out,
            retries: config.retries,
            upstream_timeout: config.upstream_timeout,
            seed: config.seed,
            traces: list(export.spans.iter().map(Exporter::to_string)),
            metrics: list(export.metrics.iter().map(|MetricOptions { otlp, .. }| otlp)),
            logs: list(export.logs.iter().map(|LogOptions { otlp, .. }| otlp)),
            propagators: config.propagators.to_string(),
            sampler: config.sampler.to_string(),
            max_hops: config.max_hops,
            max_calls: config.max_calls,
            max_connections: config.connections.max_connections,
            max_concurrency: config.max_concurrency,
            held_bytes: config.held_bytes,
        }
    }

    pub(crate) fn log(&self, addr: SocketAddr, identity: &Identity) {
        tracing::info!(
            address = %addr,
            name = identity.name,
            version = identity.version,
            lane = identity.lane,
            tls = self.tls,
            upstreams = self.upstreams,
            fan_out = %self.fan_out,
            retries = self.retries,
            upstream_timeout = ?self.upstream_timeout,
            seed = list(self.seed.iter()),
            traces = self.traces,
            metrics = self.metrics,
            logs = self.logs,
            propagators = self.propagators,
            sampler = self.sampler,
            max_hops = self.max_hops,
            max_calls = self.max_calls,
            max_connections = self.max_connections,
            max_concurrency = self.max_concurrency,
            memory_limit = memory::limit().map_or_else(|| "unknown".to_owned(), mib),
            memory_for_answers = mib(self.held_bytes as u64),
            worker_threads = tokio::runtime::Handle::current().metrics().num_workers(),
            "serving"
        );
    }
}

/// One after the other, or `none`.
fn list(items: impl Iterator<Item = impl Display>) -> String {
    let items: Vec<_> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(",") }
}

fn mib(bytes: u64) -> String {
    format!("{}MiB", bytes >> 20)
}
