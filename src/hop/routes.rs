//! Every endpoint. An endpoint finds what is known of its request in the [`Exchange`]; it never reads or writes trace headers.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap};
use http::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::hop::chain::chain;
use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::response::{text, typed};
use crate::hop::route::Route;
use crate::hop::state::Node;
use crate::telemetry::access_log::AccessLog;
use crate::trace_context::redacted;

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
