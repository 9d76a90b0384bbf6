//! What lasts: `/stream`, `/ws` and `Chain/Stream`; their limits, their places, and how they end.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use h2::RecvStream;
use http::Request;
use httpserver::server::shutdown::Stop;
use prost::Message as _;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tonic::{Code, Status};

use crate::common::{Answer, Hop, InProcess, PATIENCE, eventually, exchange, read_answer};
use crate::grpc::framed;
use crate::grpc::messages::{Reply, StreamRequest};
use crate::tls::{Files, Secure, authority, issued};

const STREAM: &str = "/httpserver.v1.Chain/Stream";
const TRACE: (&str, &str) = ("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01");

/// The events of a body: id, kind and data.
fn events(body: &str) -> Vec<(String, String, Value)> {
    let field = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_default().to_owned()
    };
    let events = body.split("\n\n").filter(|event| event.contains("data: "));
    events.map(|event| (field(event, "id"), field(event, "event"), field(event, "data").parse().unwrap())).collect()
}

/// The replies of one stream over gRPC.
struct Replies {
    body: RecvStream,
    read: BytesMut,
    status: Option<Status>,
}

impl Replies {
    async fn ask(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        metadata: &[(&str, &str)],
        ask: StreamRequest,
    ) -> Self {
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::post(format!("http://localhost{STREAM}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        let (response, mut sending) = client.send_request(request.body(()).unwrap(), false).unwrap();
        sending.send_data(framed(&ask), true).unwrap();
        let (head, body) = response.await.unwrap().into_parts();
        Self { body, read: BytesMut::new(), status: Status::from_header_map(&head.headers) }
    }

    async fn of(hop: &Hop, metadata: &[(&str, &str)], count: u32, interval_ms: u32) -> Self {
        let ask = StreamRequest { count: Some(count), interval_ms: Some(interval_ms) };
        Self::ask(TcpStream::connect(hop.addr).await.unwrap(), metadata, ask).await
    }

    /// `None`: the stream has ended, with its status.
    async fn next(&mut self) -> Option<Reply> {
        loop {
            let whole = self.read.get(1..5).map(|length| 5 + u32::from_be_bytes(length.try_into().unwrap()) as usize);
            if let Some(whole) = whole.filter(|whole| self.read.len() >= *whole) {
                return Some(Reply::decode(&self.read.split_to(whole)[5..]).unwrap());
            }
            match timeout(PATIENCE, self.body.data()).await.expect("a message, or the end") {
                Some(data) => {
                    let data = data.unwrap();
                    self.body.flow_control().release_capacity(data.len()).unwrap();
                    self.read.extend_from_slice(&data);
                }
                None => {
                    let trailers = self.body.trailers().await.unwrap();
                    self.status = self.status.take().or_else(|| Status::from_header_map(&trailers?));
                    return None;
                }
            }
        }
    }

    async fn rest(mut self) -> (Vec<Reply>, Status) {
        let mut replies = Vec::new();
        while let Some(reply) = self.next().await {
            replies.push(reply);
        }
        (replies, self.status.expect("every stream ends with a status"))
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn websocket(hop: &Hop, headers: &[(&'static str, &str)]) -> Result<Socket, SocketError> {
    let mut request = format!("ws://{}/ws", hop.addr).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    client_async(request, TcpStream::connect(hop.addr).await.unwrap()).await.map(|(socket, _)| socket)
}

async fn next(socket: &mut Socket) -> Message {
    timeout(PATIENCE, socket.next()).await.expect("a message").expect("the socket is open").unwrap()
}

async fn text(socket: &mut Socket) -> Value {
    next(socket).await.to_text().unwrap().parse().unwrap()
}

/// The code and reason that the hop closes with.
async fn closed(socket: &mut Socket) -> (CloseCode, String) {
    match next(socket).await {
        Message::Close(Some(frame)) => (frame.code, frame.reason.to_string()),
        other => panic!("{other:?}"),
    }
}

/// Reads the head and the first event of `/stream`, and leaves the rest.
async fn event_stream(hop: &Hop, query: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(hop.addr).await.unwrap();
    stream.write_all(format!("GET /stream?{query} HTTP/1.1\r\nhost: hop\r\n\r\n").as_bytes()).await.unwrap();
    let mut read = String::new();
    while !read.contains("\n\n\r\n") {
        let mut bytes = [0; 4096];
        let count = timeout(PATIENCE, stream.read(&mut bytes)).await.expect("the first event").unwrap();
        assert!(count > 0, "{read}");
        read.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    (stream, read)
}

async fn rest(mut stream: TcpStream) -> String {
    let mut rest = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut rest)).await.expect("the stream ends").unwrap();
    rest
}

#[tokio::test]
async fn events_are_replies_of_the_hop_and_their_end_is_an_event() {
    let hop = Hop::start(&["--name", "service1", "--upstream", "http://127.0.0.1:1"], &[]);
    let answer = hop.get("/stream?count=3&interval=10ms", &[TRACE, ("x-request-id", "r-1"), ("x-lane", "gray")]).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    let events = events(&answer.text());
    let (end, replies) = events.split_last().unwrap();
    for (n, (id, kind, reply)) in replies.iter().enumerate() {
        assert_eq!((id, kind), (&(n + 1).to_string(), &String::new()));
        assert_eq!(
            (&reply["service"], &reply["path"], &reply["protocol"]),
            (&json!("service1"), &json!("/stream"), &json!("http/1.1"))
        );
        assert_eq!((&reply["trace_id"], &reply["request_id"]), (&json!("463ac35c9f6413ad48485a3953bb6124"), &json!("r-1")));
        assert_eq!(reply["received"]["x-lane"], json!(["gray"]));
        assert_eq!(reply["upstreams"], json!([]), "no next hop is called");
    }
    assert_eq!(replies.len(), 3);
    assert_eq!(end, &(String::new(), "end".to_owned(), json!({"reason": "complete", "sent": 3, "count": 3})));
    let line = hop.access_line("r-1").await;
    assert!(line.contains("\"GET /stream\" 200"), "{line}");
}

#[tokio::test]
async fn a_stream_over_grpc_sends_replies_and_ends_with_a_status() {
    let hop = Hop::start(&["--name", "service1"], &[]);
    let (replies, status) = Replies::of(&hop, &[TRACE, ("x-request-id", "r-1")], 3, 10).await.rest().await;
    assert_eq!((replies.len(), status.code()), (3, Code::Ok));
    for reply in &replies {
        assert_eq!((&*reply.service, &*reply.path, reply.protocol.as_deref()), ("service1", STREAM, Some("grpc")));
        assert_eq!(reply.trace_id.as_deref(), Some("463ac35c9f6413ad48485a3953bb6124"));
    }
    let line = hop.access_line("r-1").await;
    assert!(line.contains("grpc=OK"), "{line}");
    eventually("the stream is counted", || async {
        let labels = [("rpc_method", "httpserver.v1.Chain/Stream"), ("rpc_response_status_code", "OK")];
        (hop.metrics().await.sum("rpc_server_call_duration_seconds_count", &labels) == 1.0).then_some(())
    })
    .await;
    // Without fields: ten, a second apart.
    let stream = TcpStream::connect(hop.addr).await.unwrap();
    let mut replies = Replies::ask(stream, &[("grpc-timeout", "300m"), ("x-request-id", "r-2")], StreamRequest::default()).await;
    assert!(replies.next().await.is_some(), "the first comes at once");
    let (rest, status) = replies.rest().await;
    assert_eq!((rest.len(), status.code()), (0, Code::DeadlineExceeded));
    assert!(status.message().contains("1 of 10"), "{status:?}");
    let line = hop.access_line("r-2").await;
    assert!(line.contains("grpc=DEADLINE_EXCEEDED"), "{line}");
}

#[tokio::test]
async fn grpc_over_tls_calls_streams_and_is_a_seam() {
    let secure = Secure::start("grpcs", &["--name", "service2"]);
    let tls = secure.connect(&[b"h2"], None).await.unwrap();
    let ask = StreamRequest { count: Some(2), interval_ms: Some(0) };
    let (replies, status) = Replies::ask(tls, &[], ask).await.rest().await;
    assert_eq!((replies.len(), status.code(), &*replies[1].service), (2, Code::Ok, "service2"));
    let (url, ca) = (format!("grpcs://localhost:{}", secure.hop.addr.port()), secure.files.path("ca.crt"));
    let front = Hop::start(&["--upstream", &url, "--upstream-ca", &ca], &[]);
    let (status, reply) = front.json("/service1", &[TRACE]).await;
    let call = &reply["upstreams"][0];
    assert_eq!((status, &call["protocol"], &call["reply"]["protocol"]), (200, &json!("grpc"), &json!("grpc")), "{reply}");
    assert_eq!(call["reply"]["received"]["traceparent"], json!([TRACE.1]));
    assert_eq!(call["url"], format!("{url}/service2"));
    // Nobody vouches for its certificate, and a server without TLS.
    let distrusting = Hop::start(&["--upstream", &url], &[]);
    let (status, reply) = distrusting.json("/service1", &[]).await;
    assert_eq!(status, 502);
    assert!(reply["upstreams"][0]["error"].as_str().unwrap().contains("certificate"), "{reply}");
    let plain = Hop::start(&["--upstream", &format!("grpcs://{}", front.addr)], &[]);
    assert_eq!(plain.json("/service1", &[]).await.0, 502);
}

#[tokio::test]
async fn without_alpn_the_first_bytes_within_tls_decide() {
    let secure = Secure::start("no-alpn", &["--name", "service2"]);
    let ask = || StreamRequest { count: Some(2), interval_ms: Some(0) };
    let silent = secure.connect(&[], None).await.unwrap();
    let (replies, status) = Replies::ask(silent, &[], ask()).await.rest().await;
    assert_eq!((replies.len(), status.code(), replies[1].protocol.as_deref()), (2, Code::Ok, Some("grpc")));
    let http1 = b"GET /hello HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let first: [&[&[u8]]; 2] = [&[], &[b"http/1.1"]];
    for alpn in first {
        let mut stream = secure.connect(alpn, None).await.unwrap();
        stream.write_all(http1).await.unwrap();
        let mut read = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("an end").unwrap();
        assert!(read.starts_with(b"HTTP/1.1 200 OK"), "{alpn:?}: {}", String::from_utf8_lossy(&read));
    }
    // Who has agreed on HTTP/1.1 is held to it.
    let mut stream = secure.connect(&[b"http/1.1"], None).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("an end");
    assert!(read.is_empty() || read.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&read));
}

#[tokio::test]
async fn a_next_hop_without_alpn_is_named_as_no_server_of_grpc() {
    let (files, authority) = (Files::new("server-no-alpn"), authority("test"));
    let (cert, key) = issued(&authority, "localhost");
    let ca = files.write("ca.crt", &authority.pem());
    for (alpn, says) in [(vec![], "no HTTP/2 by ALPN"), (vec![b"http/1.1".to_vec()], "NoApplicationProtocol")] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("grpcs://localhost:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
            }
        });
        let front = Hop::start(&["--upstream", &url, "--upstream-ca", &ca], &[]);
        let (status, reply) = front.json("/service1", &[]).await;
        let error = reply["upstreams"][0]["error"].as_str().unwrap();
        assert_eq!(status, 502);
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_websocket_tells_its_handshake_and_echoes() {
    let hop = Hop::start(&["--name", "service1"], &[]);
    let own_origin = format!("http://{}", hop.addr);
    let headers = [TRACE, ("x-request-id", "r-1"), ("origin", &own_origin), ("authorization", "Bearer x")];
    let mut socket = websocket(&hop, &headers).await.unwrap();
    let reply = text(&mut socket).await;
    assert_eq!((&reply["service"], &reply["status"], &reply["request_id"]), (&json!("service1"), &json!(101), &json!("r-1")));
    assert_eq!(reply["received"]["traceparent"], json!([TRACE.1]));
    assert!(reply["client"]["ip"].is_string(), "{reply}");
    for message in [Message::text("grün"), Message::binary(vec![0xff; 16 << 10]), Message::text("")] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut socket).await, message);
    }
    socket.send(Message::Ping(Bytes::from_static(b"p"))).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong(Bytes::from_static(b"p")));
    socket.close(None).await.unwrap();
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
    let line = hop.access_line("r-1").await;
    assert!(line.contains("\"GET /ws\" 101"), "{line}");
    // Whoever is gone without a word was not answered to the end.
    let mut gone = websocket(&hop, &[("x-request-id", "r-2")]).await.unwrap();
    text(&mut gone).await;
    drop(gone);
    assert!(hop.access_line("r-2").await.contains("\"GET /ws\" 499"));
}

