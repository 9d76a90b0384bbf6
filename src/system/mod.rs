//! What the operating system lets this process use: memory, file descriptors, threads. And the bytes that it holds for others.
//!
//! Imports nothing of this crate. In reading order: `memory`, `descriptors`, `workers`, `held`, `files`.

pub(crate) mod descriptors;
pub(crate) mod files;
pub(crate) mod held;
pub(crate) mod memory;
pub(crate) mod workers;
