//! Prints what a person at the terminal sees of the demo: where everything is, and every trace.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

use crate::demo::access::Access;
use crate::demo::control::exchanges::RequestSender;
use crate::demo::control::state::{DemoState, SentRequest, trace_ids};
use crate::demo::store::Limits;
use crate::demo::terminal::{Style, render, render_rows, render_sentences, render_verdict, sent_headers};
use crate::net::addresses::reachable;
use crate::telemetry::client_tracing::ClientTracer;
use crate::telemetry::ids;
use crate::telemetry::line_writer::LineWriter;
use crate::text::terminal::has_color;
use crate::trace_context::{Context, HeaderFamily, Sampling};
use crate::traces::{Caller, ExpectedTrace, Trace, TraceId, Verdict};

/// A trace without new spans for this long is drawn, complete or not.
const DEBOUNCE: Duration = Duration::from_millis(700);
/// The same where a span is known to be missing: the root, which is of this process, or one of a hop that its caller gave up.
const PATIENT_DEBOUNCE: Duration = Duration::from_secs(5);
/// How long the demo's own request and its spans may take.
const FIRST_TRACE: Duration = Duration::from_secs(30);
/// How many traces a second are drawn; a load test must not drown the terminal.
const DRAWN_PER_SECOND: u32 = 4;

/// As wide as the terminal, coloured on a terminal unless `NO_COLOR` says no, ASCII where nothing says UTF-8.
pub(crate) fn style_of_stdout() -> Style {
    let terminal = std::io::stdout().is_terminal();
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    let utf8 = locale.map(|locale| locale.to_ascii_lowercase().replace('-', "").contains("utf8"));
    let width = if terminal { terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)) } else { None };
    Style {
        width: width.unwrap_or(100),
        colour: has_color(),
        // A terminal that says nothing (in a container, mostly) is a modern one.
        unicode: utf8.unwrap_or(terminal),
    }
}

/// Prints traces as they arrive.
pub(crate) struct Printer {
    pub(crate) state: Arc<DemoState>,
    pub(crate) expected: ExpectedTrace,
    pub(crate) style: Style,
    pub(crate) out: LineWriter,
    /// Reports the demo's own request.
    pub(crate) tracer: Option<ClientTracer>,
}

impl Printer {
    /// The chain, the addresses, and commands to paste unless it ends at once.
    pub(crate) fn introduction(&self, access: &Access, once: bool) -> String {
        let (store, page) = (access.addr(), access.url());
        let hops = &self.state.hops;
        let front = reachable(hops[0].addr);
        let mut text = String::new();
        let arrow = if self.style.unicode { "──▶" } else { "-->" };
        let names: Vec<_> = hops.iter().map(|hop| hop.name.clone()).collect();
        let _ = match (self.state.fan_out, names.split_first()) {
            (Some(_), Some((first, others))) => writeln!(text, "you {arrow} {first} {arrow} {}", others.join(", ")),
            _ => writeln!(text, "you {arrow} {}", names.join(&format!(" {arrow} "))),
        };
        text.push('\n');
        for hop in hops {
            let _ = writeln!(text, "  {:<10} http://{}", hop.name, reachable(hop.addr));
        }
        let _ = writeln!(text, "  {:<10} http://{store}/api/v2/spans  (Zipkin v2, and OTLP over HTTP and gRPC)", "traces");
        let _ = writeln!(text, "  {:<10} {page}  (open it in a browser and watch)", "page");
        if once {
            text.push('\n');
            return text;
        }
        let _ = writeln!(text, "\nTry it:\n\n  curl http://{front}/service1\n");
        let _ = writeln!(text, "  curl -H 'b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1' http://{front}/service1\n");
        text
    }

    pub(crate) fn print(&self, text: &str) {
        self.out.line(|out| out.extend_from_slice(text.as_bytes()));
    }

    /// Sends the demo's own request, and says what has to arrive. With `--report-spans` it begins the trace.
    async fn first_request(&self) -> (SentRequest, ExpectedTrace) {
        let Some(tracer) = &self.tracer else {
            return (self.state.send(RequestSender::Demo, http::HeaderMap::new()).await, self.expected.clone());
        };
        let (trace_id, span_id) = (ids::trace_id(), ids::span_id());
        let context =
            Context { trace_id, short_trace_id: false, random: false, span_id, parent_id: None, sampling: Sampling::Sample };
        let headers = HeaderFamily::ALL.into_iter().flat_map(|family| family.write(&context)).collect();
        let span = tracer.begin(&context, &self.state.front());
        let exchange = self.state.send(RequestSender::Demo, headers).await;
        match exchange.status {
            Some(status) => span.answered(status),
            None => span.failed("no_answer"),
        }
        (exchange, ExpectedTrace { caller: Caller::Known(vec![span_id]), ..self.expected.clone() })
    }