#[tokio::test]
async fn what_is_no_websocket_is_refused_and_what_is_too_much_is_closed() {
    let hop = Hop::start(&[], &[]);
    let plain = hop.get("/ws", &[]).await;
    plain.assert_problem(426);
    assert_eq!((plain.header("upgrade"), plain.header("sec-websocket-version")), (Some("websocket"), Some("13")));
    let handshake = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];
    hop.get("/ws", &handshake).await.assert_problem(426);
    let old = [&handshake[..], &[("sec-websocket-version", "8")]].concat();
    hop.get("/ws", &old).await.assert_problem(426);
    hop.request("POST", "/ws", &[&handshake[..], &[("content-length", "0")]].concat()).await.assert_problem(405);
    for origin in ["http://elsewhere.example", "null", &format!("http://{}:1", hop.addr.ip())] {
        match websocket(&hop, &[("origin", origin)]).await {
            Err(SocketError::Http(answer)) => assert_eq!(answer.status(), 403, "{origin}"),
            other => panic!("{origin}: {other:?}"),
        }
    }
    let sends = async |frames: &[u8]| {
        let mut socket = websocket(&hop, &[]).await.unwrap();
        text(&mut socket).await;
        socket.get_mut().write_all(frames).await.unwrap();
        closed(&mut socket).await.0
    };
    let masked = |first: u8, length: &[u8], payload: &[u8]| [&[first], length, &[0; 4], payload].concat();
    // A length that is only announced; one that several frames add up to.
    assert_eq!(sends(&masked(0x82, &[0xfe, 0x40, 0x01], &[])).await, CloseCode::Size);
    assert_eq!(sends(&masked(0x82, &[0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0], &[])).await, CloseCode::Size);
    let half = masked(0x02, &[0xfe, 0x30, 0x00], &[0; 0x3000]);
    assert_eq!(sends(&[half, masked(0x80, &[0xfe, 0x30, 0x00], &[0; 0x3000])].concat()).await, CloseCode::Size);
    assert_eq!(sends(&masked(0x81, &[0x81], b"\xff")).await, CloseCode::Invalid);
    for no_frame in
        [&[0x81, 0x01, b'x'][..], &masked(0x83, &[0x80], b""), &masked(0xf1, &[0x80], b""), &masked(0x09, &[0x80], b"")]
    {
        assert_eq!(sends(no_frame).await, CloseCode::Protocol, "{no_frame:?}");
    }
    // Frames that come with the handshake.
    let head = "GET /ws HTTP/1.1\r\nhost: hop\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut stream = TcpStream::connect(hop.addr).await.unwrap();
    stream.write_all(&[head.as_bytes(), &masked(0x81, &[0x82], b"ab"), &masked(0x88, &[0x80], b"")].concat()).await.unwrap();
    let Answer { status, .. } = read_answer(&mut stream, true).await.unwrap();
    assert_eq!(status, 101);
    let mut frames = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut frames)).await.expect("the hop closes").unwrap();
    assert!(frames.ends_with(b"\x81\x02ab\x88\x00"), "{frames:?}");
}

