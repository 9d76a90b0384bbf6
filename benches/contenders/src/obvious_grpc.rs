//! The same over gRPC: tonic's server beside axum's routes, tonic's client with its channel, and the rest as in `obvious`.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, info_span};

use crate::obvious::{outgoing, serve, traced};
use chain::chain_client::ChainClient;
use chain::chain_server::{Chain, ChainServer};
use chain::{CallRequest, Reply};

#[allow(clippy::all, clippy::pedantic, reason = "generated")]
mod chain {
    tonic::include_proto!("obvious.v1");
}

pub fn run(addr: &str, name: &str, collector: &str, upstream: Option<&str>) {
    traced(name, collector, || {
        serve(addr, || {
            let upstream = upstream.map(|upstream| {
                let endpoint = Endpoint::from_shared(upstream.to_owned()).expect("a URL").tcp_nodelay(true);
                ChainClient::new(endpoint.connect_lazy())
            });
            let hop = Hop { upstream };
            let grpc = Routes::new(ChainServer::new(hop.clone())).prepare().into_axum_router();
            Router::new().route("/service{n}", get(service)).with_state(hop).merge(grpc)
        });
    });
}

#[derive(Clone)]
struct Hop {
    upstream: Option<ChainClient<Channel>>,
}

impl Hop {
    async fn answer(&self, n: u32, headers: &HeaderMap) -> Result<Reply, Status> {
        let reply = match &self.upstream {
            Some(upstream) => Some(Box::new(call(upstream.clone(), n + 1, headers).await?)),
            None => None,
        };
        Ok(Reply { service: format!("service{n}"), reply })
    }
}

#[tonic::async_trait]
impl Chain for Hop {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<Reply>, Status> {
        self.answer(request.get_ref().service, request.metadata().as_ref()).await.map(Response::new)
    }
}

async fn service(State(hop): State<Hop>, Path(n): Path<u32>, headers: HeaderMap) -> Result<Json<Reply>, StatusCode> {
    hop.answer(n, &headers).await.map(Json).map_err(|_| StatusCode::BAD_GATEWAY)
}

async fn call(mut client: ChainClient<Channel>, service: u32, headers: &HeaderMap) -> Result<Reply, Status> {
    let span = info_span!("call", otel.name = "obvious.v1.Chain/Call", otel.kind = "client", rpc.system.name = "grpc");
    let mut request = Request::new(CallRequest { service });
    *request.metadata_mut() = MetadataMap::from_headers(outgoing(headers, &span));
    client.call(request).instrument(span).await.map(Response::into_inner)
}
