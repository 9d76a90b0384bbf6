//! A foreign app in the middle of a chain: it calls the next hop and answers in its own words.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use axum::routing::any;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;

/// What it passes on of the headers that it received.
type Passes = dyn Fn(&HeaderMap) -> HeaderMap + Send + Sync;
/// What it makes of the next hop's answer.
type Answers = dyn Fn(&str) -> Response<Body> + Send + Sync;

struct App {
    next: String,
    client: reqwest::Client,
    passes: Box<Passes>,
    answers: Box<Answers>,
}

/// Starts one on a thread of its own, for as long as the tests run. `next`: the URL that it calls.
pub fn foreign_app(
    next: &str,
    passes: impl Fn(&HeaderMap) -> HeaderMap + Send + Sync + 'static,
    answers: impl Fn(&str) -> Response<Body> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let app = Arc::new(App { next: next.to_owned(), client, passes: Box::new(passes), answers: Box::new(answers) });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let router = Router::new().fallback(any(serve)).with_state(app);
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        })
    });
    addr
}

async fn serve(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    let request = app.client.get(&app.next).header("accept", "application/json").headers((app.passes)(&headers));
    let text = match request.send().await {
        Ok(answer) => answer.text().await.unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    (app.answers)(&text)
}

/// The headers with one of these names.
pub fn only(headers: &HeaderMap, names: &[&str]) -> HeaderMap {
    headers.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// An answer of 200 with this body.
pub fn answered(kind: &str, body: impl Into<Body>) -> Response<Body> {
    Response::builder().header("content-type", kind).body(body.into()).unwrap()
}
