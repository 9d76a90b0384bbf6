//! Lines on their way to stdout or stderr: a bounded buffer and a thread that writes it.
//!
//! A request never waits for whoever reads the output. When nobody does, the buffer fills, and further lines are dropped and
//! counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many bytes wait at most; the half that is being written is not counted.
const MAX_BUFFERED: usize = 1 << 20;

/// How long the writer lets lines gather. People do not see it, and it makes one write of many lines.
const GATHER: Duration = Duration::from_millis(20);

/// The handle that lines are handed to. Clones share the buffer.
#[derive(Debug, Clone)]
pub struct LineWriter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Vec<u8>>,
    /// There is something to write.
    filled: Condvar,
    /// Everything was written.
    written: Condvar,
    writing: AtomicBool,
    dropped: AtomicU64,
}

impl LineWriter {
    /// Starts a thread that writes to stdout.
    pub fn stdout() -> Self {
        Self::start("stdout", || Box::new(io::stdout()))
    }

    /// Starts a thread that writes to stderr.
    pub fn stderr() -> Self {
        Self::start("stderr", || Box::new(io::stderr()))
    }

    fn start(name: &str, open: impl FnOnce() -> Box<dyn Write> + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            buffer: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            writing: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let writer = Arc::downgrade(&shared);
        let spawned = std::thread::Builder::new().name(format!("lines-{name}")).stack_size(128 << 10).spawn(move || {
            let mut out = open();
            let mut lines = Vec::new();
            while let Some(shared) = writer.upgrade() {
                shared.next(&mut lines);
                // An output that is gone (EPIPE) takes nothing; the lines are lost and the server goes on.
                if out.write_all(&lines).and_then(|()| out.flush()).is_err() {
                    shared.dropped.fetch_add(lines.iter().filter(|byte| **byte == b'\n').count() as u64, Ordering::Relaxed);
                }
                lines.clear();
                shared.writing.store(false, Ordering::Release);
                shared.written.notify_all();
                drop(shared);
                std::thread::sleep(GATHER);
            }
        });
        if let Err(error) = spawned {
            // Lines then gather until they are dropped and counted; serving goes on.
            let _ = writeln!(io::stderr(), "httpserver: no thread for {name}: {error}");
        }
        Self(shared)
    }

    /// Hands over one line, which `write` appends with its line end. `write` must not fail half-way and must not log.
    pub(crate) fn line(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.0.lock();
        if buffer.len() >= MAX_BUFFERED {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = buffer.is_empty();
        write(&mut buffer);
        drop(buffer);
        if was_empty {
            self.0.filled.notify_one();
        }
    }

    /// How many lines were dropped because nobody read.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything is written, at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut buffer = self.0.lock();
        while !buffer.is_empty() || self.0.writing.load(Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let slice = left.min(GATHER);
            buffer = self.0.written.wait_timeout(buffer, slice).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and takes them all, leaving the emptied `lines` in their place. Returns empty-handed now and then, so
    /// that the thread can see that nobody holds the handle any more.
    fn next(&self, lines: &mut Vec<u8>) {
        let buffer = self.lock();
        let waited = self.filled.wait_timeout_while(buffer, Duration::from_secs(1), |buffer| buffer.is_empty());
        let mut buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut *buffer, lines);
        self.writing.store(true, Ordering::Release);
    }
}

/// For `tracing_subscriber`: diagnostics go the same way.
impl io::Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line(|buffer| buffer.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends text as part of a line that stays one line: what could end it, forge another one or move a terminal's cursor is
/// escaped, and so are quotes and backslashes. The result is also a valid JSON string's inside.
pub(crate) fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if text.iter().all(|byte| plain(*byte)) {
        out.extend_from_slice(text);
        return;
    }
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            // U+2028 and U+2029 end a line for some readers; C1 controls move some terminals' cursors.
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_text_cannot_end_its_line_and_is_json() {
        let mut out = Vec::new();
        push_escaped(&mut out, "a\r\nb\"c\\d\u{1b}[31m\u{9b}\u{2028}\u{202e}ü".as_bytes());
        let text = String::from_utf8(out).unwrap();
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{2028}'), "{text}");
        let json: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        assert_eq!(json, "a\r\nb\"c\\d\u{1b}[31m\u{9b}\u{2028}\u{202e}ü");
    }

    #[test]
    fn an_output_that_nobody_reads_costs_lines_and_never_time() {
        /// Blocks for good, like a pipe whose reader sleeps.
        struct Stuck;
        impl Write for Stuck {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                loop {
                    std::thread::park();
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = LineWriter::start("stuck", || Box::new(Stuck));
        for _ in 0..3000 {
            lines.line(|out| out.extend_from_slice(&[b'x'; 1024]));
        }
        assert!(lines.dropped() > 0);
        assert!(lines.0.lock().len() <= MAX_BUFFERED + 1024);
    }

    #[test]
    fn flush_returns_once_everything_is_written() {
        #[derive(Clone, Default)]
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let opened = sink.clone();
        let lines = LineWriter::start("sink", || Box::new(opened));
        for i in 0..100 {
            lines.line(|out| writeln!(out, "{i}").unwrap());
        }
        lines.flush(Duration::from_secs(10));
        assert_eq!(sink.0.lock().unwrap().iter().filter(|byte| **byte == b'\n').count(), 100);
    }
}
