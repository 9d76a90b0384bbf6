//! The propagation x-ray: what happened to every header between the hops, from one request and the reply tree it brought.
//!
//! Pure: a probe and a [`Tree`] in, faults out. A seam lies between a caller and the hop that it calls, and has three sides:
//! the hop before it did not send what it had received; it sent, and the hop behind did not receive; the hop behind received
//! a trace and started another. What a tracing proxy does when it is healthy (Envoy: a span id of its own in the format that
//! it speaks, the other format left alone or written anew from B3, a digit of the request id set, a caller's request id
//! replaced at the edge) is read as the sign of a proxy and never as a fault. So is what a hop does that says `continue`.

use std::collections::BTreeMap;

use opentelemetry::trace::TraceId;

use crate::hop::reply::{Headers, Propagation, Tree};

use crate::check::chain::expect::BASE_LANE;
use crate::check::envoy::hints::{Hop, name_of};
use crate::check::report::Side;
use crate::telemetry::ids;
use crate::trace_context::{
    Context, HeaderFamily, HeaderSource as _, Sampling, is_foreign_tracer, is_trace_context, is_valid_request_id,
    is_valid_tracestate,
};
use crate::traces::ids::{parse_span_id, parse_trace_id};

/// The caller's name in every seam in front of the first hop.
pub(crate) const CALLER: &str = "check";

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
        let context = fresh();
        Self::with(HeaderFamily::ALL.into_iter().map(|format| (format, context)).collect())
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

/// A fresh context that asks to be sampled.
fn fresh() -> Context {
    let (trace_id, span_id) = (ids::trace_id(), ids::span_id());
    Context { trace_id, short_trace_id: false, span_id, parent_id: None, sampling: Sampling::Sample }
}

fn fresh_request_id() -> String {
    text(ids::request_id().as_bytes())
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// The headers of a context.
fn written(format: HeaderFamily, context: &Context) -> impl Iterator<Item = (String, Vec<String>)> {
    format.write(context).into_iter().map(|(name, value)| one(name.as_str(), text(value.as_bytes())))
}

/// The start of an id, enough to tell two apart on a line.
pub(crate) fn short(id: &str) -> String {
    const SHOWN: usize = 8;
    match id.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &id[..at]),
        None => id.to_owned(),
    }
}

fn one(name: &str, value: String) -> (String, Vec<String>) {
    (name.to_owned(), vec![value])
}

/// Something that went wrong with a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It was there before and is not there behind.
    Lost(String),
    /// Its value is another one.
    Changed { name: String, before: String, after: String },
    /// The context in this format was valid before and is not behind: this header's value.
    Invalid { format: HeaderFamily, name: String, value: String },
    /// The trace id in this format is another one.
    Trace { format: HeaderFamily, before: String, after: String },
    /// The sampling decision was turned round.
    Sampled { before: bool, after: bool },
    /// The hop received these traces and started another.
    NewTrace { received: Vec<(HeaderFamily, String)>, started: String },
    /// The hop read `read` where the proxies speak `fresh`; `trace` says that it even joined another trace.
    Order { fresh: HeaderFamily, read: HeaderFamily, trace: bool },
}

/// Everything that went wrong on one side of one seam.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) from: Hop,
    pub(crate) to: Hop,
    pub(crate) side: Side,
    /// What the hop that is in question says of itself.
    pub(crate) mode: Option<Propagation>,
    pub(crate) effects: Vec<Effect>,
}

impl Fault {
    /// Whether a trace context is among what was lost or replaced.
    pub(crate) fn breaks(&self, format: HeaderFamily) -> bool {
        self.effects.iter().any(|effect| match effect {
            Effect::Lost(name) => format.has(name),
            Effect::Trace { format: of, .. } | Effect::Invalid { format: of, .. } => *of == format,
            Effect::NewTrace { received, .. } => received.iter().any(|(of, _)| *of == format),
            Effect::Order { .. } => true,
            Effect::Changed { name, .. } => format.has(name),
            Effect::Sampled { .. } => false,
        })
    }

    /// Whether this header is in question.
    pub(crate) fn touches(&self, header: &str) -> bool {
        self.effects.iter().any(|effect| match effect {
            Effect::Lost(name) | Effect::Changed { name, .. } => name == header,
            _ => false,
        })
    }
}