    /// Sends one request and draws what it left behind.
    pub(crate) async fn first_trace(&self, quiet: bool) -> bool {
        let (exchange, expected) = self.first_request().await;
        let url = exchange.url;
        let Some(reply) = exchange.reply else {
            self.print(&format!("{url}: {}\n", exchange.error.unwrap_or_default()));
            return false;
        };
        if !quiet {
            self.print(&format!("$ curl {url}\n{}\n", reply.to_text()));
        }
        let ExpectedTrace { failure, breaks, sampling_ends, .. } = self.state.expected_by(&reply);
        let expected = ExpectedTrace { failure, breaks, sampling_ends, ..expected };
        let ids = trace_ids(&reply);
        let deadline = Instant::now() + FIRST_TRACE;
        let load = || -> Vec<Trace> { ids.iter().filter_map(|id| self.state.store.tree(*id)).collect() };
        let mut arrivals = self.state.store.subscribe();
        let mut traces = load();
        // A hop that its caller gave up reports when it is done.
        let given_up = expected.failure.as_ref().is_some_and(|failure| !failure.ended_in_answers());
        let quiet_for = if self.tracer.is_some() || given_up { PATIENT_DEBOUNCE } else { DEBOUNCE };
        // The demo's own span, which it reports with --report-spans, may come after all others.
        let begins = |traces: &[Trace]| traces.iter().flat_map(Trace::rows).any(|row| expected.caller.is_span(&row.span));
        let is_here = |traces: &[Trace]| Verdict::of(traces, &expected).whole && (self.tracer.is_none() || begins(traces));
        while !is_here(&traces) && Instant::now() < deadline {
            // A trace that is not what it should be is drawn once nothing more comes for it.
            match tokio::time::timeout(quiet_for, arrivals.recv()).await {
                Err(_) if !traces.is_empty() => break,
                _ => traces = load(),
            }
        }
        let verdict = Verdict::of(&traces, &expected);
        for trace in &traces {
            self.print(&format!("{}\n", render(trace, &sent_headers(trace, &reply), &self.style)));
        }
        self.print(&render_verdict(&verdict, &self.style));
        self.print("\n");
        verdict.whole
    }

    /// Draws every trace that comes in, when it is as it should be or when it has been quiet for a while.
    pub(crate) async fn further_traces(&self, mut arrivals: broadcast::Receiver<TraceId>) {
        let mut drawn: HashMap<TraceId, usize> = HashMap::new();
        for id in self.state.store.trace_ids() {
            drawn.insert(id, self.state.store.tree(id).map_or(0, |trace| trace.rows().len()));
        }
        let mut waiting: HashMap<TraceId, Instant> = HashMap::new();
        let mut second = (Instant::now(), 0);
        let mut skipped = 0_usize;
        loop {
            let next = waiting.values().min().copied();
            let quiet = async {
                match next {
                    Some(at) => tokio::time::sleep_until((at + DEBOUNCE).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                arrived = arrivals.recv() => match arrived {
                    Ok(id) => { waiting.insert(id, Instant::now()); }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = quiet => {}
            }
            let now = Instant::now();
            if now.duration_since(second.0) >= Duration::from_secs(1) {
                second = (now, 0);
                if skipped > 0 {
                    self.print(&format!("({skipped} further traces came in too fast to draw; the store has the latest)\n\n"));
                    skipped = 0;
                }
            }
            let ids: Vec<_> = waiting.iter().map(|(id, at)| (*id, *at)).collect();
            for (id, at) in ids {
                let Some(trace) = self.state.store.tree(id) else {
                    waiting.remove(&id);
                    continue;
                };
                // A trace whose id is used again, or that was drawn before it was whole, is drawn again.
                if drawn.get(&id) == Some(&trace.rows().len()) {
                    waiting.remove(&id);
                    continue;
                }
                let verdict = Verdict::of(std::slice::from_ref(&trace), &self.expected);
                if !verdict.whole && now.duration_since(at) < DEBOUNCE {
                    continue;
                }
                waiting.remove(&id);
                drawn.insert(id, trace.rows().len());
                if second.1 >= DRAWN_PER_SECOND {
                    skipped += 1;
                    continue;
                }
                second.1 += 1;
                // Why it failed or broke, where the demo has its answer; of a trace from elsewhere what its spans say.
                let known = self.state.expected(&trace, None);
                let failure = Verdict::of(std::slice::from_ref(&trace), &known).failure;
                let sentences = render_sentences(failure.iter().chain(&known.breaks), &self.style);
                self.print(&format!("{}{sentences}\n", render_rows(&trace, &self.style)));
            }
            if drawn.len() > 4 * Limits::default().traces {
                let known: HashSet<_> = self.state.store.trace_ids().into_iter().collect();
                drawn.retain(|id, _| known.contains(id));
            }
        }
    }
}
