//! The options of `check`, and what they say of each other.

use std::time::Duration;

use http::header::ACCEPT;
use reqwest::Url;

use crate::check::backend::SecretHeader;
use crate::check::chain;
use crate::check::chain::expect::{ChosenTrace, Expect, LatencyLimit, Principal, Resolve, Split};
use crate::check::chain::probe::Probe;
use crate::check::cluster::ClusterArgs;
use crate::check::envoy::commands::{Given, RunOptions};
use crate::check::shared_args::{BackendArgs, ClientArgs};
use crate::net::trust::Trust;
use crate::report::{CheckId, Group, OutputFormat};
use crate::values;

/// Options of `httpserver check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// The chain's URL, as a user would call it
    #[arg(value_parser = chain::expect::front)]
    pub url: Url,
    /// Connect to ADDRESS for this host and port, like curl (repeatable)
    #[arg(long, value_name = "HOST:PORT:ADDRESS")]
    pub resolve: Vec<Resolve>,
    /// How the chain is called.
    #[command(flatten)]
    pub client: ClientArgs,
    /// The hops in order: `service1,service2,service3`; a fan-out: `service1(service2,service3)`
    #[arg(long, value_name = "HOPS")]
    pub expect: Option<Expect>,
    /// Where the trace is read.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Send one request in this trace, 32 or 16 hex digits: the one whose trace --traces reads, else the first
    #[arg(long, value_name = "TRACE_ID")]
    pub trace_id: Option<ChosenTrace>,
    /// How many of the requests without trace context should be sampled, percent (evaluated with --traces)
    #[arg(long, value_name = "PERCENT", default_value = "100", value_parser = values::percent)]
    pub expect_sampling: f64,
    /// Walk this lane and the baseline (repeatable)
    #[arg(long, value_name = "LANE", value_parser = chain::expect::lane)]
    pub lane: Vec<String>,
    /// Requests for the statistics; 0 for none
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = values::whole::<u64>(0..=1_000_000))]
    pub count: u64,
    /// How many of the requests for the statistics should succeed, percent
    #[arg(long, value_name = "PERCENT", default_value = "100", value_parser = values::percent)]
    pub expect_success: f64,
    /// The promised split over versions: `v1=90,v2=10`, or `service2:v1=90,v2=10` (repeatable)
    #[arg(long, value_name = "SPLIT")]
    pub expect_split: Vec<Split>,
    /// The longest time that a share of the answers may take: `p99=500ms`, or `service2:p99=100ms` for one hop (repeatable)
    #[arg(long, value_name = "LIMIT")]
    pub expect_latency: Vec<LatencyLimit>,
    /// Who has to call a hop, by its certificate: `service2=spiffe://cluster.local/ns/httpserver/sa/service1` (repeatable)
    #[arg(long, value_name = "HOP=IDENTITY")]
    pub expect_principal: Vec<Principal>,
    /// How many of a hop's answers may be repeated attempts, percent
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = values::percent)]
    pub expect_retries: f64,
    /// Send a constant load for this long, or `forever`, which is until Ctrl-C or SIGTERM, and report every failure: restart a
    /// Deployment meanwhile
    #[arg(long, value_name = "TIME", value_parser = watch_time)]
    pub watch: Option<Duration>,
    /// Requests per second, at most
    #[arg(long, value_name = "RATE", default_value = "50", value_parser = values::rate)]
    pub rate: f64,
    /// How long the whole run may take; what was left out is reported, and the run counts as interrupted [default: 2m, and
    /// what --count, --lane, --watch and --traces-wait may take]
    #[arg(long, value_name = "TIME", value_parser = values::positive_duration)]
    pub deadline: Option<Duration>,
    /// The gateway's port for plain HTTP [default: 80 when the URL's port is 443]
    #[arg(long, value_name = "PORT", value_parser = values::whole::<u16>(1..=65_535))]
    pub plain_port: Option<u16>,
    /// The namespace that hints name for the hops
    #[arg(long, value_name = "NAME", default_value = "httpserver")]
    pub namespace: String,
    /// The namespace that hints name for the gateway
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub gateway_namespace: String,
    /// Where the cluster's objects are read.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Report this check but do not let it fail the run: its name in JSON, `reach.hsts`, or a group, `reach` (repeatable)
    #[arg(long, value_name = "CHECK")]
    pub skip: Vec<String>,
    /// Exit with 1, too, when a part of the chain cannot be seen: an app that is not httpserver, and whatever it calls
    #[arg(long)]
    pub strict: bool,
    /// Report the client span of every request that begins a trace, to the collector that OTEL_EXPORTER_* names, so that the
    /// trace has its root (service httpserver-check)
    #[arg(long)]
    pub report_spans: bool,
    /// The form of the report on standard output
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Requests of each walk through the lanes and the baseline.
pub(super) const LANE_REQUESTS: u64 = 20;

