//! The server in the test's own runtime on a paused clock: hours pass in milliseconds, and no timeout is met by waiting.
//!
//! Tokio advances a paused clock to the next timer whenever no task can run, also while bytes travel over loopback: by at most
//! the server's heartbeat for each exchange. A large transfer takes seconds of that clock, so tests that make one leave a margin.

mod http2;

use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _, once};
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::server::options::ConnectionOptions;
use crate::server::shutdown::Phase;
use crate::server::{ConnectionInfo, ServerConfig, serve};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// What `/large` answers with: half of it is more than the buffers of both sockets hold.
const LARGE: usize = 32 << 20;
/// What `/some` answers with: more than the first window of HTTP/2.
const SOME: usize = 820_000;
/// What `/quiet` answers with before it has nothing more to send.
const QUIET: usize = 20 << 10;
/// The client's receive buffer. Left alone, the kernel grows it to tens of MiB on some machines.
const RECEIVE_BUFFER: u32 = 1 << 20;

struct TestServer {
    addr: std::net::SocketAddr,
    phase: Phase,
    refused: Arc<Mutex<Vec<StatusCode>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<usize>,
}

impl TestServer {
    async fn start(change: impl FnOnce(&mut ConnectionOptions)) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut config = ServerConfig::plain(listener);
        change(&mut config.options);
        let (phase, refused) = (config.phase.clone(), Arc::<Mutex<Vec<StatusCode>>>::default());
        let log = refused.clone();
        config.on_refused = Arc::new(move |status| log.lock().unwrap().push(status));
        let router = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/echo", post(|body: Bytes| async { body }))
            .route("/slow", get(|| async { sleep(20 * SECOND).await }))
            .route("/endless", get(pending::<()>))
            .route("/some", get(|| async { Bytes::from(vec![0; SOME]) }))
            .route(
                "/quiet",
                get(async || Body::from_stream(once(ready(Ok::<_, Infallible>(vec![0; QUIET]))).chain(stream::pending()))),
            )
            .route("/large", get(|| async { Bytes::from(vec![0; LARGE]) }))
            .route("/close", get(|| async { [("connection", "close")] }))
            .route(
                "/peer",
                get(|request: Request| async move {
                    let info = request.extensions().get::<ConnectionInfo>().expect("an extension of every request");
                    format!("{} {}", info.peer.ip(), info.certificate.is_missing)
                }),
            );
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(config, router, stopped, 30 * SECOND));
        Self { addr, phase, refused, stop, task }
    }

    async fn connect(&self) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
        let stream = socket.connect(self.addr).await.unwrap();
        // The kernel's clock is not paused: what Nagle's algorithm delays would arrive hours late.
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }

    /// A connection that has had an answer.
    async fn connect_and_get(&self) -> Client {
        let mut client = self.connect().await;
        assert_eq!(client.get("/").await.as_deref(), Some("ok"));
        client
    }

    /// How many requests the drain cut, and how long it took.
    async fn drain(self) -> (usize, Duration) {
        let begun = Instant::now();
        self.stop.send(()).unwrap();
        (self.task.await.unwrap(), begun.elapsed())
    }

    /// An HTTP/2 connection: where to send requests, and the task that ends when the connection does.
    async fn http2(&self) -> (hyper::client::conn::http2::SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>) {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (send, connection) = shaken.unwrap();
        (send, tokio::spawn(connection))
    }
}

/// Lets the server fill the sockets' buffers: the kernel takes real time, in which a paused clock would pass hours.
async fn fill_buffers() {
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(1));
        sleep(Duration::from_millis(1)).await;
    }
}

