//! The connections to one next hop, and the rules for them: how long one lives, when a request is sent again, which address is
//! next.
//!
//! hyper does HTTP, its connector DNS, TCP and TLS. The pools of hyper-util have no maximum age and cannot be asked for a new
//! connection while an unused one is left; `ARCHITECTURE.md` has the prices.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector, HttpInfo};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::time::Instant;
use tower_service::Service as _;

use crate::net::body::ReceivedBody;
use crate::telemetry::ids;
use crate::upstream::answer_tracker::{AnswerBegun, TrackedStream};
use crate::upstream::multiplexed::{CallPlace, Multiplexed, PooledCall};
use crate::upstream::outcome::CallError;
use crate::upstream::resolver::RotatingResolver;

/// The largest head of an answer, and how much of its body is read at once: hyper's own limit is 400 KiB for each connection.
const MAX_BUFFER: usize = 32 << 10;

/// Between two attempts of a request that the next hop refused unprocessed: doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long connections to a next hop live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// An unused connection is closed after this time. Servers and proxies keep theirs for longer.
    pub(crate) idle_timeout: Duration,
    /// No call begins on a connection that is older; one under way is finished. New connections follow what a name's addresses
    /// are by then. Each connection draws its own limit from the last quarter, so that they are not replaced all at once.
    pub(crate) max_age: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(60), max_age: Duration::from_secs(120) }
    }
}

/// Establishes connections to next hops.
pub(crate) type Connector = HttpsConnector<HttpConnector<RotatingResolver>>;

/// What a next hop speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1, and HTTP/2 where the server offers it by ALPN.
    Http,
    /// HTTP/2 without asking.
    Http2,
    /// gRPC, over HTTP/2 without asking.
    Grpc,
}

/// A connector whose attempts take at most `timeout` for all addresses of a name together. `tls` has the roots that `https://` trusts.
pub(crate) fn connector(resolver: RotatingResolver, timeout: Duration, tls: ClientConfig, protocol: Protocol) -> Connector {
    let mut http = HttpConnector::new_with_resolver(resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timeout));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    match protocol {
        Protocol::Http => https.enable_all_versions().wrap_connector(http),
        Protocol::Http2 | Protocol::Grpc => https.enable_http2().wrap_connector(http),
    }
}

/// The connections to one next hop.
pub(crate) struct Pool {
    connector: Connector,
    /// Scheme, host and port.
    target: Uri,
    limits: ConnectionLimits,
    protocol: Protocol,
    idle: Arc<Mutex<Idle>>,
    multiplexed: Arc<Multiplexed>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("target", &self.target).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A connection on which one request at a time is sent.
pub(crate) struct Http1Connection {
    sender: SendRequest<Full<Bytes>>,
    answer_begun: AnswerBegun,
    expires_at: Instant,
    peer: Option<SocketAddr>,
}

/// The unused connections, and since when they are: the latest at the end.
pub(crate) type Idle = Vec<(Instant, Http1Connection)>;

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection in use. [`PooledConnection::release`] returns it to its pool; dropped, it is closed. One of HTTP/2 stays open.
pub(crate) enum PooledConnection {
    Http1 { connection: Http1Connection, idle: Weak<Mutex<Idle>> },
    Http2(#[expect(dead_code, reason = "its place is free when it is dropped")] PooledCall),
}

/// What is known of a call as soon as it is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    /// `http.request.resend_count`. The reply shows a request that the pool sent again as one call.
    pub(crate) resend_count: u32,
    /// The other end of the socket.
    pub(crate) peer: Option<SocketAddr>,
    /// Until when it may be sent again.
    pub(crate) until: Option<Instant>,
}

impl Sent {
    /// Of an attempt, from 1 on, that may be sent again for so long.
    pub(crate) fn new(attempt: u32, time: Duration) -> Self {
        Self { resend_count: attempt - 1, peer: None, until: Some(Instant::now() + time) }
    }
}

/// A new connection: ALPN decides what it speaks.
enum Connected {
    Http1(Http1Connection),
    Http2(PooledCall),
}

impl Pool {
    /// Connects only when a request needs it. `target` has scheme and authority. Must be called within a runtime.
    pub(crate) fn new(connector: Connector, target: Uri, limits: ConnectionLimits, protocol: Protocol) -> Self {
        let idle = Arc::new(Mutex::new(Idle::new()));
        let multiplexed = Arc::new(Multiplexed::default());
        multiplexed.set_used(protocol != Protocol::Http);
        tokio::spawn(close_overdue(Arc::downgrade(&idle), Arc::downgrade(&multiplexed), limits));
        Self { connector, target, limits, protocol, idle, multiplexed }
    }

