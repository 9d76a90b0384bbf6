//! HTTP/2 over the `h2` crate. hyper's server keeps the handle of a stream to itself: what waits in it for the peer's window can
//! neither be counted nor reset, and a request counts as answered while its answer waits.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::net::body::ReceivedBody;
use crate::server::activity::active::{ActiveRequest, BodyWait, WindowWait};
use crate::server::activity::{Connection, Cut};
use crate::server::answer::{Account, AnswerBody, COUNTED_AT_ONCE, Chunk, Guard};
use crate::server::clock::RunningClock;
use crate::server::connection::{MAX_HEAD, Protocols};
use crate::server::service::{ClientCertificate, HttpService, RequestBody};
use crate::text::causes;

/// How many requests one connection may have in flight.
const MAX_STREAMS: u32 = 100;
/// Streams of each connection that need no place among those of the process: no peer takes the last ones from another.
const FREE_STREAMS: usize = 2;
/// The largest DATA frame that is sent, also to a peer that allows larger ones.
const MAX_FRAME: usize = 16 << 10;
/// Bytes of one answer that wait for the socket, beside the frame that is written.
const MAX_SEND_BUFFER: usize = 64 << 10;
/// What a connection's answers may hold before its further requests wait: a peer that reads them is not slowed down.
const MAX_ANSWERS: usize = 512 << 10;
/// What peers may send unasked: per stream as much as a request's body may have, and in all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;

type StreamSender = SendStream<Chunk<Arc<Unsent>>>;

impl<S: HttpService> Protocols<S> {
    pub(crate) async fn http2(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin,
        certificate: ClientCertificate,
    ) -> Result<(), String> {
        self.connection.set_multiplexed();
        let mut builder = h2::server::Builder::new();
        builder
            .max_header_list_size(MAX_HEAD as u32)
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let mut serving = builder.handshake(io).await.map_err(|error| causes(&error))?;
        let answers = Arc::new(Answers::default());
        let mut is_going_away = false;
        // Requests that came and were accepted, or are counted as refused.
        let mut known = 0;
        loop {
            let accepted = poll_fn(|cx| {
                if !is_going_away && self.connection.must_go_away() {
                    is_going_away = true;
                    // First with the largest stream number, so that requests on their way are served (RFC 9113, 6.8).
                    serving.graceful_shutdown();
                }
                let accepted = serving.poll_accept(cx);
                // What h2 refuses by itself for one stream alone it does not say.
                if accepted.is_pending() && !is_going_away {
                    known += self.count_refused(known, Arc::strong_count(&answers) > MAX_STREAMS as usize);
                }
                accepted
            });
            let Some(accepted) = accepted.await else { return Ok(()) };
            let (request, mut respond) = accepted.map_err(|error| {
                if error.is_library() && self.count_refused(known, false) == 0 {
                    (self.on_refused)(StatusCode::BAD_REQUEST);
                }
                causes(&error)
            })?;
            known += 1;
            // Windows that stay closed on many connections would hold more than the process has.
            let place = (Arc::strong_count(&answers) > FREE_STREAMS).then(|| self.streams.clone().try_acquire_owned());
            let Ok(place) = place.transpose() else {
                // The peer may send it again: nothing of it was processed (RFC 9113, 8.7).
                respond.send_reset(Reason::REFUSED_STREAM);
                (self.on_refused)(StatusCode::SERVICE_UNAVAILABLE);
                continue;
            };
            let active = ActiveRequest::new(&self.connection, Some(0));
            let body_wait = (!request.body().is_end_stream()).then(|| BodyWait::new(&self.connection));
            let body = |stream| RequestBody::new(ReceivedBody::Http2(stream), body_wait.clone());
            let stream = Stream {
                request: self.with_connection_info(request.map(body), &certificate),
                body_wait,
                respond,
                service: self.service.clone(),
                connection: self.connection.clone(),
                answers: answers.clone(),
            };
            tokio::spawn(async move {
                stream.answer().await;
                drop((active, place));
            });
        }
    }

    /// Counts the requests that came beyond those that are `known`, when all that came was read; returns how many.
    fn count_refused(&self, known: u64, is_full: bool) -> u64 {
        let (heads, is_blocked) = self.connection.requests_read();
        let refused = if is_blocked { 0 } else { heads.count.saturating_sub(known) };
        for _ in 0..refused {
            (self.on_refused)(match heads.last {
                _ if is_full => StatusCode::SERVICE_UNAVAILABLE,
                length if length > MAX_HEAD / 2 => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                _ => StatusCode::BAD_REQUEST,
            });
        }
        refused
    }
}

/// What the streams of one connection hold.
#[derive(Default)]
struct Answers {
    bytes: AtomicUsize,
    /// Notified when it is less.
    room: Notify,
}

impl Answers {
    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < MAX_ANSWERS
    }

    async fn room(&self) {
        loop {
            let mut less = pin!(self.room.notified());
            less.as_mut().enable();
            if self.has_room() {
                return;
            }
            less.await;
        }
    }
}

