//! `/service<N>`: calls the next hops, and turns the outcomes into the reply and the status of this hop.

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;

use crate::hop::error::{Error, ShedReason};
use crate::hop::exchange::{Exchange, VERSION};
use crate::hop::limits::MAX_RESPONSE;
use crate::hop::reply::{
    Call, Client, HeaderList, Injected, MAX_HOPS, MessageReply, NO_REPLY, Nested, NestedReply, NotNested, Propagation, Reply,
    Text, Tree, Written, embedded_replies, expanded_size, milliseconds, pad,
};
use crate::hop::response::{text, typed};
use crate::hop::state::Node;
use crate::system::held::Exhausted;
use crate::telemetry::draws::DrawPlace;
use crate::telemetry::metrics::known_method;
use crate::text::causes;
use crate::trace_context::{RedactedHeaders, Sampling, X_REQUEST_ID};
use crate::upstream::CallContext;
use crate::upstream::foreign_response::ForeignResponse;
use crate::upstream::outcome::{CallError, CallOutcome};
use crate::values::parse_size;

/// The largest reply, in bytes, that is answered as text.
const MAX_DRAWN: usize = 1 << 20;

/// Answers `/service<n>`: calls the next hops and answers with the tree of all replies.
pub(crate) async fn chain(exchange: &Exchange, n: u16, wish: Wish) -> Result<Response, Error> {
    let (status, mut json) = answered(exchange, n, |reply| reply.to_json()).await?;
    // The text form is drawn from the parsed tree, which takes ten times the memory of its JSON.
    let is_drawn = wish.form == ReplyFormat::Text && json.len() <= MAX_DRAWN;
    let tree = if is_drawn { Tree::parse(&json).ok() } else { None };
    let size = wish.bytes.or_else(|| Some(exchange.node.response_size?.at(exchange.draws.unit(DrawPlace::ResponseSize, 0))));
    let mut response = match tree {
        Some(tree) => text(tree.to_padded_text(size.unwrap_or(0))),
        None => {
            pad(&mut json, size.unwrap_or(0));
            typed("application/json", json)
        }
    };
    *response.status_mut() = status;
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Calls the next hops: the status of this hop, and its reply as `write` writes it.
pub(crate) async fn answered<T>(
    exchange: &Exchange,
    n: u16,
    write: impl FnOnce(Reply<Written<'_>>) -> T,
) -> Result<(StatusCode, T), Error> {
    let node = &*exchange.node;
    if exchange.hops >= node.max_hops {
        return Err(Error::LoopDetected);
    }
    let struck = exchange.struck();
    let abort = struck.and_then(|struck| struck.abort);
    let mut calls = match abort {
        Some(_) => Vec::new(),
        None => node.upstreams.call_all(&call_context(node, exchange, n)).await,
    };
    if let Some(kind) = calls.iter().find_map(CallOutcome::exhausted) {
        return Err(exchange.shed(ShedReason::Held(kind)));
    }
    for answer in calls.iter_mut().filter_map(|call| call.answer.as_mut()).filter(|answer| answer.rpc.is_some()) {
        let more = expanded_size(&answer.body);
        answer.held.add(more).map_err(|Exhausted(kind)| exchange.shed(ShedReason::Held(kind)))?;
    }
    let calls: Vec<_> = calls.iter().map(CheckedCall::of).collect();
    let logged = calls.iter().find(|call| call.has_failed()).or(calls.last());
    if let Some(status) = logged.and_then(|call| call.outcome.status) {
        exchange.set_upstream_status(status.as_u16());
    }
    let status = abort.unwrap_or_else(|| combined_status(&calls));
    let broke: Vec<_> = calls.iter().flat_map(|call| &call.outcome.broke).cloned().collect();
    let injected = struck.and_then(|struck| struck.injected(&broke));
    let reply = reply(node, exchange, &calls, status, injected);
    if let Some(copy) = &exchange.copy {
        copy.set_reply(&reply.to_json());
    }
    Ok((status, write(reply)))
}

/// The reply of this hop alone.
pub(crate) fn own_reply(exchange: &Exchange, status: StatusCode) -> Reply<Written<'_>> {
    reply(&exchange.node, exchange, &[], status, exchange.struck().and_then(|struck| struck.injected(&[])))
}

fn call_context<'a>(node: &'a Node, exchange: &'a Exchange, n: u16) -> CallContext<'a> {
    CallContext {
        tracer: node.tracer.as_ref(),
        metrics: &node.metrics,
        held: &node.held,
        propagator: &node.propagator,
        carried: &exchange.carried,
        request_id: &exchange.request_id,
        shown_request_id: exchange.shown_request_id(),
        span_context: exchange.context(),
        new_trace: exchange.new_trace,
        hop: &node.identity.name,
        hop_count: exchange.hops,
        call_budget: exchange.call_budget,
        service_number: n,
        method: known_method(exchange.method()),
        deadline: exchange.deadline,
        body: exchange.body(),
        breaks: exchange.struck().map(|struck| (struck.breaks.as_slice(), struck.other)).filter(|(kinds, _)| !kinds.is_empty()),
        draws: exchange.draws,
        caller_left: exchange.caller_left(),
    }
}

/// Whether an answer lacks every header that a hop's answer has: a foreign app answers with what a hop told it.
fn is_retold(headers: &HeaderMap) -> bool {
    let is_grpc = || headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    !headers.contains_key(&VERSION)
        && !headers.contains_key(&X_REQUEST_ID)
        && !headers.contains_key(header::X_CONTENT_TYPE_OPTIONS)
        && !is_grpc()
}

/// Whether an answer has every header that a hop's answer has.
fn is_of_hop(headers: &HeaderMap) -> bool {
    [&VERSION, &X_REQUEST_ID, &header::X_CONTENT_TYPE_OPTIONS].into_iter().all(|name| headers.contains_key(name))
}

/// A call whose answer was validated.
struct CheckedCall<'a> {
    outcome: &'a CallOutcome<'a>,
    /// Why the call counts as failed.
    error: Option<String>,
    reply: Option<NestedReply<'a>>,
    /// Over gRPC, in its place.
    message: Option<MessageReply>,
    /// In an answer of a foreign app: those of the hops that it called.
    embedded: Vec<String>,
}