/// What stands between a hop and its caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// Wrote a span of its own into `traceparent`.
    pub(crate) w3c: bool,
    /// Wrote a span of its own into B3.
    pub(crate) b3: bool,
    /// Reported the caller's certificate: a proxy with mTLS, traced or not.
    pub(crate) identity: bool,
    /// Set Envoy's digit in the request id, or counts attempts: a proxy, traced or not.
    pub(crate) envoy: bool,
    /// Called the app from the address that Istio's sidecars use for nothing else: a sidecar of the hop's own, whether or not it
    /// knows that the call is HTTP.
    pub(crate) sidecar: bool,
}

/// From where an Istio sidecar calls the app that it stands beside.
const SIDECAR_CALLS_FROM: [&str; 2] = ["127.0.0.6", "::6"];

impl Proxy {
    pub(crate) fn traces(self) -> bool {
        self.w3c || self.b3
    }

    pub(crate) fn is_seen(self) -> bool {
        self.traces() || self.identity || self.envoy || self.sidecar
    }

    /// Whether the hop has a sidecar of its own for certain. A traced call proves none: the caller's sidecar may have written it.
    pub(crate) fn is_own_sidecar(self) -> bool {
        self.identity || self.sidecar
    }
}

/// One hop of the x-ray's table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) hop: Hop,
    /// 0 for the first hop.
    pub(crate) depth: usize,
    pub(crate) mode: Propagation,
    pub(crate) w3c: Option<Context>,
    pub(crate) b3: Option<Context>,
    pub(crate) request_id: RequestId,
    pub(crate) proxy: Proxy,
    /// Which of `baggage`, `tracestate` and `x-lane` arrived.
    pub(crate) others: Vec<&'static str>,
}

impl Row {
    pub(crate) fn context(&self, format: HeaderFamily) -> Option<&Context> {
        match format {
            HeaderFamily::W3c => self.w3c.as_ref(),
            HeaderFamily::B3 => self.b3.as_ref(),
        }
    }
}

/// What became of `x-request-id` on its way to a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestId {
    Kept,
    /// Another one, given by the edge to a caller from outside.
    Replaced,
    /// Another one in the middle of the chain.
    Regenerated,
    Missing,
}

/// A format that a continuing hop received and did not write on. Whether that is a fault depends on what the hop reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unwritten {
    /// The hop: which upstream to take at every level, from the first hop on.
    pub(crate) path: Vec<usize>,
    pub(crate) format: HeaderFamily,
    pub(crate) from: Hop,
    pub(crate) to: Hop,
    /// The headers that are gone.
    pub(crate) names: Vec<String>,
}

/// The picture of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Xray {
    pub(crate) faults: Vec<Fault>,
    pub(crate) rows: Vec<Row>,
    /// Open questions: see [`Xray::settle`].
    pub(crate) unwritten: Vec<Unwritten>,
    /// Formats that hops leave out by configuration, harmless where nobody speaks them.
    pub(crate) left_out: Vec<(Hop, HeaderFamily)>,
    /// Calls behind which nothing could be seen: the caller and the called.
    pub(crate) dark: Vec<(Hop, Hop)>,
    /// Sampling decisions that tracing proxies took instead of the one that came in.
    pub(crate) decided: Vec<Decided>,
}

/// A hop that injection left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uninjected<'a> {
    /// Its row.
    pub(crate) at: usize,
    pub(crate) hop: &'a Hop,
    /// Its call came from another address than sidecars have. Plain text around a hop alone may have another cause: mTLS that
    /// is switched off.
    pub(crate) is_certain: bool,
}

/// A proxy's own word about sampling. One that traces rolls its own dice even for a caller that asked to be sampled, so at a rate
/// below 100 % this is what it was told to do, and a question of the rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) from: Hop,
    pub(crate) to: Hop,
    pub(crate) before: bool,
    pub(crate) after: bool,
}

/// Examines one request.
pub(crate) fn examine(probe: &Probe, tree: &Tree, url: &str) -> Xray {
    let mut xray = Xray::default();
    let caller = Hop { name: CALLER.to_owned(), hostname: String::new(), url: String::new() };
    xray.hop(&caller, &probe.headers, None, tree, url, &mut Vec::new());
    xray
}

