//! What a request passes before its handler runs: one layer around each handler, which does what the kind of endpoint needs.
//!
//! The layer is a service of its own around the handler (`Handler::layer`). `Router::layer` with `axum::middleware::from_fn`
//! would put router, layer and handler in boxes that every request clones.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::{MatchedPath, Request};
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_TYPE, EXPECT};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError};
use percent_encoding::percent_decode_str;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tower::{Layer, Service};
use tower_http::timeout::TimeoutError;

use crate::hop::chain::Wish;
use crate::hop::effects;
use crate::hop::error::{Error, ShedReason};
use crate::hop::exchange::Exchange;
use crate::hop::fault::FaultDecision;
use crate::hop::limits::{CALL_OVERHEAD, MAX_BODY};
use crate::hop::response;
use crate::hop::state::{Node, StreamPlace};
use crate::hop::streams::{Pace, until_closing};
use crate::hop::websocket;
use crate::system::held::{Exhausted, Held, HeldBudgets, HeldKind};
use crate::upstream::ForwardedBody;
use crate::values::service_number;

/// What an endpoint is for, and with it what its requests pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndpointKind {
    /// Work that answers a text: limited, then delayed or aborted.
    Text,
    /// Work that answers a reply: limited, then delayed. An abort is the handler's to answer, with a reply.
    Chain,
    /// Information, and paths that are not there: limited.
    Information,
    /// Probes: never limited, never traced, and answered without a certificate, which a kubelet does not have.
    Probe,
    /// Scrapes: never limited and never traced.
    Scrape,
    /// A call of the chain over gRPC: as `Chain`, within the caller's deadline.
    Call,
    /// Server-sent events: as `Text` at their begin, and they keep a place among the streams until they end.
    Events,
    /// A WebSocket: as `Events`.
    Socket,
    /// A stream over gRPC.
    StreamCall,
    /// `grpc.health.v1`: as `Probe`.
    Health,
    /// Server reflection over gRPC, a stream in both directions: it keeps a place among the streams until it ends.
    Reflection,
}

impl<S> Layer<S> for EndpointKind {
    type Service = EndpointService<S>;

    fn layer(&self, handler: S) -> EndpointService<S> {
        EndpointService { kind: *self, is_refusal: false, handler }
    }
}

/// The layer of a handler that answers 404 or 405 to every request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusalLayer(pub(crate) EndpointKind);

impl<S> Layer<S> for RefusalLayer {
    type Service = EndpointService<S>;

    fn layer(&self, handler: S) -> EndpointService<S> {
        EndpointService { is_refusal: true, ..self.0.layer(handler) }
    }
}

/// A handler with its layer.
#[derive(Debug, Clone)]
pub(crate) struct EndpointService<S> {
    kind: EndpointKind,
    is_refusal: bool,
    handler: S,
}

impl<S> Service<Request> for EndpointService<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.handler.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let endpoint = self.clone();
        if matches!(self.kind, EndpointKind::Call | EndpointKind::StreamCall) {
            let deadline = request.extensions().get::<Arc<Exchange>>().and_then(|exchange| exchange.deadline);
            return Box::pin(async move {
                let Some(deadline) = deadline else { return endpoint.answer(request).await };
                let answered = tokio::time::timeout_at(deadline, endpoint.answer(request)).await;
                answered.unwrap_or_else(|_| Ok(Error::DeadlineExceeded.into_response()))
            });
        }
        Box::pin(endpoint.answer(request))
    }
}

impl<S> EndpointService<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    async fn answer(self, mut request: Request) -> Result<Response, Infallible> {
        let Self { kind, is_refusal, mut handler } = self;
        let Some(exchange) = request.extensions().get::<Arc<Exchange>>().cloned() else {
            return Ok(Error::Internal.into_response());
        };
        exchange.set_route(request.extensions().get::<MatchedPath>().cloned());
        let _permit = match kind.admit(is_refusal, &exchange, &mut request).await {
            Ok(permit) => permit,
            Err(error) => return Ok(error.into_response()),
        };
        let response = match aborted(&exchange).filter(|_| !kind.answers_abort()) {
            Some(response) => response,
            None if kind == EndpointKind::Reflection => {
                until_closing(&exchange, request, |request| handler.call(request)).await?
            }
            None => handler.call(request).await?,
        };
        let response = kind.hold(&exchange, response);
        Ok(match exchange.struck() {
            Some(struck) => effects::to_answer(&exchange, struck, response),
            None => response,
        })
    }
}

