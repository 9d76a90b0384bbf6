//! Every endpoint. An endpoint finds what is known of its request in the [`Exchange`]; it never reads or writes trace headers.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::reply::{Propagation, Reply, Tree};
use crate::hop::route::Route;
use crate::hop::state::Node;
use crate::telemetry::access_log::AccessLog;
use crate::trace_context::{RedactedHeaders, redacted};
use crate::upstream::{Called, Upstreams};

/// Answers a request that was let in, whatever happens.
pub(crate) async fn answer<B>(exchange: &Exchange, request: &Request<B>) -> Response<Bytes> {
    caught(endpoint(exchange, request.method(), request.headers())).await
}

/// Inside the measuring, so that a panic is an answer that is counted and logged.
async fn caught(answer: impl Future<Output = Result<Response<Bytes>, Error>>) -> Response<Bytes> {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(panic) => panicked(&*panic),
    }
}

/// An endpoint is a line here and a variant of [`Route`].
async fn endpoint(exchange: &Exchange, method: &Method, headers: &HeaderMap) -> Result<Response<Bytes>, Error> {
    let node = &*exchange.node;
    match exchange.route {
        Route::Unmatched => Err(Error::NotFound),
        _ if !matches!(*method, Method::GET | Method::HEAD) => Err(Error::MethodNotAllowed),
        Route::Root => Ok(root(node)),
        Route::Hello => Ok(hello(node)),
        Route::HelloWho => hello_who(exchange.path()),
        Route::Service | Route::HelloService => chain(node, exchange, headers).await,
        Route::Headers => Ok(all_headers(headers)),
        Route::Healthz => Ok(text("ok\n")),
        Route::Readyz => Ok(readyz(node)),
        Route::Metrics => Ok(metrics(node, headers)),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Response<Bytes> {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("not a text"), "an endpoint panicked");
    Error::Internal.into_response()
}

pub(crate) fn text(body: impl Into<Bytes>) -> Response<Bytes> {
    typed("text/plain; charset=utf-8", body)
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    // This one, four that the exchange writes, and `connection` while it drains. Asked for six, the map grows on the way.
    response.headers_mut().reserve(7);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn root(node: &Node) -> Response<Bytes> {
    let who = &node.identity;
    text(["You've hit ", &who.version, " ", &who.hostname, "\n"].concat())
}

fn hello(node: &Node) -> Response<Bytes> {
    let who = &node.identity;
    text(["Hello from ", &who.name, " ", &who.version, " (", &who.hostname, ")\n"].concat())
}

fn hello_who(path: &str) -> Result<Response<Bytes>, Error> {
    let who = path.strip_prefix("/hello/").ok_or(Error::NotFound)?;
    // What does not decode to text names nobody.
    let who = percent_decode_str(who).decode_utf8().map_err(|_| Error::NotFound)?;
    Ok(text(format!("Hello, {}!\n", capitalized(&who))))
}

fn capitalized(who: &str) -> String {
    let mut chars = who.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Calls the next hops and answers with the tree of all replies.
async fn chain(node: &Node, exchange: &Exchange, headers: &HeaderMap) -> Result<Response<Bytes>, Error> {
    if exchange.hops >= node.max_hops {
        return Err(Error::LoopDetected);
    }
    let abort = exchange.draw().abort;
    let calls = match abort {
        Some(_) => Vec::new(),
        None => node.upstreams.call_all(exchange).await,
    };
    let outcomes = || calls.iter().map(Called::outcome);
    if let Some((Some(status), _)) = outcomes().find(|(_, failed)| *failed).or(outcomes().next_back()) {
        exchange.set_upstream_status(status);
    }
    let status = abort.unwrap_or_else(|| Upstreams::status(&calls));
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

fn reply(node: &Node, exchange: &Exchange, calls: &[Called], status: StatusCode) -> Vec<u8> {
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
    reply.to_json(calls.iter().map(|call| node.upstreams.shown(call)))
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

fn all_headers(headers: &HeaderMap) -> Response<Bytes> {
    /// A JSON object of arrays, secrets masked.
    struct All<'a>(&'a HeaderMap);
    impl Serialize for All<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.0.keys_len()))?;
            for name in self.0.keys() {
                let values: Vec<_> = self.0.get_all(name).iter().map(|value| redacted(name, value)).collect();
                map.serialize_entry(name.as_str(), &values)?;
            }
            map.end()
        }
    }
    typed("application/json", serde_json::to_vec(&All(headers)).unwrap_or_default())
}

fn readyz(node: &Node) -> Response<Bytes> {
    match node.phase.readiness() {
        Ok(()) => text("ok\n"),
        Err(reason) => {
            let mut response = text(format!("{reason}\n"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// Whether `Accept` names OpenMetrics and does not refuse it.
fn accepts_openmetrics(accept: &str) -> bool {
    let mut ranges = accept.split(',').map(|range| range.split(';').map(str::trim));
    ranges.any(|mut parts| {
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"))
            && parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).is_none_or(|q| q > 0.0)
    })
}

fn metrics(node: &Node, headers: &HeaderMap) -> Response<Bytes> {
    static OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let openmetrics =
        accepts_openmetrics(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default());
    let log = node.access_log.as_ref().map(|AccessLog { lines, .. }| lines);
    let families = node.metrics.render(openmetrics, &node.span_queue, log);
    typed(if openmetrics { OPENMETRICS } else { "text/plain; version=0.0.4; charset=utf-8" }, families)
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

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        for text in [None, Some("a text".to_owned())] {
            let response = caught(async {
                match text {
                    Some(text) => std::panic::panic_any(text),
                    None => panic!("a literal"),
                }
            });
            let response = response.await;
            assert_eq!(response.status(), 500);
            let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(problem["status"], 500);
        }
    }

    #[test]
    fn a_name_is_greeted_with_its_first_letter_upper_case() {
        assert_eq!(capitalized("golang"), "Golang");
        assert_eq!(capitalized("émile"), "Émile");
        assert_eq!(capitalized(""), "");
    }
}
