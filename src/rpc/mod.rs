//! gRPC: the messages of the chain, the statuses and their HTTP counterparts, and the timeouts.
//!
//! The messages are generated from `proto/httpserver/v1/chain.proto`; `tests/proto.rs` makes them again and compares.

pub(crate) mod status;
pub(crate) mod timeout;

/// The messages and the service.
#[allow(missing_docs, unreachable_pub, clippy::all, rust_2018_idioms, reason = "generated")]
pub(crate) mod chain {
    include!("../../proto/httpserver/v1/generated/httpserver.v1.rs");
}

/// What server reflection answers with.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("../../proto/httpserver/v1/generated/chain.binpb");

/// The media type.
pub(crate) const CONTENT_TYPE: &str = "application/grpc";

/// `Chain/Call`.
pub(crate) const CALL: &str = "/httpserver.v1.Chain/Call";

/// `Chain/Stream`.
pub(crate) const STREAM: &str = "/httpserver.v1.Chain/Stream";

/// What [`known_method`] returns.
const METHODS: [&str; 6] = [
    CALL,
    STREAM,
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// `rpc.method`, fully qualified; `_OTHER` unless it is one of ours.
pub(crate) fn known_method(path: &str) -> &'static str {
    METHODS.iter().find(|known| **known == path).map_or("_OTHER", |known| &known[1..])
}

/// Whether a `content-type` is that of gRPC.
pub(crate) fn is_grpc(content_type: &[u8]) -> bool {
    content_type.strip_prefix(CONTENT_TYPE.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