/// What one answer holds: all of it until it ends, or, of one whose length is not known, the frames that are not written. A stream
/// that has nothing to send holds nothing.
struct HeldBytes<'a> {
    answers: &'a Answers,
    bytes: usize,
    is_whole: bool,
}

impl<'a> HeldBytes<'a> {
    fn new(answers: &'a Answers, length: Option<u64>) -> Self {
        let mut held = Self { answers, bytes: 0, is_whole: false };
        held.add(length.map_or(0, |length| length as usize));
        held.is_whole = length.is_some();
        held
    }

    fn add(&mut self, frame: usize) {
        if !self.is_whole {
            self.bytes += frame;
            self.answers.bytes.fetch_add(frame, Ordering::AcqRel);
        }
    }

    /// Everything that was added is written.
    fn release(&mut self) {
        if !self.is_whole && self.bytes > 0 {
            self.answers.bytes.fetch_sub(std::mem::take(&mut self.bytes), Ordering::AcqRel);
            self.answers.room.notify_waiters();
        }
    }
}

impl Drop for HeldBytes<'_> {
    fn drop(&mut self) {
        self.is_whole = false;
        self.release();
    }
}

/// One request and where its answer goes.
struct Stream<S> {
    request: Request<RequestBody>,
    body_wait: Option<Arc<BodyWait>>,
    respond: SendResponse<Chunk<Arc<Unsent>>>,
    service: TowerToHyperService<S>,
    connection: Arc<Connection>,
    answers: Arc<Answers>,
}

impl<S: HttpService> Stream<S> {
    async fn answer(self) {
        let Self { request, body_wait, mut respond, service, connection, answers } = self;
        let mut answering = pin!(async {
            if !answers.has_room() {
                let _wait = WindowWait::new(&connection);
                answers.room().await;
            }
            service.call(request).await
        });
        let response = poll_fn(|cx| match answering.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            // The peer took the request back, or is gone.
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        });
        let Some(response) = response.await else { return };
        if let Some(wait) = body_wait {
            wait.end();
        }
        let (head, mut body) = match response {
            Ok(response) => response.into_parts(),
            Err(never) => match never {},
        };
        let mut head = Response::from_parts(head, ());
        let (is_empty, length) = (body.is_end_stream(), body.size_hint().exact());
        complete_headers(head.headers_mut(), length.filter(|_| !is_empty));
        let mut account = body.take_account();
        let unsent = Arc::new(Unsent::default());
        let held = HeldBytes::new(&answers, length);
        if is_empty {
            account = None;
        }
        let sent = match respond.send_response(head, is_empty) {
            Err(_) => Err(None),
            Ok(_) if is_empty => Ok(()),
            Ok(stream) => {
                let account = &mut account;
                StreamAnswer { stream, connection: &connection, unsent: &unsent, held, account, wait: None }.send(body).await
            }
        };
        if let Some(account) = account {
            account.sent(unsent.sent.load(Ordering::Acquire));
            if let Err(why) = sent {
                account.cut(why);
            }
        }
    }
}

/// Frames that were handed to h2.
#[derive(Default)]
struct Unsent {
    sent: AtomicUsize,
    waiting: AtomicUsize,
    is_cut: AtomicBool,
    waker: AtomicWaker,
}

impl Guard for Arc<Unsent> {
    fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes, Ordering::AcqRel);
        if self.waiting.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            self.waker.wake();
        }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The answer of one stream.
struct StreamAnswer<'a, A> {
    stream: StreamSender,
    connection: &'a Arc<Connection>,
    unsent: &'a Arc<Unsent>,
    held: HeldBytes<'a>,
    account: &'a mut Option<A>,
    /// It had to wait for longer than a moment.
    wait: Option<WindowWait>,
}

