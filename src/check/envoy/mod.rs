//! What `check` knows of Envoy: its response flags as a table (`flags`), its answers explained (`gateway`), and the commands that
//! show more (`suggestions`).

pub(crate) mod flags;
pub(crate) mod gateway;
pub(crate) mod suggestions;