/// `--watch forever`.
pub(super) const FOREVER: Duration = Duration::MAX;

fn watch_time(text: &str) -> Result<Duration, String> {
    if text == "forever" {
        return Ok(FOREVER);
    }
    values::positive_duration(text).map_err(|reason| format!("{reason}, or forever"))
}

/// Calls over one connection to a first hop that is called over gRPC.
pub(super) const ONE_CONNECTION: u64 = 20;

impl CheckArgs {
    /// How long the whole run may take.
    pub(super) fn deadline(&self) -> Duration {
        const STEPS: Duration = Duration::from_secs(120);
        self.deadline.unwrap_or_else(|| {
            let walks = if self.lane.is_empty() { 0 } else { LANE_REQUESTS * (1 + self.lane.len() as u64) };
            let kept = self.count.min(ONE_CONNECTION + 1);
            let sent = Duration::from_secs_f64((self.count + self.marked() + walks + kept) as f64 / self.rate);
            let traces = self.backend.traces.as_ref().map_or(Duration::ZERO, |_| 3 * self.backend.traces_wait);
            (STEPS + sent + traces).saturating_add(self.watch.unwrap_or_default())
        })
    }

    /// How many requests beside those of the statistics bring headers of their own.
    pub(super) fn marked(&self) -> u64 {
        const MOST: u64 = 200;
        self.count.min(MOST)
    }

    /// The first request. With a backend the one whose trace is read has the chosen id, and no other.
    pub(super) fn first_probe(&self) -> Probe {
        let chosen = self.trace_id.filter(|_| self.backend.traces.is_none());
        chosen.map_or_else(Probe::ordinary, |trace| Probe::chosen(&trace))
    }

    /// The options of this run, for commands that repeat it.
    pub(super) fn options(&self) -> RunOptions {
        let Self { url, resolve, client: ClientArgs { cacert, insecure, .. }, plain_port, expect, .. } = self;
        let (cacert, expect) = (cacert.as_deref(), expect.as_ref());
        RunOptions::new(&Given { url, resolve, cacert, insecure: *insecure, plain_port: *plain_port, expect })
    }

    /// The parts of a whole run.
    pub(super) fn groups(&self) -> Vec<Group> {
        let mut groups = vec![Group::Reach, Group::Chain, Group::Propagation];
        let optional = [
            (Group::Traces, self.backend.traces.is_some()),
            (Group::Lanes, !self.lane.is_empty()),
            (Group::Traffic, self.count > 0),
            (Group::Watch, self.watch.is_some()),
            (Group::Cluster, self.cluster.cluster),
        ];
        groups.extend(optional.into_iter().filter(|(_, is_part)| *is_part).map(|(group, _)| group));
        groups
    }
}

/// Checks the options against each other and reads the files that they name.
///
/// # Errors
/// One line that names the flag, the value and what is accepted.
pub(super) fn validate(args: &CheckArgs) -> Result<Trust, String> {
    let trust = args.client.trust()?;
    if args.client.headers.iter().any(|(name, _)| *name == ACCEPT) {
        return Err("--header accept: `check` sends it itself; accepted: any other header".to_owned());
    }
    SecretHeader::map(&args.backend.traces_header)?;
    if !args.expect_split.is_empty() && args.count == 0 {
        return Err("--count 0: --expect-split needs requests; accepted: a number above 0".to_owned());
    }
    if let Some(expect) = &args.expect {
        let splits =
            args.expect_split.iter().filter_map(|split| Some((split.hop.as_deref()?, format!("--expect-split {}", split))));
        let limits =
            args.expect_latency.iter().filter_map(|limit| Some((limit.hop.as_deref()?, format!("--expect-latency {limit}"))));
        let principals = args.expect_principal.iter().map(|one| (one.hop.as_str(), format!("--expect-principal {one}")));
        for (hop, option) in splits.chain(limits).chain(principals) {
            if !expect.names().iter().any(|name| chain::expect::is_named(hop, name) || chain::expect::is_named(name, hop)) {
                return Err(format!("{option}: no hop {hop} in --expect; accepted: one of {}", expect.names().join(", ")));
            }
        }
    }
    for id in &args.skip {
        let groups = Group::ALL.map(Group::name);
        let checks = || CheckId::ALL.iter().filter(|check| groups.contains(&check.group().name())).map(|check| check.name());
        if !groups.contains(&id.as_str()) && !checks().any(|name| name == id) {
            let of_group: Vec<_> = checks().filter(|name| name.split('.').next() == id.split('.').next()).collect();
            let near = if of_group.is_empty() { "reach.hsts".to_owned() } else { of_group.join(", ") };
            let groups = groups.join(", ");
            return Err(format!("--skip {id}: no such check; accepted: a group ({groups}) or the name of a check, like {near}"));
        }
    }
    Ok(trust)
}
