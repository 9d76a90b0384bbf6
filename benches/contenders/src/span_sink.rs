//! A collector that counts spans and throws them away: Zipkin v2 JSON, OTLP over HTTP and OTLP over gRPC.
//!
//! `GET /count` tells what came. A delay before each answer makes it a collector that cannot keep up.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

#[derive(Default)]
struct Counted {
    spans: AtomicU64,
    bytes: AtomicU64,
    requests: AtomicU64,
}

#[tokio::main(flavor = "current_thread")]
pub async fn run(addr: &str, delay_ms: u64) {
    let counted = Arc::new(Counted::default());
    let listener = TcpListener::bind(addr).await.expect("the address is free");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let counted = counted.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let counted = counted.clone();
                async move { Ok::<_, Infallible>(answer(&counted, request, delay_ms).await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(counted: &Counted, request: Request<Incoming>, delay_ms: u64) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    if request.method() == Method::GET {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let text = format!(
            "{{\"spans\":{},\"bytes\":{},\"requests\":{}}}\n",
            load(&counted.spans),
            load(&counted.bytes),
            load(&counted.requests)
        );
        return Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    }
    let path = request.uri().path().to_owned();
    let Ok(body) = request.into_body().collect().await.map(|body| body.to_bytes()) else {
        return status(StatusCode::BAD_REQUEST);
    };
    if delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
    counted.requests.fetch_add(1, Ordering::Relaxed);
    counted.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    let took = |spans: u64| counted.spans.fetch_add(spans, Ordering::Relaxed);
    match path.as_str() {
        "/api/v2/spans" => {
            took(count_text(&body, b"\"traceId\":"));
            status(StatusCode::ACCEPTED)
        }
        "/v1/traces" => {
            took(spans_in_otlp(&body));
            let mut response = status(StatusCode::OK);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            response
        }
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
            // One message: a flag byte (0: not compressed), its length, the message.
            took(body.get(5..).map_or(0, spans_in_otlp));
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let empty = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
            let mut response = Response::new(empty.boxed_unsync());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        _ => status(StatusCode::NOT_FOUND),
    }
}

fn status(status: StatusCode) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = status;
    response
}

fn count_text(text: &[u8], what: &[u8]) -> u64 {
    text.windows(what.len()).filter(|window| *window == what).count() as u64
}

/// `resource_spans` (1) hold `scope_spans` (2) hold `spans` (2).
fn spans_in_otlp(request: &[u8]) -> u64 {
    let mut spans = 0;
    for_each_message(request, 1, |resource_spans| {
        for_each_message(resource_spans, 2, |scope_spans| for_each_message(scope_spans, 2, |_| spans += 1));
    });
    spans
}

/// Calls `visit` for every length-delimited field `number` of a protobuf message.
fn for_each_message<'a>(mut rest: &'a [u8], number: u64, mut visit: impl FnMut(&'a [u8])) {
    while let Some((key, after)) = varint(rest) {
        let (length, after) = match key & 7 {
            0 => match varint(after) {
                Some((_, after)) => (0, after),
                None => return,
            },
            1 => (8, after),
            2 => match varint(after) {
                Some((length, after)) => (length as usize, after),
                None => return,
            },
            5 => (4, after),
            _ => return,
        };
        let Some((field, after)) = after.split_at_checked(length) else { return };
        if key >> 3 == number && key & 7 == 2 {
            visit(field);
        }
        rest = after;
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}
