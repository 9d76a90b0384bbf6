//! Hosts and addresses as they stand in URLs and headers (`hosts`, `addresses`), bodies as they arrive (`body`), credentials (`bearer`), clients
//! (`client`), their TLS (`tls`) and whom they
//! trust (`trust`, `x509`), messages of gRPC (`grpc`). A leaf: imports nothing of this crate.

pub(crate) mod addresses;
pub(crate) mod bearer;
pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod grpc;
pub(crate) mod hosts;
pub(crate) mod tls;
pub(crate) mod trust;
pub(crate) mod x509;
