//! Log records on their way to the exporter: access lines and diagnostics.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry_semantic_conventions::attribute as key;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer};

use crate::telemetry::queue::{BATCH_ITEMS, Batch, Counted, Queue, TextRange, Texts};
use crate::telemetry::span_queue::AttributeValue;
use crate::trace_context::Context;

/// The longest line and the longest attribute of a record, in bytes.
const MAX_LINE: usize = 2048;
const MAX_TEXT: usize = 1024;

/// A finished request, as its access line and its log record have it.
pub(crate) struct AccessEntry<'a> {
    pub(crate) started_at: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) client: IpAddr,
    pub(crate) method: &'a str,
    /// `_OTHER` when the method is not a registered one.
    pub(crate) known_method: &'static str,
    /// Without the query, which may hold secrets.
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    /// The status that was sent, also when the answer was cut; 0 without one.
    pub(crate) answered: u16,
    pub(crate) bytes: u64,
    pub(crate) request_id: &'a [u8],
    pub(crate) trace: Option<&'a Context>,
    pub(crate) lane: &'a str,
    /// The first failing upstream's status, else the last one's; `None` when none was called or none answered.
    pub(crate) upstream_status: Option<u16>,
    /// Where it is not HTTP/1.
    pub(crate) protocol: Option<&'static str>,
    /// Of a call of gRPC.
    pub(crate) grpc_status: Option<&'static str>,
    /// Why the answer was not written to its end.
    pub(crate) cut: Option<&'static str>,
}

/// A record in a [`LogBatch`].
#[derive(Debug)]
pub(crate) struct QueuedRecord {
    pub(crate) time: SystemTime,
    pub(crate) level: Level,
    pub(crate) context: Option<Context>,
    body: TextRange,
    source: Source,
}

/// What a record was made from.
#[derive(Debug)]
enum Source {
    Request {
        method: &'static str,
        path: TextRange,
        status: u16,
        client: IpAddr,
        bytes: u64,
        request_id: TextRange,
    },
    /// The fields of an event, each with its name.
    Diagnostic(Vec<(&'static str, TextRange)>),
}

/// Log records on their way to the exporter.
#[derive(Debug, Default)]
pub(crate) struct LogBatch {
    pub(crate) records: Vec<QueuedRecord>,
    texts: Texts,
}

pub(crate) type LogQueue = Queue<LogBatch>;

impl Batch for LogBatch {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn text_len(&self) -> usize {
        self.texts.0.len()
    }

    fn counted(&self, item: usize) -> Counted {
        let record = &self.records[item];
        record.context.map(|context| (context.trace_id, record.time))
    }

    fn clear(&mut self) {
        self.records.clear();
        self.records.shrink_to(BATCH_ITEMS);
        self.texts.clear();
    }
}

impl LogBatch {
    /// The text of a record: the line as it stands in the log, or the message of an event.
    pub(crate) fn body(&self, record: &QueuedRecord) -> &str {
        self.texts.get(record.body)
    }

    /// Calls `visit` for each attribute.
    pub(crate) fn attributes<'a>(&'a self, record: &'a QueuedRecord, mut visit: impl FnMut(&'static str, AttributeValue<'a>)) {
        match &record.source {
            Source::Request { method, path, status, client, bytes, request_id } => {
                visit("log.iostream", AttributeValue::Text("stdout"));
                visit(key::HTTP_REQUEST_METHOD, AttributeValue::Text(method));
                visit(key::URL_PATH, AttributeValue::Text(self.texts.get(*path)));
                if *status != 0 {
                    visit(key::HTTP_RESPONSE_STATUS_CODE, AttributeValue::Int(u64::from(*status)));
                }
                visit("http.response.body.size", AttributeValue::Int(*bytes));
                visit(key::CLIENT_ADDRESS, AttributeValue::Address(*client));
                visit("request.id", AttributeValue::Text(self.texts.get(*request_id)));
            }
            Source::Diagnostic(fields) => {
                visit("log.iostream", AttributeValue::Text("stderr"));
                for (name, value) in fields {
                    visit(name, AttributeValue::Text(self.texts.get(*value)));
                }
            }
        }
    }

    fn push_request(&mut self, entry: &AccessEntry<'_>, line: &[u8]) {
        let copy = |texts: &mut Texts, bytes: &[u8], max| texts.copy(&String::from_utf8_lossy(bytes), max);
        let record = QueuedRecord {
            time: entry.started_at + entry.duration,
            level: Level::INFO,
            context: entry.trace.copied(),
            body: copy(&mut self.texts, line.trim_ascii_end(), MAX_LINE),
            source: Source::Request {
                method: entry.known_method,
                path: self.texts.copy(entry.path, MAX_TEXT),
                status: entry.answered,
                client: entry.client,
                bytes: entry.bytes,
                request_id: copy(&mut self.texts, entry.request_id, MAX_TEXT),
            },
        };
        self.records.push(record);
    }

    fn push_diagnostic(&mut self, diagnostic: &Diagnostic) {
        let body = self.texts.copy(&diagnostic.message, MAX_LINE);
        let fields = diagnostic.fields.iter().map(|(name, value)| (*name, self.texts.copy(value, MAX_TEXT))).collect();
        self.records.push(QueuedRecord {
            time: diagnostic.time,
            level: diagnostic.level,
            context: None,
            body,
            source: Source::Diagnostic(fields),
        });
    }
}

impl LogQueue {
    /// Appends the record of an access line; one that does not fit is dropped and counted.
    pub(crate) fn push_request(&self, entry: &AccessEntry<'_>, line: &[u8]) {
        let counted = entry.trace.map(|context| (context.trace_id, entry.started_at));
        self.push_with(counted, |batch| batch.push_request(entry, line));
    }

