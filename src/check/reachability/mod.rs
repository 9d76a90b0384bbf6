//! The target of a check. In reading order: `client` (every request of `check` passes it), `reach` (DNS, TCP, TLS, HTTP), `tls`
//! (the certificate that was presented).

pub(crate) mod answer;
pub(crate) mod client;
pub(crate) mod grpc;
pub(crate) mod reach;
pub(crate) mod tls;
