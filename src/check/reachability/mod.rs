//! The target of a check: reaching it, its TLS and its certificate.

pub(crate) mod client;
pub(crate) mod reach;
pub(crate) mod tls;
pub(crate) mod x509;
