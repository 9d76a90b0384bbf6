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

use crate::error::causes;

/// How long a connection is kept that nobody uses. Servers and proxies keep theirs for longer.
const IDLE: Duration = Duration::from_secs(60);

/// Why a request has no answer, in words.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection came about.
    Connect(String),
    /// The connection broke, or what came was not HTTP.
    Broken(String),
}

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

/// A connection in use. It goes back with [`Lease::done`]; dropped, it is closed.
pub(crate) struct Lease {
    sender: Sender,
    idle: Weak<Mutex<Idle>>,
}

impl Pool {
    /// Nothing is connected before it is needed. `target` has scheme and authority. Must be called within a runtime.
    pub(crate) fn new(connector: HttpsConnector<HttpConnector>, target: Uri) -> Self {
        let idle = Arc::new(Mutex::new(Idle::new()));
        tokio::spawn(close_unused(Arc::downgrade(&idle)));
        Self { connector, target, idle }
    }

    /// Sends a request, on a connection that is there or on a new one. The answer's body has to be read while the lease is
    /// held. A request that was not written because its connection had closed meanwhile is sent on another one.
    pub(crate) async fn send(&self, mut request: Request<Empty<Bytes>>) -> Result<(Response<Incoming>, Lease), Failure> {
        let broken = |error: hyper::Error| Failure::Broken(causes(&error));
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

    fn lease(&self, sender: Sender) -> Lease {
        Lease { sender, idle: Arc::downgrade(&self.idle) }
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let mut connector = self.connector.clone();
        let connected = async {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(self.target.clone()).await
        };
        let stream = connected.await.map_err(|error| Failure::Connect(causes(&*error)))?;
        let (sender, connection) = handshake(stream).await.map_err(|error| Failure::Connect(causes(&error)))?;
        tokio::spawn(async move {
            // Whoever waits for an answer is told; without one it only closed.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

impl Lease {
    /// Keeps the connection: the answer was read to its end.
    pub(crate) fn done(self) {
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

/// Closes what has not been used for long, until the pool is gone.
async fn close_unused(idle: Weak<Mutex<Idle>>) {
    loop {
        tokio::time::sleep(IDLE / 4).await;
        let Some(idle) = idle.upgrade() else { return };
        lock(&idle).retain(|(since, sender)| since.elapsed() < IDLE && !sender.is_closed());
    }
}
