//! Connections: accept, serve, limit, shut down.

pub(crate) mod connection;
pub(crate) mod listener;
pub mod shutdown;
pub mod tls;
