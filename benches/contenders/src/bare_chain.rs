//! The floor for the chain: axum and hyper-util's client, headers forwarded, the next hop's answer nested, no telemetry.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::CARRIED;

struct Hop {
    client: Client<HttpConnector, Empty<Bytes>>,
    upstream: Option<Uri>,
}

#[tokio::main]
pub async fn run(addr: &str, upstream: Option<&str>) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let hop = Hop {
        client: Client::builder(TokioExecutor::new()).build(connector),
        upstream: upstream.map(|uri| uri.parse().expect("a URL")),
    };
    let hop: &'static Hop = Box::leak(Box::new(hop));
    let app = Router::new()
        .route("/hello", get(async || "Hello from service1 v1 (localhost)\n"))
        .route("/service{n}", get(service))
        .with_state(hop);
    let listener = tokio::net::TcpListener::bind(addr).await.expect("the address is free");
    axum::serve(axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))), app)
        .await
        .expect("axum serves");
}

async fn service(State(hop): State<&'static Hop>, Path(n): Path<u16>, headers: HeaderMap) -> Response {
    let (status, nested) = match &hop.upstream {
        Some(upstream) => call(hop, upstream, &headers).await,
        None => (StatusCode::OK, Bytes::from_static(b"null")),
    };
    let mut body = Vec::with_capacity(64 + nested.len());
    body.extend_from_slice(format!("{{\"service\":\"service{n}\",\"reply\":").as_bytes());
    body.extend_from_slice(&nested);
    body.push(b'}');
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn call(hop: &Hop, upstream: &Uri, headers: &HeaderMap) -> (StatusCode, Bytes) {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = upstream.clone();
    for name in CARRIED.map(HeaderName::from_static) {
        for value in headers.get_all(&name) {
            request.headers_mut().append(name.clone(), value.clone());
        }
    }
    let Ok(answer) = hop.client.request(request).await else {
        return (StatusCode::BAD_GATEWAY, Bytes::from_static(b"null"));
    };
    match answer.into_body().collect().await {
        Ok(body) => (StatusCode::OK, body.to_bytes()),
        Err(_) => (StatusCode::BAD_GATEWAY, Bytes::from_static(b"null")),
    }
}
