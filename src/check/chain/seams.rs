//! Compares the headers of the two ends of a seam, and those that a hop received with those that it sent. Pure.

use opentelemetry::trace::TraceId;

use crate::check::chain::evidence::{HeaderChange, Proxy, RequestId, SIDECAR_CALLS_FROM};
use crate::hop::reply::{Headers, Propagation, Tree};
use crate::text::shorten;
use crate::trace_context::{
    Context, HeaderFamily, HeaderSource as _, Mangling, is_foreign_tracer, is_trace_context, is_valid_request_id,
    is_valid_tracestate, names_trace,
};
use crate::traces::ids::{parse_span_id, parse_trace_id};

/// The values that are not empty, as an empty one is not carried (Envoy sends an empty `tracestate`).
fn values<'a>(headers: &'a Headers, name: &str) -> Vec<&'a str> {
    headers.get(name).iter().map(String::as_str).filter(|value| !value.is_empty()).collect()
}

/// Whether two request ids are one. Envoy writes its sampling reason into a digit of a UUID; it stays the same id.
pub(crate) fn same_request(before: &str, after: &str) -> bool {
    const REASON: usize = 14;
    before == after
        || (before.len() == 36
            && after.len() == 36
            && before.bytes().zip(after.bytes()).enumerate().all(|(i, (a, b))| i == REASON || a.eq_ignore_ascii_case(&b)))
}

/// Signs of a proxy between what was sent and what arrived. `attempt`: the caller's own, which it tells by the same header.
pub(crate) fn proxy(sent: &Headers, tree: &Tree, attempt: u32) -> Proxy {
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
        envoy: reason || (tree.attempt > 1 && tree.attempt != attempt),
        sidecar: SIDECAR_CALLS_FROM.contains(&tree.client.ip.as_ref()),
    }
}

/// What something between a caller and a hop did to the headers.
pub(crate) fn between(sent: &Headers, received: &Headers, is_edge: bool) -> (Vec<HeaderChange>, RequestId) {
    let mut effects = Vec::new();
    let request_id = match (sent.first("x-request-id"), received.first("x-request-id").filter(|value| !value.is_empty())) {
        (Some(before), Some(after)) if same_request(before, after) => RequestId::Kept,
        (Some(_), Some(_)) if is_edge => RequestId::Replaced,
        (Some(before), Some(after)) => {
            effects.push(HeaderChange::Changed {
                name: "x-request-id".to_owned(),
                before: before.to_owned(),
                after: after.to_owned(),
            });
            RequestId::Regenerated
        }
        (Some(_), None) => {
            effects.push(HeaderChange::Lost("x-request-id".to_owned()));
            RequestId::Missing
        }
        (None, Some(_)) => RequestId::Replaced,
        (None, None) => RequestId::Missing,
    };
    effects.extend(contexts_between(sent, received));
    for (name, _) in &sent.0 {
        effects.extend(header_between(name, sent, received, is_edge));
    }
    name_damage(&mut effects, sent, received);
    (effects, request_id)
}

/// Puts what was done to headers by its own name in place of its consequences.
fn name_damage(effects: &mut Vec<HeaderChange>, before: &Headers, after: &Headers) {
    let mut damage = Vec::new();
    for (name, _) in &before.0 {
        let (was, is) = (values(before, name), values(after, name));
        let [was] = was.as_slice() else { continue };
        if let Some(how) = Mangling::between(name, was, &is) {
            // Written anew from the other format, which came damaged.
            let anew = HeaderFamily::ALL.into_iter().find(|format| format.has(name)).and_then(|format| format.read(after));
            let is_other = anew.is_some_and(|context| names_trace(&HeaderFamily::read_all(before), context.trace_id));
            if is_other && matches!(how, Mangling::Shortened | Mangling::Halved | Mangling::Padded) {
                continue;
            }
            damage.push(HeaderChange::Mangled { name: name.clone(), how, values: shown(is.join(" | ")) });
        }
    }
    let is_same = |name: &str, other: &str| {
        name == other || HeaderFamily::ALL.into_iter().any(|format| format.has(name) && format.has(other))
    };
    let named = |effect: &HeaderChange| {
        let names = damage.iter().filter_map(HeaderChange::header).collect::<Vec<_>>();
        effect.header().is_some_and(|header| names.iter().any(|name| is_same(name, &header)))
    };
    effects.retain(|effect| !named(effect));
    effects.splice(0..0, damage);
    dedup(effects);
}

