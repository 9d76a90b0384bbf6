//! The one endpoint that does something: it sends a request, changes a hop's faults, stops and starts a hop.
//!
//! Who may give orders is decided in `access`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use crate::demo::access::{Access, text};
use crate::demo::control::exchanges::RequestSender;
use crate::demo::control::state::DemoState;
use crate::hop::fault::{FaultConfig, FaultsForm};
use crate::hop::latency::Latency;
use crate::hop::request_faults::X_FAULT;
use crate::trace_context::is_carried;

/// The largest order.
const MAX_ORDER: usize = 32 << 10;
/// The most headers of one request, and the longest value.
const MAX_HEADERS: usize = 32;
const MAX_VALUE: usize = 4 << 10;
/// The longest latency.
const MAX_LATENCY: Duration = Duration::from_secs(60);

/// What can be ordered. Hops are numbered from 1, as in their names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    /// Send one request to the first hop, with these headers.
    Send { headers: Vec<(String, String)> },
    /// Change the faults and the breaks of a hop, for a time or until they are changed again.
    Faults {
        hop: usize,
        #[serde(flatten)]
        form: FaultsForm,
    },
    /// Change the latency of a hop, as `--latency` has it.
    Latency { hop: usize, latency: String },
    /// Have a hop lose these headers, and no others.
    Drop { hop: usize, headers: Vec<String> },
    /// Have a hop say that it is not ready, or that it is.
    Ready { hop: usize, ready: bool },
    /// Stop a hop, or start it again.
    Run { hop: usize, running: bool },
}

fn json(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body.into()).into_response()
}

/// Answers `/demo/control`.
pub(crate) async fn control(state: Arc<DemoState>, access: Access, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        let allow = [(header::ALLOW, HeaderValue::from_static("POST"))];
        return (allow, text(StatusCode::METHOD_NOT_ALLOWED, "orders are sent by POST")).into_response();
    }
    if let Err((status, why)) = access.may_order(&head) {
        return text(status, why);
    }
    let read = Limited::new(body, MAX_ORDER).collect();
    let body = match tokio::time::timeout(Duration::from_secs(10), read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the order is too large or did not arrive whole"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the order did not arrive in time"),
    };
    match serde_json::from_slice::<Order>(&body) {
        Ok(order) => match execute(&state, order).await {
            Ok(response) => response,
            Err(why) => text(StatusCode::BAD_REQUEST, crate::text::plain(&why)),
        },
        Err(error) => text(StatusCode::BAD_REQUEST, format!("not an order: {}", crate::text::plain(&error.to_string()))),
    }
}

/// Reads an order as far as that needs no demo.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn read_order(body: &[u8]) -> Result<(), String> {
    match serde_json::from_slice(body).map_err(|error| error.to_string())? {
        Order::Send { headers } => header_map(headers).map(drop),
        Order::Faults { form, .. } => check_headers(&form.read(&FaultConfig::default())?.0),
        Order::Latency { latency, .. } => read_latency(&latency).map(drop),
        Order::Drop { headers, .. } => lost_headers(&headers).map(drop),
        Order::Ready { .. } | Order::Run { .. } => Ok(()),
    }
}

async fn execute(state: &DemoState, order: Order) -> Result<Response, String> {
    let handle =
        |hop: usize| hop.checked_sub(1).and_then(|at| state.hops.get(at)).ok_or_else(|| format!("there is no service{hop}"));
    match order {
        Order::Send { headers } => Ok(json(state.send(RequestSender::Page, header_map(headers)?).await.json)),
        Order::Faults { hop, form } => {
            let faults = handle(hop)?.faults();
            check_headers(&form.read(&FaultConfig::default())?.0)?;
            let altered = state.altered.clone();
            faults.order(&form, move || altered.send_replace(()))?;
            state.altered.send_replace(());
            Ok(json("{}"))
        }
        Order::Latency { hop, latency } => {
            handle(hop)?.faults().set_latency(read_latency(&latency)?);
            state.altered.send_replace(());
            Ok(json("{}"))
        }
        Order::Drop { hop, headers } => {
            handle(hop)?.dropped().set(lost_headers(&headers)?);
            state.altered.send_replace(());
            Ok(json("{}"))
        }
        Order::Ready { hop, ready } => {
            handle(hop)?.phase().order(ready);
            state.altered.send_replace(());
            state.prompt.notify_one();
            Ok(json("{}"))
        }
        Order::Run { hop, running } => {
            handle(hop)?.running.send_replace(running);
            state.altered.send_replace(());
            Ok(json("{}"))
        }
    }
}

/// A latency of at most a minute.
fn read_latency(text: &str) -> Result<Latency, String> {
    let latency: Latency = text.parse()?;
    if latency.longest() <= MAX_LATENCY { Ok(latency) } else { Err(format!("a latency of '{text}' is longer than a minute")) }
}

/// Only what the chain carries can be lost.
fn lost_headers(names: &[String]) -> Result<Vec<HeaderName>, String> {
    let known =
        |name: &String| name.parse().ok().filter(|name: &HeaderName| is_carried(name.as_str())).ok_or_else(|| not_carried(name));
    names.iter().map(known).collect()
}

/// A break can only name a header that the chain carries.
fn check_headers(config: &FaultConfig) -> Result<(), String> {
    let mut named = config.breaks.iter().filter_map(|broken| broken.kind.header());
    named.find(|name| !is_carried(name.as_str())).map_or(Ok(()), |name| Err(not_carried(name.as_str())))
}

fn not_carried(name: &str) -> String {
    format!("the header '{name}' is not one that the chain carries")
}

/// Only headers that the chain carries: the page sends nothing else, and nobody else is to reach the hop with more.
fn header_map(headers: Vec<(String, String)>) -> Result<HeaderMap, String> {
    if headers.len() > MAX_HEADERS {
        return Err(format!("a request takes up to {MAX_HEADERS} headers from here"));
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let known = name.parse::<HeaderName>().ok().filter(|name| is_carried(name.as_str()) || name == X_FAULT);
        let known = known.ok_or_else(|| not_carried(&name))?;
        if value.len() > MAX_VALUE {
            return Err(format!("the value of {name} is longer than {MAX_VALUE} bytes"));
        }
        let value =
            HeaderValue::from_str(&value).map_err(|_| format!("the value of {name} has characters that a header cannot have"))?;
        map.append(known, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_carried_headers_are_sent() {
        let map = |name: &str, value: &str| header_map(vec![(name.into(), value.into())]);
        assert!(map("traceparent", "x").is_ok() && map("X-Lane", "gray").is_ok());
        assert!(map("cookie", "x").is_err() && map("host", "x").is_err() && map("x-lane", "a\r\nb: c").is_err());
        assert!(map("baggage", &"x".repeat(5000)).is_err());
    }
}
