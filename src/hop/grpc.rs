//! gRPC on the hop's own port: `Chain/Call` and `Chain/Stream`, health, and reflection. The routes are in `routes`, what a call passes before it
//! comes here in `layers`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::hop::chain::answered;
use crate::hop::error::{Error, ShedReason};
use crate::hop::exchange::Exchange;
use crate::hop::limits::{MAX_BODY, MAX_RESPONSE};
use crate::hop::reply::{self, Tree, Written};
use crate::hop::state::StreamPlace;
use crate::hop::streams::{Pace, replies};
use crate::rpc::chain::chain_server::{Chain, SERVICE_NAME};
use crate::rpc::chain::{CallRequest, Reply, StreamRequest};
use crate::server::shutdown::Phase;
use crate::system::held::{Exhausted, Held, HeldKind};
use crate::telemetry::draws::DrawPlace;
use crate::upstream::ForwardedBody;
use crate::values::SizeRange;

/// The longest message of a failed call, in bytes.
const MAX_MESSAGE: usize = 400;

/// The chain.
pub(crate) struct ChainService;

#[tonic::async_trait]
impl Chain for ChainService {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<Reply>, Status> {
        let exchange = request.extensions().get::<Arc<Exchange>>().cloned().ok_or_else(|| Error::Internal.status())?;
        let held = request.extensions().get::<Arc<Held>>().cloned();
        let CallRequest { service, body, response_bytes } = request.into_inner();
        let n = u16::try_from(service.unwrap_or(1)).ok().filter(|n| *n <= 9999);
        let n = n.ok_or_else(|| Status::invalid_argument("service is the N of /service<N>, from 0 to 9999"))?;
        let wanted = usize::try_from(response_bytes).ok().filter(|bytes| *bytes <= MAX_RESPONSE);
        let wanted = wanted.ok_or_else(|| Status::invalid_argument("response_bytes is at most 1048576"))?;
        if body.len() > MAX_BODY {
            return Err(Error::ContentTooLarge.status());
        }
        let size = body.len() as u64;
        let kept = held.filter(|_| exchange.node.forward_body);
        exchange.set_body(size, kept.map(|held| ForwardedBody { bytes: body, content_type: None, _held: held }));
        // What a failed call has in its details may have to be shortened hop by hop.
        let write = |reply: reply::Reply<Written<'_>>| {
            if reply::is_success(reply.status) { Ok(reply.into_message()) } else { Err(reply.to_json()) }
        };
        let (_, written) = answered(&exchange, n, write).await.map_err(Error::status)?;
        let mut reply = written.map_err(|json| match Tree::parse(&json) {
            Ok(tree) => {
                let why = why(&tree);
                tree.into_status(&why)
            }
            Err(_) => Error::Internal.status(),
        })?;
        let drawn = |size: SizeRange<MAX_RESPONSE>| size.at(exchange.draws.unit(DrawPlace::ResponseSize, 0));
        let wanted = if wanted > 0 { wanted } else { exchange.node.response_size.map_or(0, drawn) };
        let mut length = reply.encoded_len();
        // The field's key and length take up to five bytes.
        reply.padding = vec![b'x'; wanted.saturating_sub(length + 5)].into();
        length += reply.padding.len();
        let mut held = exchange.node.held.empty(HeldKind::Answer);
        held.add(length).map_err(|Exhausted(kind)| exchange.shed(ShedReason::Held(kind)).status())?;
        exchange.hold_answer(held);
        Ok(Response::new(reply))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<Reply, Status>> + Send>>;

    async fn stream(&self, request: Request<StreamRequest>) -> Result<Response<Self::StreamStream>, Status> {
        let extensions = request.extensions();
        let known = extensions.get::<Arc<Exchange>>().cloned().zip(extensions.get::<StreamPlace>().cloned());
        let (exchange, place) = known.ok_or_else(|| Error::Internal.status())?;
        let StreamRequest { count, interval_ms } = request.into_inner();
        let interval = interval_ms.map(|interval| Duration::from_millis(interval.into()));
        let pace = Pace::new(count, interval).map_err(Error::status)?;
        Ok(Response::new(Box::pin(replies(exchange, place, pace))))
    }
}

/// Why the call failed, for `grpc-message`.
fn why(tree: &Tree) -> String {
    let failed = tree.upstreams.iter().find_map(|call| Some(format!("{}: {}", call.url, call.error.as_ref()?)));
    let injected =
        || tree.injected.as_ref().and_then(|injected| injected.abort_status).map(|status| format!("injected: abort {status}"));
    let mut why = injected().or(failed).unwrap_or_default();
    why.truncate(why.floor_char_boundary(MAX_MESSAGE));
    why
}

/// `grpc.health.v1`: what `/readyz` says.
pub(crate) struct HealthService {
    phase: Phase,
    watches: Arc<Semaphore>,
}

impl HealthService {
    pub(crate) fn new(phase: Phase) -> Self {
        /// They are exempt from the limits of requests.
        const MAX_WATCHES: usize = 64;
        Self { phase, watches: Arc::new(Semaphore::new(MAX_WATCHES)) }
    }

    fn check(phase: &Phase) -> HealthCheckResponse {
        let status = if phase.readiness().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        HealthCheckResponse { status: status.into() }
    }

    fn is_known(service: &str) -> bool {
        service.is_empty() || service == SERVICE_NAME
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !Self::is_known(&request.get_ref().service) {
            return Err(Status::not_found("health is known of httpserver.v1.Chain, and of the whole server without a name"));
        }
        Ok(Response::new(Self::check(&self.phase)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Sends the state, and each change of it. The stream ends with the hop, or after an hour.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        const POLL: Duration = Duration::from_millis(500);
        const LONGEST: Duration = Duration::from_secs(3600);
        let place = self.watches.clone().try_acquire_owned();
        let place = Arc::new(place.map_err(|_| Status::resource_exhausted("64 watch already"))?);
        let (phase, is_known) = (self.phase.clone(), Self::is_known(&request.get_ref().service));
        let end = Instant::now() + LONGEST;
        let changes = futures_util::stream::unfold(None::<HealthCheckResponse>, move |last| {
            let (phase, place) = (phase.clone(), place.clone());
            async move {
                let _place = place;
                loop {
                    let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
                    let now = if is_known { Self::check(&phase) } else { unknown };
                    if last.as_ref() != Some(&now) {
                        return Some((Ok(now), Some(now)));
                    }
                    // The last message of a hop that drains was NOT_SERVING.
                    if phase.is_draining() || Instant::now() >= end {
                        return None;
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
