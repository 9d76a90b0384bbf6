//! The headers that a hop loses on purpose. They can be changed while it runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderName;

use super::carried::HeaderPairs;

/// The headers that a hop loses. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Dropped(Arc<DroppedState>);

#[derive(Debug, Default)]
struct DroppedState {
    /// A hop that loses none takes no lock.
    any: AtomicBool,
    names: RwLock<Vec<HeaderName>>,
}

impl Dropped {
    /// These, and no others.
    pub fn set(&self, names: Vec<HeaderName>) {
        let mut now = self.0.names.write().unwrap_or_else(PoisonError::into_inner);
        self.0.any.store(!names.is_empty(), Ordering::Release);
        *now = names;
    }

    /// The names.
    pub fn names(&self) -> Vec<HeaderName> {
        self.0.names.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn drop_from(&self, headers: &mut HeaderPairs) {
        if self.0.any.load(Ordering::Acquire) {
            let names = self.0.names.read().unwrap_or_else(PoisonError::into_inner);
            headers.retain(|(name, _)| !names.contains(name));
        }
    }
}