fn request(path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::get(format!("http://test{path}")).body(Empty::new()).unwrap()
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.unwrap();
    }

    async fn send_get(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// The body of the answer; `None` when the connection ends without one.
    async fn get(&mut self, path: &str) -> Option<String> {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.ok()?;
        self.answer().await.map(|(_, body)| body)
    }

    async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.ok()?);
        }
        Some(String::from_utf8(head).unwrap())
    }

    /// Head and body of the next answer; `None` when the connection ends without one.
    async fn answer(&mut self) -> Option<(String, String)> {
        let head = self.head().await?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.ok()?;
        Some((head, String::from_utf8(body).unwrap()))
    }

    /// Waits until the server has sent something. The clock stands while a blocking task runs.
    async fn until_readable(&mut self) {
        while self.0.peek(&mut [0]).now_or_never().is_none() {
            tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
        }
    }

    /// Everything until the server closes its side, and how long that took.
    async fn until_closed(&mut self) -> (Vec<u8>, Duration) {
        let begun = Instant::now();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(2 * HOUR, self.0.read_to_end(&mut rest)).await.expect("the server closes the connection");
        (rest, begun.elapsed())
    }

    /// Fails unless the server closes the connection after this time and at most half a second more, without an answer.
    async fn assert_closed_after(&mut self, expected: Duration) {
        let (rest, took) = self.until_closed().await;
        assert_eq!(String::from_utf8_lossy(&rest), "");
        assert!(took + Duration::from_millis(1) >= expected && took <= expected + SECOND / 2, "{took:?}, not {expected:?}");
    }

    /// The server closed the connection already.
    async fn assert_is_closed(&mut self) {
        self.assert_closed_after(Duration::ZERO).await;
    }
}

