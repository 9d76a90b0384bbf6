//! Non-blocking output of lines to stdout or stderr: a bounded buffer and a thread that writes it.
//!
//! A request never waits for the output's reader. When the buffer is full, further lines are dropped and counted.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most bytes that may wait, in addition to those being written.
const MAX_BUFFERED: usize = 1 << 20;

/// The pause between two writes, so that one write(2) writes many lines.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);

/// A handle that accepts lines. Clones share the buffer.
#[derive(Debug, Clone)]
pub struct LineWriter(Arc<LineBuffer>);

#[derive(Debug)]
struct LineBuffer {
    buffer: Mutex<Vec<u8>>,
    /// Notified when the buffer is no longer empty.
    filled: Condvar,
    /// Notified after each write.
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
        let shared = Arc::new(LineBuffer {
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
                // A closed output (EPIPE) loses the lines; the server keeps running.
                if out.write_all(&lines).and_then(|()| out.flush()).is_err() {
                    shared.dropped.fetch_add(lines.iter().filter(|byte| **byte == b'\n').count() as u64, Ordering::Relaxed);
                }
                lines.clear();
                shared.writing.store(false, Ordering::Release);
                shared.written.notify_all();
                drop(shared);
                std::thread::sleep(FLUSH_INTERVAL);
            }
        });
        if let Err(error) = spawned {
            // Without the thread, lines fill the buffer and are then dropped and counted.
            let _ = writeln!(io::stderr(), "httpserver: cannot start the thread that writes {name}: {error}");
        }
        Self(shared)
    }

    /// Queues one line; `write` appends it, line end included.
    pub(crate) fn line(&self, write: impl FnOnce(&mut Vec<u8>)) {
        thread_local! {
            static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        // Format into a thread-local buffer so that the lock is held only for the copy.
        let mut line = LINE.take();
        line.clear();
        write(&mut line);
        let mut buffer = self.0.lock();
        if buffer.len() >= MAX_BUFFERED {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            let was_empty = buffer.is_empty();
            buffer.extend_from_slice(&line);
            drop(buffer);
            if was_empty {
                self.0.filled.notify_one();
            }
        }
        LINE.set(line);
    }

    /// Lines dropped since the start: the buffer was full, or the output was closed.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Blocks until everything is written, at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut buffer = self.0.lock();
        while !buffer.is_empty() || self.0.writing.load(Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let slice = left.min(FLUSH_INTERVAL);
            buffer = self.0.written.wait_timeout(buffer, slice).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl LineBuffer {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and swaps them with the empty `lines`. Returns without any after a second, so that the thread can end
    /// when no handle is left.
    fn next(&self, lines: &mut Vec<u8>) {
        let buffer = self.lock();
        let waited = self.filled.wait_timeout_while(buffer, Duration::from_secs(1), |buffer| buffer.is_empty());
        let mut buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut *buffer, lines);
        self.writing.store(true, Ordering::Release);
    }
}

/// For `tracing_subscriber`, which writes each diagnostic as one line.
impl io::Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line(|buffer| buffer.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_output_drops_lines_and_never_blocks_the_caller() {
        /// Blocks forever, like a full pipe.
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
