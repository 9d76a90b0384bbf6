//! `TraceService/Export`: OTLP over gRPC.

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{StatusCode, header};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::codec::CompressionEncoding;
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};

use crate::demo::access::text;
use crate::demo::store::Store;
use crate::demo::store::otlp::insert_batch;
use crate::demo::store::receive::{BODY_TIMEOUT, MAX_BODY};
use crate::net::grpc::BytesCodec;
use crate::traces::DecodeError;
use crate::traces::otlp::decode_protobuf;

pub(super) async fn export(State(store): State<Store>, request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    if !kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "this is a method of gRPC; OTLP over HTTP is taken at /v1/traces");
    }
    let Some(_place) = store.post_permit().await else { return refused(Code::Unavailable, "closed") };
    let mut grpc = Grpc::new(BytesCodec).accept_compressed(CompressionEncoding::Gzip).max_decoding_message_size(MAX_BODY);
    let Ok(answer) = tokio::time::timeout(BODY_TIMEOUT, grpc.unary(Export(store.clone()), request)).await else {
        return refused(Code::DeadlineExceeded, format!("the message did not arrive within {} s", BODY_TIMEOUT.as_secs()));
    };
    // A message that is too large, which the protocol would have sent again.
    if Status::from_header_map(answer.headers()).is_some_and(|status| status.code() == Code::OutOfRange) {
        return refused(Code::ResourceExhausted, format!("a batch may have {MAX_BODY} bytes; send several smaller ones"));
    }
    answer.into_response()
}

fn refused(code: Code, message: impl Into<String>) -> Response {
    Status::new(code, message).into_http::<axum::body::Body>()
}

struct Export(Store);

impl UnaryService<Bytes> for Export {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let store = self.0.clone();
        async move {
            let _turn = store.turn_to_decode().await;
            let batch = decode_protobuf(request.get_ref(), store.limits().spans).map_err(|error| match &error {
                DecodeError::TooMany(_) | DecodeError::TooLarge => {
                    Status::resource_exhausted(format!("a batch has {error}; send several smaller ones"))
                }
                DecodeError::Invalid(why) => Status::invalid_argument(format!("not an ExportTraceServiceRequest: {why}")),
            })?;
            let message = ExportTraceServiceResponse { partial_success: insert_batch(&store, batch) };
            Ok(tonic::Response::new(message.encode_to_vec().into()))
        }
        .boxed()
    }
}
