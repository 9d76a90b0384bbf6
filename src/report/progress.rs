//! The progress line on standard error.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::text::terminal::knows_sequences;

/// A progress line on standard error, for a person who waits. Does nothing when standard error is no terminal, or one that knows
/// no control sequences.
pub(crate) struct ProgressLine {
    on: bool,
    /// When the line was last drawn.
    drawn: Mutex<Option<Instant>>,
}

impl ProgressLine {
    /// The shortest time between two draws: a remote terminal need not draw every request.
    const REDRAW_INTERVAL: Duration = Duration::from_millis(50);

    pub(crate) fn new(is_terminal: bool) -> Self {
        Self { on: is_terminal && knows_sequences(std::env::var_os("TERM")), drawn: Mutex::new(None) }
    }

    /// `done` of `all`, and what is being done.
    pub(crate) fn show(&self, what: &str, done: u64, all: u64) {
        if !self.on {
            return;
        }
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if done < all && drawn.is_some_and(|at| at.elapsed() < Self::REDRAW_INTERVAL) {
            return;
        }
        *drawn = Some(Instant::now());
        const CELLS: u64 = 24;
        let filled = (CELLS * done.min(all)).checked_div(all).unwrap_or(0);
        let bar: String = (0..CELLS).map(|cell| if cell < filled { '█' } else { '░' }).collect();
        // Without wrapping, so that a window narrower than the line has one line to erase.
        let _ = write!(std::io::stderr(), "\r\u{1b}[2K\u{1b}[?7l  {bar} {done}/{all} {what}\u{1b}[?7h");
        let _ = std::io::stderr().flush();
    }

    /// Erases the line, if there is one.
    pub(crate) fn clear(&self) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[2K");
            let _ = std::io::stderr().flush();
        }
    }
}