impl EndpointKind {
    /// The handler answers an abort, with a reply.
    fn answers_abort(self) -> bool {
        matches!(self, Self::Chain | Self::Call)
    }

    fn is_stream(self) -> bool {
        matches!(self, Self::Events | Self::Socket | Self::StreamCall | Self::Reflection)
    }

    /// Where a request may have its place, in this order. Only one that calls nobody may have a spare one: next hops that hang fill
    /// the others, and so do those whose requests wait for them.
    fn places(self, node: &Node) -> [&Semaphore; 2] {
        match self {
            _ if self.is_stream() => [&node.streams; 2],
            Self::Chain | Self::Call => [&node.permits; 2],
            _ => [&node.permits, &node.spare_permits],
        }
    }

    /// Counts the answer's bytes until it was sent. One that is too much is replaced.
    fn hold(self, exchange: &Exchange, response: Response) -> Response {
        let bytes = response.body().size_hint().lower() as usize;
        if bytes <= HeldBudgets::FREE {
            return response;
        }
        let mut held = exchange.node.held.empty(if self == Self::Scrape { HeldKind::Scrape } else { HeldKind::Answer });
        match held.add(bytes) {
            Ok(()) => {
                exchange.hold_answer(held);
                response
            }
            Err(Exhausted(kind)) => exchange.shed(ShedReason::Held(kind)).into_response(),
        }
    }

    /// Reads the body, then sheds what is too much at once, so that a slow body takes no place, then waits as long as latency and
    /// faults say. The permit is the request's place among those in flight.
    ///
    /// # Errors
    ///
    /// No certificate where one is required, no place, or a body that is too large or too slow.
    async fn admit<'a>(
        self,
        is_refusal: bool,
        exchange: &'a Exchange,
        request: &mut Request,
    ) -> Result<Option<SemaphorePermit<'a>>, Error> {
        if !matches!(self, Self::Probe | Self::Health) {
            exchange.require_certificate()?;
        }
        if exchange.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded);
        }
        let is_grpc = matches!(self, Self::Call | Self::StreamCall | Self::Health | Self::Reflection);
        let is_limited = !matches!(self, Self::Probe | Self::Scrape | Self::Health);
        if !is_limited {
            exchange.disable_tracing();
        }
        if is_grpc && !is_refusal && !exchange.is_grpc {
            return Err(Error::NotGrpc);
        }
        let node = &exchange.node;
        let places = self.places(node);
        let is_full = || is_limited && places.iter().all(|places| places.available_permits() == 0);
        let shed = || exchange.shed(if self.is_stream() { ShedReason::Streams } else { ShedReason::Concurrency });
        // A call is refused for its head alone: the caller's side of its stream may stay open.
        if exchange.is_grpc && (is_refusal || !is_grpc) {
            return Err(Error::NotFound);
        }
        if exchange.is_grpc && is_full() {
            return Err(shed());
        }
        // A refusal is no work that could be slow or fail.
        let is_work = !is_refusal
            && (matches!(self, Self::Text | Self::Call | Self::Events | Self::Socket | Self::StreamCall)
                || self == Self::Chain && names_a_service(request.uri().path()));
        let decided = (exchange.is_grpc && is_work).then(|| decide(exchange));
        let is_aborted = decided.as_ref().and_then(|decided| decided.struck.as_ref()?.abort).is_some();
        if self != Self::Reflection && !request.body().is_end_stream() {
            // Whoever waits for `100 Continue` is not asked for a body that changes nothing (RFC 9110, 10.1.1).
            let is_unwanted =
                request.headers().contains_key(EXPECT) && (is_refusal || self.will_refuse(exchange, request) || is_full());
            if !is_unwanted {
                let is_kept = is_grpc || self == Self::Chain && node.forward_body;
                let held = is_kept.then(|| node.held.empty(HeldKind::RequestBody));
                read_body(request, exchange, held, is_aborted).await?;
            }
        }
        let permit = if self.is_stream() {
            let place = node.streams.clone().try_acquire_owned().map_err(|_| shed())?;
            request.extensions_mut().insert::<StreamPlace>(Arc::new(place));
            None
        } else if is_limited {
            let place = places[0].try_acquire().or_else(|_| places[1].try_acquire());
            Some(place.map_err(|_| shed())?)
        } else {
            None
        };
        if is_work {
            wait_and_strike(exchange, decided.unwrap_or_else(|| decide(exchange))).await?;
        }
        Ok(permit)
    }

    /// Whether the handler will refuse this request for what is in its head, whatever its body is.
    fn will_refuse(self, exchange: &Exchange, request: &Request) -> bool {
        let (path, query, node) = (exchange.path(), request.uri().query(), &exchange.node);
        if percent_decode_str(path).decode_utf8().is_err() {
            return true;
        }
        let calls_nobody = || exchange.hops >= node.max_hops || exchange.call_budget == 0 && node.upstreams.always_calls();
        match self {
            Self::Chain => {
                // A name like `service1x` is greeted, whatever the query is.
                let n = path.strip_prefix("/hello").unwrap_or(path).strip_prefix("/service");
                let is_chain = n.is_some_and(is_service_number);
                !names_a_service(path) || is_chain && (Wish::read(query, request.headers()).is_err() || calls_nobody())
            }
            Self::Events => Pace::read(query.unwrap_or_default()).is_err(),
            Self::Socket => websocket::handshake(request).is_err(),
            _ => false,
        }
    }
}

