//! Hosts and addresses as they stand in URLs and headers (`hosts`, `addresses`), TLS of clients (`tls`), bodies as they arrive (`body`), messages of gRPC (`grpc`). A leaf: imports
//! nothing of this crate.

pub(crate) mod addresses;
pub(crate) mod body;
pub(crate) mod grpc;
pub(crate) mod hosts;
pub(crate) mod tls;
