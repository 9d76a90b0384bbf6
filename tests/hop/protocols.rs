//! Next hops over HTTP/2: prior knowledge (`h2c://`), many calls on one connection, and what is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response, Uri};
use serde_json::json;
use tokio::net::TcpListener;

use crate::common::{Hop, eventually};

/// What an [`Http2Server`] does with a request.
#[derive(Debug, Clone, Copy)]
enum Act {
    Answer,
    /// When so many requests are there.
    AnswerWhen(usize),
    Refuse,
    Reset,
    /// Closes the connection.
    Close,
    Hang,
}

/// A next hop that speaks HTTP/2 alone.
#[derive(Debug, Clone)]
struct Http2Server {
    url: String,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    heads: Arc<std::sync::Mutex<Vec<(Uri, HeaderMap)>>>,
}

impl Http2Server {
    /// `script` gets the number of the request, from 1 on.
    async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("h2c://{}", listener.local_addr().unwrap());
        let server = Self { url, connections: Arc::default(), requests: Arc::default(), heads: Arc::default() };
        let (own, script) = (server.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                let (own, script) = (own.clone(), script.clone());
                tokio::spawn(async move { own.serve(stream, &*script).await });
            }
        });
        server
    }

    async fn serve(&self, stream: tokio::net::TcpStream, script: &(impl Fn(usize) -> Act + Sync)) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
            self.heads.lock().unwrap().push((request.uri().clone(), request.headers().clone()));
            match script(number) {
                Act::Answer => answer(&mut respond),
                Act::AnswerWhen(count) => {
                    let requests = self.requests.clone();
                    tokio::spawn(async move {
                        let all = || async { (requests.load(Ordering::SeqCst) >= count).then_some(()) };
                        eventually("all calls are there", all).await;
                        answer(&mut respond);
                    });
                }
                Act::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
                Act::Reset => respond.send_reset(Reason::INTERNAL_ERROR),
                Act::Hang => {
                    tokio::spawn(async move {
                        let _respond = respond;
                        std::future::pending::<()>().await;
                    });
                }
                Act::Close => return,
            }
        }
    }
}

fn answer(respond: &mut h2::server::SendResponse<Bytes>) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(b"hello"), true).unwrap();
}

#[tokio::test]
async fn a_chain_over_http_2_is_a_chain() {
    let last = Hop::start(&["--name", "service3"], &[]);
    let middle = Hop::start(&["--name", "service2", "--upstream", &format!("h2c://{}", last.addr)], &[]);
    let front = Hop::start(&["--name", "service1", "--upstream", &format!("h2c://{}/service2", middle.addr)], &[]);
    let trace = "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
    for _ in 0..3 {
        let (status, reply) = front.json("/service1", &[("traceparent", trace)]).await;
        assert_eq!((status, &reply["protocol"]), (200, &json!("http/1.1")));
        let call = &reply["upstreams"][0];
        assert_eq!(call["url"], format!("h2c://{}/service2", middle.addr));
        assert_eq!((&call["protocol"], &call["reply"]["protocol"]), (&json!("http/2"), &json!("http/2")));
        let below = &call["reply"]["upstreams"][0]["reply"];
        assert_eq!((&below["service"], &below["path"]), (&json!("service3"), &json!("/service3")));
        assert_eq!(below["received"]["traceparent"], json!([trace]));
    }
}

#[tokio::test]
async fn calls_at_once_share_a_connection() {
    let last = Http2Server::start(|_| Act::AnswerWhen(40)).await;
    let hop = Hop::start(&["--upstream", &last.url, "--upstream-timeout", "1m"], &[]);
    let calls = (0..40).map(|_| hop.json("/service1", &[]));
    for (status, reply) in futures_util::future::join_all(calls).await {
        assert_eq!((status, &reply["upstreams"][0]["reply"]), (200, &json!(null)), "{reply}");
    }
    assert_eq!(last.connections.load(Ordering::SeqCst), 1);
    let heads = last.heads.lock().unwrap().clone();
    let (uri, headers) = &heads[0];
    assert_eq!((uri.path(), uri.authority().unwrap().as_str()), ("/service2", &last.url["h2c://".len()..]));
    assert!(!headers.contains_key("host") && headers["x-hop-count"] == "1");
}

#[tokio::test]
async fn what_was_not_processed_is_sent_once_more_and_nothing_else() {
    // A POST, which is not repeated for any other reason.
    for (first, status, requests) in [(Act::Refuse, 200, 2), (Act::Reset, 502, 1), (Act::Close, 502, 1)] {
        let last = Http2Server::start(move |number| if number == 1 { first } else { Act::Answer }).await;
        let hop = Hop::start(&["--request-size", "10", "--upstream", &last.url], &[]);
        let (answered, reply) = hop.json("/service1", &[]).await;
        assert_eq!((answered, last.requests.load(Ordering::SeqCst)), (status, requests), "{first:?}: {reply}");
        // Whatever happened, the next call goes through.
        assert_eq!(hop.json("/service1", &[]).await.0, 200, "{first:?}");
    }
    let last = Http2Server::start(|_| Act::Refuse).await;
    let hop = Hop::start(&["--upstream", &last.url], &[]);
    assert_eq!(hop.json("/service1", &[]).await.0, 502);
    assert_eq!(last.requests.load(Ordering::SeqCst), 2, "once more, and not for ever");
}

#[tokio::test]
async fn a_request_above_the_last_stream_of_a_goaway_is_sent_once_more() {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    // Last stream 0, no error.
    const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let raw = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = raw.local_addr().unwrap();
    let answering = Http2Server::start(|_| Act::Answer).await;
    let own = answering.clone();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = raw.accept().await.unwrap();
        stream.write_all(SETTINGS).await.unwrap();
        let (mut read, mut bytes) = (Vec::new(), [0; 4096]);
        // Until the request's HEADERS are there: type 1 of stream 1.
        while !read.windows(9).any(|frame| frame[3] == 1 && frame[5..] == [0, 0, 0, 1]) {
            let count = stream.read(&mut bytes).await.unwrap();
            read.extend_from_slice(&bytes[..count]);
        }
        stream.write_all(GOAWAY).await.unwrap();
        let (next, _) = raw.accept().await.unwrap();
        own.serve(next, &|_| Act::Answer).await;
    });
    let hop = Hop::start(&["--request-size", "10", "--upstream", &format!("h2c://{addr}")], &[]);
    assert_eq!(hop.json("/service1", &[]).await.0, 200);
    assert_eq!(answering.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_call_without_an_answer_takes_its_connection_out_of_use() {
    let last = Http2Server::start(|number| if number == 1 { Act::Hang } else { Act::Answer }).await;
    let hop = Hop::start(&["--upstream", &last.url, "--upstream-timeout", "500ms"], &[]);
    assert_eq!(hop.json("/service1", &[]).await.0, 504);
    assert_eq!(hop.json("/service1", &[]).await.0, 200);
    assert_eq!(last.connections.load(Ordering::SeqCst), 2);
}