/// A value as it is quoted.
fn shown(value: String) -> String {
    const SHOWN: usize = 140;
    shorten(&value, SHOWN)
}

/// What became of the trace contexts between a caller and a hop.
fn contexts_between(sent: &Headers, received: &Headers) -> Vec<HeaderChange> {
    let mut effects = Vec::new();
    let before = HeaderFamily::read_all(sent);
    for (format, was) in &before {
        let Some(is) = format.read(received) else {
            effects.extend(lost_or_invalid(*format, sent, received));
            continue;
        };
        // A proxy that speaks both writes `traceparent` anew from B3: its trace then is one that was sent.
        if !names_trace(&before, is.trace_id) {
            effects.push(HeaderChange::Trace {
                format: *format,
                before: was.trace_id.to_string(),
                after: is.trace_id.to_string(),
            });
        } else if let (Some(before), Some(after)) = (was.sampling.decision(), is.sampling.decision())
            && before != after
        {
            effects.push(HeaderChange::Sampled { before, after });
        }
    }
    effects
}

/// The headers of a format that are gone; when none is, the one that is no valid context any more.
fn lost_or_invalid(format: HeaderFamily, before: &Headers, after: &Headers) -> Vec<HeaderChange> {
    let gone = missing_headers(format, before, after);
    if gone.is_empty() { vec![invalid(format, before, after)] } else { gone.into_iter().map(HeaderChange::Lost).collect() }
}

/// What became of one header that is no part of a trace context.
fn header_between(name: &str, sent: &Headers, received: &Headers, is_edge: bool) -> Option<HeaderChange> {
    let lost = !received.is_present(name) && sent.is_present(name);
    let is_fault = match name {
        "x-request-id" => false,
        // The edge may remove the lane of callers who have no right to it.
        "x-lane" if is_edge => false,
        // Belongs to the `traceparent` beside it, and ends with that trace.
        "tracestate" => {
            let same = match (HeaderFamily::W3c.read(sent), HeaderFamily::W3c.read(received)) {
                (Some(was), Some(is)) => was.trace_id == is.trace_id,
                _ => false,
            };
            let parent_lost = sent.is_present("traceparent") && !received.is_present("traceparent");
            lost && (same || parent_lost)
        }
        "baggage" if !lost => {
            let after = members(received, name);
            if members(sent, name).iter().all(|member| after.contains(member)) {
                return None;
            }
            let (before, after) = (values(sent, name).join(","), values(received, name).join(","));
            return Some(HeaderChange::Changed { name: name.to_owned(), before, after });
        }
        other => lost && !is_trace_context(other) && !is_foreign_tracer(other),
    };
    is_fault.then(|| HeaderChange::Lost(name.to_owned()))
}

/// What a foreign app altered of that which a proxy may set: the lane, members of `tracestate`, and the case of B3's ids.
pub(crate) fn altered(sent: &Headers, received: &Headers) -> Vec<HeaderChange> {
    let mut effects = Vec::new();
    let changed = |name: &str| {
        let (before, after) = (values(sent, name).join(","), values(received, name).join(","));
        HeaderChange::Changed { name: name.to_owned(), before, after }
    };
    let (was, is) = (values(sent, "x-lane"), values(received, "x-lane"));
    if !was.is_empty() && !is.is_empty() && was != is {
        effects.push(changed("x-lane"));
    }
    let trace = |headers| HeaderFamily::W3c.read(headers).map(|context| context.trace_id);
    let (was, is) = (members(sent, "tracestate"), members(received, "tracestate"));
    let goes_on = !is.is_empty() && trace(sent).is_some() && trace(sent) == trace(received);
    if goes_on && was.iter().any(|member| !is.contains(member)) {
        effects.push(changed("tracestate"));
    }
    for (name, _) in sent.0.iter().filter(|(name, _)| HeaderFamily::B3.has(name)) {
        let (was, is) = (values(sent, name).join(","), values(received, name).join(","));
        if was != is && was.eq_ignore_ascii_case(&is) {
            effects.push(HeaderChange::Mangled { name: name.clone(), how: Mangling::UpperCase, values: shown(is) });
        }
    }
    effects
}

