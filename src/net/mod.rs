//! Hosts and addresses as they stand in URLs and headers (`hosts`, `addresses`), and TLS of clients (`tls`). A leaf: imports
//! nothing of this crate.

pub(crate) mod addresses;
pub(crate) mod hosts;
pub(crate) mod tls;
