//! Every endpoint. A handler finds what is known of its request in the [`Exchange`]; it never reads or writes trace headers.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tower_http::catch_panic::CatchPanicLayer;

use crate::access_log::AccessLog;
use crate::error::Error;
use crate::lines::{push_address, push_time};
use crate::observe::Exchange;
use crate::propagation::{Shown, hex, shown};
use crate::reply::{Call, Client, Propagation, Reply, Tree, milliseconds};
use crate::route::Route;
use crate::state::Node;
use crate::upstream::{Called, Upstreams};

/// The router of one hop. An endpoint is a line here and a variant of [`Route`].
pub(crate) fn router(node: Arc<Node>) -> Router {
    let at = |route: Route, endpoint: MethodRouter<Arc<Node>>| (route.template(), endpoint.fallback(method_not_allowed));
    [
        at(Route::Root, get(root)),
        at(Route::Hello, get(hello)),
        // `/hello/service<N>` is told from `/hello/<who>` by the exchange: one pattern cannot, `/hello/servicex` is a who.
        at(Route::HelloWho, get(hello_who)),
        at(Route::Service, get(service)),
        at(Route::Headers, get(headers)),
        at(Route::Healthz, get(healthz)),
        at(Route::Readyz, get(readyz)),
        at(Route::Metrics, get(metrics)),
    ]
    .into_iter()
    .fold(Router::new(), |router, (template, endpoint)| router.route(template, endpoint))
    .fallback(not_found)
    // Inside the measuring, so that a panic is an answer that is counted and logged.
    .layer(CatchPanicLayer::custom(panicked))
    .with_state(node)
}

async fn not_found() -> Error {
    Error::NotFound
}

async fn method_not_allowed() -> Error {
    Error::MethodNotAllowed
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("not a text"), "a handler panicked");
    Error::Internal.into_response()
}

fn text(body: impl Into<Body>) -> Response {
    typed("text/plain; charset=utf-8", body)
}

fn typed(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The exchange that `observe` put beside the request.
fn exchange(request: &Request) -> Arc<Exchange> {
    request.extensions().get::<Arc<Exchange>>().cloned().expect("every request passes observe")
}

async fn root(State(node): State<Arc<Node>>) -> Response {
    text(format!("You've hit {} {}\n", node.identity.version, node.identity.hostname))
}

async fn hello(State(node): State<Arc<Node>>) -> Response {
    let who = &node.identity;
    text(format!("Hello from {} {} ({})\n", who.name, who.version, who.hostname))
}

async fn hello_who(
    State(node): State<Arc<Node>>,
    who: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Error> {
    let exchange = exchange(&request);
    if exchange.route == Route::HelloService {
        return Ok(chain(&node, &exchange, request.headers()).await);
    }
    // What does not decode to text names nobody.
    let Path(who) = who.map_err(|_| Error::NotFound)?;
    Ok(text(format!("Hello, {}!\n", capitalized(&who))))
}

async fn service(State(node): State<Arc<Node>>, request: Request) -> Result<Response, Error> {
    let exchange = exchange(&request);
    // As the exchange reads the path, not as the router does, which decodes `/service%31` first: a request that is measured,
    // delayed and faulted as one route may not be answered as another.
    if exchange.route != Route::Service {
        return Err(Error::NotFound);
    }
    Ok(chain(&node, &exchange, request.headers()).await)
}

fn capitalized(who: &str) -> String {
    let mut chars = who.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Calls the next hops and answers with the tree of all replies.
async fn chain(node: &Node, exchange: &Exchange, headers: &HeaderMap) -> Response {
    if exchange.hops >= node.max_hops {
        return Error::LoopDetected.into_response();
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
    response
}

fn reply(node: &Node, exchange: &Exchange, calls: &[Called], status: StatusCode) -> Vec<u8> {
    let who = &node.identity;
    let context = exchange.context.as_ref();
    let reply = Reply {
        service: who.name.as_str().into(),
        version: who.version.as_str().into(),
        lane: who.lane.as_str().into(),
        hostname: who.hostname.as_str().into(),
        message: format!("Hello, {}!", who.name).into(),
        path: exchange.path().into(),
        status: status.as_u16(),
        started_at: text_of(|out| push_time(out, exchange.started_at)).into(),
        duration_ms: milliseconds(exchange.elapsed()),
        request_id: exchange.request_id.to_str().unwrap_or_default().into(),
        trace_id: context.map(|context| hex(&context.trace_id.to_bytes()).into()),
        span_id: context.map(|context| hex(&context.span_id.to_bytes()).into()),
        parent_span_id: context.and_then(|context| context.parent_id).map(|parent| hex(&parent.to_bytes()).into()),
        sampled: context.and_then(|context| match context.sampling {
            crate::propagation::Sampling::Deferred => None,
            decided => Some(decided.is_sampled()),
        }),
        propagation: if node.tracer.is_some() { Propagation::Continue } else { Propagation::Forward },
        received: Shown::received(&node.propagator, &exchange.carried),
        client: Client {
            ip: text_of(|out| push_address(out, exchange.client)).into(),
            identity: exchange.identity.as_deref().map(Into::into),
        },
        attempt: exchange.attempt,
        injected: exchange.draw().injected,
        upstreams: Vec::<Call<'_, _, ()>>::new(),
    };
    let calls = calls.iter().map(|call| (node.upstreams.shown(&node.propagator, call), call.reply()));
    reply.to_json(calls)
}

fn text_of(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut text = Vec::with_capacity(32);
    write(&mut text);
    String::from_utf8(text).unwrap_or_default()
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

async fn headers(request: Request) -> Response {
    /// A JSON object of arrays, secrets masked.
    struct All<'a>(&'a HeaderMap);
    impl Serialize for All<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.0.keys_len()))?;
            for name in self.0.keys() {
                let values: Vec<_> = self.0.get_all(name).iter().map(|value| shown(name, value)).collect();
                map.serialize_entry(name.as_str(), &values)?;
            }
            map.end()
        }
    }
    typed("application/json", serde_json::to_vec(&All(request.headers())).unwrap_or_default())
}

async fn healthz() -> Response {
    text("ok\n")
}

async fn readyz(State(node): State<Arc<Node>>) -> Response {
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

async fn metrics(State(node): State<Arc<Node>>, headers: HeaderMap) -> Response {
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

    #[test]
    fn a_name_is_greeted_with_its_first_letter_upper_case() {
        assert_eq!(capitalized("golang"), "Golang");
        assert_eq!(capitalized("émile"), "Émile");
        assert_eq!(capitalized(""), "");
    }
}