impl Xray {
    /// Whether any proxy is seen to speak this format.
    pub(crate) fn mesh_speaks(&self, format: HeaderFamily) -> bool {
        self.rows.iter().any(|row| match format {
            HeaderFamily::W3c => row.proxy.w3c,
            HeaderFamily::B3 => row.proxy.b3,
        })
    }

    /// The hop that calls the one in this row; `None` for the first.
    pub(crate) fn caller_of(&self, at: usize) -> Option<&Row> {
        let depth = self.rows.get(at)?.depth;
        self.rows[..at].iter().rev().find(|row| row.depth + 1 == depth)
    }

    /// The hops that this row's calls and that answered.
    pub(crate) fn called_by(&self, at: usize) -> impl Iterator<Item = &Row> {
        let depth = self.rows.get(at).map_or(0, |row| row.depth);
        self.rows.iter().skip(at + 1).take_while(move |row| row.depth > depth).filter(move |row| row.depth == depth + 1)
    }

    /// Hops without a sidecar of their own in a mesh whose other hops have one: nobody vouches for their caller, and nobody vouches
    /// for them where they call.
    pub(crate) fn without_sidecar(&self) -> Vec<Uninjected<'_>> {
        let addressed = self.rows.iter().any(|row| row.proxy.sidecar);
        let vouched = self.rows.iter().any(|row| row.proxy.identity);
        // A sidecar that takes a call for bytes vouches for nobody, so its silence says nothing.
        let reads = |row: &Row| row.proxy.traces() || row.proxy.envoy || (row.proxy.sidecar && !self.mesh_traces());
        let mut out: Vec<Uninjected<'_>> = Vec::new();
        for (at, row) in self.rows.iter().enumerate().filter(|(_, row)| !row.proxy.is_own_sidecar()) {
            let called: Vec<&Row> = self.called_by(at).collect();
            // A gateway tells the first hop its own caller's address; and where no sidecar shows the address, they work otherwise.
            let by_address = addressed && row.depth > 0;
            let by_silence = vouched && !called.is_empty() && called.iter().all(|next| reads(next));
            let is_vouched_for = called.iter().any(|next| next.proxy.identity);
            if (by_address || by_silence) && !is_vouched_for && !out.iter().any(|known| *known.hop == row.hop) {
                out.push(Uninjected { at, hop: &row.hop, is_certain: by_address });
            }
        }
        out
    }

    /// Whether any proxy is seen to trace.
    pub(crate) fn mesh_traces(&self) -> bool {
        HeaderFamily::ALL.into_iter().any(|format| self.mesh_speaks(format))
    }

    fn fault(&mut self, from: &Hop, to: &Hop, side: Side, mode: Option<Propagation>, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        match self.faults.iter_mut().find(|known| known.from == *from && known.to == *to && known.side == side) {
            Some(known) => known.effects.extend(effects),
            None => self.faults.push(Fault { from: from.clone(), to: to.clone(), side, mode, effects }),
        }
    }

    fn hop(
        &mut self,
        caller: &Hop,
        sent: &Headers,
        caller_mode: Option<Propagation>,
        tree: &Tree,
        url: &str,
        path: &mut Vec<usize>,
    ) {
        let hop = Hop::of(tree, url);
        let is_edge = path.is_empty();
        let proxy = proxy(sent, tree);
        let (mut effects, request_id) = between(sent, &tree.received, is_edge);
        if proxy.traces() {
            effects.retain(|effect| match *effect {
                Effect::Sampled { before, after } => {
                    self.decided.push(Decided { from: caller.clone(), to: hop.clone(), before, after });
                    false
                }
                _ => true,
            });
        }
        self.fault(caller, &hop, Side::Between, caller_mode, effects);
        self.rows.push(Row {
            hop: hop.clone(),
            depth: path.len(),
            mode: tree.propagation,
            w3c: HeaderFamily::W3c.read(&tree.received),
            b3: HeaderFamily::B3.read(&tree.received),
            request_id,
            proxy,
            others: ["baggage", "tracestate", "x-lane"].into_iter().filter(|name| !is_empty(&tree.received, name)).collect(),
        });

        let mut own = true;
        if tree.propagation == Propagation::Continue {
            let effects = joined(sent, tree);
            own = !effects.iter().any(|effect| matches!(effect, Effect::NewTrace { .. }));
            self.fault(caller, &hop, Side::NewTrace, Some(tree.propagation), effects);
        }
        for (index, call) in tree.upstreams.iter().enumerate() {
            let next = match &call.reply {
                Some(reply) => Hop::of(reply, &call.url),
                None => Hop { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() },
            };
            let mut effects = verbatim(&tree.received, &call.sent, tree.propagation);
            if tree.propagation == Propagation::Continue {
                let (more, unwritten) = continued(tree, &call.sent, own);
                effects.extend(more);
                self.unwritten.extend(unwritten.into_iter().map(|(format, names)| Unwritten {
                    path: path.clone(),
                    format,
                    from: hop.clone(),
                    to: next.clone(),
                    names,
                }));
            }
            self.fault(&hop, &next, Side::Hop, Some(tree.propagation), effects);
            match &call.reply {
                Some(reply) => {
                    path.push(index);
                    self.hop(&hop, &call.sent, Some(tree.propagation), reply, &call.url, path);
                    path.pop();
                }
                None => self.dark.push((hop.clone(), next)),
            }
        }
    }

    /// Decides the open questions with the answers to probes of one format each (`None`: there was no usable answer). A hop that reads a format and does not
    /// write it loses it; one that does not even read it is configured so (`OTEL_PROPAGATORS`), which matters only where the
    /// proxies speak that format.
    pub(crate) fn settle(&mut self, answer: impl Fn(HeaderFamily) -> Option<Tree>) {
        let mut answers: BTreeMap<HeaderFamily, Option<Tree>> = BTreeMap::new();
        for open in std::mem::take(&mut self.unwritten) {
            let solo = answers.entry(open.format).or_insert_with(|| answer(open.format));
            let reads = solo.as_ref().and_then(|tree| at(tree, &open.path)).and_then(|hop| reads(hop, open.format));
            if reads == Some(true) || self.mesh_speaks(open.format) || (reads.is_none() && !self.mesh_traces()) {
                let effects = open.names.into_iter().map(Effect::Lost).collect();
                self.fault(&open.from, &open.to, Side::Hop, Some(Propagation::Continue), effects);
            } else if !self.left_out.iter().any(|(hop, format)| *hop == open.from && *format == open.format) {
                self.left_out.push((open.from, open.format));
            }
        }
    }
}