/// Whether baggage came changed, and was not left out for another one: a member is there in part, or with another value.
pub(crate) fn is_cut(before: &str, after: &str) -> bool {
    let key = |member: &str| member.split('=').next().unwrap_or_default().trim().to_owned();
    let parts =
        |text: &str| text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let before = parts(before);
    parts(after).iter().any(|is| before.iter().any(|was| was != is && (key(was) == key(is) || was.starts_with(is.as_str()))))
}

/// The members of a header that is a list.
fn members<'a>(headers: &'a Headers, name: &str) -> Vec<&'a str> {
    values(headers, name).into_iter().flat_map(|value| value.split(',')).map(str::trim).collect()
}

/// The headers of a format that are there before and not after.
fn missing_headers(format: HeaderFamily, before: &Headers, after: &Headers) -> Vec<String> {
    let names = before.0.iter().map(|(name, _)| name);
    names.filter(|name| format.has(name) && !after.is_present(name)).cloned().collect()
}

/// What a hop did to the headers that it passes on as they came: all of them for one that forwards, all but the trace
/// context for one that continues.
pub(crate) fn verbatim(received: &Headers, sent: &Headers, mode: Propagation) -> Vec<HeaderChange> {
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
            effects.push(HeaderChange::Lost(name.clone()));
        } else if name == "x-b3-sampled" {
            let flag = |value: &str| value == "1" || value == "true";
            effects.push(HeaderChange::Sampled { before: flag(before[0]), after: flag(after[0]) });
        } else {
            effects.push(change(name, received, sent));
        }
    }
    // The state belongs to the trace that was left.
    if effects.iter().any(|effect| matches!(effect, HeaderChange::Trace { format: HeaderFamily::W3c, .. })) {
        effects.retain(|effect| *effect != HeaderChange::Lost("tracestate".to_owned()));
    }
    name_damage(&mut effects, received, sent);
    if mode == Propagation::Continue {
        effects.retain(|effect| effect.header().is_none_or(|name| !is_trace_context(&name)));
    }
    effects
}

/// A changed value, said as precisely as the header allows.
fn change(name: &str, received: &Headers, sent: &Headers) -> HeaderChange {
    let format = HeaderFamily::ALL.into_iter().find(|format| format.has(name));
    if let Some(format) = format
        && let Some(was) = format.read(received)
    {
        let Some(is) = format.read(sent) else { return invalid(format, received, sent) };
        match (was.trace_id != is.trace_id, was.sampling.decision(), is.sampling.decision()) {
            (true, ..) => {
                return HeaderChange::Trace { format, before: was.trace_id.to_string(), after: is.trace_id.to_string() };
            }
            (false, Some(before), Some(after)) if before != after => return HeaderChange::Sampled { before, after },
            _ => {}
        }
    }
    HeaderChange::Changed { name: name.to_owned(), before: values(received, name).join(","), after: values(sent, name).join(",") }
}

/// A context that was valid `before` and is not `after`, although its headers are there.
fn invalid(format: HeaderFamily, before: &Headers, after: &Headers) -> HeaderChange {
    let names = || before.0.iter().map(|(name, _)| name.as_str()).filter(|name| format.has(name));
    let changed = names().find(|name| before.get(name) != after.get(name)).or(names().next()).unwrap_or(format.header());
    HeaderChange::Invalid { format, name: changed.to_owned(), value: shown(values(after, changed).join(", ")) }
}

