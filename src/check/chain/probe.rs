//! The requests of `check` that bring a trace context.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;

use futures_util::future::join_all;

use crate::check::chain::expect::ChosenTrace;
use crate::check::reachability::client::CheckClient;
use crate::hop::reply::{Headers, Tree, is_success};
use crate::telemetry::ids;
use crate::trace_context::{Context, HeaderFamily, Sampling};
use crate::traces::TraceId;
use crate::values::BASE_LANE;

/// A request whose headers can be recognised behind every hop.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// What is sent.
    pub(crate) headers: Headers,
}

impl Probe {
    /// A probe with different ids in `formats`.
    pub(crate) fn new(formats: &[HeaderFamily]) -> Self {
        Self::with(formats.iter().map(|format| (*format, fresh())).collect())
    }

    /// An ordinary request: one trace, in both formats.
    pub(crate) fn ordinary() -> Self {
        Self::of(fresh())
    }

    /// The same, in a trace that was chosen.
    pub(crate) fn chosen(trace: &ChosenTrace) -> Self {
        Self::of(Context { trace_id: trace.id, short_trace_id: trace.is_short, ..fresh() })
    }

    fn of(context: Context) -> Self {
        Self::with(HeaderFamily::ALL.into_iter().map(|format| (format, context)).collect())
    }

    /// What users send: nothing of all this.
    pub(crate) fn bare() -> Self {
        Self { headers: Headers::default() }
    }

    fn with(contexts: Vec<(HeaderFamily, Context)>) -> Self {
        let mut headers = vec![one("x-request-id", fresh_request_id())];
        for (format, context) in &contexts {
            headers.extend(written(*format, context));
            if *format == HeaderFamily::W3c {
                headers.push(one("tracestate", format!("check={}", ids::span_id())));
            }
        }
        headers.push(one("baggage", format!("check={}", ids::span_id())));
        headers.push(one("x-lane", BASE_LANE.to_owned()));
        Self { headers: Headers(headers) }
    }
}

/// A request in this trace and its reply, or the deepest of a few.
pub(crate) async fn chosen_or_deepest(client: &CheckClient, trace: Option<&ChosenTrace>) -> Option<(Probe, Tree)> {
    match trace {
        Some(trace) => ask(client, Probe::chosen(trace)).await.map(|(_, probe, tree)| (probe, tree)),
        None => deepest(client, Probe::ordinary).await,
    }
}

/// One request, and how good its reply is: whether it is a success, and how many hops are in it.
async fn ask(client: &CheckClient, probe: Probe) -> Option<((bool, usize), Probe, Tree)> {
    let answer = client.get(&probe.headers).await.ok()?;
    let tree = answer.tree()?;
    Some(((is_success(answer.status), tree.hops("").count()), probe, tree))
}

/// A request and its reply. A failure hides the hops behind it, so the deepest of a few answers counts; those behind the first
/// are sent together, because a failure may take the whole time that a request is given.
pub(crate) async fn deepest(client: &CheckClient, probe: impl Fn() -> Probe) -> Option<(Probe, Tree)> {
    const MORE: usize = 4;
    let ask = || ask(client, probe());
    let first = ask().await;
    let more = if first.as_ref().is_some_and(|((is_whole, _), ..)| *is_whole) { 0 } else { MORE };
    let more = join_all((0..more).map(|_| ask())).await;
    let answers = std::iter::once(first).chain(more).flatten();
    // The first of the best.
    let best = answers.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(_, probe, tree)| (probe, tree))
}

/// Half of every trace id of this run follows from the other half: one that comes back in another request is known again.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

fn marked(trace: TraceId) -> TraceId {
    let mut bytes = trace.to_bytes();
    let (head, tail) = bytes.split_at_mut(8);
    tail.copy_from_slice(&KEY.hash_one(head).to_be_bytes());
    TraceId::from_bytes(bytes)
}

/// Whether a request of this run brought this trace.
pub(crate) fn is_of_this_run(trace: TraceId) -> bool {
    marked(trace) == trace
}

/// A fresh context that asks to be sampled.
pub(crate) fn fresh() -> Context {
    let (trace_id, span_id) = (marked(ids::trace_id()), ids::span_id());
    Context { trace_id, short_trace_id: false, random: false, span_id, parent_id: None, sampling: Sampling::Sample }
}

pub(crate) fn fresh_request_id() -> String {
    text(ids::request_id().as_bytes())
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// The headers of a context.
pub(crate) fn written(format: HeaderFamily, context: &Context) -> impl Iterator<Item = (String, Vec<String>)> {
    format.write(context).into_iter().map(|(name, value)| one(name.as_str(), text(value.as_bytes())))
}

/// The start of an id, enough to distinguish two on a line.
pub(crate) fn short(id: &str) -> String {
    const SHOWN: usize = 8;
    match id.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &id[..at]),
        None => id.to_owned(),
    }
}

pub(crate) fn one(name: &str, value: String) -> (String, Vec<String>) {
    (name.to_owned(), vec![value])
}
