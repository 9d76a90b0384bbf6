//! The app's next hop: answers its calls and notes their heads.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::config::CommandFailure;
use crate::probe::{ListenAddress, ProbeArgs};
use crate::rpc::status::code_of;
use crate::rpc::{CONTENT_TYPE, is_grpc};
use crate::server::tls::{ServerTls, TlsOptions};
use crate::server::{self, ServerConfig};
use crate::system::files::read_input;

/// Bytes of a call's body, and of the reply file.
const MAX_BODY: usize = 1 << 20;
/// Connections of the app.
const MAX_CONNECTIONS: usize = 512;
/// Calls that are noted; an app that calls without an end is a finding long before.
const MAX_CALLS: usize = 200_000;

/// A call of the app.
#[derive(Debug, Clone)]
pub(super) struct AppCall {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) at: Instant,
    /// Which of the addresses was called.
    pub(super) to: SocketAddr,
}

impl AppCall {
    /// The first that is found of the words of 16 hex digits in its path, its query or its body.
    pub(super) fn find<T>(&self, of: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (uri, body) = (self.uri.to_string(), String::from_utf8_lossy(&self.body));
        let words = |text: &str| text.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 16).find_map(&of);
        words(&uri).or_else(|| words(&body))
    }
}

/// How calls are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListenerMode {
    /// With the reply.
    Answer,
    /// With 503.
    Unavailable,
    /// Never.
    Hang,
    /// The connection ends in the middle of the answer.
    Reset,
}

struct ListenerState {
    calls: Mutex<Vec<AppCall>>,
    mode: Mutex<ListenerMode>,
    status: StatusCode,
    reply: Bytes,
    /// Over gRPC, framed.
    message: Bytes,
}

/// The listening addresses.
pub(super) struct Downstream {
    shared: Arc<ListenerState>,
    /// Where it listens.
    pub(super) addresses: Vec<SocketAddr>,
    servers: Vec<JoinHandle<usize>>,
    stop: watch::Sender<bool>,
}

impl Downstream {
    pub(super) async fn bind(args: &ProbeArgs) -> Result<Self, CommandFailure> {
        let usage = CommandFailure::Usage;
        let reply = match &args.downstream_reply {
            Some(path) => {
                let read = read_input(path, (MAX_BODY >> 20) as u64);
                read.map_err(|why| usage(format!("--downstream-reply {}: {why}", path.display())))?.into()
            }
            None => Bytes::from_static(b"{}"),
        };
        let tls = match (&args.downstream_tls_cert, &args.downstream_tls_key) {
            (Some(cert), Some(key)) => {
                let options = TlsOptions { cert: cert.clone(), key: key.clone(), client_ca: None };
                Some(ServerTls::load(options).map_err(|error| usage(error.to_string()))?)
            }
            _ => None,
        };
        // Without a file it is empty, which every message may be.
        let message = framed(if args.downstream_reply.is_some() { &reply } else { &[] });
        let (calls, mode) = (Mutex::default(), Mutex::new(ListenerMode::Answer));
        let shared = Arc::new(ListenerState { calls, mode, status: args.downstream_status, reply, message });
        let (stop, _) = watch::channel(false);
        let (mut addresses, mut servers) = (Vec::new(), Vec::new());
        for ListenAddress { address, .. } in &args.downstream {
            let named =
                |error: std::io::Error| CommandFailure::Stopped(format!("--downstream {address}: cannot listen there: {error}"));
            let listener = TcpListener::bind(address).await.map_err(named)?;
            let address = listener.local_addr().map_err(named)?;
            addresses.push(address);
            let mut config = ServerConfig::plain(listener);
            config.options.max_connections = MAX_CONNECTIONS;
            config.tls.clone_from(&tls);
            let router =
                axum::Router::new().fallback(answer).layer(DefaultBodyLimit::max(MAX_BODY)).with_state((shared.clone(), address));
            let mut stopped = stop.subscribe();
            let until = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            servers.push(tokio::spawn(server::serve(config, router, until, Duration::from_millis(200))));
        }
        Ok(Self { shared, addresses, servers, stop })
    }

    pub(super) fn set(&self, mode: ListenerMode) {
        *lock(&self.shared.mode) = mode;
    }

    /// The calls since the last time.
    pub(super) fn take(&self) -> Vec<AppCall> {
        std::mem::take(&mut lock(&self.shared.calls))
    }

    pub(super) fn count(&self, is_counted: impl Fn(&AppCall) -> bool) -> usize {
        lock(&self.shared.calls).iter().filter(|call| is_counted(call)).count()
    }

    pub(super) async fn stop(self) {
        let _ = self.stop.send(true);
        for server in self.servers {
            let _ = server.await;
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn framed(message: &[u8]) -> Bytes {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat().into()
}

/// The answer to a call of any method of gRPC.
fn grpc_answer(status: StatusCode, message: Bytes) -> Response {
    let called = Status::new(code_of(status), "");
    if called.code() != Code::Ok {
        return called.into_http::<Body>();
    }
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = futures_util::stream::iter([Frame::data(message), Frame::trailers(trailers)].map(Ok::<_, Infallible>));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

async fn answer(
    State((shared, to)): State<(Arc<ListenerState>, SocketAddr)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let is_grpc = headers.get(header::CONTENT_TYPE).is_some_and(|kind| is_grpc(kind.as_bytes()));
    {
        let mut calls = lock(&shared.calls);
        if calls.len() < MAX_CALLS {
            calls.push(AppCall { method, uri, headers, body, at: Instant::now(), to });
        }
    }
    let mode = *lock(&shared.mode);
    let json = HeaderValue::from_static("application/json");
    match mode {
        ListenerMode::Answer if is_grpc => grpc_answer(shared.status, shared.message.clone()),
        ListenerMode::Unavailable if is_grpc => grpc_answer(StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
        ListenerMode::Answer => (shared.status, [(header::CONTENT_TYPE, json)], shared.reply.clone()).into_response(),
        ListenerMode::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, [(header::CONTENT_TYPE, json)], "{}").into_response(),
        ListenerMode::Hang => std::future::pending().await,
        ListenerMode::Reset => {
            let cut = futures_util::stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("cut on purpose"))]);
            Response::new(Body::from_stream(cut))
        }
    }
}
