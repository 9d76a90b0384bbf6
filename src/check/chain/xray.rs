//! The propagation x-ray: what happened to every header between the hops, from one request and the reply tree it brought.
//!
//! Pure: a probe and a [`Tree`] in, faults out. A seam lies between a caller and the hop that it calls, and has three sides:
//! the hop before it did not send what it had received; it sent, and the hop behind did not receive; the hop behind received
//! a trace and started another. What a tracing proxy does when it is healthy (Envoy: a span id of its own in the format that
//! it speaks, the other format left alone or written anew from B3, a digit of the request id set, a caller's request id
//! replaced at the edge) is read as the sign of a proxy and never as a fault. So is what a hop does that says `continue`.

use std::collections::BTreeMap;

use crate::hop::reply::{Headers, Propagation, Tree};

use crate::check::chain::expect::BASE_LANE;
use crate::check::envoy::hints::{Hop, name_of};
use crate::check::propagation::context::{self, Context, Format, short};
use crate::check::report::Side;

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
    pub(crate) fn new(formats: &[Format]) -> Self {
        Self::with(formats.iter().map(|format| (*format, context::fresh())).collect())
    }

    /// An ordinary request: one trace, in both formats.
    pub(crate) fn ordinary() -> Self {
        let context = context::fresh();
        Self::with(Format::ALL.into_iter().map(|format| (format, context.clone())).collect())
    }

    fn with(contexts: Vec<(Format, Context)>) -> Self {
        let mut headers = vec![one("x-request-id", context::fresh_request_id())];
        for (format, context) in &contexts {
            match format {
                Format::W3c => {
                    headers.push(one("traceparent", format!("00-{}-{}-01", context.trace, context.span)));
                    headers.push(one("tracestate", format!("check={:x}", context::random())));
                }
                Format::B3 => {
                    headers.push(one("x-b3-traceid", context.trace.clone()));
                    headers.push(one("x-b3-spanid", context.span.clone()));
                    headers.push(one("x-b3-sampled", "1".to_owned()));
                }
            }
        }
        headers.push(one("baggage", format!("check={:x}", context::random())));
        headers.push(one("x-lane", BASE_LANE.to_owned()));
        Self { headers: Headers(headers) }
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
    /// The trace id in this format is another one.
    Trace { format: Format, before: String, after: String },
    /// The sampling decision was turned round.
    Sampled { before: bool, after: bool },
    /// The hop received these traces and started another.
    NewTrace { received: Vec<(Format, String)>, started: String },
    /// The hop read `read` where the proxies speak `fresh`; `trace` says that it even joined another trace.
    Order { fresh: Format, read: Format, trace: bool },
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
    pub(crate) fn breaks(&self, format: Format) -> bool {
        self.effects.iter().any(|effect| match effect {
            Effect::Lost(name) => format.has(name),
            Effect::Trace { format: of, .. } => *of == format,
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

impl Format {
    /// Whether a header carries this format's trace and span.
    fn has(self, header: &str) -> bool {
        match self {
            Self::W3c => header == "traceparent",
            Self::B3 => matches!(header, "b3" | "x-b3-traceid" | "x-b3-spanid"),
        }
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
    pub(crate) fn context(&self, format: Format) -> Option<&Context> {
        match format {
            Format::W3c => self.w3c.as_ref(),
            Format::B3 => self.b3.as_ref(),
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
    pub(crate) format: Format,
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
    pub(crate) left_out: Vec<(Hop, Format)>,
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
    pub(crate) fn mesh_speaks(&self, format: Format) -> bool {
        self.rows.iter().any(|row| match format {
            Format::W3c => row.proxy.w3c,
            Format::B3 => row.proxy.b3,
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
        Format::ALL.into_iter().any(|format| self.mesh_speaks(format))
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
            w3c: Format::W3c.read(&tree.received),
            b3: Format::B3.read(&tree.received),
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
    pub(crate) fn settle(&mut self, answer: impl Fn(Format) -> Option<Tree>) {
        let mut answers: BTreeMap<Format, Option<Tree>> = BTreeMap::new();
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
fn reads(hop: &Tree, format: Format) -> Option<bool> {
    let alone = Format::ALL.into_iter().all(|of| of.is_present(&hop.received) == (of == format));
    let context = format.read(&hop.received).filter(|_| alone && hop.propagation == Propagation::Continue)?;
    Some(trace_of(hop).as_ref() == Some(&context.trace))
}

fn trace_of(hop: &Tree) -> Option<String> {
    hop.trace_id.as_deref().and_then(context::trace_id)
}

fn is_empty(headers: &Headers, name: &str) -> bool {
    headers.get(name).iter().all(String::is_empty)
}

/// Every value that counts: empty ones are not carried (Envoy sends an empty `tracestate`).
fn values<'a>(headers: &'a Headers, name: &str) -> Vec<&'a str> {
    headers.get(name).iter().map(String::as_str).filter(|value| !value.is_empty()).collect()
}

/// Whether a header belongs to a W3C or B3 context, which a continuing hop writes itself.
fn is_context(name: &str) -> bool {
    matches!(name, "traceparent" | "tracestate" | "b3") || name.starts_with("x-b3-")
}

/// Headers that a mesh's own tracer may rewrite at every proxy.
fn is_foreign_tracer(name: &str) -> bool {
    matches!(name, "x-ot-span-context" | "x-cloud-trace-context" | "grpc-trace-bin" | "sw8") || name.starts_with("x-datadog-")
}

/// Whether two request ids are one. Envoy writes its sampling reason into a digit of a UUID; it stays the same id.
fn same_request(before: &str, after: &str) -> bool {
    const REASON: usize = 14;
    before == after
        || (before.len() == 36
            && after.len() == 36
            && before.bytes().zip(after.bytes()).enumerate().all(|(i, (a, b))| i == REASON || a.eq_ignore_ascii_case(&b)))
}

fn is_usable_request_id(value: &str) -> bool {
    !value.is_empty() && value.len() <= 128 && value.bytes().all(|b| b.is_ascii_graphic())
}

/// Signs of a proxy between what was sent and what arrived.
fn proxy(sent: &Headers, tree: &Tree) -> Proxy {
    let received = &tree.received;
    let wrote = |format: Format| match (format.read(sent), format.read(received)) {
        (Some(before), Some(after)) => before.span != after.span || before.trace != after.trace,
        (None, Some(_)) => true,
        _ => false,
    };
    let reason = match (sent.first("x-request-id"), received.first("x-request-id")) {
        (Some(before), Some(after)) => before != after,
        _ => false,
    };
    Proxy {
        w3c: wrote(Format::W3c),
        b3: wrote(Format::B3),
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
    let before: Vec<(Format, Context)> =
        Format::ALL.into_iter().filter_map(|format| Some((format, format.read(sent)?))).collect();
    for (format, was) in &before {
        let Some(is) = format.read(received) else {
            // The headers that are gone, or the one that no longer reads as a context.
            let names: Vec<&String> = sent.0.iter().map(|(name, _)| name).filter(|name| format.has(name)).collect();
            let gone: Vec<&String> = names.iter().copied().filter(|name| is_empty(received, name)).collect();
            match names.first() {
                Some(name) if gone.is_empty() => effects.push(Effect::Changed {
                    name: (*name).clone(),
                    before: sent.first(name).unwrap_or("").to_owned(),
                    after: received.first(name).unwrap_or("").to_owned(),
                }),
                _ => effects.extend(gone.into_iter().map(|name| Effect::Lost(name.clone()))),
            }
            continue;
        };
        // A proxy that speaks both writes `traceparent` anew from B3: its trace then is one that was sent.
        if !before.iter().any(|(_, known)| known.trace == is.trace) {
            effects.push(Effect::Trace { format: *format, before: was.trace.clone(), after: is.trace });
        } else if let (Some(before), Some(after)) = (was.sampled, is.sampled)
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
                let same = match (Format::W3c.read(sent), Format::W3c.read(received)) {
                    (Some(was), Some(is)) => was.trace == is.trace,
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
            other if is_context(other) || is_foreign_tracer(other) => {}
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
        if mode == Propagation::Continue && is_context(name) {
            continue;
        }
        let (before, after) = (values(received, name), values(sent, name));
        if before.is_empty() || before == after {
            continue;
        }
        if name == "x-request-id" && !is_usable_request_id(before[0]) && !after.is_empty() {
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
    effects
}

/// A changed value, said as precisely as the header allows.
fn change(name: &str, received: &Headers, sent: &Headers) -> Effect {
    let format = Format::ALL.into_iter().find(|format| format.has(name));
    if let Some(format) = format
        && let (Some(was), Some(is)) = (format.read(received), format.read(sent))
    {
        match (was.trace != is.trace, was.sampled, is.sampled) {
            (true, ..) => return Effect::Trace { format, before: was.trace, after: is.trace },
            (false, Some(before), Some(after)) if before != after => return Effect::Sampled { before, after },
            _ => {}
        }
    }
    Effect::Changed { name: name.to_owned(), before: values(received, name).join(","), after: values(sent, name).join(",") }
}

/// Whether a continuing hop joined the trace that it received, and the right one.
fn joined(sent: &Headers, tree: &Tree) -> Vec<Effect> {
    let contexts: Vec<(Format, Context)> =
        Format::ALL.into_iter().filter_map(|format| Some((format, format.read(&tree.received)?))).collect();
    let Some(trace) = trace_of(tree).filter(|_| !contexts.is_empty()) else { return Vec::new() };
    if !contexts.iter().any(|(_, context)| context.trace == trace) {
        let received = contexts.into_iter().map(|(format, context)| (format, context.trace)).collect();
        return vec![Effect::NewTrace { received, started: trace }];
    }
    // A proxy wrote one format and left the other alone: the hop must read the one that the proxy wrote.
    let fresh = |(format, context): &&(Format, Context)| format.read(sent).is_none_or(|before| before.span != context.span);
    let stale = |(format, context): &&(Format, Context)| format.read(sent).is_some_and(|before| before == *context);
    let (Some((fresh, by_proxy)), Some((read, left))) = (contexts.iter().find(fresh), contexts.iter().find(stale)) else {
        return Vec::new();
    };
    let parent = tree.parent_span_id.as_deref().and_then(context::span_id);
    let follows = |context: &Context| trace == context.trace && parent.as_ref() == Some(&context.span);
    if follows(left) && !follows(by_proxy) {
        return vec![Effect::Order { fresh: *fresh, read: *read, trace: left.trace != by_proxy.trace }];
    }
    Vec::new()
}

/// What a continuing hop wrote: its own trace in every format, the decision that came in. Formats that came in and were not
/// written at all are returned beside, with the headers that are gone.
fn continued(tree: &Tree, sent: &Headers, own: bool) -> (Vec<Effect>, Vec<(Format, Vec<String>)>) {
    let (mut effects, mut unwritten) = (Vec::new(), Vec::new());
    let received: Vec<(Format, Context)> =
        Format::ALL.into_iter().filter_map(|format| Some((format, format.read(&tree.received)?))).collect();
    let written: Vec<(Format, Context)> =
        Format::ALL.into_iter().filter_map(|format| Some((format, format.read(sent)?))).collect();
    let trace = trace_of(tree);
    // A format is also lost when a part of it is.
    let gone = |format: Format| -> Vec<String> {
        let names = tree.received.0.iter().map(|(name, _)| name);
        names.filter(|name| format.has(name) && is_empty(sent, name)).cloned().collect()
    };
    for (format, _) in received.iter().filter(|(format, _)| format.read(sent).is_none()) {
        if written.is_empty() {
            effects.extend(gone(*format).into_iter().map(Effect::Lost));
        } else {
            unwritten.push((*format, gone(*format)));
        }
    }
    for (format, context) in &written {
        if let Some(trace) = &trace
            && context.trace != *trace
        {
            effects.push(Effect::Trace { format: *format, before: trace.clone(), after: context.trace.clone() });
        }
    }
    if own {
        let chosen = received.iter().find(|(_, context)| Some(&context.trace) == trace.as_ref());
        let decided = chosen.and_then(|(_, context)| context.sampled);
        let after = written.iter().find_map(|(_, context)| context.sampled).or(tree.sampled);
        if let (Some(before), Some(after)) = (decided, after)
            && before != after
        {
            effects.push(Effect::Sampled { before, after });
        }
    }
    let state_goes_on = Format::W3c.read(&tree.received).is_some_and(|context| Some(&context.trace) == trace.as_ref());
    if state_goes_on && Format::W3c.is_present(sent) && !is_empty(&tree.received, "tracestate") && is_empty(sent, "tracestate") {
        const MAX_MEMBERS: usize = 32;
        let members = values(&tree.received, "tracestate")
            .iter()
            .flat_map(|value| value.split(','))
            .filter(|m| !m.trim().is_empty())
            .count();
        if members <= MAX_MEMBERS {
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
    let cell =
        |context: Option<Context>| context.map_or_else(|| "-".to_owned(), |c| format!("{}/{}", short(&c.trace), short(&c.span)));
    let name = |row: &Row| {
        let text = format!("{}{}", "  ".repeat(row.depth.min(4)), row.hop.name);
        if text.chars().count() > 14 { text.chars().take(13).chain(['…']).collect() } else { text }
    };
    let line = |a: &str, b: &str, c: &str, d: &str, e: &str| format!("{a:<14} {b:<19} {c:<19} {d:<11} {e}").trim_end().to_owned();
    let mut lines = vec![
        line("hop", "W3C trace/span", "B3 trace/span", "request id", "proxy"),
        line(CALLER, &cell(Format::W3c.read(&probe.headers)), &cell(Format::B3.read(&probe.headers)), "sent", ""),
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
        lines.push(line(&name(row), &cell(row.w3c.clone()), &cell(row.b3.clone()), id, proxy));
    }
    lines
}

#[cfg(test)]
#[path = "xray_tests.rs"]
mod tests;