/// Whether a continuing hop joined the trace that it received, and the right one.
pub(crate) fn joined(sent: &Headers, tree: &Tree) -> Vec<HeaderChange> {
    let contexts = HeaderFamily::read_all(&tree.received);
    let Some(trace) = trace_of(tree).filter(|_| !contexts.is_empty()) else { return Vec::new() };
    if !names_trace(&contexts, trace) {
        let received = contexts.into_iter().map(|(format, context)| (format, context.trace_id.to_string())).collect();
        return vec![HeaderChange::NewTrace { received, started: trace.to_string() }];
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
        return vec![HeaderChange::Order { fresh: *fresh, read: *read, trace: left.trace_id != by_proxy.trace_id }];
    }
    Vec::new()
}

/// What a continuing hop wrote: its own trace in every format, the decision that came in. Formats that came in and were not
/// written at all are returned beside, with the headers that are gone.
pub(crate) fn continued(tree: &Tree, sent: &Headers, own: bool) -> (Vec<HeaderChange>, Vec<(HeaderFamily, Vec<String>)>) {
    let (mut effects, mut unwritten) = (Vec::new(), Vec::new());
    let (received, written) = (HeaderFamily::read_all(&tree.received), HeaderFamily::read_all(sent));
    let trace = trace_of(tree);
    for (format, _) in received.iter().filter(|(format, _)| format.read(sent).is_none()) {
        let gone = missing_headers(*format, &tree.received, sent);
        if gone.is_empty() || written.is_empty() {
            effects.extend(lost_or_invalid(*format, &tree.received, sent));
        } else {
            unwritten.push((*format, gone));
        }
    }
    let is_stale = |(_, context): &&(HeaderFamily, Context)| {
        received.iter().any(|(_, was)| (was.trace_id, was.span_id) == (context.trace_id, context.span_id))
    };
    if let Some((_, stale)) = written.iter().find(is_stale) {
        effects.push(HeaderChange::StaleParent { span: stale.span_id.to_string() });
    }
    for (format, context) in &written {
        if let Some(trace) = trace
            && context.trace_id != trace
        {
            effects.push(HeaderChange::Trace { format: *format, before: trace.to_string(), after: context.trace_id.to_string() });
        }
    }
    if own {
        let chosen = received.iter().find(|(_, context)| Some(context.trace_id) == trace);
        let decided = chosen.and_then(|(_, context)| context.sampling.decision());
        let after = written.iter().find_map(|(_, context)| context.sampling.decision()).or(tree.sampled);
        if let (Some(before), Some(after)) = (decided, after)
            && before != after
        {
            effects.push(HeaderChange::Sampled { before, after });
        }
    }
    let is_own = |headers: &Headers| HeaderFamily::W3c.read(headers).is_some_and(|context| Some(context.trace_id) == trace);
    let state_goes_on = is_own(&tree.received) && is_own(sent);
    if state_goes_on
        && tree.received.is_present("tracestate")
        && !sent.is_present("tracestate")
        && is_valid_tracestate(tree.received.values("tracestate"))
    {
        effects.push(HeaderChange::Lost("tracestate".to_owned()));
    }
    let (before, after) = (members(&tree.received, "tracestate"), members(sent, "tracestate"));
    let often = |all: &[&str], member: &str| all.iter().filter(|other| **other == member).count();
    if state_goes_on && !after.is_empty() && before.iter().any(|member| often(&before, member) != often(&after, member)) {
        let (before, after) = (before.join(","), after.join(","));
        effects.push(HeaderChange::Changed { name: "tracestate".to_owned(), before, after });
    }
    name_damage(&mut effects, &tree.received, sent);
    effects.retain(|effect| !matches!(effect, HeaderChange::Mangled { name, .. } if !is_trace_context(name)));
    (effects, unwritten)
}

fn dedup(effects: &mut Vec<HeaderChange>) {
    let mut seen: Vec<HeaderChange> = Vec::new();
    effects.retain(|effect| {
        let new = !seen.contains(effect);
        seen.push(effect.clone());
        new
    });
}

/// The trace that a hop says it is in.
pub(crate) fn trace_of(hop: &Tree) -> Option<TraceId> {
    parse_trace_id(hop.trace_id.as_ref()?).ok()
}
