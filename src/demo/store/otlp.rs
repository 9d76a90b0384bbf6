//! `POST /v1/traces`: OTLP over HTTP. Answers and refusals are in the form of the request, as the protocol has it.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message;
use serde_json::json;

use crate::demo::access::text;
use crate::demo::store::Store;
use crate::demo::store::receive::{BatchRefusal, receive, refusal};
use crate::rpc::status::RpcStatus;
use crate::traces::otlp::{OtlpSpans, decode_json, decode_protobuf};

#[derive(Clone, Copy, PartialEq)]
enum OtlpEncoding {
    Protobuf,
    Json,
}

impl OtlpEncoding {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
        match kind.as_str() {
            "application/x-protobuf" | "application/protobuf" => Some(Self::Protobuf),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }

    fn answer(self, status: StatusCode, message: &impl Message, json: &serde_json::Value) -> Response {
        let (kind, body) = match self {
            Self::Protobuf => ("application/x-protobuf", message.encode_to_vec()),
            Self::Json => ("application/json", json.to_string().into_bytes()),
        };
        (status, [(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
    }
}

pub(super) async fn post_traces(State(store): State<Store>, request: Request) -> Response {
    /// `INVALID_ARGUMENT` of gRPC.
    const INVALID: i32 = 3;
    let Some(form) = OtlpEncoding::of(request.headers()) else {
        let why = "OTLP is taken as application/x-protobuf and as application/json";
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
    };
    match accept(&store, form, request).await {
        Ok(None) => form.answer(StatusCode::OK, &ExportTraceServiceResponse::default(), &json!({})),
        Ok(Some(partial)) => {
            let (spans, why) = (partial.rejected_spans.to_string(), partial.error_message.clone());
            let message = ExportTraceServiceResponse { partial_success: Some(partial) };
            form.answer(StatusCode::OK, &message, &json!({"partialSuccess": {"rejectedSpans": spans, "errorMessage": why}}))
        }
        Err((status, message)) => {
            let json = json!({"code": INVALID, "message": message});
            form.answer(status, &RpcStatus { code: INVALID, message, details: Vec::new() }, &json)
        }
    }
}

async fn accept(store: &Store, form: OtlpEncoding, request: Request) -> Result<Option<ExportTracePartialSuccess>, BatchRefusal> {
    let (head, body) = request.into_parts();
    let (body, _place) = receive(store, &head.headers, body).await?;
    let _turn = store.turn_to_decode().await;
    let max = store.limits().spans;
    let batch = match form {
        OtlpEncoding::Protobuf => {
            decode_protobuf(&body, max).map_err(|error| refusal(&error, "an ExportTraceServiceRequest in protobuf"))?
        }
        OtlpEncoding::Json => decode_json(&body, max).map_err(|error| refusal(&error, "an ExportTraceServiceRequest in JSON"))?,
    };
    Ok(insert_batch(store, batch))
}

/// Stores a batch; says what of it was not stored.
pub(super) fn insert_batch(store: &Store, batch: OtlpSpans) -> Option<ExportTracePartialSuccess> {
    let dropped = store.insert(batch.spans);
    let rejected = batch.rejected as i64 + dropped as i64;
    let why = match (batch.rejected, dropped) {
        (0, _) => format!("their trace is at its bound ({} spans)", store.limits().trace_spans),
        (_, 0) => "spans without a trace id of 16 bytes and a span id of 8".to_owned(),
        _ => "spans without ids, and spans of traces that are at their bound".to_owned(),
    };
    (rejected > 0).then_some(ExportTracePartialSuccess { rejected_spans: rejected, error_message: why })
}
