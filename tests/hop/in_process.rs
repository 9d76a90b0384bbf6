//! What takes its time: slow bodies, slow readers, idle connections. A hop in the test's own runtime, on a paused clock.
//!
//! Tokio advances a paused clock to the next timer whenever no task can run, also while bytes travel over loopback.

use std::time::Duration;

use http_body_util::Empty;
use httpserver::server::shutdown::Stop;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::common::{InProcess, read_answer};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// The status of one request on a kept connection.
async fn get(stream: &mut TcpStream) -> Option<u16> {
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await.ok()?;
    Some(read_answer(stream, false).await?.status)
}

async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset ends it as well as a close.
    let read = async { while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {} };
    timeout(2 * HOUR, read).await.expect("the hop closes the connection");
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_whole_after_ten_seconds_is_answered_408() {
    let hop = InProcess::start(|_| {}).await;
    let mut slow = hop.connect().await;
    let begun = Instant::now();
    slow.write_all(b"GET /hello HTTP/1.1\r\nhost: hop\r\ncontent-length: 1000\r\n\r\nsome").await.unwrap();
    let answer = read_answer(&mut slow, false).await.unwrap();
    answer.assert_problem(408);
    assert_eq!(answer.header("connection"), Some("close"));
    let took = begun.elapsed();
    assert!((10 * SECOND..11 * SECOND).contains(&took), "{took:?}");
    assert_eq!(until_closed(&mut slow).await, b"");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_takes_nine_seconds_is_read() {
    let hop = InProcess::start(|_| {}).await;
    let mut slow = hop.connect().await;
    slow.write_all(b"GET /hello HTTP/1.1\r\nhost: hop\r\ncontent-length: 9\r\n\r\n").await.unwrap();
    for _ in 0..9 {
        sleep(SECOND).await;
        slow.write_all(b"x").await.unwrap();
    }
    assert_eq!(read_answer(&mut slow, false).await.expect("an answer").status, 200);
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_requests_and_reads_no_answer_is_cut_after_30_seconds() {
    let hop = InProcess::start(|_| {}).await;
    let mut greedy = hop.connect().await;
    let request = format!("GET /headers HTTP/1.1\r\nhost: hop\r\nx-large: {}\r\n\r\n", "x".repeat(30 << 10));
    let (mut sent, mut last) = (0, Instant::now());
    // Until neither side's buffers take more; then until the hop has had enough.
    let cut = async {
        while let Ok(written) = greedy.write(&request.as_bytes()[sent % request.len()..]).await {
            sent += written;
            last = Instant::now();
            // What the sockets' buffers hold, requests on one side and answers on the other.
            assert!(sent < 64 << 20, "the hop goes on reading from somebody who reads nothing");
        }
    };
    timeout(HOUR, cut).await.expect("the hop cuts it off");
    let waited = last.elapsed();
    // Not less; and more by what the sockets' buffers still take while the paused clock goes on, which is much on a busy machine.
    assert!((29 * SECOND..120 * SECOND).contains(&waited), "a reader has 30 seconds: {waited:?}");
    assert_eq!(get(&mut hop.connect().await).await, Some(200));
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_one_byte_a_second_gets_its_answer() {
    let hop = InProcess::start(|_| {}).await;
    let mut slow = hop.connect().await;
    slow.write_all(b"GET /hello/slow HTTP/1.1\r\nhost: hop\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // All of it, and not only until the hop's linger timeout is over.
    while let Ok(byte) = slow.read_u8().await {
        answer.push(byte);
        sleep(SECOND).await;
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("Hello, Slow!\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn with_every_default_an_idle_connection_outlives_the_header_timeout_and_answers_its_next_request() {
    let hop = InProcess::start(|_| {}).await;
    let mut kept = hop.connect().await;
    // The second is what Envoy's pool would wait at the most, the last is beyond every timeout but the idle one.
    for idle in [15 * SECOND, 60 * SECOND, HOUR] {
        assert_eq!(get(&mut kept).await, Some(200));
        sleep(idle).await;
    }
    assert_eq!(get(&mut kept).await, Some(200));
    assert_eq!(until_closed(&mut kept).await, b"", "after the idle timeout");
}

#[tokio::test(start_paused = true)]
async fn an_idle_http_2_connection_outlives_the_header_timeout_whatever_frames_it_sends() {
    let hop = InProcess::start(|_| {}).await;
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new()).keep_alive_interval(SECOND).keep_alive_timeout(HOUR).keep_alive_while_idle(true);
    let (mut send, connection) = http.handshake(TokioIo::new(hop.connect().await)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..4 {
        let request = http::Request::get("http://hop/hello").body(Empty::<bytes::Bytes>::new()).unwrap();
        assert_eq!(send.send_request(request).await.unwrap().status(), 200);
        sleep(25 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_drain_delay_passes_before_the_listener_closes_and_a_person_at_a_terminal_skips_it() {
    for (stop, delay) in [(Stop::Graceful, 5 * SECOND), (Stop::Now, Duration::ZERO)] {
        let hop = InProcess::start(|config| config.drain.delay = 5 * SECOND).await;
        let begun = Instant::now();
        let ended = hop.stopped(stop).await;
        assert_eq!((ended.requests_cut, ended.spans_lost), (0, 0));
        let took = begun.elapsed();
        assert!((delay..delay + SECOND).contains(&took), "{stop:?}: {took:?}");
    }
}