/// Lets the server do what it can do without time passing.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_complete_first_head_is_closed_at_the_header_timeout_after_the_connect() {
    let server = TestServer::start(|_| {}).await;
    server.connect().await.assert_closed_after(10 * SECOND).await;

    let mut half = server.connect().await;
    sleep(4 * SECOND).await;
    half.send("GET / HTTP/1.1\r\nhos").await;
    half.assert_closed_after(6 * SECOND).await;

    let mut preface = server.connect().await;
    preface.send("PRI * HTTP/2.0\r\n").await;
    preface.assert_closed_after(10 * SECOND).await;

    let mut trickle = server.connect().await;
    trickle.send("GET / HTTP/1.1\r\n").await;
    for _ in 0..9 {
        sleep(SECOND).await;
        trickle.send("x: y\r\n").await;
    }
    trickle.assert_closed_after(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_further_head_has_the_header_timeout_from_its_first_byte() {
    let server = TestServer::start(|_| {}).await;
    let mut client = server.connect_and_get().await;
    sleep(HOUR).await;
    client.send("GET / HT").await;
    sleep(9 * SECOND).await;
    client.send("TP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(client.answer().await.expect("in time").1, "ok");
    sleep(HOUR).await;
    client.send("GET / HT").await;
    client.assert_closed_after(10 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_lives_until_the_idle_timeout_and_each_request_starts_it_anew() {
    let server = TestServer::start(|_| {}).await;
    let mut client = server.connect_and_get().await;
    for _ in 0..3 {
        sleep(64 * 60 * SECOND).await;
        assert_eq!(client.get("/").await.as_deref(), Some("ok"));
    }
    client.assert_closed_after(65 * 60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_is_never_closed_however_long_it_takes() {
    let server = TestServer::start(|options| options.idle_timeout = SECOND).await;
    let mut client = server.connect().await;
    client.send_get("/endless").await;
    assert!(tokio::time::timeout(2 * HOUR, client.answer()).await.is_err(), "nothing ends it");
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_reader_accepts_nothing_is_cut_at_the_write_timeout() {
    let server = TestServer::start(|_| {}).await;
    let mut client = server.connect().await;
    client.send_get("/large").await;
    sleep(20 * SECOND).await;
    // Accepting some of it starts the timeout anew.
    let mut some = vec![0; LARGE / 4];
    client.0.read_exact(&mut some).await.unwrap();
    sleep(20 * SECOND).await;
    client.0.read_exact(&mut some).await.unwrap();
    fill_buffers().await;
    sleep(40 * SECOND).await;
    let (rest, _) = client.until_closed().await;
    assert!(rest.len() < LARGE / 2, "cut, with {} bytes in the sockets' buffers", rest.len());

    let mut slow = server.connect().await;
    slow.send_get("/large").await;
    slow.head().await.expect("a head");
    for _ in 0..4 {
        sleep(20 * SECOND).await;
        slow.0.read_exact(&mut some).await.expect("a slow reader receives the whole answer");
    }
    assert_eq!(slow.get("/").await.as_deref(), Some("ok"));
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_sends_after_the_last_answer_is_read_until_the_linger_timeout() {
    let server = TestServer::start(|_| {}).await;
    let mut client = server.connect().await;
    client.send_get("/close").await;
    let (answer, _) = client.until_closed().await;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    // A write to a socket that the other side closed is answered by a reset, which fails the next one.
    for _ in 0..3 {
        sleep(SECOND / 2).await;
        client.send("more").await;
    }
    sleep(SECOND).await;
    let _ = client.0.write_all(b"more").await;
    settle().await;
    assert!(client.0.write_all(b"more").await.is_err(), "closed after 2 seconds");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_is_refused_bare_and_counted_and_a_chunked_request_is_the_last_on_its_connection() {
    let server = TestServer::start(|_| {}).await;
    let refused = |bytes: String| {
        let server = &server;
        async move {
            let mut client = server.connect().await;
            client.send(&bytes).await;
            let (head, body) = client.answer().await.expect("an answer");
            assert_eq!(body, "");
            assert!(head.contains("connection: close\r\n") && head.contains("date: "), "{head}");
            head
        }
    };
    assert!(refused("no HTTP at all\r\n\r\n".to_owned()).await.starts_with("HTTP/1.1 400 "));
    let fields: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert!(refused(format!("GET / HTTP/1.1\r\nhost: test\r\n{fields}\r\n")).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(*server.refused.lock().unwrap(), [StatusCode::BAD_REQUEST, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE]);

    let mut client = server.connect().await;
    client.send("POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await;
    client.send_get("/").await;
    let (head, body) = client.answer().await.expect("an answer");
    assert_eq!((head.contains("connection: close\r\n"), body.as_str()), (true, "hi"), "{head}");
    client.assert_is_closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_receives_the_address_of_the_peer() {
    let server = TestServer::start(|_| {}).await;
    assert_eq!(server.connect().await.get("/peer").await.as_deref(), Some("127.0.0.1 false"));
}

#[tokio::test(start_paused = true)]
async fn at_the_cap_silent_connections_are_closed_first_and_then_those_idle_for_longest() {
    let server = TestServer::start(|options| options.max_connections = 4).await;
    let mut oldest = server.connect_and_get().await;
    sleep(SECOND).await;
    let mut older = server.connect_and_get().await;
    sleep(SECOND).await;
    let mut busy = server.connect().await;
    busy.send_get("/slow").await;
    let mut silent = server.connect().await;
    sleep(2 * SECOND).await;

    let mut young = server.connect_and_get().await;
    silent.assert_is_closed().await;
    sleep(SECOND).await;
    // One that has just connected is about to send its request, and is no silent one yet.
    let mut newest = server.connect().await;
    settle().await;
    oldest.assert_is_closed().await;
    let mut last = server.connect_and_get().await;
    older.assert_is_closed().await;
    for client in [&mut young, &mut newest, &mut last] {
        assert_eq!(client.get("/").await.as_deref(), Some("ok"), "the others live");
    }
    assert!(busy.answer().await.is_some(), "the request lives");
}

#[tokio::test(start_paused = true)]
async fn at_the_cap_requests_that_are_not_whole_make_room_and_those_that_are_never_do() {
    const HALF: &str = "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf";
    let begun_chunk = "POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n4\r\nha";
    for half in [HALF, begun_chunk] {
        let server = TestServer::start(|options| options.max_connections = 3).await;
        let mut busy = server.connect().await;
        busy.send_get("/slow").await;
        let mut idle = server.connect_and_get().await;
        sleep(SECOND).await;
        let mut first = server.connect().await;
        first.send(half).await;
        // It has just begun, so the idle one is closed.
        sleep(SECOND / 2).await;
        let mut second = server.connect().await;
        second.send(half).await;
        settle().await;
        idle.assert_is_closed().await;
        // Both have had their time: the older first, then the other, and both before the next idle one.
        sleep(2 * SECOND).await;
        let mut good = server.connect_and_get().await;
        first.assert_is_closed().await;
        assert_eq!(server.connect_and_get().await.get("/").await.as_deref(), Some("ok"));
        second.assert_is_closed().await;
        assert_eq!(good.get("/").await.as_deref(), Some("ok"));
        assert!(busy.answer().await.is_some(), "the request lives");
    }
    // Whole in time, it is answered.
    let server = TestServer::start(|options| options.max_connections = 1).await;
    let mut slow = server.connect().await;
    slow.send(HALF).await;
    sleep(9 * SECOND).await;
    slow.send("-body!").await;
    assert_eq!(slow.answer().await.expect("an answer").1, "half-body!");
}

#[tokio::test(start_paused = true)]
async fn at_the_cap_a_few_slow_readers_are_answered_and_of_many_the_slowest_make_room() {
    const CAP: usize = 20;
    let server = TestServer::start(|options| options.max_connections = CAP).await;
    let mut busy = Vec::new();
    for _ in 0..4 {
        let mut client = server.connect().await;
        client.send_get("/endless").await;
        busy.push(client);
    }
    let mut slow = Vec::new();
    for _ in 4..CAP {
        let mut client = server.connect().await;
        client.send_get("/large").await;
        slow.push(client);
    }
    for _ in 0..6 {
        fill_buffers().await;
    }
    let mut good = server.connect_and_get().await;
    let is_closed = |client: &Client| client.0.try_read(&mut [0]).is_err();
    assert!(!busy.iter().any(|client| !is_closed(client)), "nobody answers or closes a request that is worked on");
    let (rest, took) = slow[0].until_closed().await;
    assert!(took < SECOND && rest.len() < LARGE, "{took:?}");
    let mut whole = vec![0; LARGE];
    slow[CAP - 5].0.read_exact(&mut whole).await.expect("the last of them is answered to the end");
    assert_eq!(good.get("/").await.as_deref(), Some("ok"));
}

#[tokio::test(start_paused = true)]
async fn of_many_slow_readers_those_make_room_who_take_nothing() {
    let server = TestServer::start(|options| options.max_connections = 20).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut client = server.connect().await;
        client.send_get("/large").await;
        slow.push(client);
    }
    for _ in 0..6 {
        fill_buffers().await;
    }
    // The first has waited for longest, and takes some of it; the second takes a byte.
    slow[0].0.read_exact(&mut vec![0; LARGE / 4]).await.unwrap();
    slow[1].0.read_exact(&mut [0]).await.unwrap();
    fill_buffers().await;
    sleep(SECOND / 5).await;
    let mut good = server.connect_and_get().await;
    let (rest, took) = slow[1].until_closed().await;
    assert!(took < SECOND && rest.len() < LARGE, "{took:?}");
    slow[0].0.read_exact(&mut vec![0; LARGE / 2]).await.expect("who takes its answer is answered");
    assert_eq!(good.get("/").await.as_deref(), Some("ok"));
}

#[tokio::test(start_paused = true)]
async fn when_every_connection_is_in_a_request_the_new_one_is_refused_and_nobody_is_evicted() {
    let server = TestServer::start(|options| options.max_connections = 2).await;
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    first.send_get("/slow").await;
    second.send_get("/slow").await;
    settle().await;
    let mut third = server.connect().await;
    assert_eq!(third.get("/").await, None);
    assert!(first.answer().await.is_some() && second.answer().await.is_some(), "both requests live");
    assert_eq!(server.connect().await.get("/").await.as_deref(), Some("ok"), "and now one of them makes room");
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_process_was_stopped_is_nobodys_idleness() {
    let server = TestServer::start(|_| {}).await;
    let mut idle = server.connect_and_get().await;
    let mut half = server.connect().await;
    half.send("GET / HTTP/1.1\r\n").await;
    let mut unread = server.connect().await;
    unread.send_get("/large").await;
    sleep(5 * SECOND).await;
    // The clock jumps, as it does for a process between SIGSTOP and SIGCONT: no timer fires in between.
    tokio::time::advance(2 * HOUR).await;
    settle().await;
    assert_eq!(idle.get("/").await.as_deref(), Some("ok"));
    let answered = Instant::now();
    // The head has what is left of its time.
    sleep(4 * SECOND).await;
    half.send("host: test\r\n\r\n").await;
    assert_eq!(half.answer().await.expect("in time").1, "ok");
    // Last, because a large transfer takes seconds of the paused clock.
    let mut body = vec![0; LARGE];
    unread.0.read_exact(&mut body).await.expect("a reader is not cut for it");
    idle.assert_closed_after(65 * 60 * SECOND - answered.elapsed()).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_http_2_connection_receives_goaway_at_the_idle_timeout_and_not_at_the_header_timeout() {
    let server = TestServer::start(|_| {}).await;
    let (mut send, connection) = server.http2().await;
    for _ in 0..2 {
        let answer = send.send_request(request("/")).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        sleep(64 * 60 * SECOND).await;
    }
    let begun = Instant::now();
    connection.await.unwrap().expect("GOAWAY ends it in good order");
    assert!(begun.elapsed() >= 59 * SECOND && begun.elapsed() < 62 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_http_2_request_outlives_every_timeout_and_a_reader_that_accepts_nothing_does_not() {
    let server = TestServer::start(|_| {}).await;
    let (mut send, connection) = server.http2().await;
    let endless = tokio::spawn(send.send_request(request("/endless")));
    sleep(2 * HOUR).await;
    assert!(!connection.is_finished() && !endless.is_finished());

    let mut deaf = server.connect().await;
    deaf.0.write_all(&[http2::largest_windows(), http2::frame(1, 5, 1, &http2::head("/large"))].concat()).await.unwrap();
    deaf.until_readable().await;
    sleep(40 * SECOND).await;
    let (rest, _) = deaf.until_closed().await;
    assert!((1 << 16..LARGE).contains(&rest.len()), "cut in the middle of the answer: {}", rest.len());
}

#[tokio::test(start_paused = true)]
async fn streams_beyond_what_the_process_has_room_for_are_refused_and_the_first_of_a_connection_never_are() {
    // Each connection may have two, and all together 100 more.
    let server = TestServer::start(|options| options.max_connections = 10).await;
    let (mut greedy, _first) = server.http2().await;
    for _ in 0..100 {
        tokio::spawn(greedy.send_request(request("/endless")));
    }
    settle().await;
    let (mut second, _second) = server.http2().await;
    let answers: Vec<_> = (0..20).map(|_| tokio::spawn(second.send_request(request("/endless")))).collect();
    fill_buffers().await;
    let mut refused = 0;
    for answer in answers {
        if let Some(Err(error)) = answer.now_or_never().map(Result::unwrap) {
            assert!(format!("{error:?}").contains("REFUSED_STREAM"), "{error:?}");
            refused += 1;
        }
    }
    assert_eq!(refused, 16, "100 are open on the first connection, two of them free: two places are left, and two are free");
    let (mut third, _third) = server.http2().await;
    assert_eq!(third.send_request(request("/")).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn while_draining_http_2_receives_goaway_and_http_1_is_still_served() {
    let server = TestServer::start(|_| {}).await;
    let mut kept = server.connect_and_get().await;
    let (mut send, connection) = server.http2().await;
    let slow = tokio::spawn(send.send_request(request("/slow")));
    settle().await;
    server.phase.set_draining();
    sleep(SECOND).await;
    assert!(send.send_request(request("/")).await.is_err(), "GOAWAY: no further request");
    assert_eq!(slow.await.unwrap().unwrap().status(), 200, "what was in flight is answered");
    connection.await.unwrap().unwrap();
    assert_eq!(kept.get("/").await.as_deref(), Some("ok"));
    assert_eq!(server.connect_and_get().await.get("/").await.as_deref(), Some("ok"), "still accepting");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_idle_connections_close_at_once_and_a_head_on_its_way_has_a_moment() {
    let server = TestServer::start(|options| options.last_head_timeout = 5 * SECOND).await;
    let mut idle = server.connect_and_get().await;
    let mut half = server.connect().await;
    half.send("GET / HTTP/1.1\r\n").await;
    let mut silent = server.connect().await;
    let mut queued = server.connect().await;
    queued.send_get("/").await;
    let draining = tokio::spawn(server.drain());
    idle.assert_is_closed().await;
    assert_eq!(queued.answer().await.expect("was sent in time").1, "ok");
    sleep(2 * SECOND).await;
    half.send("host: test\r\n\r\n").await;
    assert_eq!(half.answer().await.expect("an answer").1, "ok");
    half.assert_is_closed().await;
    let (rest, waited) = silent.until_closed().await;
    assert!(rest.is_empty() && waited > SECOND && waited <= 3 * SECOND, "{waited:?}");
    let (cut, took) = draining.await.unwrap();
    assert_eq!(cut, 0);
    assert!(took < 6 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_drain_waits_for_requests_until_its_deadline_and_counts_those_that_it_cuts() {
    let server = TestServer::start(|_| {}).await;
    let (mut send, connection) = server.http2().await;
    for _ in 0..2 {
        tokio::spawn(send.send_request(request("/endless")));
    }
    let (mut slow, mut endless) = (server.connect().await, server.connect().await);
    slow.send_get("/slow").await;
    endless.send_get("/endless").await;
    settle().await;
    let draining = tokio::spawn(server.drain());
    assert!(slow.answer().await.is_some(), "answered while draining");
    let (cut, took) = draining.await.unwrap();
    assert_eq!(cut, 3, "two over HTTP/2 and one over HTTP/1.1");
    assert!(took >= 30 * SECOND && took < 31 * SECOND, "{took:?}");
    endless.assert_is_closed().await;
    let _ = connection.await.unwrap();
}
