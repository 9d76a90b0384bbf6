//! The demo's page: its files from the binary, its stream of events, its control, beside the store's API on one port.
//!
//! The files are served under a policy that lets the page load nothing but them and talk to nobody but this server, and that
//! makes the browser refuse every attempt to turn a text into HTML or script.

pub(crate) mod events;
mod view;

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{Path, Query, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use http::{HeaderName, HeaderValue, header};
use serde::Deserialize;
use tokio::sync::watch;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::demo::access::{Access, ORDERS_PATH, peer};
use crate::demo::control::orders;
use crate::demo::control::state::DemoState;
use crate::demo::page::events::Streams;
use crate::demo::page::view::TraceWithVerdict;
use crate::traces::ids::{parse_span_id, parse_trace_id};
use crate::traces::{SpanId, Verdict};

/// What the browser lets the page do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page: its path, its type, its text.
type File = (&'static str, &'static str, &'static str);

macro_rules! script {
    ($name:literal) => {
        (concat!("/page/", $name), SCRIPT, include_str!($name))
    };
}

/// Every file of the page.
const FILES: [File; 14] = [
    ("/", HTML, include_str!("index.html")),
    ("/page/style.css", CSS, include_str!("style.css")),
    ("/page/icon.svg", SVG, include_str!("icon.svg")),
    script!("main.js"),
    script!("dom.js"),
    script!("chain.js"),
    script!("adjust.js"),
    script!("send.js"),
    script!("list.js"),
    script!("trace.js"),
    script!("waterfall.js"),
    script!("headers.js"),
    script!("answer.js"),
    script!("compare.js"),
];

/// The page itself. `is_alone`: of `httpserver store`, which has no chain to draw and to send to.
fn page(is_alone: bool) -> Cow<'static, str> {
    const OF_STORE: [(&str, &str); 3] = [
        ("<title>httpserver demo: one request, one trace</title>", "<title>httpserver store: traces</title>"),
        ("<span>demo</span>", "<span>store</span>"),
        ("<body>", "<body data-kind=\"store\">"),
    ];
    let page = include_str!("index.html");
    if !is_alone {
        return Cow::Borrowed(page);
    }
    OF_STORE.iter().fold(page.to_owned(), |page, (of_demo, of_store)| page.replacen(of_demo, of_store, 1)).into()
}

/// The page's part of the store's port. `stopped` ends the streams of events.
pub(crate) fn router(state: Arc<DemoState>, access: Access, stopped: watch::Receiver<bool>) -> Router {
    let mut router = Router::new();
    for (path, kind, text) in FILES {
        let text = if path == "/" { page(state.hops.is_empty()) } else { Cow::Borrowed(text) };
        let answer = move || async move { ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text) };
        router = router.route(path, get(answer));
    }
    let streams = Streams::default();
    let for_orders = access.clone();
    let for_events = state.clone();
    let for_exchange = state.clone();
    let for_verdict = state.clone();
    router = router
        .route(
            "/demo/events",
            get(move |request: Request| async move {
                let (head, _) = request.into_parts();
                events::events(for_events, access.watching_only(&head), &streams, peer(&head), stopped).await
            }),
        )
        .route(
            "/demo/exchange/{trace_id}",
            get(move |Path(id): Path<String>, Query(part): Query<TracePart>| async move { exchange(&for_exchange, &id, &part) }),
        )
        .route(
            "/demo/verdict/{trace_id}",
            get(move |Path(id): Path<String>, Query(part): Query<TracePart>| async move { verdict(&for_verdict, &id, &part) }),
        );
    // Without a chain there is nothing to order.
    if !state.hops.is_empty() {
        router = router.route(ORDERS_PATH, any(move |request: Request| orders::control(state, for_orders, request)));
    }
    let set =
        |name: HeaderName, value: &'static str| SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value));
    router
        .layer(set(header::CONTENT_SECURITY_POLICY, POLICY))
        .layer(set(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(set(header::REFERRER_POLICY, "no-referrer"))
        .layer(set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin"))
        // Another version of the demo may be at the same address a minute later.
        .layer(set(header::CACHE_CONTROL, "no-cache"))
}

/// Which part of a trace is asked for.
#[derive(Deserialize, Default)]
#[serde(default)]
struct TracePart {
    /// How many services took part, 0 for any number; by default what the demo knows.
    hops: Option<usize>,
    /// The span of the first service: one of several requests that used the trace's id.
    request: Option<String>,
}

impl TracePart {
    fn first(&self) -> Option<SpanId> {
        self.request.as_deref().and_then(|id| parse_span_id(id).ok())
    }
}

/// The request that a trace is of, with its headers and its answer.
fn exchange(state: &DemoState, id: &str, part: &TracePart) -> Response {
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    match parse_trace_id(id).ok().and_then(|id| state.exchange(id, part.first())) {
        Some(body) => (json, body).into_response(),
        // Not an error: the page asks for every trace, and a browser would write a line in red for each 404.
        None => (json, "null").into_response(),
    }
}

/// A trace with its verdict, by the rules that `check` and the terminal use. `null` for one that the store does not have.
fn verdict(state: &DemoState, id: &str, part: &TracePart) -> Response {
    let Some(trace) = parse_trace_id(id).ok().and_then(|id| state.store.tree(id)) else {
        return Json(()).into_response();
    };
    let request = part.first().and_then(|first| trace.of_request(first));
    let shown = request.as_ref().unwrap_or(&trace);
    let mut expected = state.expected(shown, part.first());
    if let Some(hops) = part.hops {
        expected.services = (hops > 0).then_some(hops..=usize::MAX);
    }
    Json(TraceWithVerdict::new(&trace, shown, Verdict::of(std::slice::from_ref(shown), &expected))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_page_is_under_150_kilobytes() {
        let bytes: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!(bytes < 150_000, "{bytes} bytes");
    }

    #[test]
    fn no_file_has_a_script_or_a_style_inside_or_an_address_outside() {
        for (path, kind, text) in FILES {
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http-equiv"] {
                assert!(!text.contains(forbidden), "{path}: {forbidden}");
            }
            if kind == HTML {
                assert!(!text.contains("<style") && !text.contains(" style=") && !text.contains(" onclick="), "{path}");
                assert_eq!(text.matches("<script").count(), text.matches("<script type=\"module\" src=").count(), "{path}");
            }
            // A namespace has the form of a URL; nothing is loaded from it.
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("https://") && !outside.contains("url("), "{path}");
        }
    }
}