impl<'a> CheckedCall<'a> {
    /// A body that is no reply is left out, but for the replies in it; if the call failed, its error quotes the message in the body.
    fn of(outcome: &'a CallOutcome<'a>) -> Self {
        let error = outcome.failure.as_ref().map(|failure| causes(failure));
        let mut call = Self { outcome, error, reply: None, message: None, embedded: Vec::new() };
        let Some(answer) = &outcome.answer else { return call };
        if answer.rpc.is_some() {
            call.message = MessageReply::read(&answer.body);
            return call;
        }
        match (NestedReply::check(&answer.body), &outcome.failure) {
            (Ok(_), None) if is_retold(&answer.headers) => {
                call.embedded.extend(String::from_utf8(answer.body.to_vec()).ok());
            }
            (Ok(reply), _) => call.reply = Some(reply),
            (Err(NotNested::TooDeep), _) => {
                call.error = Some(format!("too deep: its reply nests more than {MAX_HOPS} hops"));
            }
            (Err(NotNested::NotAReply), failure) => {
                if let Some(failure @ CallError::Status(_)) = failure {
                    call.error = Some(format!("{failure}{}", ForeignResponse::read(&answer.headers, &answer.body)));
                }
                call.embedded = embedded_replies(&answer.body);
                if failure.is_none() && call.embedded.is_empty() && is_of_hop(&answer.headers) {
                    call.error = Some(NO_REPLY.to_owned());
                }
            }
        }
        call
    }

    /// A call that was repeated does not count, and neither does a success without a reply.
    fn has_failed(&self) -> bool {
        self.error.as_deref().is_some_and(|error| error != NO_REPLY) && !self.outcome.repeated
    }

    fn is_loop(&self) -> bool {
        matches!(self.outcome.failure, Some(CallError::NoBudget(_))) || self.outcome.status == Some(StatusCode::LOOP_DETECTED)
    }

    fn has_timed_out(&self) -> bool {
        matches!(self.outcome.failure, Some(CallError::Timeout(_))) || self.outcome.status == Some(StatusCode::GATEWAY_TIMEOUT)
    }

    fn as_call(&self) -> Call<Written<'_>> {
        Call {
            url: Text::Borrowed(&self.outcome.url),
            protocol: self.outcome.protocol.map(Text::Borrowed),
            status: self.outcome.status.map(|status| status.as_u16()),
            duration_ms: milliseconds(self.outcome.duration),
            error: self.error.as_deref().map(Text::Borrowed),
            sent: HeaderList::Own(RedactedHeaders::sent(&self.outcome.sent)),
            reply: self.reply.map(Nested::Json).or_else(|| Some(Nested::Message(self.message.as_ref()?, 2))),
            embedded: self
                .embedded
                .iter()
                .filter_map(|reply| NestedReply::check(reply.as_bytes()).ok().map(Nested::Json))
                .collect(),
        }
    }
}

