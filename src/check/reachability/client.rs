//! The client of `check`: GET and nothing else, never faster than `--rate`, no proxy, no redirect, a connection per request.
//!
//! A connection per request, because each stands for a caller of its own: kept connections hide how a load balancer without a
//! mesh spreads callers, and what a rollout does to those who connect.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;
use tokio::time::Instant;
use tower_service::Service;

use crate::hop::reply::Headers;

pub(crate) use crate::check::reachability::answer::{FrontAnswer, MAX_BODY, RequestFailure};
use crate::check::reachability::grpc::GrpcFront;
use crate::net::client::{builder, read_bounded};
use crate::net::trust::Trust;
use crate::telemetry::client_tracing::{ClientSpan, ClientTracer};
use crate::trace_context::{Context, HeaderFamily};

/// Lets one caller pass every `1 / rate` seconds.
pub(crate) struct Pacer {
    every: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(crate) fn new(rate: f64) -> Self {
        Self { every: Duration::from_secs_f64(1.0 / rate), next: Mutex::new(None) }
    }

    /// Waits for the next turn.
    pub(crate) async fn turn(&self) {
        let at = {
            let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let now = Instant::now();
            let at = next.map_or(now, |next| next.max(now));
            *next = Some(at + self.every);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

tokio::task_local! {
    /// When the connection of this task's request was there.
    static CONNECTED: Cell<Option<Instant>>;
}

/// A connector that notes when it is done.
#[derive(Clone)]
struct Noting<S>(S);

impl<S: Service<R>, R> Service<R> for Noting<S>
where
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connecting = self.0.call(target);
        Box::pin(async move {
            let connection = connecting.await;
            let _ = CONNECTED.try_with(|at| at.set(Some(Instant::now())));
            connection
        })
    }
}

/// Sends requests to the target.
pub(crate) struct CheckClient {
    http: reqwest::Client,
    pub(crate) url: Url,
    extra: HeaderMap,
    pacer: Pacer,
    /// The first hop is called over gRPC.
    grpc: Option<GrpcFront>,
    /// Reports requests that begin a trace.
    tracer: Option<ClientTracer>,
}

impl CheckClient {
    /// A client for `url`, whose host leads to `address` whatever DNS says.
    ///
    /// # Errors
    ///
    /// rustls's and reqwest's, about the setup.
    pub(crate) fn new(
        url: Url,
        address: SocketAddr,
        trust: &Trust,
        timeout: Duration,
        rate: f64,
        extra: HeaderMap,
    ) -> Result<Self, String> {
        let (tls, _) = trust.config()?;
        let is_grpc = url.scheme().starts_with("grpc");
        let grpc = is_grpc.then(|| GrpcFront::new(&url, address, tls.clone(), timeout, extra.clone()));
        let host = url.host_str().unwrap_or_default().to_owned();
        let http = builder(tls)
            .http1_only()
            .pool_max_idle_per_host(0)
            .timeout(timeout)
            .user_agent(concat!("httpserver-check/", env!("CARGO_PKG_VERSION")))
            .resolve(&host, address)
            .connector_layer(tower::layer::layer_fn(Noting))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { http, url, extra, pacer: Pacer::new(rate), grpc, tracer: None })
    }

    /// Reports the client span of every request that carries a context.
    pub(crate) fn reporting(self, tracer: Option<ClientTracer>) -> Self {
        Self { tracer, ..self }
    }

    /// Waits for this request's turn; [`CheckClient::send`] then sends it.
    pub(crate) async fn turn(&self) {
        self.pacer.turn().await;
    }

    /// One GET of the target, in its turn.
    pub(crate) async fn get(&self, headers: &Headers) -> Result<FrontAnswer, RequestFailure> {
        self.turn().await;
        self.send(self.url.clone(), headers).await
    }

    /// One GET of another URL of the target's host, in its turn.
    pub(crate) async fn get_at(&self, url: Url) -> Result<FrontAnswer, RequestFailure> {
        self.turn().await;
        self.send(url, &Headers::default()).await
    }

    /// Sends at once. Only after a [`CheckClient::turn`].
    pub(crate) async fn send(&self, url: Url, headers: &Headers) -> Result<FrontAnswer, RequestFailure> {
        let spans = self.tracer.as_ref().map(|tracer| spans(tracer, &url, headers)).unwrap_or_default();
        let result = CONNECTED.scope(Cell::new(None), self.exchange(url, headers)).await;
        for span in spans {
            match &result {
                Ok(answer) => span.answered(answer.status),
                Err(failure) => span.failed(failure.error_type()),
            }
        }
        result
    }

    /// The first hop, if it is called over gRPC.
    pub(crate) fn grpc(&self) -> Option<&GrpcFront> {
        self.grpc.as_ref()
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc.is_some()
    }

    async fn exchange(&self, url: Url, headers: &Headers) -> Result<FrontAnswer, RequestFailure> {
        if let Some(grpc) = &self.grpc {
            return grpc.call(headers).await;
        }
        let mut request = self.http.get(url).header(http::header::ACCEPT, "application/json").headers(self.extra.clone());
        for (name, value) in &headers.to_map() {
            request = request.header(name, value);
        }
        let started = Instant::now();
        let mut response = request.send().await.map_err(|error| RequestFailure::of(&error))?;
        let body = read_bounded(&mut response, MAX_BODY).await.map_err(|error| RequestFailure::of(&error))?;
        let body = body.ok_or(RequestFailure::TooLarge)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let connected = CONNECTED.with(Cell::get).unwrap_or(started);
        Ok(FrontAnswer { status, headers, body, took: started.elapsed(), waited: connected.elapsed() })
    }
}

/// A span for each context that the headers carry: a probe may begin one trace in W3C and another in B3.
fn spans(tracer: &ClientTracer, url: &Url, headers: &Headers) -> Vec<ClientSpan> {
    let mut contexts: Vec<Context> = HeaderFamily::ALL.into_iter().filter_map(|family| family.read(headers)).collect();
    contexts.dedup_by_key(|context| (context.trace_id, context.span_id));
    contexts.iter().filter(|context| context.sampling.is_sampled()).map(|context| tracer.begin(context, url.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server whose handshakes are late is not one whose answers are.
    #[tokio::test]
    async fn the_time_of_an_answer_begins_with_the_connection() {
        const LATE: Duration = Duration::from_millis(400);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::time::sleep(LATE).await;
            let mut stream = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config)).accept(stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
        });
        let url = format!("https://localhost:{}/", address.port()).parse().unwrap();
        let trust = Trust::new(None, true).unwrap();
        let client = CheckClient::new(url, address, &trust, Duration::from_secs(10), 100.0, HeaderMap::new()).unwrap();
        let answer = client.get(&Headers::default()).await.unwrap();
        assert!(answer.took >= LATE, "{:?}", answer.took);
        assert!(answer.took - answer.waited >= LATE, "{:?} of {:?}", answer.waited, answer.took);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn the_pacer_never_lets_more_pass_than_the_rate() {
        let pacer = Pacer::new(500.0);
        let start = Instant::now();
        for _ in 0..51 {
            pacer.turn().await;
        }
        assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
        // A pause is not made up for by a burst.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let again = Instant::now();
        for _ in 0..11 {
            pacer.turn().await;
        }
        assert!(again.elapsed() >= Duration::from_millis(20), "{:?}", again.elapsed());
    }
}
