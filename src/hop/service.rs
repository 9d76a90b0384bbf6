//! One hop as a tower service: the layers around the router, outermost first.
//!
//! 1. The [`Exchange`] measures around everything else: what is shed, times out or panics is counted and logged too.
//! 2. The head is checked: its size, and whether another server could read it differently.
//! 3. `tower-http` limits the body in size and time. Whoever reads it meets the limit as an error of the body.
//! 4. `tower-http` turns a panic into an answer.
//! 5. The router of `routes` finds the endpoint, whose own layers are in `layers`.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::response::{IntoResponse as _, Response as AxumResponse};
use bytes::Bytes;
use futures_util::future::{self, Either as EitherFuture, FutureExt as _, TryFutureExt as _};
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Either;
use tower::BoxError;
use tower::{Layer as _, Service, ServiceBuilder, service_fn};
use tower_http::body::UnsyncBoxBody;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::{RequestBodyLimitLayer, ResponseBody};
use tower_http::timeout::RequestBodyDeadlineLayer;

use crate::hop::error::Error;
use crate::hop::exchange::{Exchange, ExchangeBody};
use crate::hop::limits::{CALL_OVERHEAD, RequestLimits};
use crate::hop::state::Node;

/// The body of what the router answers, as the layers around it pass it on.
pub(crate) type RouterBody = Either<UnsyncBoxBody<Bytes, BoxError>, ResponseBody<UnsyncBoxBody<Bytes, BoxError>>>;

/// The service that answers every request of a hop: its router, and the layers around it.
pub(crate) fn service<B>(
    router: Router,
    node: Arc<Node>,
    limits: RequestLimits,
) -> impl Service<Request<B>, Response = Response<ExchangeBody<RouterBody>>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut routed = CatchPanicLayer::custom(panicked).layer(router);
    let limited = |bytes| {
        ServiceBuilder::new()
            .layer(RequestBodyDeadlineLayer::new(limits.body_timeout))
            .layer(RequestBodyLimitLayer::new(bytes))
            .service(routed.clone())
    };
    let (mut limited, mut limited_call) = (limited(limits.body_bytes), limited(limits.body_bytes + CALL_OVERHEAD));
    service_fn(move |mut request: Request<B>| {
        let exchange = Exchange::begin(&node, &mut request);
        // Futures that wrap each other are polled in place: an `async` block would move the call at each level. The rare ways
        // are boxed, because their size would be every request's.
        let answering = if let Err(error) = exchange.check_head(&limits) {
            EitherFuture::Right(future::ok(error.response().map(Either::Left)).boxed())
        } else {
            request.extensions_mut().insert(exchange.clone());
            if request.body().is_end_stream() {
                // Most requests have no body: they need neither its limits nor a box for it.
                let routed = routed.call(request.map(|_| Body::empty()));
                EitherFuture::Left(routed.map_ok(|response| response.map(|body| Either::Right(Either::Left(body)))))
            } else {
                let exchange = exchange.clone();
                let may_wait = request.headers().contains_key(EXPECT);
                let limited = if exchange.is_grpc { limited_call.call(request) } else { limited.call(request) };
                let limited = limited.map_ok(move |response| {
                    // The body limit answers in words of its own what it refuses before the router sees it.
                    if !exchange.is_routed() {
                        return Error::ContentTooLarge.response().map(Either::Left);
                    }
                    let mut response = response.map(|body| Either::Right(Either::Right(body)));
                    // It was perhaps not asked for the body, and may send it all the same.
                    if may_wait && response.status() >= StatusCode::BAD_REQUEST {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    response
                });
                EitherFuture::Right(limited.boxed())
            }
        };
        answering.map_ok(move |response| exchange.answer(response))
    })
}

