//! `httpserver trace REPLY --traces URL`: whether the traces of one request that was sent by somebody else are whole.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::check::backend::access::{BackendRefusal, SecretHeader};
use crate::check::backend::client::{Backend, open};
use crate::check::backend::expected::{expected_spans, trace_ids};
use crate::check::shared_args::{BackendArgs, TextOrJson};
use crate::config::CommandFailure;
use crate::hop::reply::Tree;
use crate::net::trust::Trust;
use crate::system::files::read_input;
use crate::text::counted;
use crate::text::escape::plain;
use crate::traces::ids::{parse_span_id, parse_trace_id};
use crate::traces::{Caller, ExpectedTrace, Kind, SpanId, Trace, TraceId, Verdict};
use crate::values;

/// MiB that are read of a reply.
const MAX_REPLY: u64 = 16;
/// Between two questions for the traces.
const POLL: Duration = Duration::from_millis(300);

/// Options of `httpserver trace`.
#[derive(Debug, Clone, clap::Args)]
#[command(mut_arg("traces", |traces| traces.required(true)))]
pub struct TraceArgs {
    /// The reply of the front as JSON, in a file; `-` for standard input
    #[arg(value_name = "REPLY")]
    pub reply: PathBuf,
    /// Where the traces are read.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// How long they must stay whole
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = values::parse_duration)]
    pub settle: Duration,
    /// The span id that the request brought, of a caller that reports no span [default: the request began the trace]
    #[arg(long, value_name = "SPAN_ID", value_parser = parse_span_id)]
    pub caller: Option<SpanId>,
    /// The trace id that the request brought
    #[arg(long, value_name = "TRACE_ID", value_parser = parse_trace_id)]
    pub trace_id: Option<TraceId>,
    /// How many traces the request should be
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub expect_traces: usize,
    /// How many spans there should be
    #[arg(long, value_name = "N")]
    pub expect_spans: Option<usize>,
    /// How many services should report
    #[arg(long, value_name = "N")]
    pub expect_services: Option<usize>,
    /// Every hop has a sidecar that reports: each app's server span has to be the child of its own sidecar's
    #[arg(long)]
    pub sidecars: bool,
    /// The form of the verdict on standard output
    #[arg(long, value_enum, default_value_t = TextOrJson::Text)]
    pub output: TextOrJson,
}

/// Compares the traces with the reply and prints the verdict. Returns the exit code: 0 whole, 1 not.
///
/// # Errors
///
/// Wrong usage.
pub async fn run(args: TraceArgs) -> Result<u8, CommandFailure> {
    let usage = CommandFailure::Usage;
    let tree = read_reply(&args.reply).map_err(|why| usage(format!("{}: {why}", args.reply.display())))?;
    let trust = Trust::new(None, false).map_err(usage)?;
    let BackendArgs { traces: Some(url), traces_header, traces_wait } = &args.backend else {
        return Err(usage("--traces is missing".to_owned()));
    };
    let headers = SecretHeader::map(traces_header).map_err(usage)?;
    let started = Instant::now();
    let backend = loop {
        match open(url, &trust, headers.clone(), *traces_wait).await {
            Ok((backend, _)) => break backend,
            Err(_) if started.elapsed() < *traces_wait => tokio::time::sleep(POLL).await,
            Err(finding) => {
                println!("{}", finding.text);
                return Ok(1);
            }
        }
    };
    let expected = expectation(&args, &tree);
    let (verdict, traces) = settled(&args, &backend, &tree, &expected).await;
    match args.output {
        TextOrJson::Json => println!("{}", serde_json::to_string_pretty(&verdict).unwrap_or_default()),
        TextOrJson::Text => print!("{}", text(&verdict, &traces)),
    }
    Ok(u8::from(!verdict.whole))
}

fn read_reply(path: &Path) -> Result<Tree, String> {
    Tree::parse(&read_input(path, MAX_REPLY)?).map_err(|error| format!("not a hop's reply: {error}"))
}

/// What the flags and the reply say of the traces.
fn expectation(args: &TraceArgs, tree: &Tree) -> ExpectedTrace {
    ExpectedTrace {
        traces: Some(args.expect_traces),
        trace_id: args.trace_id,
        services: args.expect_services.map(|services| services..=services),
        spans: args.expect_spans,
        caller: args.caller.map_or(Caller::Untraced, |id| Caller::Known(vec![id])),
        required: expected_spans(tree, "", None).into_iter().map(|expected| expected.span).collect(),
        sidecars: args.sidecars,
        errors: succeeded(tree).then_some(0),
        failure: tree.failure(),
        ..ExpectedTrace::default()
    }
}

fn succeeded(tree: &Tree) -> bool {
    tree.hops("").all(|(hop, _)| hop.is_success() && hop.upstreams.iter().all(|call| call.error.is_none()))
}

/// The traces that the reply names, and those in which a span has its request id.
async fn load(backend: &Backend, tree: &Tree) -> Result<Vec<Trace>, BackendRefusal> {
    let mut ids = trace_ids(&expected_spans(tree, "", None));
    ids.extend(tree.hops("").filter_map(|(hop, _)| parse_trace_id(hop.trace_id.as_deref()?).ok()));
    ids.extend(backend.traces_of(&tree.request_id).await?);
    let mut traces: Vec<Trace> = Vec::new();
    for id in ids {
        if !traces.iter().any(|trace| trace.id() == id) {
            traces.extend(backend.trace(id).await?);
        }
    }
    Ok(traces)
}

/// The verdict once the traces have been whole for `--settle`, or the last one within `--traces-wait`.
async fn settled(args: &TraceArgs, backend: &Backend, tree: &Tree, expected: &ExpectedTrace) -> (Verdict, Vec<Trace>) {
    let started = Instant::now();
    let mut whole_since = None;
    loop {
        let loaded = load(backend, tree).await;
        let trouble = loaded.as_ref().err().cloned();
        let traces = loaded.unwrap_or_default();
        let mut verdict = Verdict::of(&traces, expected);
        verdict.deviations.extend(trouble.map(|trouble| format!("The backend {trouble}.")));
        if verdict.whole {
            if whole_since.get_or_insert_with(Instant::now).elapsed() >= args.settle {
                return (verdict, traces);
            }
        } else {
            whole_since = None;
            if started.elapsed() >= args.backend.traces_wait {
                return (verdict, traces);
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn text(verdict: &Verdict, traces: &[Trace]) -> String {
    let mut text = String::new();
    if !verdict.whole {
        for row in traces.iter().flat_map(|trace| trace.rows()) {
            let span = &row.span;
            let parent = span.parent_id.map_or_else(|| "-".repeat(16), |id| id.to_string());
            let (id, service, name) = (span.id, span.service().unwrap_or_default(), span.name.as_deref().unwrap_or_default());
            let kind = span.kind.map_or("local", Kind::as_str);
            let _ = writeln!(text, "  {id} below {parent} {} {kind} {}", plain(service), plain(name));
        }
        for deviation in &verdict.deviations {
            let _ = writeln!(text, "- {deviation}");
        }
    }
    let counts = [(verdict.spans, "span"), (verdict.services.len(), "service"), (verdict.orphans.len(), "orphan")];
    let counts = counts.map(|(n, what)| counted(n, what)).join(", ");
    let whole = if verdict.whole { "whole" } else { "not whole" };
    let _ = writeln!(text, "{whole}: trace {}: {counts}", verdict.traces.join(", "));
    text
}
