//! Rolling restarts under load over HTTP/1, HTTP/2 and gRPC, with and without TLS: no request is lost. The client repeats what HTTP/2 reports as
//! not processed (RFC 9113, 8.7), over HTTP/1 a GET on a reused connection that closed before a byte of its answer (RFC 9112, 9.3.1), and
//! nothing else. `RESTARTS=20` for the long form; HTTP/1 has another behind an Envoy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::ports::free_addr;
use crate::common::{Hop, eventually};
use crate::tls::Secure;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// What became of the requests.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    repeated: AtomicU64,
    lost: std::sync::Mutex<Vec<String>>,
    /// The copies that are out of rotation: no new connection is made to them, as their `/readyz` says.
    draining: [AtomicBool; 2],
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Option<SendRequest<Bytes>> {
    let (send, connection) = h2::client::handshake(stream).await.ok()?;
    tokio::spawn(connection);
    Some(send)
}

/// A connection that sends one request after the other.
trait Client: Send {
    /// One answer; `Ok(false)` when the server did not process the request.
    fn ask(&mut self) -> impl Future<Output = Result<bool, String>> + Send;
}

impl Client for SendRequest<Bytes> {
    async fn ask(&mut self) -> Result<bool, String> {
        let request = Request::get("http://localhost/hello").body(()).unwrap();
        let answered = answer(self, request, Bytes::new()).await.map_err(|error| error.to_string())?;
        let Some(Answered { status, body, .. }) = answered else { return Ok(false) };
        assert!(status == 200 && body.starts_with(b"Hello from "), "{status} {}", String::from_utf8_lossy(&body));
        Ok(true)
    }
}

/// HTTP/1.1, and whether it has had an answer.
struct Http1 {
    send: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
    is_reused: bool,
}

