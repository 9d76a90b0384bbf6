//! HTTP/2 frame by frame: heads that do not end, windows that do not open, and the life of an answer.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::{Client, HOUR, QUIET, SECOND, SOME, TestServer, request};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// GET of `http://test/<path>` by HPACK's static table.
pub(super) fn head(path: &str) -> Vec<u8> {
    [&b"\x82\x86\x04"[..], &[path.len() as u8], path.as_bytes(), b"\x41\x04test"].concat()
}

/// The largest windows, so that only the socket makes the server wait: SETTINGS_INITIAL_WINDOW_SIZE and WINDOW_UPDATE.
pub(super) fn largest_windows() -> Vec<u8> {
    let settings = frame(4, 0, 0, &[&[0, 4][..], &(i32::MAX as u32).to_be_bytes()].concat());
    [PREFACE, &settings[..], &frame(8, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes())].concat()
}

/// A connection of HTTP/2 whose input is this.
async fn http2_with(server: &TestServer, input: &[u8]) -> Client {
    let mut client = server.connect().await;
    client.0.write_all(input).await.unwrap();
    client
}

impl Client {
    /// Fails unless the server closes the connection after this time, whatever frames it sends before.
    async fn assert_ends_after(&mut self, what: &str, expected: Duration) {
        let (_, took) = self.until_closed().await;
        assert!(took + SECOND / 100 >= expected && took <= expected + SECOND + SECOND / 2, "{what}: {took:?}, not {expected:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn over_http_2_the_first_head_has_the_header_timeout_from_the_connect() {
    let server = TestServer::start(|_| {}).await;
    let settings = frame(4, 0, 0, &[]);
    let whole = frame(1, 5, 1, &head("/"));
    for (what, input) in [
        ("the preface alone", PREFACE.to_vec()),
        ("settings alone", [PREFACE, &settings].concat()),
        ("a ping", [PREFACE, &settings, &frame(6, 0, 0, &[0; 8])].concat()),
        ("half the header of a frame", [PREFACE, &settings, &whole[..5]].concat()),
        ("half a head", [PREFACE, &settings, &whole[..12]].concat()),
        ("a head without its end", [PREFACE, &settings, &frame(1, 1, 1, &head("/"))].concat()),
        (
            "a head whose continuation does not end",
            [PREFACE, &settings, &frame(1, 1, 1, &head("/")), &frame(9, 0, 1, b"")].concat(),
        ),
    ] {
        http2_with(&server, &input).await.assert_ends_after(what, 10 * SECOND).await;
    }
    let mut trickle = http2_with(&server, PREFACE).await;
    for byte in settings.iter().take(8) {
        sleep(SECOND).await;
        trickle.0.write_all(&[*byte]).await.unwrap();
    }
    trickle.assert_ends_after("a byte a second", 2 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn over_http_2_a_further_head_has_the_header_timeout_from_its_first_byte() {
    let server = TestServer::start(|_| {}).await;
    let first = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, &head("/"))].concat();
    let mut idle = http2_with(&server, &first).await;
    sleep(HOUR / 2).await;
    idle.0.write_all(&frame(6, 0, 0, &[0; 8])).await.unwrap();
    sleep(HOUR / 2).await;
    idle.0.write_all(&frame(1, 1, 3, &head("/"))).await.unwrap();
    sleep(6 * SECOND).await;
    idle.0.write_all(&frame(9, 0, 3, b"")).await.unwrap();
    idle.assert_ends_after("a head that does not end", 4 * SECOND).await;

    let mut half = http2_with(&server, &first).await;
    sleep(MINUTE).await;
    half.0.write_all(&frame(6, 0, 0, &[0; 8])[..10]).await.unwrap();
    half.assert_ends_after("half a ping", 10 * SECOND).await;

    let active = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, &head("/endless"))].concat();
    let mut busy = http2_with(&server, &active).await;
    sleep(MINUTE).await;
    busy.0.write_all(&frame(1, 1, 3, &head("/"))).await.unwrap();
    for _ in 0..4 {
        sleep(2 * SECOND).await;
        busy.0.write_all(&frame(9, 0, 3, b"")).await.unwrap();
    }
    busy.assert_ends_after("while another request is active", 2 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn half_a_head_that_came_with_another_request_has_the_header_timeout_and_not_the_idle_one() {
    let server = TestServer::start(|_| {}).await;
    const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
    const POST: &str = "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\nok";
    for (what, requests) in
        [("one", GET.to_owned()), ("two", GET.repeat(2)), ("a body", POST.to_owned()), ("both", format!("{POST}{GET}"))]
    {
        let count = requests.matches("HTTP/1.1").count();
        let mut whole = server.connect().await;
        whole.send(&requests).await;
        let mut half = server.connect().await;
        half.send(&format!("{requests}GET / HT")).await;
        for client in [&mut whole, &mut half] {
            for _ in 0..count {
                assert_eq!(client.answer().await.expect("an answer").1, "ok", "{what}");
            }
        }
        half.assert_ends_after(what, 10 * SECOND).await;
        sleep(MINUTE).await;
        assert_eq!(whole.get("/").await.as_deref(), Some("ok"), "{what}: idle is idle");
    }
    // While a request is active, in pieces.
    let mut client = server.connect().await;
    client.send_get("/slow").await;
    sleep(SECOND).await;
    client.send(GET).await;
    sleep(SECOND).await;
    assert!(client.answer().await.is_some() && client.answer().await.is_some());
    sleep(MINUTE).await;
    client.send_get("/slow").await;
    sleep(SECOND).await;
    client.send("GET / HT").await;
    assert!(client.answer().await.is_some());
    client.assert_ends_after("half a head while a request was active", 10 * SECOND).await;
}

/// A client whose windows are these, and what sends requests on it.
async fn windows(server: &TestServer, bytes: u32) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(server.addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(bytes).initial_connection_window_size(1 << 20);
    let (send, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    send
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_http_2_is_active_until_its_last_byte_was_sent() {
    let server = TestServer::start(|options| options.max_connections = 1).await;
    let mut send = windows(&server, 65_535).await;
    let mut body = send.send_request(request("/some")).await.unwrap().into_body();
    assert!(body.frame().await.is_some());
    sleep(2 * SECOND).await;
    let mut other = server.connect().await;
    assert_eq!(other.get("/").await, None, "at the cap it is no idle connection");
    let draining = tokio::spawn(server.drain());
    sleep(2 * SECOND).await;
    assert!(!draining.is_finished());
    let rest = body.collect().await.expect("the whole answer").to_bytes();
    assert!(rest.len() > SOME - 65_535, "{}", rest.len());
    let (cut, took) = draining.await.unwrap();
    assert!(cut == 0 && took < 10 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn at_the_cap_half_bodies_and_many_closed_windows_make_room_over_http_2() {
    let post = [&b"\x83\x86\x04\x05/echo\x41\x04test"[..]].concat();
    let half = |i: u32| [frame(1, 4, i, &post), frame(0, 0, i, b"half")].concat();
    let bodies = [PREFACE, &frame(4, 0, 0, &[]), &half(1), &half(3)].concat();
    let zero = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let windows = [PREFACE, &zero, &frame(1, 5, 1, &head("/some")), &frame(1, 5, 3, &head("/some"))].concat();
    let worked_on = [PREFACE, &zero, &frame(1, 5, 1, &head("/endless")), &half(3)].concat();
    for (what, input) in [("bodies", bodies), ("windows", windows)] {
        let server = TestServer::start(|options| options.max_connections = 20).await;
        let mut busy = Vec::new();
        for _ in 0..2 {
            busy.push(http2_with(&server, &worked_on).await);
        }
        let mut all = Vec::new();
        for _ in 2..20 {
            all.push(http2_with(&server, &input).await);
        }
        sleep(SECOND / 2).await;
        let mut good = server.connect_and_get().await;
        assert_eq!(good.get("/").await.as_deref(), Some("ok"), "{what}");
        let (_, took) = all[0].until_closed().await;
        assert!(took <= SECOND / 10, "{what}: {took:?}");
        for client in &mut busy {
            let alive = tokio::time::timeout(SECOND, client.until_closed()).await;
            assert!(alive.is_err(), "{what}: a request is worked on");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_answers_that_wait_for_windows_makes_room_without_delay() {
    for window in [0_u32, 1, 65_535] {
        let settings = frame(4, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat());
        let input = [PREFACE, &settings, &frame(1, 5, 1, &head("/some"))].concat();
        let server = TestServer::start(|options| options.max_connections = 20).await;
        let mut flood = Vec::new();
        let begun = Instant::now();
        for i in 0..200 {
            flood.push(http2_with(&server, &input).await);
            if i % 20 == 19 {
                assert_eq!(server.connect_and_get().await.get("/").await.as_deref(), Some("ok"), "{window}");
            }
        }
        assert!(begun.elapsed() < 4 * SECOND, "a second for each score of them is too long: {window}, {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_readers_who_wait_for_windows_those_make_room_who_take_nothing() {
    let server = TestServer::start(|options| options.max_connections = 20).await;
    let zero = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let input = [PREFACE, &zero, &frame(1, 5, 1, &head("/some"))].concat();
    // The oldest: one that takes its answer in pieces, and one that takes a byte at a time.
    let (mut steady, mut trickle) = (http2_with(&server, &input).await, http2_with(&server, &input).await);
    let mut stalled = Vec::new();
    sleep(SECOND).await;
    for _ in 2..20 {
        stalled.push(http2_with(&server, &input).await);
    }
    for _ in 0..6 {
        sleep(SECOND / 2).await;
        for (client, window) in [(&mut steady, 16_384_u32), (&mut trickle, 1)] {
            client.0.write_all(&frame(8, 0, 1, &window.to_be_bytes())).await.unwrap();
        }
    }
    sleep(SECOND / 4).await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(server.connect_and_get().await);
        all.last_mut().unwrap().send_get("/endless").await;
    }
    for client in stalled[..3].iter_mut().chain([&mut trickle]) {
        let (_, took) = client.until_closed().await;
        assert!(took <= SECOND / 10, "{took:?}");
    }
    let alive = tokio::time::timeout(SECOND, steady.until_closed()).await;
    assert!(alive.is_err(), "who takes what it can is kept");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_data_and_no_window_is_reset_and_the_others_go_on() {
    for window in [0, 1, 65_535] {
        let server = TestServer::start(|_| {}).await;
        let mut send = windows(&server, window).await;
        let begun = Instant::now();
        let stalled = send.send_request(request("/some")).await.unwrap().into_body();
        let mut quiet = tokio::spawn(send.send_request(request("/endless")));
        sleep(29 * SECOND).await;
        assert_eq!(send.send_request(request("/close")).await.unwrap().status(), 200, "an answer without a body");
        sleep(2 * SECOND).await;
        let error = stalled.collect().await.expect_err("reset");
        assert!(format!("{error:?}").contains("CANCEL"), "{window}: {error:?}");
        assert!(tokio::time::timeout(HOUR, &mut quiet).await.is_err(), "nothing to send is no stall: {:?}", begun.elapsed());
        assert_eq!(send.send_request(request("/close")).await.unwrap().status(), 200, "{window}: the connection lives");
        quiet.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_have_nothing_to_send_stop_no_other_request_and_those_that_wait_for_windows_do() {
    let server = TestServer::start(|_| {}).await;
    for (window, is_answered) in [(65_535, true), (0, false)] {
        let mut send = windows(&server, window).await;
        let mut streams = Vec::new();
        for _ in 0..40 {
            let answer = tokio::time::timeout(SECOND, send.send_request(request("/quiet"))).await;
            let Ok(answer) = answer else { break };
            let mut body = answer.unwrap().into_body();
            let mut bytes = 0;
            while window > 0 && bytes < QUIET {
                bytes += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
            streams.push(body);
        }
        // 26 frames of 20 KiB are more than a connection may hold.
        assert_eq!(streams.len(), if is_answered { 40 } else { 26 });
        let answer = tokio::time::timeout(SECOND, send.send_request(request("/close"))).await;
        assert_eq!(answer.is_ok_and(|answer| answer.is_ok()), is_answered, "{window}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_that_opens_slowly_is_no_stall() {
    let server = TestServer::start(|_| {}).await;
    let window = |bytes: u32| frame(4, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat());
    let mut slow = http2_with(&server, &[PREFACE, &window(0), &frame(1, 5, 1, &head("/some"))].concat()).await;
    for _ in 0..5 {
        sleep(20 * SECOND).await;
        slow.0.write_all(&frame(8, 0, 1, &1_u32.to_be_bytes())).await.unwrap();
    }
    sleep(20 * SECOND).await;
    let mut frames = Frames::default();
    frames.read(&mut slow).await;
    assert!(frames.0.iter().filter(|(kind, ..)| *kind == 0).count() == 5, "{frames:?}");
    assert!(!frames.0.iter().any(|(kind, ..)| *kind == 3), "{frames:?}");
    sleep(11 * SECOND).await;
    frames.read(&mut slow).await;
    assert!(frames.0.iter().any(|(kind, stream, _)| (*kind, *stream) == (3, 1)), "{frames:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_heads_may_hold_more_than_its_share_is_replaced_and_a_flood_is_closed() {
    // One connection of four has the share of all.
    let server = TestServer::start(|options| options.max_connections = 4).await;
    // `x: 0...`, 8,000 bytes never indexed, beside what the table stores.
    let large = [&head("/close")[..], b"\x10\x01x\x7f\xc1\x3d", &[b'0'; 8_000]].concat();
    let goaway = |frames: &Frames| frames.0.iter().any(|(kind, ..)| *kind == 7);
    let answers = |frames: &Frames| frames.0.iter().filter(|(kind, stream, _)| *kind == 1 && *stream > 0).count();
    let settings = [PREFACE, &frame(4, 0, 0, &[])].concat();

    let mut client = http2_with(&server, &settings).await;
    let mut frames = Frames::default();
    let mut sent = 0;
    while !goaway(&frames) {
        client.0.write_all(&frame(1, 5, 2 * sent + 1, &large)).await.unwrap();
        sent += 1;
        frames.read(&mut client).await;
        assert!(sent < 20, "{frames:?}");
    }
    assert_eq!((sent, answers(&frames)), (11, 11), "above 80 KiB, and no request is lost: {frames:?}");

    let mut client = http2_with(&server, &settings).await;
    let flood: Vec<u8> = (0..90).flat_map(|n| frame(1, 5, 2 * n + 1, &large)).collect();
    let _ = client.0.write_all(&flood).await;
    let (_, took) = client.until_closed().await;
    assert!(took < 2 * SECOND, "{took:?}");
    assert_eq!(server.connect_and_get().await.get("/").await.as_deref(), Some("ok"));
}

#[tokio::test(start_paused = true)]
async fn requests_that_h2_refuses_by_itself_are_counted_and_no_others_are() {
    let preface = [PREFACE, &frame(4, 0, 0, &[])].concat();
    let twice = [&head("/")[..], b"\x82"].concat();
    let connection = [&head("/")[..], b"\x00\x0aconnection\x05close"].concat();
    let upper = [&head("/")[..], b"\x00\x01X\x011"].concat();
    let reset = |stream: u32| frame(3, 0, stream, &8_u32.to_be_bytes());
    let bad = StatusCode::BAD_REQUEST;
    let field = [&b"\x00\x01x\x7f\x81\x7c"[..], &[b'0'; 16_000]].concat();
    let mut large = frame(1, 1, 1, &head("/"));
    for i in 0..5 {
        large.extend(frame(9, if i == 4 { 4 } else { 0 }, 1, &field));
    }
    let many = |count: u32| (0..count).flat_map(|i| frame(1, 5, 2 * i + 1, &head("/endless"))).collect::<Vec<_>>();
    for (what, frames, expected) in [
        ("two methods", frame(1, 5, 1, &twice), vec![bad]),
        ("a field of HTTP/1", [frame(1, 5, 1, &connection), frame(1, 5, 3, &connection)].concat(), vec![bad, bad]),
        // It ends the connection, and with it the request before that is not accepted yet.
        ("upper case", [frame(1, 5, 1, &head("/")), frame(1, 5, 3, &upper)].concat(), vec![bad, bad]),
        ("no stream of a client", frame(1, 5, 2, &head("/")), vec![bad]),
        ("a large head", large, vec![StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE]),
        ("streams beyond the limit", many(103), vec![StatusCode::SERVICE_UNAVAILABLE; 3]),
        ("good ones", many(100), vec![]),
        ("one that is taken back", [frame(1, 5, 1, &head("/")), reset(1), frame(1, 5, 3, &head("/"))].concat(), vec![]),
        ("trailers", [frame(1, 4, 1, &head("/")), frame(1, 5, 1, b"\x00\x01x\x011")].concat(), vec![]),
    ] {
        let server = TestServer::start(|options| options.max_connections = 1000).await;
        let mut client = http2_with(&server, &[preface.clone(), frames].concat()).await;
        Frames::default().read(&mut client).await;
        assert_eq!(*server.refused.lock().unwrap(), expected, "{what}");
        let _ = client.0.write_all(&frame(6, 0, 0, &[0; 8])).await;
        Frames::default().read(&mut client).await;
        assert_eq!(*server.refused.lock().unwrap(), expected, "{what}, counted once");
    }
}

/// Kind and stream of the frames that came, and how long each payload is.
#[derive(Debug, Default)]
struct Frames(Vec<(u8, u32, usize)>);

impl Frames {
    /// Reads what there is.
    async fn read(&mut self, client: &mut Client) {
        let mut header = [0; 9];
        while tokio::time::timeout(SECOND / 10, client.0.read_exact(&mut header)).await.is_ok_and(|read| read.is_ok()) {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            client.0.read_exact(&mut vec![0; length]).await.unwrap();
            self.0.push((header[3], u32::from_be_bytes([header[5], header[6], header[7], header[8]]), length));
        }
    }
}
