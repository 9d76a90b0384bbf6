//! `/service<N>`: calls the next hops, and turns the outcomes into the reply of this hop.

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Response, StatusCode};

use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::reply::{Propagation, Reply, ReplyCall, Tree, is_reply};
use crate::hop::response::{text, typed};
use crate::hop::state::Node;
use crate::text::causes;
use crate::trace_context::RedactedHeaders;
use crate::upstream::CallContext;
use crate::upstream::foreign_response::ForeignResponse;
use crate::upstream::outcome::{CallError, CallOutcome, combined_status};

/// Calls the next hops and answers with the tree of all replies.
pub(crate) async fn chain(node: &Node, exchange: &Exchange, headers: &HeaderMap) -> Result<Response<Bytes>, Error> {
    if exchange.hops >= node.max_hops {
        return Err(Error::LoopDetected);
    }
    let abort = exchange.draw().abort;
    let calls = match abort {
        Some(_) => Vec::new(),
        None => node.upstreams.call_all(call_context(node, exchange)).await,
    };
    let first_failed = calls.iter().find(|call| call.failure.is_some()).or(calls.last());
    if let Some(status) = first_failed.and_then(|call| call.status) {
        exchange.set_upstream_status(status.as_u16());
    }
    let status = abort.unwrap_or_else(|| combined_status(&calls));
    let json = reply(node, exchange, &calls, status);
    let mut response = if prefers_json(headers) {
        typed("application/json", json)
    } else {
        match Tree::parse(&json) {
            Ok(tree) => text(tree.to_text()),
            // What is below nests deeper than is read, or is not what it seemed.
            Err(_) => typed("application/json", json),
        }
    };
    *response.status_mut() = status;
    Ok(response)
}

fn call_context<'a>(node: &'a Node, exchange: &'a Exchange) -> CallContext<'a> {
    CallContext {
        tracer: node.tracer.as_ref(),
        metrics: &node.metrics,
        propagator: &node.propagator,
        carried: &exchange.carried,
        request_id: &exchange.request_id,
        span_context: exchange.context.as_ref(),
        new_trace: exchange.new_trace,
        hop_count: exchange.hops,
        service_number: exchange.service_number(),
    }
}

fn reply(node: &Node, exchange: &Exchange, calls: &[CallOutcome<'_>], status: StatusCode) -> Vec<u8> {
    let who = &node.identity;
    let reply = Reply {
        service: &who.name,
        version: &who.version,
        lane: &who.lane,
        hostname: &who.hostname,
        path: exchange.path(),
        status: status.as_u16(),
        started_at: exchange.started_at,
        duration: exchange.elapsed(),
        request_id: exchange.request_id.as_bytes(),
        context: exchange.context.as_ref(),
        propagation: if node.tracer.is_some() { Propagation::Continue } else { Propagation::Forward },
        received: RedactedHeaders::received(&exchange.carried),
        client: exchange.client,
        identity: exchange.identity.as_deref(),
        attempt: exchange.attempt,
        injected: exchange.draw().injected,
    };
    reply.to_json(calls.iter().map(reply_call))
}

/// A call as the reply shows it. A body that is no reply is not shown; if the call failed, its error quotes what the body says.
fn reply_call<'a>(call: &'a CallOutcome<'_>) -> ReplyCall<'a> {
    let reply = call.answer.as_ref().map(|answer| &*answer.body).filter(|body| is_reply(body));
    let error = call.failure.as_ref().map(|failure| match (failure, &call.answer) {
        (CallError::Status(_), Some(answer)) if reply.is_none() => {
            format!("{failure}{}", ForeignResponse::read(&answer.headers, &answer.body))
        }
        _ => causes(failure),
    });
    ReplyCall {
        url: &call.url,
        status: call.status.map(|status| status.as_u16()),
        duration: call.duration,
        error,
        sent: RedactedHeaders::sent(&call.sent),
        reply,
    }
}

/// Whether `Accept` names JSON and ranks no text above it.
pub(crate) fn prefers_json(headers: &HeaderMap) -> bool {
    let (mut json, mut text) = (0.0_f32, 0.0_f32);
    for value in headers.get_all(header::ACCEPT) {
        if value == "application/json" {
            json = 1.0;
            continue;
        }
        for range in value.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let rank = match parts.next().map(str::to_ascii_lowercase).as_deref() {
                Some("application/json" | "application/*") => &mut json,
                Some("text/plain" | "text/html" | "text/*") => &mut text,
                _ => continue,
            };
            let q = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
            *rank = rank.max(q);
        }
    }
    json > 0.0 && json >= text
}

#[cfg(test)]
mod tests {
    use super::*;

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