/// A frame as clients send them, with a mask that changes nothing: of fewer than 126 bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

#[tokio::test]
async fn the_close_of_a_websocket_is_echoed_and_what_breaks_the_protocol_has_its_code() {
    let hop = Hop::start(&[], &[]);
    let close = |code: u16, reason: &[u8]| frame(0x88, &[&code.to_be_bytes(), reason].concat());
    let ends = async |id: &str, frames: &[u8]| {
        let mut socket = websocket(&hop, &[("x-request-id", id)]).await.unwrap();
        text(&mut socket).await;
        socket.get_mut().write_all(frames).await.unwrap();
        let mut read = Vec::new();
        timeout(PATIENCE, socket.get_mut().read_to_end(&mut read)).await.expect("the hop closes").unwrap();
        // The answers before the close frame are short, too.
        let mut rest = &read[..];
        while rest.len() > 2 && rest[0] != 0x88 {
            rest = &rest[2 + usize::from(rest[1])..];
        }
        let [0x88, length, payload @ ..] = rest else { panic!("{id}: no close frame: {read:?}") };
        assert_eq!(payload.len(), usize::from(*length), "{id}: nothing after the close frame: {read:?}");
        let (code, reason) = payload.split_at_checked(2).unwrap_or_default();
        (code.try_into().ok().map(u16::from_be_bytes), String::from_utf8(reason.to_vec()).unwrap())
    };
    // What may be sent comes back; what a frame may not say is an error.
    for (code, reason) in [(1000, "bye"), (1001, ""), (1008, "over"), (1011, "grün"), (3000, ""), (4999, "own")] {
        let id = format!("r-{code}");
        assert_eq!(ends(&id, &close(code, reason.as_bytes())).await, (Some(code), reason.to_owned()));
        assert!(hop.access_line(&id).await.contains("\"GET /ws\" 101"), "{code}");
    }
    assert_eq!(ends("r-empty", &frame(0x88, b"")).await, (None, String::new()));
    for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
        assert_eq!(ends("r-no-code", &close(code, b"")).await.0, Some(1002), "{code}");
    }
    // After its close frame a peer is not answered.
    let after = [close(1000, b""), frame(0x81, b"late")].concat();
    assert_eq!(ends("r-late", &after).await.0, Some(1000));
    let table: [(&str, Vec<u8>, u16); 15] = [
        ("a close frame of one byte", frame(0x88, b"x"), 1002),
        ("a reason that is not UTF-8", close(1000, b"\xff"), 1007),
        ("text that is not UTF-8", frame(0x81, b"a\xc3("), 1007),
        ("text that ends within a character", frame(0x81, b"gr\xc3"), 1007),
        ("the same over two frames", [frame(0x01, b"gr\xc3"), frame(0x80, b"(")].concat(), 1007),
        ("a surrogate", frame(0x81, b"\xed\xa0\x80"), 1007),
        ("a continuation of nothing", frame(0x80, b"x"), 1002),
        ("a message within a message", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
        ("a reserved opcode of data", frame(0x83, b""), 1002),
        ("a reserved opcode of control", frame(0x8b, b""), 1002),
        ("a reserved bit", frame(0xc1, b""), 1002),
        ("a ping in pieces", frame(0x09, b""), 1002),
        ("a close in pieces", frame(0x08, b""), 1002),
        ("a ping of 126 bytes", [&[0x89, 0xfe, 0, 126, 0, 0, 0, 0][..], &[b'x'; 126]].concat(), 1002),
        ("a frame without a mask", vec![0x81, 1, b'x'], 1002),
    ];
    for (what, frames, code) in table {
        assert_eq!(ends(what, &frames).await.0, Some(code), "{what}");
        // What came before is answered all the same.
        assert_eq!(ends(what, &[frame(0x81, b"before"), frames].concat()).await.0, Some(code), "{what}");
    }
    // A character and a ping between two frames are none of these.
    let pieces = [frame(0x01, b"gr\xc3"), frame(0x89, b"p"), frame(0x80, b"\xbcn"), close(1000, b"")].concat();
    let mut socket = websocket(&hop, &[]).await.unwrap();
    text(&mut socket).await;
    socket.get_mut().write_all(&pieces).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong(Bytes::from_static(b"p")));
    assert_eq!(next(&mut socket).await, Message::text("grün"));
    assert_eq!(closed(&mut socket).await.0, CloseCode::Normal);
}