/// Whether the path of a chain endpoint is not one of `/service…` that has no number: nothing is there to be slow or to fail.
fn names_a_service(path: &str) -> bool {
    path.strip_prefix("/service").is_none_or(is_service_number)
}

fn is_service_number(n: &str) -> bool {
    percent_decode_str(n).decode_utf8().is_ok_and(|n| service_number(&n).is_some())
}

/// What latency and faults do to a request.
fn decide(exchange: &Exchange) -> FaultDecision {
    exchange.watch();
    let node = &*exchange.node;
    let asked = node.request_faults.read(&exchange.carried, &node.identity, &node.propagator);
    node.faults.decide(exchange.draws, exchange.context(), asked)
}

/// Latency and faults come before the work, as they would in a slow or broken service.
///
/// # Errors
///
/// A fault asks for more memory than the hop may hold.
async fn wait_and_strike(exchange: &Exchange, FaultDecision { wait, struck }: FaultDecision) -> Result<(), Error> {
    // Boxed, because the size of a timer would be every request's.
    if !wait.is_zero() {
        Box::pin(tokio::time::sleep(wait)).await;
    }
    match struck {
        Some(struck) => Box::pin(effects::before_work(exchange, exchange.set_struck(struck))).await,
        None => Ok(()),
    }
}

/// The text of an abort, if the faults decided on one.
pub(crate) fn aborted(exchange: &Exchange) -> Option<Response> {
    let status = exchange.struck()?.abort?;
    let mut response = response::text(format!("injected: abort {}\n", status.as_u16()));
    *response.status_mut() = status;
    Some(response)
}

/// Reads the whole body, so that an answer never overtakes it, and counts its bytes. They are stored where `held` counts them,
/// else discarded. Of a call that will be aborted the message is enough.
///
/// # Errors
///
/// The body is too large, too slow or broken off, its budget is used up, or a call has more than one message.
async fn read_body(request: &mut Request, exchange: &Exchange, mut held: Option<Held>, is_aborted: bool) -> Result<(), Error> {
    let mut body = std::mem::take(request.body_mut());
    let (mut count, mut bytes) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| body_error(&error))?.into_data() else { continue };
        count += data.len() as u64;
        if let Some(held) = &mut held {
            held.add(data.len()).map_err(|Exhausted(kind)| exchange.shed(ShedReason::Held(kind)))?;
            bytes.extend_from_slice(&data);
        }
        match message_length(&bytes).filter(|_| exchange.is_grpc) {
            Some(length) if length > MAX_BODY + CALL_OVERHEAD => return Err(Error::ContentTooLarge),
            Some(length) if bytes.len() > length => return Err(Error::MessageCount),
            Some(length) if is_aborted && bytes.len() == length => break,
            _ => {}
        }
    }
    let held = held.map(Arc::new);
    if exchange.is_grpc {
        // The message is decoded where it is used.
        *request.body_mut() = bytes.into();
        if let Some(held) = held {
            request.extensions_mut().insert(held);
        }
        return Ok(());
    }
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    exchange.set_body(count, held.map(|held| ForwardedBody { bytes: bytes.into(), content_type, _held: held }));
    Ok(())
}

/// How long the first message of gRPC is with its prefix, as soon as that is there.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let [_, length @ ..] = bytes.first_chunk::<5>()?;
    Some(5 + u32::from_be_bytes(*length) as usize)
}

/// Which limit ended the body. Without one it was broken off or malformed.
fn body_error(error: &(dyn StdError + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return Error::ContentTooLarge;
        }
        if error.is::<TimeoutError>() {
            return Error::RequestTimeout;
        }
        cause = error.source();
    }
    Error::BadRequest
}