/// The hop at a path, counted from the first hop.
fn at<'a>(tree: &'a Tree, path: &[usize]) -> Option<&'a Tree> {
    path.iter().try_fold(tree, |hop, index| hop.upstreams.get(*index)?.reply.as_deref())
}

/// Whether a hop continues a trace that came in `format` alone; `None` when something else came too.
fn reads(hop: &Tree, format: HeaderFamily) -> Option<bool> {
    let alone = HeaderFamily::ALL.into_iter().all(|of| of.is_present(&hop.received) == (of == format));
    let context = format.read(&hop.received).filter(|_| alone && hop.propagation == Propagation::Continue)?;
    Some(trace_of(hop) == Some(context.trace_id))
}

fn trace_of(hop: &Tree) -> Option<TraceId> {
    parse_trace_id(hop.trace_id.as_ref()?).ok()
}

fn is_empty(headers: &Headers, name: &str) -> bool {
    headers.get(name).iter().all(String::is_empty)
}

/// Every value that counts: empty ones are not carried (Envoy sends an empty `tracestate`).
fn values<'a>(headers: &'a Headers, name: &str) -> Vec<&'a str> {
    headers.get(name).iter().map(String::as_str).filter(|value| !value.is_empty()).collect()
}

/// Whether two request ids are one. Envoy writes its sampling reason into a digit of a UUID; it stays the same id.
fn same_request(before: &str, after: &str) -> bool {
    const REASON: usize = 14;
    before == after
        || (before.len() == 36
            && after.len() == 36
            && before.bytes().zip(after.bytes()).enumerate().all(|(i, (a, b))| i == REASON || a.eq_ignore_ascii_case(&b)))
}