#[tokio::test]
async fn a_websocket_has_ten_thousand_messages() {
    let hop = Hop::start(&[], &[]);
    let mut socket = websocket(&hop, &[]).await.unwrap();
    text(&mut socket).await;
    for n in 0..10_000_u32 {
        socket.send(Message::binary(n.to_be_bytes().to_vec())).await.unwrap();
        assert_eq!(next(&mut socket).await.into_data()[..], n.to_be_bytes());
    }
    assert_eq!(closed(&mut socket).await, (CloseCode::Policy, "10000 messages".to_owned()));
    let all = hop.get("/stream?count=10000&interval=0", &[]).await;
    assert_eq!(events(&all.text()).len(), 10_001);
}

#[tokio::test]
async fn streams_of_another_length_are_refused() {
    let hop = Hop::start(&[], &[]);
    for query in ["count=0", "count=10001", "interval=x", "count=10000&interval=1s"] {
        hop.get(&format!("/stream?{query}"), &[]).await.assert_problem(400);
    }
    for (count, interval) in [(0, 1), (10_001, 0), (2, 3_600_000)] {
        let (replies, status) = Replies::of(&hop, &[], count, interval).await.rest().await;
        assert_eq!((replies.len(), status.code()), (0, Code::InvalidArgument), "{count} {interval}");
    }
    hop.request("POST", "/stream", &[("content-length", "0")]).await.assert_problem(405);
    assert_eq!(hop.request("HEAD", "/stream", &[]).await.status, 200);
}

