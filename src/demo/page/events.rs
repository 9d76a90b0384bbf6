//! The stream that keeps the page up to date: the chain, what passes it, its figures, and every trace as it comes in.
//!
//! Server-sent events, each with one line of JSON. A stream begins with everything, so a page that connects again has missed
//! nothing:
//!
//! | event | data |
//! |---|---|
//! | `chain` | hops with their addresses, plans and calls; again when one of them is changed |
//! | `passed` | per hop how many requests began, ended and failed since its start; grows while requests pass |
//! | `ticked` | per hop health and figures over the last ten seconds; once a second |
//! | `traces` | what is known of traces that are new or have grown |

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::StatusCode;
use serde::Serialize;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::AbortHandle;

use crate::demo::access::text;
use crate::demo::control::state::DemoState;
use crate::demo::control::until;
use crate::demo::page::view::Summary;
use crate::traces::TraceId;

/// Streams at once, of all and of one address; each costs a task.
const STREAMS: usize = 32;
const STREAMS_PER_PEER: usize = 8;
/// Events that a stream may be behind.
const BACKLOG: usize = 4;
/// A page that takes no event for this long is gone; after the shorter time its place goes to another.
const STALLED: Duration = Duration::from_secs(30);
const BEHIND: Duration = Duration::from_millis(500);
/// How long a page waits for such a place.
const PATIENCE: Duration = Duration::from_secs(2);
/// Traces that a stream begins with, and the most in one event.
const TRACES: usize = 100;
/// Changes within this time are sent as one event. Shorter than what an eye can distinguish.
const DEBOUNCE: Duration = Duration::from_millis(25);
/// The streams that are open. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<Vec<OpenStream>>>);

#[derive(Debug)]
struct OpenStream {
    peer: IpAddr,
    tx: mpsc::WeakSender<Event>,
    /// When the connection took an event last.
    taken: Arc<Mutex<Instant>>,
    feed: AbortHandle,
}

impl Streams {
    /// Makes room for a stream of `peer`, at the expense of one whose page does not read. Returns whether there is room.
    fn make_room(&self, peer: IpAddr) -> bool {
        let mut open = lock(&self.0);
        open.retain(|stream| !stream.feed.is_finished());
        let of_peer = open.iter().filter(|stream| stream.peer == peer).count();
        if of_peer < STREAMS_PER_PEER && open.len() < STREAMS {
            return true;
        }
        let is_behind = |stream: &OpenStream| stream.tx.upgrade().is_none_or(|tx| tx.capacity() < BACKLOG);
        let rivals = open.iter().enumerate().filter(|(_, stream)| of_peer < STREAMS_PER_PEER || stream.peer == peer);
        let behind = rivals.filter(|(_, stream)| is_behind(stream)).map(|(at, stream)| (*lock(&stream.taken), at));
        let Some((_, at)) = behind.filter(|(taken, _)| taken.elapsed() >= BEHIND).min() else { return false };
        open.remove(at).feed.abort();
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers `/demo/events`. `watching_only` says why this viewer may change nothing.
pub(crate) async fn events(
    state: Arc<DemoState>,
    watching_only: Option<&'static str>,
    streams: &Streams,
    peer: IpAddr,
    stopped: watch::Receiver<bool>,
) -> Response {
    let begun = Instant::now();
    while !streams.make_room(peer) {
        if begun.elapsed() >= PATIENCE {
            return text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open");
        }
        tokio::time::sleep(PATIENCE / 20).await;
    }
    let (tx, rx) = mpsc::channel(BACKLOG);
    let (weak, taken) = (tx.downgrade(), Arc::new(Mutex::new(begun)));
    let feed = Feed { state, tx, watching_only };
    let feed = tokio::spawn(async move {
        tokio::select! {
            _ = feed.run() => {}
            () = until(stopped) => {}
        }
    });
    lock(&streams.0).push(OpenStream { peer, tx: weak, taken: taken.clone(), feed: feed.abort_handle() });
    let events = stream::unfold((rx, taken), |(mut rx, taken)| async {
        let event = rx.recv().await?;
        *lock(&taken) = Instant::now();
        Some((Ok::<_, Infallible>(event), (rx, taken)))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

struct Feed {
    state: Arc<DemoState>,
    tx: mpsc::Sender<Event>,
    watching_only: Option<&'static str>,
}

/// The page is gone.
struct Gone;

impl Feed {
    async fn run(&self) -> Result<(), Gone> {
        // Subscribed before anything is sent: what happens in between comes twice rather than never.
        let state = &self.state;
        let mut altered = state.altered.subscribe();
        let mut passed = state.passed.subscribe();
        let mut ticked = state.ticked.subscribe();
        ticked.mark_unchanged();
        let mut arrivals = state.store.subscribe();
        state.prompt.notify_one();
        self.send("chain", &state.chain(self.watching_only)).await?;
        self.send("passed", &state.passed()).await?;
        self.traces(state.store.trace_ids()).await?;
        loop {
            tokio::select! {
                Ok(()) = altered.changed() => self.send("chain", &state.chain(self.watching_only)).await?,
                Ok(()) = passed.changed() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    passed.mark_unchanged();
                    self.send("passed", &state.passed()).await?;
                }
                Ok(()) = ticked.changed() => {
                    let figures = ticked.borrow_and_update().clone();
                    self.send("ticked", &figures).await?;
                }
                arrived = arrivals.recv() => {
                    let ids = match arrived {
                        Ok(first) => {
                            tokio::time::sleep(DEBOUNCE).await;
                            drain(first, &mut arrivals)
                        }
                        Err(RecvError::Lagged(_)) => None,
                        Err(RecvError::Closed) => return Ok(()),
                    };
                    self.traces(ids.unwrap_or_else(|| state.store.trace_ids())).await?;
                }
                // The page may be gone while nothing happens here.
                () = self.tx.closed() => return Err(Gone),
            }
        }
    }

    /// Sends summaries of the first of these traces that are still there.
    async fn traces(&self, ids: Vec<TraceId>) -> Result<(), Gone> {
        let load = |id| self.state.store.tree(id).map(|trace| Summary::of(&trace));
        let summaries: Vec<_> = ids.into_iter().take(TRACES).filter_map(load).collect();
        self.send("traces", &summaries).await
    }

    async fn send(&self, name: &str, data: &impl Serialize) -> Result<(), Gone> {
        let event = Event::default().event(name).json_data(data).map_err(|_| Gone)?;
        self.tx.send_timeout(event, STALLED).await.map_err(|_| Gone)
    }
}

/// Every trace that has arrived by now, each once; `None` when some were missed.
fn drain(first: TraceId, arrivals: &mut broadcast::Receiver<TraceId>) -> Option<Vec<TraceId>> {
    let mut seen = HashSet::from([first]);
    let mut ids = vec![first];
    loop {
        match arrivals.try_recv() {
            Ok(id) => {
                if seen.insert(id) {
                    ids.push(id);
                }
            }
            Err(TryRecvError::Lagged(_)) => return None,
            Err(TryRecvError::Empty | TryRecvError::Closed) => {
                // When they are too many, the newest matter.
                ids.reverse();
                return Some(ids);
            }
        }
    }
}
