//! An HTTP server over a tower service: accepts connections, speaks HTTP/1.1 and HTTP/2, limits, drains.
//!
//! `axum::serve` has no header timeout, no connection cap and no drain deadline. hyper's own header timeout also closes
//! kept-alive idle connections, which Envoy's pool answers with a 503. hyper-util's `GracefulShutdown` closes a connection
//! that has not sent a request yet at once, and with it a request that the kernel has already received. So each connection
//! publishes its state (`activity`) and its task arms one timer for the deadline of that state; the listener reads the
//! same state when it has to choose a connection to close.
//!
//! The server knows nothing of what the service answers. What a service needs to know of the connection is the request
//! extension `ConnectionInfo`. Imports `net` and `text` only. In reading order: [`options`]; `listener`; `connection`;
//! `activity`, `clock` and `io`; `service`; `upgrade`; [`tls`]; [`shutdown`].

mod activity;
pub(crate) mod answer;
mod clock;
mod connection;
mod frames;
mod http2;
mod io;
pub(crate) mod listener;
pub mod options;
mod service;
pub mod shutdown;
#[cfg(test)]
mod tests;
pub mod tls;
mod upgrade;

pub(crate) use activity::Cut;
pub(crate) use listener::{ServerConfig, serve};
pub(crate) use service::{ClientCertificate, ConnectionInfo};
pub(crate) use upgrade::{Upgrade, UpgradedIo};
