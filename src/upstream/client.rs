//! The connections to one next hop: one is taken for each call, and kept for the next when its answer was read to the end.
//!
//! hyper does the HTTP, its connector DNS, TCP and TLS. The pooled client of `hyper-util` is for calls to anywhere: it looks the
//! target up by its name, and writes URL and host anew for each call. That is a tenth of what a hop of the chain does, and a
//! hop has known its targets since it started.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use tower_service::Service as _;

use crate::upstream::outcome::CallError;

/// The connections to one next hop.
pub(crate) struct Pool {
    connector: HttpsConnector<HttpConnector>,
    /// Scheme, host and port.
    target: Uri,
    idle: Arc<Mutex<Idle>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A connection on which one request at a time can be sent.
type Sender = SendRequest<Empty<Bytes>>;

/// The connections that nobody uses, and since when: the latest at the end.
type Idle = Vec<(Instant, Sender)>;

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection in use. It goes back with [`PooledConnection::release`]; dropped, it is closed.
pub(crate) struct PooledConnection {
    sender: Sender,
    idle: Weak<Mutex<Idle>>,
}

impl Pool {
    /// Nothing is connected before it is needed. `target` has scheme and authority; a connection that nobody uses is kept for
    /// `keep`. Must be called within a runtime.
    pub(crate) fn new(connector: HttpsConnector<HttpConnector>, target: Uri, keep: Duration) -> Self {
        let idle = Arc::new(Mutex::new(Idle::new()));
        tokio::spawn(close_unused(Arc::downgrade(&idle), keep));
        Self { connector, target, idle }
    }

