//! The layers around the endpoints, one for each kind: what a request passes before its handler runs. One layer does what its
//! kind needs, because each layer of a router costs a request some boxes.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::SemaphorePermit;

use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::limits::read_body;
use crate::hop::response;
use crate::hop::state::Node;

type SharedExchange = Extension<Arc<Exchange>>;

/// Work that answers a text: limited, then delayed or aborted.
pub(crate) async fn text(
    State(node): State<Arc<Node>>,
    Extension(exchange): SharedExchange,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.set_route(route);
    let (_permit, request) = admit(&node, &exchange, request).await?;
    decide_and_wait(&node, &exchange).await;
    Ok(match aborted(&exchange) {
        Some(response) => response,
        None => next.run(request).await,
    })
}

/// Work that answers a reply: limited, then delayed. An abort is the endpoint's to answer, with a reply.
pub(crate) async fn chain(
    State(node): State<Arc<Node>>,
    Extension(exchange): SharedExchange,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.set_route(route);
    let (_permit, request) = admit(&node, &exchange, request).await?;
    decide_and_wait(&node, &exchange).await;
    Ok(next.run(request).await)
}

/// Information, and paths that are not there: limited.
pub(crate) async fn information(
    State(node): State<Arc<Node>>,
    Extension(exchange): SharedExchange,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.set_route(route);
    let (_permit, request) = admit(&node, &exchange, request).await?;
    Ok(next.run(request).await)
}

/// Probes: never limited, never traced, and answered without a certificate, which a kubelet does not have.
pub(crate) async fn probe(
    Extension(exchange): SharedExchange,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.set_route(route);
    exchange.disable_tracing();
    Ok(next.run(read_body(request).await?).await)
}

/// Scrapes: never limited and never traced.
pub(crate) async fn scrape(
    Extension(exchange): SharedExchange,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.set_route(route);
    exchange.disable_tracing();
    exchange.require_certificate()?;
    Ok(next.run(read_body(request).await?).await)
}

/// Sheds what is too much at once, then reads the body. The permit is the request's place among those in flight.
///
/// # Errors
///
/// No certificate where one is required, no place, or a body that is too large or too slow.
async fn admit<'a>(node: &'a Node, exchange: &Exchange, request: Request) -> Result<(SemaphorePermit<'a>, Request), Error> {
    exchange.require_certificate()?;
    let permit = node.permits.try_acquire().map_err(|_| Error::Overloaded)?;
    Ok((permit, read_body(request).await?))
}

/// Latency and faults come before the work, as they would in a slow or broken service.
async fn decide_and_wait(node: &Node, exchange: &Exchange) {
    exchange.watch();
    let decision = node.faults.decide();
    exchange.set_fault_decision(decision);
    if !decision.wait.is_zero() {
        tokio::time::sleep(decision.wait).await;
    }
}

/// The text of an abort, if the faults decided on one.
pub(crate) fn aborted(exchange: &Exchange) -> Option<Response> {
    let status = exchange.fault_decision().abort?;
    let mut response = response::text(format!("injected: abort {}\n", status.as_u16()));
    *response.status_mut() = status;
    Some(response)
}
