//! Lines on their way to stdout or stderr: a bounded buffer and a thread that writes it.
//!
//! A request never waits for whoever reads the output. When nobody does, the buffer fills, and further lines are dropped and
//! counted.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

    /// Hands over one line, which `write` appends with its line end.
    pub(crate) fn line(&self, write: impl FnOnce(&mut Vec<u8>)) {
        thread_local! {
            static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        // Written aside, so that nobody waits for the lock while words are put together.
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

/// Appends a number. Lines are made of many small ones, and `write!` takes longer for its own machinery than for the digits.
pub(crate) fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends the last `N` digits of a number, with leading zeros.
fn push_digits<const N: usize>(out: &mut Vec<u8>, number: u32) {
    let mut digits = [0; N];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits);
}

/// Appends milliseconds with three digits after the point.
pub(crate) fn push_milliseconds(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    push_number(out, micros / 1000);
    out.push(b'.');
    push_digits::<3>(out, (micros % 1000) as u32);
}

/// Appends an address. IPv4, which nearly all are, without the detour through a formatter.
pub(crate) fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                push_number(out, u64::from(octet));
            }
        }
        IpAddr::V6(v6) => {
            let _ = write!(out, "{v6}");
        }
    }
}

/// Appends a time: RFC 3339, UTC, microseconds.
pub(crate) fn push_time(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, (since.as_secs() % 86_400) as u32);
    // From days to a date in years that begin with March, so that the leap day is the last. Source: Howard Hinnant,
    // "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let days = days + 719_468;
    let era_day = days % 146_097;
    let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let march_month = (5 * year_day + 2) / 153;
    let day = (year_day - (153 * march_month + 2) / 5 + 1) as u32;
    let month = (if march_month < 10 { march_month + 3 } else { march_month - 9 }) as u32;
    let year = (days / 146_097 * 400 + era_year) as u32 + u32::from(month <= 2);
    push_digits::<4>(out, year);
    out.push(b'-');
    push_digits::<2>(out, month);
    out.push(b'-');
    push_digits::<2>(out, day);
    out.push(b'T');
    push_digits::<2>(out, second / 3600);
    out.push(b':');
    push_digits::<2>(out, second / 60 % 60);
    out.push(b':');
    push_digits::<2>(out, second % 60);
    out.push(b'.');
    push_digits::<6>(out, since.subsec_micros());
    out.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_humantime_writes_them() {
        let day = 86_400;
        for seconds in
            (0..).step_by(13 * day + 3_661).take_while(|seconds| *seconds < 250 * 365 * day).chain([951_782_399, 951_868_800])
        {
            let time = UNIX_EPOCH + Duration::new(seconds as u64, (seconds % 999_999_937) as u32);
            let mut out = Vec::new();
            push_time(&mut out, time);
            assert_eq!(String::from_utf8(out).unwrap(), humantime::format_rfc3339_micros(time).to_string());
        }
    }

    #[test]
    fn numbers_and_addresses_are_written_as_the_formatter_writes_them() {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        for number in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            assert_eq!(written(&|out| push_number(out, number)), number.to_string());
        }
        for (micros, text) in [(0, "0.000"), (12_345, "12.345"), (1_000_007, "1000.007")] {
            assert_eq!(written(&|out| push_milliseconds(out, Duration::from_micros(micros))), text);
        }
        for text in ["0.0.0.0", "10.20.30.255", "::1", "2001:db8::1"] {
            assert_eq!(written(&|out| push_address(out, text.parse().unwrap())), text);
        }
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