impl Http1 {
    async fn connect(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Option<Self> {
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(Self { send, is_reused: false })
    }
}

impl Client for Http1 {
    async fn ask(&mut self) -> Result<bool, String> {
        // Nothing was sent yet.
        if self.send.ready().await.is_err() {
            return Ok(false);
        }
        let request = Request::get("/hello").header("host", "localhost").body(Empty::new()).unwrap();
        let answer = match self.send.send_request(request).await {
            Ok(answer) => answer,
            Err(error) if self.is_reused && (error.is_incomplete_message() || error.is_canceled()) => return Ok(false),
            Err(error) => return Err(format!("{error:?}")),
        };
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
        assert!(body.starts_with(b"Hello from "), "{body:?}");
        self.is_reused = true;
        Ok(true)
    }
}

/// An answer over HTTP/2: its status, body and trailers.
struct Answered {
    status: u16,
    body: Vec<u8>,
    trailers: HeaderMap,
}

/// One answer; `None` when the server did not process the request.
async fn answer(send: &mut SendRequest<Bytes>, request: Request<()>, body: Bytes) -> Result<Option<Answered>, h2::Error> {
    let is_unprocessed =
        |error: &h2::Error| error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
    // Nothing was sent yet.
    let Ok(mut ready) = send.clone().ready().await else { return Ok(None) };
    let Ok((answer, mut sending)) = ready.send_request(request, body.is_empty()) else { return Ok(None) };
    if !body.is_empty() {
        // An error also reaches the answer.
        let _ = sending.send_data(body, true);
    }
    let answer = match answer.await {
        Ok(answer) => answer,
        Err(error) if is_unprocessed(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (status, mut rest, mut body) = (answer.status().as_u16(), answer.into_body(), Vec::new());
    while let Some(data) = rest.data().await {
        let data = data?;
        let _ = rest.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    Ok(Some(Answered { status, body, trailers: rest.trailers().await?.unwrap_or_default() }))
}

/// The same, of calls of gRPC.
struct Grpc(SendRequest<Bytes>);

impl Client for Grpc {
    async fn ask(&mut self) -> Result<bool, String> {
        let request = Request::post("http://localhost/httpserver.v1.Chain/Call").header("content-type", "application/grpc");
        let request = request.header("te", "trailers").body(()).unwrap();
        let answered =
            answer(&mut self.0, request, Bytes::from_static(b"\0\0\0\0\0")).await.map_err(|error| error.to_string())?;
        let Some(Answered { status, body, trailers }) = answered else { return Ok(false) };
        let is_ok = trailers.get("grpc-status").is_some_and(|status| status == "0");
        if status == 200 && is_ok && body.len() > 100 { Ok(true) } else { Err(format!("{status} {trailers:?}")) }
    }
}

/// Asks one copy after the other until it is told to stop.
async fn load<T: Client, C: Future<Output = Option<T>>>(connect: impl Fn(usize) -> C, counts: &Counts, stop: &AtomicBool) {
    let mut connections = [None, None];
    let mut copy = 0;
    while !stop.load(Ordering::Relaxed) {
        copy = 1 - copy;
        if connections[copy].is_none() && !counts.draining[copy].load(Ordering::Relaxed) {
            connections[copy] = connect(copy).await;
        }
        let Some(send) = &mut connections[copy] else {
            tokio::task::yield_now().await;
            continue;
        };
        match send.ask().await {
            Ok(true) => {
                counts.answered.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Ok(false) => {
                counts.repeated.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => counts.lost.lock().unwrap().push(error),
        }
        connections[copy] = None;
    }
}

/// Restarts both copies in turn, while each client asks.
async fn roll<T: Client, C>(
    mut copies: [Hop; 2],
    start: impl Fn(SocketAddr) -> Hop,
    connect: impl Fn(SocketAddr) -> C + Clone + Send + Sync + 'static,
) where
    C: Future<Output = Option<T>> + Send + 'static,
{
    let rounds = std::env::var("RESTARTS").map_or(2, |rounds| rounds.parse().expect("a number"));
    let addrs = [copies[0].addr, copies[1].addr];
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (counts, stop, connect) = (counts.clone(), stop.clone(), connect.clone());
            tokio::spawn(async move { load(|copy| connect(addrs[copy]), &counts, &stop).await })
        })
        .collect();
    let answered = || counts.answered.load(Ordering::Relaxed);
    for round in 0..2 * rounds {
        let copy = round % 2;
        let before = answered();
        eventually("the clients ask", || async { (answered() > before + 100).then_some(()) }).await;
        copies[copy].signal("TERM");
        counts.draining[copy].store(true, Ordering::Relaxed);
        let code = tokio::task::block_in_place(|| copies[copy].ended()).code();
        assert_eq!(code, Some(0), "{:#?}", copies[copy].stderr());
        copies[copy] = tokio::task::block_in_place(|| start(addrs[copy]));
        counts.draining[copy].store(false, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let lost = counts.lost.lock().unwrap();
    println!(
        "{} restarts: {} answered, {} repeated, {} lost",
        2 * rounds,
        answered(),
        counts.repeated.load(Ordering::Relaxed),
        lost.len()
    );
    assert!(lost.is_empty(), "{lost:?}");
}

const FLAGS: [&str; 4] = ["--drain-delay", "300ms", "--latency", "5ms"];

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_lose_no_request_over_http_1() {
    let start = |addr: SocketAddr| Hop::start(&[&["--addr", &addr.to_string()][..], &FLAGS].concat(), &[]);
    let connect = async |addr: SocketAddr| Http1::connect(TcpStream::connect(addr).await.ok()?).await;
    roll([start(free_addr()), start(free_addr())], start, connect).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_lose_no_request_over_http_2() {
    let start = |addr: SocketAddr| Hop::start(&[&["--addr", &addr.to_string()][..], &FLAGS].concat(), &[]);
    let connect = async |addr: SocketAddr| handshake(TcpStream::connect(addr).await.ok()?).await;
    roll([start(free_addr()), start(free_addr())], start, connect).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_lose_no_call_of_grpc() {
    let below = Hop::start(&["--name", "service2"], &[]);
    let upstream = format!("grpc://{}", below.addr);
    let start =
        |addr: SocketAddr| Hop::start(&[&["--addr", &addr.to_string(), "--upstream", &upstream][..], &FLAGS].concat(), &[]);
    let connect = async |addr: SocketAddr| handshake(TcpStream::connect(addr).await.ok()?).await.map(Grpc);
    roll([start(free_addr()), start(free_addr())], start, connect).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_lose_no_request_in_tls() {
    over_tls(b"http/1.1", Http1::connect).await;
    over_tls(b"h2", handshake).await;
    over_tls(b"h2", async |stream| handshake(stream).await.map(Grpc)).await;
}

/// A connection in TLS, from `shaken` on.
async fn over_tls<T: Client + 'static, C: Future<Output = Option<T>> + Send>(
    protocol: &'static [u8],
    shaken: impl Fn(TlsStream<TcpStream>) -> C + Clone + Send + Sync + 'static,
) {
    let secure = Secure::start("restarts", &FLAGS);
    let (flags, connector) = (secure.flags(), secure.connector(&[protocol], None));
    let start = |addr: SocketAddr| {
        let addr = addr.to_string();
        let own = flags.iter().map(String::as_str);
        Hop::start(&own.chain(["--addr", &addr]).chain(FLAGS).collect::<Vec<_>>(), &[])
    };
    let connect = move |addr: SocketAddr| {
        let (connector, shaken) = (connector.clone(), shaken.clone());
        async move {
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            shaken(connector.connect(name, TcpStream::connect(addr).await.ok()?).await.ok()?).await
        }
    };
    roll([start(free_addr()), start(free_addr())], start, connect).await;
}