/// Signs of a proxy between what was sent and what arrived.
fn proxy(sent: &Headers, tree: &Tree) -> Proxy {
    let received = &tree.received;
    let wrote = |format: HeaderFamily| match (format.read(sent), format.read(received)) {
        (Some(before), Some(after)) => (before.trace_id, before.span_id) != (after.trace_id, after.span_id),
        (None, Some(_)) => true,
        _ => false,
    };
    let reason = match (sent.first("x-request-id"), received.first("x-request-id")) {
        (Some(before), Some(after)) => before != after,
        _ => false,
    };
    Proxy {
        w3c: wrote(HeaderFamily::W3c),
        b3: wrote(HeaderFamily::B3),
        identity: tree.client.identity.is_some(),
        envoy: reason || tree.attempt > 1,
        sidecar: SIDECAR_CALLS_FROM.contains(&tree.client.ip.as_ref()),
    }
}

/// What something between a caller and a hop did to the headers.
fn between(sent: &Headers, received: &Headers, is_edge: bool) -> (Vec<Effect>, RequestId) {
    let mut effects = Vec::new();
    let request_id = match (sent.first("x-request-id"), received.first("x-request-id").filter(|value| !value.is_empty())) {
        (Some(before), Some(after)) if same_request(before, after) => RequestId::Kept,
        (Some(_), Some(_)) if is_edge => RequestId::Replaced,
        (Some(before), Some(after)) => {
            effects.push(Effect::Changed { name: "x-request-id".to_owned(), before: before.to_owned(), after: after.to_owned() });
            RequestId::Regenerated
        }
        (Some(_), None) => {
            effects.push(Effect::Lost("x-request-id".to_owned()));
            RequestId::Missing
        }
        (None, Some(_)) => RequestId::Replaced,
        (None, None) => RequestId::Missing,
    };
    let before: Vec<(HeaderFamily, Context)> =
        HeaderFamily::ALL.into_iter().filter_map(|format| Some((format, format.read(sent)?))).collect();
    for (format, was) in &before {
        let Some(is) = format.read(received) else {
            // The headers that are gone, or the one that no longer reads as a context.
            let names = sent.0.iter().map(|(name, _)| name).filter(|name| format.has(name));
            let gone: Vec<&String> = names.filter(|name| is_empty(received, name)).collect();
            if gone.is_empty() {
                effects.push(invalid(*format, sent, received));
            } else {
                effects.extend(gone.into_iter().map(|name| Effect::Lost(name.clone())));
            }
            continue;
        };
        // A proxy that speaks both writes `traceparent` anew from B3: its trace then is one that was sent.
        if !before.iter().any(|(_, known)| known.trace_id == is.trace_id) {
            effects.push(Effect::Trace { format: *format, before: was.trace_id.to_string(), after: is.trace_id.to_string() });
        } else if let (Some(before), Some(after)) = (was.sampling.decision(), is.sampling.decision())
            && before != after
        {
            effects.push(Effect::Sampled { before, after });
        }
    }
    for (name, _) in &sent.0 {
        let lost = is_empty(received, name) && !is_empty(sent, name);
        match name.as_str() {
            "x-request-id" => {}
            // The edge may take a lane away from callers who have no right to it.
            "x-lane" if is_edge => {}
            // Belongs to the `traceparent` beside it: gone with the trace that it was about.
            "tracestate" => {
                let same = match (HeaderFamily::W3c.read(sent), HeaderFamily::W3c.read(received)) {
                    (Some(was), Some(is)) => was.trace_id == is.trace_id,
                    _ => false,
                };
                let parent_lost = !is_empty(sent, "traceparent") && is_empty(received, "traceparent");
                if lost && (same || parent_lost) {
                    effects.push(Effect::Lost(name.clone()));
                }
            }
            "baggage" if !lost => {
                let members: Vec<&str> =
                    values(received, name).into_iter().flat_map(|value| value.split(',')).map(str::trim).collect();
                let kept = values(sent, name)
                    .into_iter()
                    .flat_map(|value| value.split(','))
                    .map(str::trim)
                    .all(|m| members.contains(&m));
                if !kept {
                    let (before, after) = (values(sent, name).join(","), values(received, name).join(","));
                    effects.push(Effect::Changed { name: name.clone(), before, after });
                }
            }
            other if is_trace_context(other) || is_foreign_tracer(other) => {}
            _ if lost => effects.push(Effect::Lost(name.clone())),
            _ => {}
        }
    }
    dedup(&mut effects);
    (effects, request_id)
}

