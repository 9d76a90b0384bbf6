//! The short forms of `scripts/attack.sh`: many clients that keep what they began unfinished, at the cap of connections, beside one that
//! behaves and never fails.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::common::http2::{Frame, GET, PREFACE, literal};
use crate::common::tls::Secure;
use crate::common::{Hop, PATIENCE, exchange, read_answer};

const CAP: &str = "48";
const ATTACKERS: usize = 150;

fn http2(settings: &[u8], frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &Frame::bytes(Frame::SETTINGS, 0, 0, settings), &frames.concat()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_a_request_or_an_answer_unfinished_at_the_cap_takes_no_place_from_others() {
    let head = |method: &[u8], path: &str| [method, &literal(":path", path), &literal(":authority", "hop")].concat();
    let closed = [0, 4, 0, 0, 0, 0];
    let whole = Frame::END_STREAM | Frame::END_HEADERS;
    let get = |stream| Frame::bytes(Frame::HEADERS, whole, stream, &head(GET, "/headers"));
    let post = |stream| Frame::bytes(Frame::HEADERS, Frame::END_HEADERS, stream, &head(b"\x83\x86", "/service1"));
    let data = |stream| Frame::bytes(Frame::DATA, 0, stream, b"half");
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("half a head", b"GET / HTTP/1.1\r\nhost: hop\r\nx: y".to_vec()),
        ("half a body", b"POST /service1 HTTP/1.1\r\nhost: hop\r\ncontent-length: 9\r\n\r\nhalf".to_vec()),
        ("half a chunk", b"POST /hello HTTP/1.1\r\nhost: hop\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf".to_vec()),
        ("a preface", http2(&[], &[])),
        ("half a head of HTTP/2", http2(&[], &[Frame::bytes(Frame::HEADERS, Frame::END_STREAM, 1, &head(GET, "/"))])),
        ("half bodies of HTTP/2", http2(&[], &[post(1), data(1), post(3), data(3)])),
        ("closed windows", http2(&closed, &[get(1), get(3)])),
        ("half bodies and closed windows", http2(&closed, &[post(1), data(1), get(3)])),
    ] {
        let hop = Hop::start(&["--max-connections", CAP], &[]);
        let mut attackers = Vec::new();
        for i in 0..ATTACKERS {
            let mut attacker = TcpStream::connect(hop.addr).await.unwrap();
            attacker.write_all(&bytes).await.unwrap();
            attackers.push(attacker);
            if i % 10 == 9 {
                let answer = exchange(hop.addr, b"GET /hello HTTP/1.1\r\nhost: hop\r\nconnection: close\r\n\r\n").await;
                assert_eq!(answer.status, 200, "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_handshakes_at_the_cap_take_no_place_from_others() {
    /// The header of a record of 512 bytes with a handshake, and the beginning of a ClientHello.
    const HALF_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let secure = Secure::start("half-handshakes", &["--max-connections", CAP]);
    let mut attackers = Vec::new();
    for i in 0..ATTACKERS {
        let mut attacker = TcpStream::connect(secure.hop.addr).await.unwrap();
        attacker.write_all(HALF_HELLO).await.unwrap();
        attackers.push(attacker);
        if i % 15 == 14 {
            let (status, _) = secure.get("/hello", None).await.expect("an answer");
            assert_eq!(status, 200);
        }
    }
}

/// A server that answers every connection with interim answers without end.
async fn endless_interim_answers() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(2000);
                let _ = stream.read(&mut [0; 4096]).await;
                while stream.write_all(&interim).await.is_ok() {}
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_hop_that_sends_interim_answers_without_end_stops_nobody() {
    let endless = format!("http://{}", endless_interim_answers().await);
    let hop = Hop::start(&["--upstream", &endless, "--upstream-timeout", "500ms"], &[]);
    let call = async {
        let answer = exchange(hop.addr, b"GET /service1 HTTP/1.1\r\nhost: hop\r\n\r\n").await;
        assert!([502, 504].contains(&answer.status), "{}", answer.status);
    };
    let hello = async {
        let mut kept = TcpStream::connect(hop.addr).await.unwrap();
        for _ in 0..5 {
            kept.write_all(b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
            let answer = tokio::time::timeout(PATIENCE, read_answer(&mut kept, false)).await.expect("in time");
            assert_eq!(answer.expect("an answer").status, 200);
        }
    };
    tokio::join!(call, hello);
}