    /// Sends a request, on an unused connection or on a new one. The answer's body has to be read before the
    /// connection is released.
    ///
    /// A server may close a connection just when a request is on its way. So a request on a reused connection that died before
    /// a byte of an answer is sent once more, on a new connection, if it is a GET or was not written; nothing else is.
    /// Over HTTP/2 whatever the server says that it did not process is sent again as long as there is time. `resend_count` counts
    /// the attempts that may have been written.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] and [`CallError::Broken`].
    pub(crate) async fn send(
        &self,
        request: impl Fn() -> Request<Bytes>,
        sent: &mut Sent,
    ) -> Result<(Response<ReceivedBody>, PooledConnection), CallError> {
        if self.multiplexed.is_used() {
            // Boxed, because its size would be every call's.
            return Box::pin(self.send_multiplexed(&request, sent)).await;
        }
        while let Some(mut connection) = self.unused() {
            if connection.sender.ready().await.is_err() {
                continue;
            }
            connection.answer_begun.reset();
            sent.peer = connection.peer;
            let request = request();
            let is_repeatable = request.method() == Method::GET;
            match connection.sender.try_send_request(request.map(Full::new)).await {
                Ok(response) => return Ok((response.map(ReceivedBody::Http1), self.in_use(connection))),
                Err(mut error) => {
                    let was_written = error.take_message().is_none();
                    if was_written && (connection.answer_begun.get() || !is_repeatable) {
                        return Err(CallError::Broken(error.into_error().into()));
                    }
                    sent.resend_count += u32::from(was_written);
                    break;
                }
            }
        }
        // Boxed, because its size would be every call's.
        Box::pin(async {
            match self.connect().await? {
                Connected::Http1(connection) => self.send_first(connection, request(), sent).await,
                Connected::Http2(lease) => self.send_on(lease, &request, sent).await,
            }
        })
        .await
    }

    /// Sends a request on a new connection.
    async fn send_first(
        &self,
        mut connection: Http1Connection,
        request: Request<Bytes>,
        sent: &mut Sent,
    ) -> Result<(Response<ReceivedBody>, PooledConnection), CallError> {
        sent.peer = connection.peer;
        let response = connection.sender.send_request(request.map(Full::new)).await;
        let response = response.map_err(|error| CallError::Broken(error.into()))?;
        Ok((response.map(ReceivedBody::Http1), self.in_use(connection)))
    }

    async fn send_multiplexed(
        &self,
        request: &impl Fn() -> Request<Bytes>,
        sent: &mut Sent,
    ) -> Result<(Response<ReceivedBody>, PooledConnection), CallError> {
        match self.take_place().await? {
            Connected::Http1(connection) => self.send_first(connection, request(), sent).await,
            Connected::Http2(lease) => self.send_on(lease, request, sent).await,
        }
    }