/// What a hop did to the headers that it passes on as they came: all of them for one that forwards, all but the trace
/// context for one that continues.
fn verbatim(received: &Headers, sent: &Headers, mode: Propagation) -> Vec<Effect> {
    let mut effects = Vec::new();
    for (name, _) in &received.0 {
        if mode == Propagation::Continue && is_trace_context(name) {
            continue;
        }
        let (before, after) = (values(received, name), values(sent, name));
        if before.is_empty() || before == after {
            continue;
        }
        if name == "x-request-id" && !is_valid_request_id(before[0].as_bytes()) && !after.is_empty() {
            continue;
        }
        if after.is_empty() {
            effects.push(Effect::Lost(name.clone()));
        } else if name == "x-b3-sampled" {
            let flag = |value: &str| value == "1" || value == "true";
            effects.push(Effect::Sampled { before: flag(before[0]), after: flag(after[0]) });
        } else {
            effects.push(change(name, received, sent));
        }
    }
    dedup(&mut effects);
    effects
}

/// A changed value, said as precisely as the header allows.
fn change(name: &str, received: &Headers, sent: &Headers) -> Effect {
    let format = HeaderFamily::ALL.into_iter().find(|format| format.has(name));
    if let Some(format) = format
        && let Some(was) = format.read(received)
    {
        let Some(is) = format.read(sent) else { return invalid(format, received, sent) };
        match (was.trace_id != is.trace_id, was.sampling.decision(), is.sampling.decision()) {
            (true, ..) => {
                return Effect::Trace { format, before: was.trace_id.to_string(), after: is.trace_id.to_string() };
            }
            (false, Some(before), Some(after)) if before != after => return Effect::Sampled { before, after },
            _ => {}
        }
    }
    Effect::Changed { name: name.to_owned(), before: values(received, name).join(","), after: values(sent, name).join(",") }
}

/// A context that was valid `before` and is not `after`, although its headers are there.
fn invalid(format: HeaderFamily, before: &Headers, after: &Headers) -> Effect {
    const SHOWN: usize = 100;
    let names = || before.0.iter().map(|(name, _)| name.as_str()).filter(|name| format.has(name));
    let changed = names().find(|name| before.get(name) != after.get(name)).or(names().next()).unwrap_or(format.header());
    let mut value = values(after, changed).join(", ");
    if let Some((at, _)) = value.char_indices().nth(SHOWN) {
        value.replace_range(at.., "…");
    }
    Effect::Invalid { format, name: changed.to_owned(), value }
}

/// Whether a continuing hop joined the trace that it received, and the right one.
fn joined(sent: &Headers, tree: &Tree) -> Vec<Effect> {
    let contexts: Vec<(HeaderFamily, Context)> =
        HeaderFamily::ALL.into_iter().filter_map(|format| Some((format, format.read(&tree.received)?))).collect();
    let Some(trace) = trace_of(tree).filter(|_| !contexts.is_empty()) else { return Vec::new() };
    if !contexts.iter().any(|(_, context)| context.trace_id == trace) {
        let received = contexts.into_iter().map(|(format, context)| (format, context.trace_id.to_string())).collect();
        return vec![Effect::NewTrace { received, started: trace.to_string() }];
    }
    // A proxy wrote one format and left the other alone: the hop must read the one that the proxy wrote.
    let fresh =
        |(format, context): &&(HeaderFamily, Context)| format.read(sent).is_none_or(|before| before.span_id != context.span_id);
    let stale = |(format, context): &&(HeaderFamily, Context)| format.read(sent).is_some_and(|before| before == *context);
    let (Some((fresh, by_proxy)), Some((read, left))) = (contexts.iter().find(fresh), contexts.iter().find(stale)) else {
        return Vec::new();
    };
    let parent = tree.parent_span_id.as_ref().and_then(|id| parse_span_id(id).ok());
    let follows = |context: &Context| trace == context.trace_id && parent == Some(context.span_id);
    if follows(left) && !follows(by_proxy) {
        return vec![Effect::Order { fresh: *fresh, read: *read, trace: left.trace_id != by_proxy.trace_id }];
    }
    Vec::new()
}