/// The status of a hop from its calls: 508 if any ended with it, or was not made for want of a budget; else 504 if every failed one timed out or was answered 504; else
/// 502; 200 if none failed.
fn combined_status(calls: &[CheckedCall<'_>]) -> StatusCode {
    let failed = || calls.iter().filter(|call| call.has_failed());
    if failed().next().is_none() {
        StatusCode::OK
    } else if failed().any(CheckedCall::is_loop) {
        StatusCode::LOOP_DETECTED
    } else if failed().all(CheckedCall::has_timed_out) {
        StatusCode::GATEWAY_TIMEOUT
    } else {
        StatusCode::BAD_GATEWAY
    }
}

fn reply<'a>(
    node: &'a Node,
    exchange: &'a Exchange,
    calls: &'a [CheckedCall<'a>],
    status: StatusCode,
    injected: Option<Injected>,
) -> Reply<Written<'a>> {
    let who = &node.identity;
    let context = exchange.context();
    let sampling = context.map(|context| context.sampling).filter(|sampling| *sampling != Sampling::Deferred);
    Reply {
        service: Text::Borrowed(&who.name),
        version: Text::Borrowed(&who.version),
        lane: Text::Borrowed(&who.lane),
        hostname: Text::Borrowed(&who.hostname),
        message: Text::Greeting(&who.name),
        path: Text::Borrowed(exchange.path()),
        status: status.as_u16(),
        started_at: Text::Time(exchange.started_at),
        duration_ms: milliseconds(exchange.elapsed()),
        request_id: Text::Borrowed(exchange.shown_request_id()),
        trace_id: context.map(|context| Text::TraceId(context.trace_id)),
        span_id: context.map(|context| Text::SpanId(context.span_id)),
        parent_span_id: context.and_then(|context| context.parent_id).map(Text::SpanId),
        sampled: sampling.map(Sampling::is_sampled),
        propagation: if node.tracer.is_some() { Propagation::Continue } else { Propagation::Forward },
        received: HeaderList::Own(RedactedHeaders::received(&exchange.carried)),
        client: Client {
            ip: Text::Address(exchange.client),
            identity: exchange.identity.as_ref().and_then(|(_, name)| name.as_deref()).map(Text::Borrowed),
            identity_source: exchange.identity.as_ref().map(|(source, _)| Text::Borrowed(source)),
        },
        protocol: Some(Text::Borrowed(exchange.protocol())),
        request_bytes: exchange.request_bytes(),
        node: who.place.node.as_deref().map(Text::Borrowed),
        zone: who.place.zone.as_deref().map(Text::Borrowed),
        region: who.place.region.as_deref().map(Text::Borrowed),
        cluster: who.place.cluster.as_deref().map(Text::Borrowed),
        attempt: exchange.attempt,
        injected,
        upstreams: calls.iter().map(CheckedCall::as_call).collect(),
    }
}

/// How a reply is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyFormat {
    Json,
    /// The tree for people.
    Text,
}

/// What a caller asks for: by its query, else by `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    form: ReplyFormat,
    /// How large the answer is at least.
    bytes: Option<usize>,
}

impl Wish {
    /// # Errors
    ///
    /// A value of the query that is not accepted.
    pub(crate) fn read(query: Option<&str>, headers: &HeaderMap) -> Result<Self, Error> {
        let (mut form, mut bytes) = (None, None);
        for (name, value) in query.into_iter().flat_map(|query| query.split('&')).filter_map(|pair| pair.split_once('=')) {
            match (name, value) {
                ("format", "json") => form = Some(ReplyFormat::Json),
                ("format", "text") => form = Some(ReplyFormat::Text),
                ("bytes", size) => bytes = Some(parse_size(size).filter(|size| *size <= MAX_RESPONSE).ok_or(Error::BadQuery)?),
                ("format", _) => return Err(Error::BadQuery),
                _ => {}
            }
        }
        let form = form.unwrap_or_else(|| if prefers_json(headers) { ReplyFormat::Json } else { ReplyFormat::Text });
        Ok(Self { form, bytes })
    }
}