    async fn send_on(
        &self,
        mut lease: PooledCall,
        request: &impl Fn() -> Request<Bytes>,
        sent: &mut Sent,
    ) -> Result<(Response<ReceivedBody>, PooledConnection), CallError> {
        let mut may_die = true;
        let mut pause = FIRST_PAUSE;
        loop {
            sent.peer = lease.peer();
            let request_now = request();
            let is_get = request_now.method() == Method::GET;
            let unanswered = match lease.send(request_now, &self.target).await {
                Ok(response) => return Ok((response, PooledConnection::Http2(lease))),
                Err(unanswered) => unanswered,
            };
            let may_repeat = !unanswered.was_written || is_get && lease.is_reused;
            let died = may_repeat && unanswered.is_dead && std::mem::take(&mut may_die);
            drop(lease);
            if !died {
                let wait = pause.mul_f64(0.5 + 0.5 * ids::unit());
                if !unanswered.is_unprocessed || sent.until.is_none_or(|until| Instant::now() + wait >= until) {
                    return Err(unanswered.error);
                }
                tokio::time::sleep(wait).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            sent.resend_count += u32::from(unanswered.was_written);
            lease = match self.take_place().await? {
                Connected::Http1(connection) => return self.send_first(connection, request(), sent).await,
                Connected::Http2(lease) => lease,
            };
        }
    }

    /// A place on an HTTP/2 connection, or a new connection.
    async fn take_place(&self) -> Result<Connected, CallError> {
        let pool = &self.multiplexed;
        if let CallPlace::Free(lease) = pool.take_place() {
            return Ok(Connected::Http2(lease));
        }
        let mut turn = None;
        loop {
            let mut changed = pin!(pool.changed.notified());
            changed.as_mut().enable();
            match pool.take_place() {
                CallPlace::Free(lease) => return Ok(Connected::Http2(lease)),
                // Boxed, because its size would be every call's.
                CallPlace::New if turn.is_some() => return Box::pin(self.connect()).await,
                CallPlace::New => {
                    turn = tokio::select! {
                        turn = pool.connecting.lock() => Some(turn),
                        () = changed => None,
                    }
                }
                CallPlace::Later => {
                    turn = None;
                    changed.await;
                }
            }
        }
    }

    /// The connection that was used last: the others grow old and are closed.
    fn unused(&self) -> Option<Http1Connection> {
        let now = Instant::now();
        let mut idle = lock(&self.idle);
        loop {
            let (_, connection) = idle.pop()?;
            if connection.expires_at > now && !connection.sender.is_closed() {
                return Some(connection);
            }
        }
    }

    fn in_use(&self, connection: Http1Connection) -> PooledConnection {
        PooledConnection::Http1 { connection, idle: Arc::downgrade(&self.idle) }
    }

    async fn connect(&self) -> Result<Connected, CallError> {
        let mut connector = self.connector.clone();
        let connected = async {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(self.target.clone()).await
        };
        let stream = connected.await.map_err(CallError::Connect)?;
        let mut known = http::Extensions::new();
        let connected = stream.connected();
        connected.get_extras(&mut known);
        let expires_at = Instant::now() + self.limits.max_age.mul_f64(0.75 + 0.25 * ids::unit());
        let peer = known.get::<HttpInfo>().map(HttpInfo::remote_addr);
        let speaks_http2 = connected.is_negotiated_h2();
        // What such a server answers would read as a broken frame.
        if self.protocol == Protocol::Grpc && !speaks_http2 && self.target.scheme() == Some(&Scheme::HTTPS) {
            return Err(CallError::Connect("the server offers no HTTP/2 by ALPN, without which there is no gRPC".into()));
        }
        if self.protocol != Protocol::Http || speaks_http2 {
            let opened = self.multiplexed.open(TokioIo::new(stream), expires_at, peer, MAX_BUFFER as u32).await;
            return opened.map(Connected::Http2);
        }
        self.multiplexed.set_used(false);
        let stream = TokioIo::new(stream);
        let answer_begun = AnswerBegun::default();
        let stream = TokioIo::new(TrackedStream::new(stream, answer_begun.clone()));
        let mut http1 = Builder::new();
        http1.max_buf_size(MAX_BUFFER);
        let (sender, connection) = http1.handshake(stream).await.map_err(|error| CallError::Connect(error.into()))?;
        tokio::spawn(async move {
            // An error also reaches the call that waits for an answer; without one the connection just closed.
            let _ = connection.await;
        });
        Ok(Connected::Http1(Http1Connection { sender, answer_begun, expires_at, peer }))
    }
}

impl PooledConnection {
    /// Returns the connection to its pool, after the answer was read to its end. Its task may not have processed that end yet; the
    /// next call waits for it, which is cheaper than a task that waits here.
    pub(crate) fn release(self) {
        let Self::Http1 { connection, idle } = self else { return };
        let now = Instant::now();
        let usable = now < connection.expires_at && !connection.sender.is_closed();
        if let Some(idle) = idle.upgrade().filter(|_| usable) {
            lock(&idle).push((now, connection));
        }
    }
}

/// Closes unused connections that are idle for too long or too old, until the pool is dropped.
async fn close_overdue(idle: Weak<Mutex<Idle>>, multiplexed: Weak<Multiplexed>, limits: ConnectionLimits) {
    let interval = limits.idle_timeout.min(limits.max_age) / 4;
    loop {
        tokio::time::sleep(interval.max(Duration::from_millis(1))).await;
        let Some((idle, multiplexed)) = idle.upgrade().zip(multiplexed.upgrade()) else { return };
        let now = Instant::now();
        multiplexed.close_overdue(limits.idle_timeout, now);
        lock(&idle).retain(|(since, connection)| {
            now - *since < limits.idle_timeout && now < connection.expires_at && !connection.sender.is_closed()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::*;
    use crate::text::causes;

    /// What a server of these tests does with a request.
    #[derive(Clone)]
    enum Act {
        /// Answers with its own address.
        Answer,
        /// The same, and promises to close the connection.
        AnswerAndClose,
        /// Answers when it is notified.
        AnswerWhen(Arc<Notify>),
        /// Writes this and closes the connection.
        WriteAndClose(&'static str),
        /// Closes the connection with the request unread, which resets it.
        Reset,
    }

    /// A server, and what it counted.
    #[derive(Clone)]
    struct Server {
        addr: SocketAddr,
        accepted: Arc<AtomicUsize>,
        open: Arc<AtomicUsize>,
        requests: Arc<AtomicUsize>,
    }

    impl Server {
        /// `script` gives the act for the request of this number on its connection, from 1 on.
        fn on(listener: TcpListener, script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
            let addr = listener.local_addr().unwrap();
            let server = Self { addr, accepted: Arc::default(), open: Arc::default(), requests: Arc::default() };
            let (own, script) = (server.clone(), Arc::new(script));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    own.accepted.fetch_add(1, Ordering::SeqCst);
                    own.open.fetch_add(1, Ordering::SeqCst);
                    let (own, script) = (own.clone(), script.clone());
                    tokio::spawn(async move {
                        own.serve(stream, &*script).await;
                        own.open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
            server
        }

        async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
            Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
        }

        async fn serve(&self, mut stream: TcpStream, script: &(impl Fn(usize) -> Act + Sync)) {
            for number in 1.. {
                let act = script(number);
                stream.readable().await.unwrap();
                let mut request = [0; 1024];
                // A request of these tests comes in one piece.
                if !matches!(act, Act::Reset) && !stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    return;
                }
                self.requests.fetch_add(1, Ordering::SeqCst);
                let body = self.addr.ip().to_string();
                let answer = |more: &str| format!("HTTP/1.1 200 OK\r\n{more}content-length: {}\r\n\r\n{body}", body.len());
                let (bytes, goes_on) = match act {
                    Act::Answer => (answer(""), true),
                    Act::AnswerAndClose => (answer("connection: close\r\n"), false),
                    Act::AnswerWhen(notify) => {
                        notify.notified().await;
                        (answer(""), true)
                    }
                    Act::WriteAndClose(text) => (text.to_owned(), false),
                    Act::Reset => (String::new(), false),
                };
                stream.write_all(bytes.as_bytes()).await.unwrap();
                if !goes_on {
                    return;
                }
            }
        }
    }

    /// Servers on `127.0.0.2`, `127.0.0.3`… with one port.
    async fn servers<const N: usize>() -> [Server; N] {
        loop {
            let first = TcpListener::bind("127.0.0.2:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            let mut listeners = vec![first];
            for host in 3..N + 2 {
                // Somebody else may have this port.
                listeners.extend(TcpListener::bind(format!("127.0.0.{host}:{port}")).await.ok());
            }
            if let Ok(listeners) = <[TcpListener; N]>::try_from(listeners) {
                return listeners.map(|listener| Server::on(listener, |_| Act::Answer));
            }
        }
    }

    /// What the name `service2` resolves to.
    #[derive(Clone, Default)]
    struct Name(Arc<Mutex<Vec<SocketAddr>>>);

    impl Name {
        fn point_to(&self, addresses: &[&str]) {
            *self.0.lock().unwrap() = addresses.iter().map(|address| format!("{address}:0").parse().unwrap()).collect();
        }

        fn resolver(&self) -> RotatingResolver {
            let addresses = self.0.clone();
            RotatingResolver::new(move |_| std::future::ready(Ok(addresses.lock().unwrap().clone())).boxed())
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn pool_of(authority: &str, resolver: RotatingResolver, limits: ConnectionLimits) -> Pool {
        pool_speaking(Protocol::Http, authority, resolver, limits)
    }

    fn pool_speaking(protocol: Protocol, authority: &str, resolver: RotatingResolver, limits: ConnectionLimits) -> Pool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let connector = connector(resolver, MINUTE, tls, protocol);
        Pool::new(connector, format!("http://{authority}").parse().unwrap(), limits, protocol)
    }

    fn pool(server: &Server) -> Pool {
        pool_of(&server.addr.to_string(), RotatingResolver::system(), ConnectionLimits::default())
    }

    fn request() -> Request<Bytes> {
        Request::builder().uri("/").header("host", "x").body(Bytes::new()).unwrap()
    }

    /// The body, and how often the request was sent again.
    async fn try_get(pool: &Pool) -> Result<(String, u32), CallError> {
        let mut sent = Sent::default();
        let (response, connection) = pool.send(request, &mut sent).await?;
        let body = response.into_body().collect().await.map_err(CallError::Broken)?;
        connection.release();
        Ok((String::from_utf8(body.to_bytes().into()).unwrap(), sent.resend_count))
    }

    async fn get(pool: &Pool) -> String {
        try_get(pool).await.unwrap().0
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

    async fn until_unused(pool: &Pool, count: usize) {
        until("the connections are back", || lock(&pool.idle).len() == count).await;
    }

    fn count(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }

    /// Lets this much time pass at once.
    async fn pass(duration: Duration) {
        tokio::time::pause();
        tokio::time::advance(duration).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn calls_one_after_the_other_share_a_connection() {
        let server = Server::start(|_| Act::Answer).await;
        let pool = pool(&server);
        for _ in 0..50 {
            assert_eq!(get(&pool).await, "127.0.0.1");
            until_unused(&pool, 1).await;
        }
        assert_eq!(count(&server.accepted), 1);
    }

    #[tokio::test]
    async fn calls_at_the_same_time_have_one_each_and_leave_them_to_the_next() {
        let server = Server::start(|_| Act::Answer).await;
        let pool = pool(&server);
        for _ in 0..3 {
            futures_util::future::join_all((0..5).map(|_| get(&pool))).await;
            until("they are back", || lock(&pool.idle).len() == count(&server.accepted)).await;
        }
        assert!((1..=5).contains(&count(&server.accepted)), "{:?}", server.accepted);
    }

    #[tokio::test]
    async fn a_connection_that_the_other_side_closes_is_not_reused() {
        let server = Server::start(|_| Act::AnswerAndClose).await;
        let pool = pool(&server);
        for accepted in 1..=3 {
            assert_eq!(try_get(&pool).await.unwrap(), ("127.0.0.1".to_owned(), 0));
            assert_eq!(count(&server.accepted), accepted);
        }
    }

    #[tokio::test]
    async fn an_answer_that_was_not_read_to_its_end_costs_its_connection() {
        let server = Server::start(|_| Act::Answer).await;
        let pool = pool(&server);
        drop(pool.send(request, &mut Sent::default()).await.unwrap());
        until("it is closed", || count(&server.open) == 0).await;
        assert_eq!(get(&pool).await, "127.0.0.1");
        assert_eq!(count(&server.accepted), 2);
    }

    #[tokio::test]
    async fn unused_connections_are_closed_and_so_are_those_of_a_dropped_pool() {
        let server = Server::start(|_| Act::Answer).await;
        let pool = pool(&server);
        get(&pool).await;
        until_unused(&pool, 1).await;
        pass(MINUTE).await;
        until("the unused is closed", || count(&server.open) == 0).await;
        get(&pool).await;
        assert_eq!((count(&server.accepted), count(&server.open)), (2, 1));
        drop(pool);
        until("the dropped pool's is closed", || count(&server.open) == 0).await;
    }

    #[tokio::test]
    async fn a_request_on_a_reused_connection_that_dies_unanswered_is_sent_once_more() {
        for second in [Act::WriteAndClose(""), Act::Reset] {
            let server = Server::start(move |number| if number == 1 { Act::Answer } else { second.clone() }).await;
            let pool = pool(&server);
            assert_eq!(try_get(&pool).await.unwrap().1, 0);
            for calls in 2..=20 {
                until_unused(&pool, 1).await;
                assert_eq!(try_get(&pool).await.unwrap(), ("127.0.0.1".to_owned(), 1), "call {calls}");
                assert_eq!((count(&server.accepted), count(&server.requests)), (calls, 2 * calls - 1));
            }
        }
    }

    #[tokio::test]
    async fn a_request_whose_answer_has_begun_is_not_sent_again() {
        for begun in ["H", "HTTP/1.1 200 OK\r\ncontent-le", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no", "not HTTP\r\n\r\n"] {
            let act = move |number| if number == 1 { Act::Answer } else { Act::WriteAndClose(begun) };
            let server = Server::start(act).await;
            let pool = pool(&server);
            get(&pool).await;
            until_unused(&pool, 1).await;
            assert!(matches!(try_get(&pool).await, Err(CallError::Broken(_))), "{begun}");
            assert_eq!((count(&server.accepted), count(&server.requests)), (1, 2), "{begun}");
        }
    }

    #[tokio::test]
    async fn a_request_on_a_new_connection_that_dies_is_not_sent_again() {
        let server = Server::start(|_| Act::WriteAndClose("")).await;
        let pool = pool(&server);
        assert!(matches!(try_get(&pool).await, Err(CallError::Broken(_))));
        assert_eq!((count(&server.accepted), count(&server.requests)), (1, 1));
    }

    #[tokio::test]
    async fn new_connections_take_the_addresses_of_a_name_in_turn() {
        let servers = servers::<3>().await;
        let name = Name::default();
        name.point_to(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
        let authority = format!("service2:{}", servers[0].addr.port());
        let pool = pool_of(&authority, name.resolver(), ConnectionLimits::default());
        futures_util::future::join_all((0..6).map(|_| get(&pool))).await;
        assert_eq!(servers.each_ref().map(|server| count(&server.accepted)), [2, 2, 2]);
    }

    #[tokio::test]
    async fn an_address_that_refuses_costs_no_call() {
        let servers = servers::<2>().await;
        let name = Name::default();
        name.point_to(&["127.0.0.9", "127.0.0.2", "127.0.0.8", "127.0.0.3"]);
        let authority = format!("service2:{}", servers[0].addr.port());
        let pool = pool_of(&authority, name.resolver(), ConnectionLimits::default());
        futures_util::future::join_all((0..8).map(|_| get(&pool))).await;
        // 2, 3, 8 and 9 have two turns each; those of 8 and 9 go on to 2.
        assert_eq!(servers.each_ref().map(|server| count(&server.accepted)), [6, 2]);
    }

    #[tokio::test]
    async fn a_name_that_moves_is_followed_once_connections_reach_their_age() {
        let servers = servers::<2>().await;
        let name = Name::default();
        name.point_to(&["127.0.0.2"]);
        let authority = format!("service2:{}", servers[0].addr.port());
        let limits = ConnectionLimits { idle_timeout: 60 * MINUTE, ..ConnectionLimits::default() };
        let pool = pool_of(&authority, name.resolver(), limits);
        assert_eq!(get(&pool).await, "127.0.0.2");
        until_unused(&pool, 1).await;
        name.point_to(&["127.0.0.3"]);
        // No younger than three quarters of the age.
        pass(limits.max_age / 2).await;
        assert_eq!(get(&pool).await, "127.0.0.2");
        until_unused(&pool, 1).await;
        pass(limits.max_age / 2).await;
        assert_eq!(get(&pool).await, "127.0.0.3");
        until("the old one is closed", || count(&servers[0].open) == 0).await;
        assert_eq!(servers.each_ref().map(|server| count(&server.accepted)), [1, 1]);
    }

    #[tokio::test]
    async fn a_maximum_age_ends_no_call_that_is_under_way() {
        let answer = Arc::new(Notify::new());
        let acts = answer.clone();
        let server = Server::start(move |_| Act::AnswerWhen(acts.clone())).await;
        let pool = pool(&server);
        let mut call = std::pin::pin!(get(&pool));
        while count(&server.requests) == 0 {
            assert!(futures_util::poll!(call.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        pass(ConnectionLimits::default().max_age).await;
        answer.notify_one();
        assert_eq!(call.await, "127.0.0.1");
        assert!(lock(&pool.idle).is_empty(), "an expired connection was returned");
        until("no later call can use it", || count(&server.open) == 0).await;
        answer.notify_one();
        assert_eq!(get(&pool).await, "127.0.0.1");
        assert_eq!(count(&server.accepted), 2);
    }

    /// A server of HTTP/2 that sends GOAWAY when it has answered so many requests on a connection.
    async fn http2_server(answers: usize) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server { addr, accepted: Arc::default(), open: Arc::default(), requests: Arc::default() };
        let own = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                own.accepted.fetch_add(1, Ordering::SeqCst);
                own.open.fetch_add(1, Ordering::SeqCst);
                let own = own.clone();
                tokio::spawn(async move {
                    let mut serving = h2::server::handshake(stream).await.unwrap();
                    let mut left = answers;
                    while let Some(Ok((_, mut respond))) = serving.accept().await {
                        own.requests.fetch_add(1, Ordering::SeqCst);
                        let mut stream = respond.send_response(Response::new(()), false).unwrap();
                        stream.send_data(Bytes::from_static(b"127.0.0.1"), true).unwrap();
                        left -= 1;
                        if left == 0 {
                            serving.graceful_shutdown();
                        }
                    }
                    own.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    #[tokio::test]
    async fn over_http_2_unused_connections_are_closed_and_so_are_those_of_a_dropped_pool() {
        let server = http2_server(100).await;
        let (authority, limits) = (server.addr.to_string(), ConnectionLimits::default());
        let pool = pool_speaking(Protocol::Http2, &authority, RotatingResolver::system(), limits);
        futures_util::future::join_all((0..20).map(|_| get(&pool))).await;
        assert_eq!((count(&server.accepted), count(&server.requests)), (1, 20));
        pass(MINUTE).await;
        until("the unused is closed", || count(&server.open) == 0).await;
        get(&pool).await;
        assert_eq!((count(&server.accepted), count(&server.open)), (2, 1));
        drop(pool);
        until("the dropped pool's is closed", || count(&server.open) == 0).await;
    }

    #[tokio::test]
    async fn over_http_2_a_call_that_meets_goaway_is_made_on_another_connection_and_counts_as_one() {
        let server = http2_server(1).await;
        let (authority, limits) = (server.addr.to_string(), ConnectionLimits::default());
        let pool = pool_speaking(Protocol::Http2, &authority, RotatingResolver::system(), limits);
        for calls in 1..=20 {
            let mut sent = Sent::new(1, MINUTE);
            let post = || Request::post("/").body(Bytes::from_static(b"some")).unwrap();
            let (response, _) = pool.send(post, &mut sent).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "127.0.0.1");
            assert_eq!((count(&server.requests), sent.resend_count), (calls, 0));
        }
    }

    #[tokio::test]
    async fn failures_say_what_could_not_be_done() {
        // Bound, so that the port stays ours, and not listening.
        let unbound = tokio::net::TcpSocket::new_v4().unwrap();
        unbound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let authority = unbound.local_addr().unwrap().to_string();
        match try_get(&pool_of(&authority, RotatingResolver::system(), ConnectionLimits::default())).await {
            Err(error @ CallError::Connect(_)) => assert!(causes(&error).contains("refused"), "{error:?}"),
            other => panic!("{other:?}"),
        }
        let server = Server::start(|_| Act::WriteAndClose("this is no HTTP\r\n\r\n")).await;
        match try_get(&pool(&server)).await {
            Err(error @ CallError::Broken(_)) => assert!(causes(&error).contains("parse"), "{error:?}"),
            other => panic!("{other:?}"),
        }
    }
}