/// What a continuing hop wrote: its own trace in every format, the decision that came in. Formats that came in and were not
/// written at all are returned beside, with the headers that are gone.
fn continued(tree: &Tree, sent: &Headers, own: bool) -> (Vec<Effect>, Vec<(HeaderFamily, Vec<String>)>) {
    let (mut effects, mut unwritten) = (Vec::new(), Vec::new());
    let received: Vec<(HeaderFamily, Context)> =
        HeaderFamily::ALL.into_iter().filter_map(|format| Some((format, format.read(&tree.received)?))).collect();
    let written: Vec<(HeaderFamily, Context)> =
        HeaderFamily::ALL.into_iter().filter_map(|format| Some((format, format.read(sent)?))).collect();
    let trace = trace_of(tree);
    // A format is also lost when a part of it is.
    let gone = |format: HeaderFamily| -> Vec<String> {
        let names = tree.received.0.iter().map(|(name, _)| name);
        names.filter(|name| format.has(name) && is_empty(sent, name)).cloned().collect()
    };
    for (format, _) in received.iter().filter(|(format, _)| format.read(sent).is_none()) {
        if gone(*format).is_empty() {
            effects.push(invalid(*format, &tree.received, sent));
        } else if written.is_empty() {
            effects.extend(gone(*format).into_iter().map(Effect::Lost));
        } else {
            unwritten.push((*format, gone(*format)));
        }
    }
    for (format, context) in &written {
        if let Some(trace) = trace
            && context.trace_id != trace
        {
            effects.push(Effect::Trace { format: *format, before: trace.to_string(), after: context.trace_id.to_string() });
        }
    }
    if own {
        let chosen = received.iter().find(|(_, context)| Some(context.trace_id) == trace);
        let decided = chosen.and_then(|(_, context)| context.sampling.decision());
        let after = written.iter().find_map(|(_, context)| context.sampling.decision()).or(tree.sampled);
        if let (Some(before), Some(after)) = (decided, after)
            && before != after
        {
            effects.push(Effect::Sampled { before, after });
        }
    }
    let state_goes_on = HeaderFamily::W3c.read(&tree.received).is_some_and(|context| Some(context.trace_id) == trace);
    if state_goes_on
        && HeaderFamily::W3c.is_present(sent)
        && !is_empty(&tree.received, "tracestate")
        && is_empty(sent, "tracestate")
    {
        if is_valid_tracestate(tree.received.values("tracestate")) {
            effects.push(Effect::Lost("tracestate".to_owned()));
        }
    }
    (effects, unwritten)
}

fn dedup(effects: &mut Vec<Effect>) {
    let mut seen: Vec<Effect> = Vec::new();
    effects.retain(|effect| {
        let new = !seen.contains(effect);
        seen.push(effect.clone());
        new
    });
}

/// The table of the x-ray, 74 columns wide at most.
pub(crate) fn table(probe: &Probe, xray: &Xray) -> Vec<String> {
    let cell = |context: Option<Context>| {
        context
            .map_or_else(|| "-".to_owned(), |c| format!("{}/{}", short(&c.trace_id.to_string()), short(&c.span_id.to_string())))
    };
    let name = |row: &Row| {
        let text = format!("{}{}", "  ".repeat(row.depth.min(4)), row.hop.name);
        if text.chars().count() > 14 { text.chars().take(13).chain(['…']).collect() } else { text }
    };
    let line = |a: &str, b: &str, c: &str, d: &str, e: &str| format!("{a:<14} {b:<19} {c:<19} {d:<11} {e}").trim_end().to_owned();
    let mut lines = vec![
        line("hop", "W3C trace/span", "B3 trace/span", "request id", "proxy"),
        line(CALLER, &cell(HeaderFamily::W3c.read(&probe.headers)), &cell(HeaderFamily::B3.read(&probe.headers)), "sent", ""),
    ];
    for row in &xray.rows {
        let id = match row.request_id {
            RequestId::Kept => "kept",
            RequestId::Replaced => "replaced",
            RequestId::Regenerated => "regenerated",
            RequestId::Missing => "missing",
        };
        let proxy = match (row.proxy.w3c, row.proxy.b3, row.proxy.is_seen()) {
            (true, true, _) => "both",
            (true, false, _) => "W3C",
            (false, true, _) => "B3",
            (false, false, true) => "untraced",
            (false, false, false) => "none",
        };
        lines.push(line(&name(row), &cell(row.w3c), &cell(row.b3), id, proxy));
    }
    lines
}

#[cfg(test)]
#[path = "xray_tests.rs"]
mod tests;
