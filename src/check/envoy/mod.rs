//! What is known of Envoy: its own answers, and which object to look at next.

pub(crate) mod flags;
pub(crate) mod gateway;
pub(crate) mod suggestions;