    fn push_diagnostic(&self, diagnostic: &Diagnostic) {
        self.push_with(None, |batch| batch.push_diagnostic(diagnostic));
    }
}

/// An event of `tracing`.
#[derive(Debug)]
struct Diagnostic {
    time: SystemTime,
    level: Level,
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Diagnostic {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.fields.push((field.name(), value.to_owned()));
        }
    }
}

/// The diagnostics of this process as log records. They go to the queue of the first hop that exports logs; those before it are kept.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics(Arc<Mutex<Recipient>>);

#[derive(Debug)]
enum Recipient {
    /// What a start says before its exporters run.
    Start(Vec<Diagnostic>),
    Queue(Arc<LogQueue>),
    Nobody,
}

impl Default for Recipient {
    fn default() -> Self {
        Self::Start(Vec::new())
    }
}

impl Diagnostics {
    /// How many events of a start are kept.
    const MAX_KEPT: usize = 64;

    /// From now on they go to `queue`, unless they go to another one already; without one they go nowhere.
    pub(crate) fn send_to(&self, queue: Option<&Arc<LogQueue>>) {
        let mut recipient = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Recipient::Start(kept) = &*recipient {
            if let Some(queue) = queue {
                kept.iter().for_each(|diagnostic| queue.push_diagnostic(diagnostic));
            }
            *recipient = queue.map_or(Recipient::Nobody, |queue| Recipient::Queue(queue.clone()));
        }
    }

    /// The queue is exported no more.
    pub(crate) fn end(&self, queue: &Arc<LogQueue>) {
        let mut recipient = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*recipient, Recipient::Queue(current) if Arc::ptr_eq(current, queue)) {
            *recipient = Recipient::Nobody;
        }
    }
}

impl<S: Subscriber> Layer<S> for Diagnostics {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let metadata = event.metadata();
        // Events of the exporter's own libraries would make further exports, without end.
        if !metadata.target().starts_with(env!("CARGO_PKG_NAME")) {
            return;
        }
        if matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Recipient::Nobody) {
            return;
        }
        let mut diagnostic =
            Diagnostic { time: SystemTime::now(), level: *metadata.level(), message: String::new(), fields: Vec::new() };
        event.record(&mut diagnostic);
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Recipient::Start(kept) if kept.len() < Self::MAX_KEPT => kept.push(diagnostic),
            Recipient::Queue(queue) => queue.push_diagnostic(&diagnostic),
            Recipient::Start(_) | Recipient::Nobody => {}
        }
    }
}
