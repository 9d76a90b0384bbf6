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
        Self::allowing(None, script).await
    }

    /// Of so many streams at once on each connection.
    async fn allowing(streams: Option<u32>, script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("h2c://{}", listener.local_addr().unwrap());
        let server = Self { url, connections: Arc::default(), requests: Arc::default(), heads: Arc::default() };
        let (own, script) = (server.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                let (own, script) = (own.clone(), script.clone());
                tokio::spawn(async move { own.serve(stream, streams, &*script).await });
            }
        });
        server
    }

    async fn serve(&self, stream: tokio::net::TcpStream, streams: Option<u32>, script: &(impl Fn(usize) -> Act + Sync)) {
        let mut server = h2::server::Builder::new();
        if let Some(streams) = streams {
            server.max_concurrent_streams(streams);
        }
        let Ok(mut connection) = server.handshake(stream).await else { return };
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
async fn calls_at_once_open_connections_as_a_next_hop_that_allows_few_streams_needs_them() {
    for (allowed, calls, connections) in [(10, 25, 3), (1, 8, 8)] {
        // Those of the first round are all under way at once, on connections that have to be made.
        let last = Http2Server::allowing(Some(allowed), move |_| Act::AnswerWhen(calls)).await;
        let hop = Hop::start(&["--upstream", &last.url, "--upstream-timeout", "1m"], &[]);
        for _ in 0..3 {
            let answers = futures_util::future::join_all((0..calls).map(|_| hop.json("/service1", &[]))).await;
            assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
        }
        assert_eq!(last.connections.load(Ordering::SeqCst), connections, "as many as are needed, and they are used again");
        assert_eq!(last.requests.load(Ordering::SeqCst), 3 * calls, "each was processed once");
    }
}

#[tokio::test]
async fn a_burst_whose_calls_are_refused_more_than_once_loses_none() {
    // The first ten are under way until whatever was refused was sent again.
    let script = |number| match number {
        1..=10 => Act::AnswerWhen(70),
        11..=50 => Act::Refuse,
        _ => Act::Answer,
    };
    let last = Http2Server::start(script).await;
    let hop = Hop::start(&["--request-size", "10", "--upstream", &last.url, "--upstream-timeout", "1m"], &[]);
    let answers = futures_util::future::join_all((0..30).map(|_| hop.json("/service1", &[]))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(last.requests.load(Ordering::SeqCst), 70, "each was processed once");
}

#[tokio::test]
async fn what_was_not_processed_is_sent_again_and_nothing_else() {
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
    let hop = Hop::start(&["--upstream", &last.url, "--upstream-timeout", "3s"], &[]);
    let (status, reply) = hop.json("/service1", &[]).await;
    let error = reply["upstreams"][0]["error"].as_str().unwrap_or_default();
    assert!(status == 502 && error.contains("refused"), "{reply}");
    // With pauses that double from 10 ms to half a second, on the one connection.
    assert!((3..24).contains(&last.requests.load(Ordering::SeqCst)), "as long as there is time: {last:?}");
    assert_eq!(last.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_above_the_last_stream_of_a_goaway_is_sent_again() {
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
        own.serve(next, None, &|_| Act::Answer).await;
    });
    let hop = Hop::start(&["--request-size", "10", "--upstream", &format!("h2c://{addr}")], &[]);
    assert_eq!(hop.json("/service1", &[]).await.0, 200);
    assert_eq!(answering.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_next_hop_that_accepts_and_says_nothing_costs_its_calls_their_time_and_no_connection() {
    use tokio::io::AsyncReadExt as _;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("h2c://{}", silent.local_addr().unwrap());
    let hop = Hop::start(&["--upstream", &url, "--upstream-timeout", "500ms"], &[]);
    for _ in 0..2 {
        let (answer, accepted) = tokio::join!(hop.json("/service1", &[]), silent.accept());
        assert_eq!(answer.0, 504, "{}", answer.1);
        let mut sent = Vec::new();
        let closed = tokio::time::timeout(crate::common::PATIENCE, accepted.unwrap().0.read_to_end(&mut sent)).await;
        closed.expect("the connection is closed").unwrap();
    }
}

#[tokio::test]
async fn a_call_without_an_answer_takes_its_connection_out_of_use() {
    let last = Http2Server::start(|number| if number == 1 { Act::Hang } else { Act::Answer }).await;
    let hop = Hop::start(&["--upstream", &last.url, "--upstream-timeout", "500ms"], &[]);
    assert_eq!(hop.json("/service1", &[]).await.0, 504);
    assert_eq!(hop.json("/service1", &[]).await.0, 200);
    assert_eq!(last.connections.load(Ordering::SeqCst), 2);
}