impl<A: Account> StreamAnswer<'_, A> {
    /// Resolves when the last byte was written to the connection.
    ///
    /// # Errors
    ///
    /// The stream ended before; `None`: as its connection did.
    async fn send(mut self, mut body: impl AnswerBody) -> Result<(), Option<Cut>> {
        loop {
            let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(Ok(frame)),
                Poll::Pending => {
                    self.unsent.waker.register(cx.waker());
                    self.release_written();
                    self.stream.poll_reset(cx).map(|_| Err(None))
                }
            });
            match frame.await? {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => {
                        let is_last = body.is_end_stream();
                        self.send_data(bytes, is_last).await?;
                        if is_last {
                            break;
                        }
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.stream.send_trailers(trailers).map_err(|_| None)?;
                        break;
                    }
                },
                None => {
                    self.hand_over(Bytes::new(), true)?;
                    break;
                }
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Err(None);
                }
            }
        }
        self.written().await
    }

    /// Hands data to h2 as far as the peer's window allows.
    async fn send_data(&mut self, mut bytes: Bytes, is_last: bool) -> Result<(), Option<Cut>> {
        if bytes.is_empty() {
            return self.hand_over(bytes, is_last);
        }
        self.release_written();
        self.held.add(bytes.len());
        while !bytes.is_empty() {
            let wanted = bytes.len().min(MAX_FRAME);
            self.stream.reserve_capacity(wanted);
            let capacity = self.capacity().await?;
            let frame = bytes.split_to(capacity.min(wanted));
            if is_last && bytes.is_empty() {
                self.count_at_once(frame.len());
            }
            self.hand_over(frame, is_last && bytes.is_empty())?;
        }
        Ok(())
    }

    fn release_written(&mut self) {
        if self.unsent.waiting.load(Ordering::Acquire) == 0 {
            self.held.release();
        }
    }

    fn count_at_once(&mut self, last: usize) {
        let is_all_written = self.unsent.waiting.load(Ordering::Acquire) == 0;
        if last <= COUNTED_AT_ONCE
            && is_all_written
            && !self.connection.is_write_blocked()
            && let Some(account) = self.account.take()
        {
            account.sent(self.unsent.sent.load(Ordering::Acquire) + last);
        }
    }

    fn hand_over(&mut self, bytes: Bytes, is_last: bool) -> Result<(), Option<Cut>> {
        self.unsent.waiting.fetch_add(bytes.len(), Ordering::AcqRel);
        if self.wait.is_some() {
            self.connection.taken(bytes.len());
        }
        self.stream.send_data(Chunk { bytes, guard: self.unsent.clone() }, is_last).map_err(|_| None)
    }

    /// Waits until the peer allows more bytes.
    async fn capacity(&mut self) -> Result<usize, Option<Cut>> {
        let clock = self.connection.clock();
        let deadline = clock.now() + self.connection.options().write_timeout;
        loop {
            let stream = &mut self.stream;
            let capacity = poll_fn(|cx| {
                loop {
                    match stream.capacity() {
                        0 => match ready!(stream.poll_capacity(cx)) {
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => return Poll::Ready(Err(None)),
                        },
                        capacity => return Poll::Ready(Ok(capacity)),
                    }
                }
            });
            if let Ok(capacity) = tokio::time::timeout_at(clock.to_tokio(next(&self.wait, deadline, clock)), capacity).await {
                return capacity;
            }
            self.wait.get_or_insert_with(|| WindowWait::new(self.connection));
            if clock.update() >= deadline {
                return self.reset();
            }
        }
    }

    /// Waits until h2 has written what it has. A peer can shrink its window for what was handed over already.
    async fn written(&mut self) -> Result<(), Option<Cut>> {
        let clock = self.connection.clock();
        let mut deadline = clock.now() + self.connection.options().write_timeout;
        let mut sent = self.unsent.sent.load(Ordering::Acquire);
        loop {
            let (stream, unsent) = (&mut self.stream, self.unsent);
            let written = poll_fn(|cx| {
                unsent.waker.register(cx.waker());
                if unsent.waiting.load(Ordering::Acquire) == 0 {
                    Poll::Ready(Ok(()))
                } else if unsent.is_cut.load(Ordering::Acquire) {
                    Poll::Ready(Err(None))
                } else {
                    stream.poll_reset(cx).map(|_| Err(None))
                }
            });
            if let Ok(written) = tokio::time::timeout_at(clock.to_tokio(next(&self.wait, deadline, clock)), written).await {
                return written;
            }
            self.wait.get_or_insert_with(|| WindowWait::new(self.connection));
            let before = std::mem::replace(&mut sent, self.unsent.sent.load(Ordering::Acquire));
            if sent > before {
                deadline = clock.now() + self.connection.options().write_timeout;
            } else if clock.update() >= deadline {
                return self.reset();
            }
        }
    }

    /// The peer has accepted nothing for too long. What is queued is dropped.
    fn reset<T>(&mut self) -> Result<T, Option<Cut>> {
        self.stream.send_reset(Reason::CANCEL);
        Err(Some(Cut::WriteTimeout))
    }
}

/// When an answer that waits for its reader is looked at again.
fn next(wait: &Option<WindowWait>, deadline: Instant, clock: &RunningClock) -> Instant {
    if wait.is_some() { deadline } else { deadline.min(clock.now() + WindowWait::AFTER) }
}

/// The headers that HTTP/2 forbids are removed (RFC 9113, 8.2.2), and those that every answer has are added.
fn complete_headers(headers: &mut HeaderMap, length: Option<u64>) {
    static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    for name in [&header::CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &header::TRANSFER_ENCODING, &header::UPGRADE] {
        headers.remove(name);
    }
    if let Some(length) = length {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    headers.entry(header::DATE).or_insert_with(date);
}

/// The time as `Date` has it, written once a second.
fn date() -> HeaderValue {
    static WRITTEN: Mutex<Option<(u64, HeaderValue)>> = Mutex::new(None);
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    match &*written {
        Some((then, date)) if *then == second => date.clone(),
        _ => {
            let date = HeaderValue::try_from(httpdate::fmt_http_date(now)).unwrap_or(HeaderValue::from_static(""));
            *written = Some((second, date.clone()));
            date
        }
    }
}
