//! What `check` knows of Envoy: its response flags as a table and other signs as a table (`flags`), what its spans say of a call (`spans`), its answers explained (`gateway`), and the commands that
//! show more (`suggestions`), made to work when pasted (`commands`).

pub(crate) mod commands;
pub(crate) mod flags;
pub(crate) mod gateway;
pub(crate) mod spans;
pub(crate) mod suggestions;