#[tokio::test]
async fn streams_have_places_of_their_own() {
    // An eighth: two.
    let hop = Hop::start(&["--max-concurrency", "16"], &[]);
    let mut replies = Replies::of(&hop, &[], 2, 1_800_000).await;
    replies.next().await.unwrap();
    let mut socket = websocket(&hop, &[]).await.unwrap();
    text(&mut socket).await;
    let refused = hop.get("/stream", &[]).await;
    refused.assert_problem(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(Replies::of(&hop, &[], 1, 0).await.rest().await.1.code(), Code::Unavailable);
    match websocket(&hop, &[]).await {
        Err(SocketError::Http(answer)) => assert_eq!(answer.status(), 503),
        other => panic!("{other:?}"),
    }
    assert_eq!(hop.get("/hello", &[]).await.status, 200, "a request has its own place");
    assert_eq!(hop.metrics().await.sum("httpserver_requests_shed_total", &[("reason", "streams")]), 3.0);
    socket.close(None).await.unwrap();
    drop(replies);
    for _ in 0..2 {
        // A place is free when its stream has ended, however it has.
        eventually("the place is free", || async { (hop.get("/stream?count=1", &[]).await.status == 200).then_some(()) }).await;
    }
    // Nor do requests take the places of streams.
    let busy = Hop::start(&["--max-concurrency", "1", "--latency", "1h"], &[]);
    let addr = busy.addr;
    // Until it has the place: a request that asks whether the place is taken may have it at that moment.
    let waits =
        tokio::spawn(async move { while exchange(addr, b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await.status == 503 {} });
    eventually("the only place is taken", || async { (busy.get("/headers", &[]).await.status == 503).then_some(()) }).await;
    let (_, status) = Replies::of(&busy, &[("grpc-timeout", "50m")], 1, 0).await.rest().await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "it waits for the latency: {status:?}");
    waits.abort();
}

#[tokio::test]
async fn latency_and_faults_act_at_the_beginning_of_a_stream() {
    let broken = Hop::start(&["--fault", "abort=503@100%"], &[]);
    assert_eq!(broken.get("/stream", &[]).await.status, 503);
    assert_eq!(Replies::of(&broken, &[], 1, 0).await.rest().await.1.code(), Code::Unavailable);
    match websocket(&broken, &[]).await {
        Err(SocketError::Http(answer)) => assert_eq!(answer.status(), 503),
        other => panic!("{other:?}"),
    }
    let slow = Hop::start(&["--latency", "300ms"], &[]);
    for path in ["/stream?count=20&interval=0", "/ws"] {
        let begun = Instant::now();
        slow.get(path, &[]).await;
        assert!((300..3000).contains(&begun.elapsed().as_millis()), "{path}: once, {:?}", begun.elapsed());
    }
    assert_eq!(Replies::of(&slow, &[("grpc-timeout", "50m")], 1, 0).await.rest().await.1.code(), Code::DeadlineExceeded);
}

/// What comes of an event stream until its connection ends, and how it ends.
async fn whole_events(addr: std::net::SocketAddr) -> (String, std::io::Result<usize>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /stream?count=3&interval=0 HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    (String::from_utf8(bytes).unwrap(), ended)
}

#[tokio::test]
async fn a_limit_refuses_a_stream_before_it_begins() {
    let limited = || Hop::start(&["--fault", "limit=1/m"], &[]);
    let hop = limited();
    assert_eq!(hop.get("/stream?count=1&interval=0", &[]).await.status, 200);
    let refused = hop.get("/stream?count=1&interval=0", &[]).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("60")));
    let hop = limited();
    text(&mut websocket(&hop, &[]).await.unwrap()).await;
    match websocket(&hop, &[]).await {
        Err(SocketError::Http(answer)) => assert_eq!(answer.status(), 429),
        other => panic!("{other:?}"),
    }
    let hop = limited();
    assert_eq!(Replies::of(&hop, &[], 1, 0).await.rest().await.1.code(), Code::Ok);
    assert_eq!(Replies::of(&hop, &[], 1, 0).await.rest().await.1.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_reset_and_a_truncated_answer_cut_the_first_message_of_a_stream() {
    for (fault, is_reset) in [("reset", true), ("truncate", false)] {
        let hop = Hop::start(&["--fault", fault], &[]);
        let (events, ended) = whole_events(hop.addr).await;
        assert!(events.contains("200 OK") && events.contains("id: 1"), "{fault}: {events}");
        assert!(!events.contains("event: end") && !events.ends_with("\r\n0\r\n\r\n"), "{fault}: it looks whole: {events}");
        let kind = ended.as_ref().err().map(std::io::Error::kind);
        assert_eq!(kind, is_reset.then_some(std::io::ErrorKind::ConnectionReset), "{fault}: {ended:?}");
        let mut socket = websocket(&hop, &[("x-request-id", "r-ws")]).await.expect("the handshake is answered");
        let first = timeout(PATIENCE, socket.next()).await.expect("the socket ends");
        let error = match first {
            Some(Err(SocketError::Io(error))) => Some(error.kind()),
            Some(Err(SocketError::Protocol(_))) | None => None,
            other => panic!("{fault}: {other:?}"),
        };
        assert_eq!(error, is_reset.then_some(std::io::ErrorKind::ConnectionReset), "{fault}");
        assert!(hop.access_line("r-ws").await.contains("\"GET /ws\" 499"), "{fault}");
        let mut replies = Replies::of(&hop, &[], 3, 0).await;
        let ended = loop {
            match timeout(PATIENCE, replies.body.data()).await.expect("the call ends") {
                Some(Ok(data)) => replies.body.flow_control().release_capacity(data.len()).unwrap(),
                Some(Err(error)) => break Err(error),
                None => break replies.body.trailers().await,
            }
        };
        assert!(if is_reset { ended.is_err() } else { matches!(ended, Ok(None)) }, "{fault}: {ended:?}");
        let cut = [("error_type", "injected_fault")];
        eventually("all three are counted", async || {
            (hop.metrics().await.sum("http_server_request_duration_seconds_count", &cut) >= 2.0).then_some(())
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_hangs_never_begins_and_one_that_is_slow_begins_slowly() {
    const HOUR: Duration = Duration::from_secs(3600);
    let faulty = async |fault: &str| {
        let fault = fault.parse().unwrap();
        InProcess::start(|config| config.faults.faults = vec![fault]).await
    };
    let hop = faulty("hang").await;
    for path in ["/stream", "/ws"] {
        let mut stream = hop.connect().await;
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: hop\r\n{upgrade}\r\n").as_bytes()).await.unwrap();
        let begun = Instant::now();
        let mut first = [0];
        let _ = timeout(2 * HOUR, stream.read(&mut first)).await.expect("a place is not kept for ever");
        assert!(begun.elapsed() >= HOUR, "{path}: {:?}", begun.elapsed());
    }
    let hop = faulty("slow-body=100B/s").await;
    let begun = Instant::now();
    let (mut socket, _) = client_async(format!("ws://{}/ws", hop.addr), hop.connect().await).await.unwrap();
    let first = socket.next().await.unwrap().unwrap();
    let (length, took) = (first.len() as f64, begun.elapsed().as_secs_f64());
    assert!((length / 150.0..length / 50.0).contains(&took), "{length} bytes took {took} s");
}

#[tokio::test]
async fn a_close_comes_under_the_next_message_of_a_websocket() {
    let hop = Hop::start(&["--fault", "close"], &[]);
    let mut socket = websocket(&hop, &[]).await.unwrap();
    assert_eq!(text(&mut socket).await["status"], 101);
    socket.send(Message::text("next")).await.unwrap();
    let ended = timeout(PATIENCE, socket.get_mut().read(&mut [0])).await.expect("the connection ends");
    assert_eq!(ended.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_stream_brings_its_own_faults() {
    let hop = Hop::start(&["--name", "service1", "--request-faults", "on"], &[]);
    let (fault, delay) = (("x-fault", "service1:abort=418"), ("x-fault", "service1:delay=1ms"));
    assert_eq!(hop.get("/stream", &[fault]).await.status, 418);
    match websocket(&hop, &[fault]).await {
        Err(SocketError::Http(answer)) => assert_eq!(answer.status(), 418),
        other => panic!("{other:?}"),
    }
    assert_ne!(Replies::of(&hop, &[fault], 1, 0).await.rest().await.1.code(), Code::Ok);
    // What struck it is in its replies.
    let struck = json!({"delay_ms": 1});
    assert_eq!(text(&mut websocket(&hop, &[delay]).await.unwrap()).await["injected"], struck);
    let streamed = hop.get("/stream?count=1&interval=0", &[delay]).await;
    assert_eq!(events(&streamed.text())[0].2["injected"], struck);
    let (replies, status) = Replies::of(&hop, &[delay], 1, 0).await.rest().await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(replies[0].injected.as_ref().and_then(|injected| injected.delay_ms), Some(1));
    assert_eq!(hop.get("/stream?count=1&interval=0", &[]).await.status, 200);
}

#[tokio::test]
async fn a_drain_ends_every_stream_in_its_own_words() {
    let mut hop = Hop::start(&["--drain-delay", "0"], &[]);
    let mut replies = Replies::of(&hop, &[("x-request-id", "r-grpc")], 2, 1_800_000).await;
    replies.next().await.unwrap();
    let (stream, first) = event_stream(&hop, "count=2&interval=30m").await;
    let mut socket = websocket(&hop, &[("x-request-id", "r-ws")]).await.unwrap();
    text(&mut socket).await;
    // What fits the drain is sent whole.
    let short = Replies::of(&hop, &[], 4, 500).await;
    let (short_events, _) = event_stream(&hop, "count=4&interval=500ms").await;
    socket.send(Message::text("before")).await.unwrap();
    hop.signal("TERM");
    assert_eq!(next(&mut socket).await, Message::text("before"));
    assert_eq!(closed(&mut socket).await, (CloseCode::Away, "draining".to_owned()));
    let (rest_of_replies, status) = replies.rest().await;
    assert_eq!((rest_of_replies.len(), status.code()), (0, Code::Unavailable));
    assert!(status.message().contains("draining: 1 of 2"), "{status:?}");
    let whole = first + &rest(stream).await;
    assert!(whole.contains("event: end\ndata: {\"count\":2,\"reason\":\"draining\",\"sent\":1}"), "{whole}");
    assert!(whole.ends_with("\r\n0\r\n\r\n"), "{whole}");
    let (replies, status) = short.rest().await;
    assert_eq!((replies.len(), status.code()), (4, Code::Ok));
    assert!(rest(short_events).await.contains("{\"count\":4,\"reason\":\"complete\",\"sent\":4}"));
    assert_eq!(hop.ended().code(), Some(0));
    let stderr = hop.stderr();
    assert!(!stderr.iter().any(|line| line.contains("cut off")), "{stderr:#?}");
    assert!(hop.access_line("r-ws").await.contains("\"GET /ws\" 101"));
    assert!(hop.access_line("r-grpc").await.contains("grpc=UNAVAILABLE"));
}

/// A call of reflection that its client leaves open: the sending half, and the answer.
async fn reflection(hop: &InProcess, version: &str) -> (h2::SendStream<Bytes>, RecvStream) {
    let (mut client, connection) = h2::client::handshake(hop.connect().await).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://hop/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"))
        .header("te", "trailers")
        .header("content-type", "application/grpc");
    let (response, sending) = client.send_request(request.body(()).unwrap(), false).unwrap();
    (sending, response.await.unwrap().into_body())
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_idle_streams_in_both_directions_at_once() {
    for version in ["v1", "v1alpha"] {
        let hop = InProcess::start(|config| config.drain.timeout = Duration::from_secs(3600)).await;
        let (_idle, mut silent) = reflection(&hop, version).await;
        let (mut asking, mut answered) = reflection(&hop, version).await;
        asking.send_data(Bytes::from_static(b"\0\0\0\0\x02\x3a\0"), false).unwrap();
        let listed = answered.data().await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&listed).contains("httpserver.v1.Chain"), "{listed:?}");
        let begun = Instant::now();
        let end = async |body: &mut RecvStream| {
            assert!(body.data().await.is_none(), "nothing more is said");
            Status::from_header_map(&body.trailers().await.unwrap().expect("a status")).unwrap()
        };
        let (ended, one, other) = tokio::join!(hop.stopped(Stop::Now), end(&mut silent), end(&mut answered));
        for status in [one, other] {
            assert_eq!((status.code(), status.message()), (Code::Unavailable, "draining"), "{version}");
        }
        assert_eq!(ended.requests_cut, 0);
        assert!(begun.elapsed() < Duration::from_secs(2), "{version}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_of_reflection_has_a_place_among_the_streams_while_it_lasts() {
    let hop = InProcess::start(|config| config.max_concurrency = 1).await;
    let (mut sending, mut open) = reflection(&hop, "v1").await;
    let status = |body: &RecvStream| body.is_end_stream();
    let (_, refused) = reflection(&hop, "v1").await;
    assert!(status(&refused), "refused in the head");
    sending.send_data(Bytes::new(), true).unwrap();
    assert!(open.data().await.is_none());
    assert_eq!(Status::from_header_map(&open.trailers().await.unwrap().unwrap()).unwrap().code(), Code::Ok);
    let (_, accepted) = reflection(&hop, "v1").await;
    assert!(!status(&accepted));
}

#[tokio::test(start_paused = true)]
async fn a_stream_lasts_an_hour_at_most() {
    let hop = InProcess::start(|_| {}).await;
    let (mut socket, _) = client_async(format!("ws://{}/ws", hop.addr), hop.connect().await).await.unwrap();
    let begun = Instant::now();
    assert!(socket.next().await.unwrap().unwrap().is_text());
    let message = socket.next().await.unwrap().unwrap();
    assert!(matches!(&message, Message::Close(Some(frame)) if frame.code == CloseCode::Policy), "{message:?}");
    let took = begun.elapsed();
    assert!((Duration::from_secs(3600)..Duration::from_secs(3610)).contains(&took), "{took:?}");
    hop.stopped(Stop::Now).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_over_http_2_ends_with_goaway_before_it() {
    use crate::common::http2::{Frame, Http2};
    let hop = InProcess::start(|config| config.drain.delay = Duration::from_secs(5)).await;
    let mut client = Http2::open(hop.connect().await, &[]).await;
    client.get(1, "/stream?count=2&interval=30m").await;
    client.until(|frame| frame.kind == Frame::DATA && frame.payload.starts_with(b"id: 1")).await;
    let read = async {
        let goaway = client.until(|frame| frame.kind == Frame::GOAWAY).await;
        // With the largest stream number: further streams are still accepted until the peer has seen it.
        assert_eq!(&goaway.payload[..4], &(u32::MAX >> 1).to_be_bytes());
        let end = client.until(|frame| frame.kind == Frame::DATA && frame.payload.starts_with(b"event: end")).await;
        assert!(String::from_utf8_lossy(&end.payload).contains("draining"));
        client.until(|frame| frame.flags & Frame::END_STREAM != 0 && frame.kind == Frame::DATA).await;
        client
    };
    let begun = Instant::now();
    let (ended, _client) = tokio::join!(hop.stopped(Stop::Graceful), read);
    assert_eq!(ended.requests_cut, 0);
    let took = begun.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&took), "served on for the delay alone: {took:?}");
}