fn panicked(panic: Box<dyn Any + Send>) -> AxumResponse {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("not a text"), "an endpoint panicked");
    Error::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use axum::handler::Handler as _;
    use axum::routing::get;
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::{BodyExt as _, Empty, StreamBody};
    use tower::ServiceExt as _;

    use crate::hop::app::{App, Output};
    use crate::hop::config::HopConfig;
    use crate::hop::layers::EndpointKind;
    use crate::hop::routes;
    use crate::server::answer::TrackedBody;
    use crate::server::{ClientCertificate, ConnectionInfo};
    use crate::system::held::HeldKind;
    use bytes::Buf as _;

    use super::*;

    async fn node() -> Arc<Node> {
        let config = HopConfig::new("hop", "127.0.0.1:0".parse().unwrap());
        App::bind(config, &Output::new()).await.unwrap().node()
    }

    fn get_request<B>(path: &str, body: B) -> Request<B> {
        let request = Request::get(path).header("host", "hop");
        let connection = ConnectionInfo {
            peer: (Ipv4Addr::LOCALHOST, 1).into(),
            is_tls: false,
            certificate: ClientCertificate::default(),
            connection: None,
        };
        request.extension(connection).body(body).unwrap()
    }

    /// How many requests were counted with this route and status.
    fn counted(node: &Node, route: &str, status: u16) -> bool {
        let family = "http_server_request_duration_seconds_count";
        let labels = format!("http_request_method=\"GET\",http_response_status_code=\"{status}\",http_route=\"{route}\"");
        let text = node.metrics.render(false);
        let is_whole = |line: &str| !line.contains("client_closed_request") && line.ends_with(" 1");
        text.lines().any(|line| line.starts_with(family) && line.contains(&labels) && is_whole(line))
    }

    /// Counted with the status that was sent, as one that was cut.
    fn cut(node: &Node, route: &str) -> bool {
        let text = node.metrics.render(false);
        let is_it = |line: &str| line.contains("_count{error_type=\"client_closed_request\"") && line.contains(route);
        text.lines().any(|line| is_it(line) && line.contains("status_code=\"200\""))
    }

    async fn problem<B>(response: Response<ExchangeBody<B>>) -> u64
    where
        ExchangeBody<B>: HttpBody<Data = Bytes, Error: std::fmt::Debug>,
    {
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert!(response.headers().contains_key("x-request-id"));
        let status = u64::from(response.status().as_u16());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["status"], status);
        status
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_that_is_counted() {
        let node = node().await;
        async fn text() {
            std::panic::panic_any("a text".to_owned())
        }
        async fn literal() {
            panic!("a literal")
        }
        let router = Router::new()
            .route("/text", get(text.layer(EndpointKind::Information)))
            .route("/literal", get(literal.layer(EndpointKind::Information)));
        let service = service(router, node.clone(), RequestLimits::default());
        for path in ["/text", "/literal"] {
            let response = service.clone().oneshot(get_request(path, Empty::new())).await.unwrap();
            assert_eq!(problem(response).await, 500);
            assert!(counted(&node, path, 500), "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_its_time_and_its_size() {
        let limits = RequestLimits { body_bytes: 10, body_timeout: Duration::from_millis(100), ..RequestLimits::default() };
        let node = node().await;
        let hop = || service(routes::router(node.clone()), node.clone(), limits);
        let frames = |bytes: &'static str, then_more: bool| {
            let first = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(bytes)))]);
            let rest = stream::once(async move {
                if then_more {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(Frame::data(Bytes::new()))
            });
            StreamBody::new(Box::pin(futures_util::StreamExt::chain(first, rest)))
        };
        for (path, bytes, then_more, status) in
            [("/hello", "0123456789", true, 408), ("/hello", "0123456789a", false, 413), ("/readyz", "", true, 408)]
        {
            let request = get_request(path, frames(bytes, then_more));
            let begun = tokio::time::Instant::now();
            let response = hop().oneshot(request).await.unwrap();
            assert_eq!(problem(response).await, status, "{path} {bytes}");
            assert_eq!(begun.elapsed() >= limits.body_timeout, status == 408);
            assert!(counted(&node, path, status as u16));
        }
        let response = hop().oneshot(get_request("/hello", frames("0123456789", false))).await.unwrap();
        assert_eq!(response.status(), 200);
    }

    #[tokio::test]
    async fn an_answer_that_was_not_written_whole_is_no_200() {
        let node = node().await;
        let hop = || service(routes::router(node.clone()), node.clone(), RequestLimits::default());
        let hello = || hop().oneshot(get_request("/hello", Empty::<Bytes>::new()));
        // As the connection does it.
        let body = async || TrackedBody::new(hello().await.unwrap().into_body(), None);
        drop(body().await);
        assert!(cut(&node, "/hello"));
        let large = || {
            let request = get_request("/headers", Empty::<Bytes>::new());
            let (mut head, body) = request.into_parts();
            head.headers.insert("x-large", "x".repeat(20 << 10).parse().unwrap());
            hop().oneshot(Request::from_parts(head, body))
        };
        let chunk = async || {
            let body = TrackedBody::new(large().await.unwrap().into_body(), None);
            std::pin::pin!(body).frame().await.unwrap().unwrap().into_data().ok().unwrap()
        };
        let mut half = chunk().await;
        half.advance(20 << 10);
        drop(half);
        assert!(cut(&node, "/headers"));
        let mut whole = chunk().await;
        assert!(!counted(&node, "/headers", 200), "handed over is not written");
        whole.advance(whole.remaining());
        drop(whole);
        assert!(counted(&node, "/headers", 200));
        // A small one is counted when it is handed over: whoever has read it finds it counted.
        let small = body().await.frame().await.unwrap().unwrap().into_data().ok().unwrap();
        assert!(counted(&node, "/hello", 200));
        drop(small);
        // The connection does not poll a body that is empty.
        let mut head = get_request("/hello", Empty::<Bytes>::new());
        *head.method_mut() = http::Method::HEAD;
        let response = hop().oneshot(head).await.unwrap();
        assert_ne!(response.headers()["content-length"], "0");
        drop(TrackedBody::new(response.into_body(), None));
        let metrics = node.metrics.render(false);
        assert!(
            metrics.contains("_count{error_type=\"\",http_request_method=\"HEAD\",http_response_status_code=\"200\""),
            "{metrics}"
        );
    }

    #[tokio::test]
    async fn a_large_answer_counts_until_it_is_taken_and_beyond_the_budget_it_is_503() {
        let mut config = HopConfig::new("hop", "127.0.0.1:0".parse().unwrap());
        config.held_bytes = 100_000;
        let node = App::bind(config, &Output::new()).await.unwrap().node();
        let get = || {
            let mut request = get_request("/headers", Empty::<Bytes>::new());
            request.headers_mut().insert("x-large", "x".repeat(30_000).parse().unwrap());
            service(routes::router(node.clone()), node.clone(), RequestLimits::default()).oneshot(request)
        };
        let held = || node.held.of(HeldKind::Answer);
        let (one, two) = (get().await.unwrap(), get().await.unwrap());
        assert_eq!((one.status(), two.status()), (StatusCode::OK, StatusCode::OK));
        assert!((40_000..50_000).contains(&held()), "{}", held());
        let shed = get().await.unwrap();
        assert_eq!(shed.headers()["retry-after"], "1");
        assert_eq!(problem(shed).await, 503);
        one.into_body().collect().await.unwrap();
        assert!((20_000..25_000).contains(&held()), "{}", held());
        assert_eq!(get().await.unwrap().status(), 200);
        drop(two);
        assert_eq!(held(), 0);
        let metrics = node.metrics.render(false);
        assert!(metrics.contains("httpserver_requests_shed_total{reason=\"answer\"} 1\n"), "{metrics}");
    }

    #[tokio::test]
    async fn bodies_that_are_passed_on_count_in_all() {
        let mut config = HopConfig::new("hop", "127.0.0.1:0".parse().unwrap());
        config.forward_body = true;
        config.held_bytes = 8 * 50_000;
        let node = App::bind(config, &Output::new()).await.unwrap().node();
        let post = || {
            let mut request = get_request("/service1", http_body_util::Full::new(Bytes::from(vec![b'x'; 30_000])));
            *request.method_mut() = http::Method::POST;
            service(routes::router(node.clone()), node.clone(), RequestLimits::default()).oneshot(request)
        };
        let (one, two) = (post().await.unwrap(), post().await.unwrap());
        assert_eq!((one.status(), two.status()), (StatusCode::OK, StatusCode::OK));
        assert!((40_000..50_000).contains(&node.held.of(HeldKind::RequestBody)), "{}", node.held.of(HeldKind::RequestBody));
        assert_eq!(problem(post().await.unwrap()).await, 503);
        drop((one, two));
        assert_eq!(node.held.of(HeldKind::RequestBody), 0);
        let metrics = node.metrics.render(false);
        assert!(metrics.contains("httpserver_requests_shed_total{reason=\"request_body\"} 1\n"), "{metrics}");
    }
}
