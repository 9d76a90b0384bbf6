//! The level of the diagnostics, which can change while the process runs.

use std::fmt;
use std::sync::{Arc, OnceLock};

/// Changes the level, and announces that while it can be seen: the announcement returns whether it was.
type LevelChange = dyn Fn(&str, &dyn Fn() -> bool) -> Result<(), String> + Send + Sync;

/// The handle to the level. Clones share it.
#[derive(Clone, Default)]
pub struct LogLevel(Arc<OnceLock<Box<LevelChange>>>);

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLevel")
    }
}

impl LogLevel {
    /// How it is changed; the first call counts.
    pub(crate) fn changes_by(&self, change: impl Fn(&str, &dyn Fn() -> bool) -> Result<(), String> + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(change));
    }

    /// # Errors
    ///
    /// What cannot be read, or that nothing is logged here.
    pub(crate) fn set(&self, level: &str, announce: &dyn Fn() -> bool) -> Result<(), String> {
        self.0.get().ok_or("the level of this process cannot be changed")?(level, announce)
    }
}