impl<S: Sync> FromRequestParts<S> for Wish {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Self::read(parts.uri.query(), &parts.headers)
    }
}

/// Whether `Accept` names JSON and ranks no text above it.
pub(crate) fn prefers_json(headers: &HeaderMap) -> bool {
    let is_json = |value: &http::HeaderValue| value == "application/json";
    let mut values = headers.get_all(header::ACCEPT).iter();
    // What a hop sends.
    (values.next().is_some_and(is_json) && values.next().is_none())
        || prefers(headers, &["application/json", "application/*"], &["text/plain", "text/html", "text/*"])
}

/// Whether `Accept` names one of the `preferred` media types and ranks none of the `others` above it.
pub(crate) fn prefers(headers: &HeaderMap, preferred: &[&str], others: &[&str]) -> bool {
    let (mut best, mut other) = (0.0_f32, 0.0_f32);
    for range in headers.get_all(header::ACCEPT).iter().flat_map(|value| value.to_str().unwrap_or_default().split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let is_one_of = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known));
        let rank = match (is_one_of(preferred), is_one_of(others)) {
            (true, _) => &mut best,
            (_, true) => &mut other,
            _ => continue,
        };
        let q = |part: &str| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok()).flatten()
        };
        *rank = rank.max(parts.find_map(q).unwrap_or(1.0));
    }
    best > 0.0 && best >= other
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::Duration;

    use super::*;

    fn outcome(status: Option<u16>, failure: Option<CallError>) -> CallOutcome<'static> {
        let url = Cow::Borrowed("http://service2/service2");
        let status = status.map(|status| StatusCode::from_u16(status).unwrap());
        CallOutcome { status, ..CallOutcome::not_called(url, failure) }
    }

    fn answered(status: u16) -> CallOutcome<'static> {
        let code = StatusCode::from_u16(status).unwrap();
        outcome(Some(status), (!code.is_success()).then_some(CallError::Status(code)))
    }

    fn timed_out() -> CallOutcome<'static> {
        outcome(None, Some(CallError::Timeout(Duration::from_secs(1))))
    }

    #[test]
    fn the_status_names_the_worst_of_the_calls() {
        let status = |calls: &[CallOutcome<'_>]| combined_status(&calls.iter().map(CheckedCall::of).collect::<Vec<_>>()).as_u16();
        assert_eq!(status(&[]), 200);
        assert_eq!(status(&[answered(200), answered(204)]), 200);
        assert_eq!(status(&[answered(200), answered(404)]), 502);
        assert_eq!(status(&[timed_out(), answered(504)]), 504);
        assert_eq!(status(&[timed_out(), answered(503)]), 502);
        assert_eq!(status(&[answered(503), timed_out()]), 502);
        assert_eq!(status(&[answered(503), timed_out(), answered(508)]), 508);
        assert_eq!(status(&[answered(301)]), 502);
        assert_eq!(status(&[answered(200), outcome(None, Some(CallError::NoBudget("service1".to_owned())))]), 508);
    }

    #[test]
    fn the_query_wins_over_accept_and_what_it_cannot_mean_is_refused() {
        let wish = |query: &str| Wish::read(Some(query), &HeaderMap::new());
        assert_eq!(wish("a=b&format=json"), Ok(Wish { form: ReplyFormat::Json, bytes: None }));
        assert_eq!(wish("format=text&bytes=1MiB"), Ok(Wish { form: ReplyFormat::Text, bytes: Some(1 << 20) }));
        assert_eq!(wish("bytes=0&format"), Ok(Wish { form: ReplyFormat::Text, bytes: Some(0) }));
        for bad in ["format=xml", "format=", "bytes=", "bytes=-1", "bytes=2MiB", "bytes=1048577", "format=json&bytes=x"] {
            assert_eq!(wish(bad), Err(Error::BadQuery), "{bad}");
        }
    }

    #[test]
    fn json_is_for_those_who_ask_for_it() {
        let prefers = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            prefers_json(&headers)
        };
        for accept in [
            "application/json",
            "application/json, */*",
            "APPLICATION/JSON;q=0.5, */*;q=0.9",
            "application/json, text/plain, */*",
        ] {
            assert!(prefers(accept), "{accept}");
        }
        for accept in [
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/json;q=0.1, text/plain",
            "application/json;q=0",
            ",;=q",
        ] {
            assert!(!prefers(accept), "{accept}");
        }
        assert!(!prefers_json(&HeaderMap::new()));
    }
}