    /// Sends a request, on a connection that is there or on a new one. The answer's body has to be read while the lease is
    /// held. A request that was not written because its connection had closed meanwhile is sent on another one.
    pub(crate) async fn send(
        &self,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<(Response<Incoming>, PooledConnection), CallError> {
        let broken = |error: hyper::Error| CallError::Broken(error.into());
        // The latest first: the others get old and go.
        while let Some(mut sender) = self.take() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, self.lease(sender))),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, self.lease(sender)))
    }

    fn take(&self) -> Option<Sender> {
        let mut idle = lock(&self.idle);
        loop {
            let (_, sender) = idle.pop()?;
            if sender.is_ready() {
                return Some(sender);
            }
        }
    }

    fn lease(&self, sender: Sender) -> PooledConnection {
        PooledConnection { sender, idle: Arc::downgrade(&self.idle) }
    }

    async fn connect(&self) -> Result<Sender, CallError> {
        let mut connector = self.connector.clone();
        let connected = async {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(self.target.clone()).await
        };
        let stream = connected.await.map_err(CallError::Connect)?;
        let (sender, connection) = handshake(stream).await.map_err(|error| CallError::Connect(error.into()))?;
        tokio::spawn(async move {
            // Whoever waits for an answer is told; without one it only closed.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

impl PooledConnection {
    /// Keeps the connection: the answer was read to its end.
    pub(crate) fn release(self) {
        let Self { mut sender, idle } = self;
        if sender.is_ready() {
            keep(sender, &idle);
        } else if !sender.is_closed() {
            // Its task has still to see the end.
            tokio::spawn(async move {
                if sender.ready().await.is_ok() {
                    keep(sender, &idle);
                }
            });
        }
    }
}

fn keep(sender: Sender, idle: &Weak<Mutex<Idle>>) {
    if let Some(idle) = idle.upgrade() {
        lock(&idle).push((Instant::now(), sender));
    }
}

/// Closes what has not been used for as long as `keep`, until the pool is gone.
async fn close_unused(idle: Weak<Mutex<Idle>>, keep: Duration) {
    loop {
        tokio::time::sleep(keep / 4).await;
        let Some(idle) = idle.upgrade() else { return };
        lock(&idle).retain(|(since, sender)| since.elapsed() < keep && !sender.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt as _;
    use hyper_rustls::HttpsConnectorBuilder;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::text::causes;

    /// A server that gives every request the same answer, and how many connections it has and had.
    async fn server(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (accepted, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counted = (accepted.clone(), open.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.0.fetch_add(1, Ordering::SeqCst);
                counted.1.fetch_add(1, Ordering::SeqCst);
                let open = counted.1.clone();
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    // A request of these tests comes in one piece.
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        if answer.contains("close") {
                            break;
                        }
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        (addr, accepted, open)
    }

    fn pool(addr: SocketAddr, keep: Duration) -> Pool {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Pool::new(connector, format!("http://{addr}").parse().unwrap(), keep)
    }

    async fn ask(pool: &Pool) -> Bytes {
        let request = Request::builder().uri("/").header("host", "x").body(Empty::new()).unwrap();
        let (response, connection) = pool.send(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        connection.release();
        body
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..6_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not after a minute: {what}");
    }

    const KEPT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn calls_one_after_the_other_share_a_connection() {
        let (addr, accepted, _) = server(KEPT).await;
        let pool = pool(addr, MINUTE);
        for _ in 0..50 {
            assert_eq!(ask(&pool).await, "ok");
            until("the connection is back", || !lock(&pool.idle).is_empty()).await;
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn calls_at_the_same_time_have_one_each_and_leave_them_to_the_next() {
        let (addr, accepted, _) = server(KEPT).await;
        let pool = pool(addr, MINUTE);
        for _ in 0..3 {
            futures_util::future::join_all((0..5).map(|_| ask(&pool))).await;
            until("they are back", || lock(&pool.idle).len() == accepted.load(Ordering::SeqCst)).await;
        }
        assert!((1..=5).contains(&accepted.load(Ordering::SeqCst)), "{accepted:?}");
    }

    #[tokio::test]
    async fn a_connection_that_the_other_side_closes_is_not_kept() {
        let (addr, accepted, _) = server("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        let pool = pool(addr, MINUTE);
        for count in 1..=3 {
            assert_eq!(ask(&pool).await, "ok");
            assert_eq!(accepted.load(Ordering::SeqCst), count);
        }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_read_to_its_end_costs_its_connection() {
        let (addr, accepted, open) = server(KEPT).await;
        let pool = pool(addr, MINUTE);
        let request = Request::builder().uri("/").header("host", "x").body(Empty::new()).unwrap();
        drop(pool.send(request).await.unwrap());
        until("it is closed", || open.load(Ordering::SeqCst) == 0).await;
        assert_eq!(ask(&pool).await, "ok");
        assert_eq!(accepted.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_nobody_uses_is_closed_and_so_is_what_a_pool_leaves_behind() {
        let (addr, accepted, open) = server(KEPT).await;
        let short = pool(addr, Duration::from_millis(50));
        ask(&short).await;
        until("the unused is closed", || open.load(Ordering::SeqCst) == 0).await;
        let long = pool(addr, MINUTE);
        ask(&long).await;
        drop(long);
        until("the left is closed", || open.load(Ordering::SeqCst) == 0).await;
        assert_eq!(accepted.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn failures_say_what_could_not_be_done() {
        // Bound, so that it stays ours, and deaf.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = nobody.local_addr().unwrap();
        let request = || Request::builder().uri("/").header("host", "x").body(Empty::new()).unwrap();
        match pool(addr, MINUTE).send(request()).await {
            Err(error @ CallError::Connect(_)) => assert!(causes(&error).contains("refused"), "{error:?}"),
            other => panic!("{:?}", other.map(|(response, _)| response)),
        }
        let (addr, _, _) = server("this is no HTTP\r\n\r\n").await;
        match pool(addr, MINUTE).send(request()).await {
            Err(error @ CallError::Broken(_)) => assert!(causes(&error).contains("parse"), "{error:?}"),
            other => panic!("{:?}", other.map(|(response, _)| response)),
        }
    }
}
