//! Hosts and addresses as they stand in URLs and headers, and TLS of clients. Knows nothing of the rest.

pub(crate) mod addresses;
pub(crate) mod hosts;
pub(crate) mod tls;
