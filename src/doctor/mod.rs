//! `httpserver doctor`: reads a mesh's traces and reports which services break them. Nothing is sent to the mesh.
//!
//! ```text
//!  load ─► system ─► context, forwarded, silent, missing, clocks ─► findings ─► report ─► text, JSON
//!             │         ├ astray: calls with the context of another request
//!             │         │                         └ orphans: who should have reported a parent
//!             │         ├ begun, outgoing: who called the roots that belong below a call; direct: whether that is what was called;
//!             │         │  coincidence: whether something else explains them; blame: which side is at fault
//!             │         └ timing: what lies inside what, and whether that is chance
//!             ├ hosts: one clock for all
//!             └ peers: the names that calls have for the called
//! ```

mod astray;
mod begun;
mod blame;
mod clocks;
mod coincidence;
mod context;
mod direct;
mod finding;
mod forwarded;
mod hosts;
mod leaves;
mod load;
mod missing;
mod orphans;
mod outgoing;
mod peers;
mod report;
mod shortened;
mod sidecar;
mod silent;
mod system;
mod timing;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::check::{BackendArgs, TextOrJson};
use crate::config::CommandFailure;
use crate::traces::Trace;
use crate::values;
use finding::{FindingId, Level, ServiceFinding};
use missing::Explained;
use report::DoctorReport;
use system::System;

/// Options of `httpserver doctor`.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("source").args(["traces", "file"]).required(true).multiple(true))]
pub struct DoctorArgs {
    /// Where the traces are read.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Read the traces from this file: Zipkin v2 JSON, Jaeger's download, or OTLP JSON; `-` for standard input (repeatable)
    #[arg(long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// How far back to read
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::positive_duration)]
    pub lookback: Duration,
    /// How many traces to read at most
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = values::whole::<u32>(1..=100_000))]
    pub limit: u32,
    /// Report only on this service; the traces of all are read, for those that begin behind it show whether it passes contexts on
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Exit with 1 when a service scores less than this, 0 to 100
    #[arg(long, value_name = "SCORE", value_parser = values::whole::<u8>(0..=100))]
    pub fail_under: Option<u8>,
    /// The form of the report on standard output
    #[arg(long, value_enum, default_value_t = TextOrJson::Text)]
    pub output: TextOrJson,
}

/// Reads the traces and writes the report to standard output. Returns the exit code: 0 read, 1 there is no trace or a service scores
/// less than `--fail-under`.
///
/// # Errors
///
/// A file that cannot be read or is no file of traces, or a backend that does not answer as its API says.
pub async fn run(args: DoctorArgs) -> Result<u8, CommandFailure> {
    let loaded = load::load(&args).await?;
    let report = diagnose(&loaded.traces, loaded.source, args.service.as_deref());
    let text = match args.output {
        TextOrJson::Text => report.text(crate::text::terminal::has_color()),
        TextOrJson::Json => report.json(),
    };
    // A reader that hung up is no reason to fail: the exit code still has the result.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if loaded.traces.is_empty() {
        return Ok(1);
    }
    Ok(u8::from(args.fail_under.is_some_and(|least| report.lowest_score() < u32::from(least))))
}

fn diagnose(traces: &[Trace], source: String, only: Option<&str>) -> DoctorReport {
    let mut system = System::new(traces);
    let host_clocks = hosts::align(&mut system.spans);
    let skews = clocks::skews(&system);
    let calls = forwarded::calls(&system);
    let mut stale = forwarded::stale_contexts(&system, &calls, &skews);
    stale.extend(astray::astray(&system, &skews));
    let silent = silent::silent_services(&system, &calls, &stale);
    let lost = context::lost_contexts(&system, &skews, &silent.aliases);
    let (as_calls, kinds) = clocks::requests_as_calls(&system);
    let sidecars = sidecar::apps_missing_below_proxies(&system, &lost.pairs);
    let mut explained = Explained { calls: lost.calls, pairs: lost.pairs, kinds, unclear: silent.unclear, beside: stale.beside };
    explained.calls.extend(stale.calls);
    explained.pairs.extend(silent.pairs);
    let mut findings = lost.findings;
    findings.extend(missing::missing_spans(&system, explained, &silent.aliases));
    findings.extend(stale.findings);
    findings.extend(silent.findings);
    findings.extend(sidecars);
    findings.extend(as_calls);
    findings.extend(clocks::longer_than_waited(&system));
    findings.extend(shortened::shortened_ids(&system));
    findings.extend(clocks::calls_as_servers(&system));
    findings.extend(clocks::timeless(&system));
    findings.extend(clocks::clock_notes(&system, &host_clocks));
    findings.extend(clocks::cut_by_queues(&system));
    let named: HashSet<String> = findings.iter().map(|finding| finding.service.to_lowercase()).collect();
    findings.extend(leaves::unreported(&system, |name| named.contains(name) || silent.aliases.contains_key(name)));
    // A sampler leaves no children without their parent: a service that does loses spans, and the calls without an answer are among them.
    let loses: HashSet<String> =
        findings.iter().filter(|finding| finding.loses_own_spans()).map(|finding| finding.service.clone()).collect();
    findings.retain(|finding| finding.id != FindingId::SamplingDiffers || !loses.contains(&finding.service));
    let order = |finding: &ServiceFinding| (finding.level == Level::Note, finding.id, std::cmp::Reverse(finding.count));
    findings.sort_by_key(order);
    DoctorReport::new(&system, source, traces.len(), findings, only)
}
