//! Every endpoint: a line in [`router`] and a handler. A handler finds what is known of its request in the [`Exchange`]; it
//! never reads or writes trace headers.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on, on_service};
use axum::{Extension, Router};
use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue, VARY};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server as reflection;
use tower::{Layer as _, Service, ServiceExt as _};

use crate::hop::chain::{Wish, chain, prefers};
use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::grpc::{ChainService, HealthService};
use crate::hop::layers::EndpointKind::{
    self, Call, Chain, Events, Health, Information, Probe, Reflection, Scrape, Socket, StreamCall, Text,
};
use crate::hop::layers::{RefusalLayer, aborted};
use crate::hop::response::{text, typed};
use crate::hop::state::Node;
use crate::hop::{streams, websocket};
use crate::rpc::chain::chain_server::ChainServer;
use crate::rpc::{CALL, DESCRIPTORS, STREAM};
use crate::trace_context::redacted;
use crate::values::service_number;

const HELLO_WHO: &str = "/hello/{who}";

/// The endpoints: those that work (limited, and subject to latency and faults), those that inform (limited), and those that
/// operations ask (never limited, delayed or traced).
pub(crate) fn router(node: Arc<Node>) -> Router {
    let chain = ChainServer::new(ChainService);
    let streams = chain.clone();
    let health = HealthServer::new(HealthService::new(node.phase.clone()));
    let who = &node.identity;
    let router = Router::new()
        .route("/", endpoint(Text, constant(format!("You've hit {} {}\n", who.version, who.hostname))))
        .route("/hello", endpoint(Text, constant(format!("Hello from {} {} ({})\n", who.name, who.version, who.hostname))))
        .route(HELLO_WHO, endpoint(Text, hello_who))
        .route("/service{n}", endpoint(Chain, service))
        .route("/hello/service{n}", endpoint(Chain, hello_service))
        .route("/stream", endpoint(Events, streams::events))
        .route("/ws", endpoint(Socket, websocket::open))
        .route("/headers", endpoint(Information, all_headers))
        .route("/healthz", endpoint(Probe, healthz))
        .route("/readyz", endpoint(Probe, readyz))
        .route("/metrics", endpoint(Scrape, metrics))
        .route(CALL, method(Call, chain))
        .route(STREAM, method(StreamCall, streams))
        .route("/grpc.health.v1.Health/Check", method(Health, health.clone()))
        .route("/grpc.health.v1.Health/Watch", method(Health, health))
        .fallback(not_found.layer(RefusalLayer(Information)));
    if node.grpc_reflection { with_reflection(router) } else { router }.with_state(node)
}

/// A path that answers GET and HEAD, and one of the chain every method that has a body, behind what requests of this kind pass.
fn endpoint<H, T>(kind: EndpointKind, handler: H) -> MethodRouter<Arc<Node>>
where
    H: Handler<T, Arc<Node>>,
    T: 'static,
{
    let methods = match kind {
        Chain => MethodFilter::GET.or(MethodFilter::POST).or(MethodFilter::PUT).or(MethodFilter::PATCH).or(MethodFilter::DELETE),
        _ => MethodFilter::GET,
    };
    on(methods, handler.layer(kind)).fallback(method_not_allowed.layer(RefusalLayer(kind)))
}

/// A method of gRPC.
fn method<S>(kind: EndpointKind, service: S) -> MethodRouter<Arc<Node>>
where
    S: Service<Request, Response = http::Response<tonic::body::Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let service = service.map_response(|response: http::Response<tonic::body::Body>| response.map(Body::new));
    on_service(MethodFilter::POST, kind.layer(service)).fallback(method_not_allowed.layer(RefusalLayer(kind)))
}

/// Both versions: clients still ask for the older one.
fn with_reflection(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let builder = || {
        reflection::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (Ok(v1), Ok(v1alpha)) = (builder().build_v1(), builder().build_v1alpha()) else {
        unreachable!("the descriptors are those that were compiled");
    };
    router
        .route("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", method(Reflection, v1))
        .route("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", method(Reflection, v1alpha))
}

async fn not_found() -> Error {
    Error::NotFound
}

async fn method_not_allowed() -> Error {
    Error::MethodNotAllowed
}

/// A handler that always answers this text.
fn constant(body: String) -> impl Fn() -> Ready<Response> + Clone + Send + Sync + 'static {
    let body = Bytes::from(body);
    move || ready(text(body.clone()))
}

/// The value of the only path parameter. What does not decode to text names nothing.
type Parameter = Result<Path<String>, PathRejection>;

async fn hello_who(who: Parameter) -> Result<Response, Error> {
    let Path(who) = who.map_err(|_| Error::NotFound)?;
    Ok(greeting(&who))
}

fn greeting(who: &str) -> Response {
    text(format!("Hello, {}!\n", capitalized(who)))
}

fn capitalized(who: &str) -> String {
    let mut chars = who.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

async fn service(
    Extension(exchange): Extension<Arc<Exchange>>,
    n: Parameter,
    wish: Result<Wish, Error>,
) -> Result<Response, Error> {
    let Some(n) = n.ok().and_then(|Path(n)| service_number(&n)) else {
        exchange.correct_route("");
        return Err(Error::NotFound);
    };
    chain(&exchange, n, wish?).await
}

async fn hello_service(
    Extension(exchange): Extension<Arc<Exchange>>,
    n: Parameter,
    wish: Result<Wish, Error>,
) -> Result<Response, Error> {
    let parameter = n.map(|Path(n)| n).map_err(|_| Error::NotFound);
    if let Some(n) = parameter.as_deref().ok().and_then(service_number) {
        return chain(&exchange, n, wish?).await;
    }
    exchange.correct_route(HELLO_WHO);
    match aborted(&exchange) {
        Some(response) => Ok(response),
        None => Ok(greeting(&format!("service{}", parameter?))),
    }
}

async fn all_headers(request: Request) -> Response {
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

async fn metrics(State(node): State<Arc<Node>>, request: Request) -> Response {
    static OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let openmetrics = prefers(request.headers(), &["application/openmetrics-text"], &["text/plain", "text/*"]);
    let families = node.metrics.render(openmetrics);
    let mut response = typed(if openmetrics { OPENMETRICS } else { "text/plain; version=0.0.4; charset=utf-8" }, families);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_greeted_with_its_first_letter_upper_case() {
        assert_eq!(capitalized("golang"), "Golang");
        assert_eq!(capitalized("émile"), "Émile");
        assert_eq!(capitalized(""), "");
    }
}
