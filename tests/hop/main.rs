//! One hop and chains of hops, from outside: the binary with real flags on port 0, and a hop in the test's own runtime where a
//! paused clock takes the place of waiting ([`in_process`]).
//!
//! One target, because linking a binary for each file and running them one after another takes longer than the tests.
//! `cargo test --test hop tls::` runs one file.

#[path = "../common/mod.rs"]
mod common;

mod abuse;
mod admin;
mod attack;
mod bodies;
mod chain;
mod collectors;
mod config;
mod conventions;
mod faults;
mod grpc;
mod help;
mod in_process;
mod lifecycle;
mod limits;
mod neighbours;
mod propagation;
mod protocols;
mod requests;
mod restarts;
mod signals;
mod spans;
mod streams;
mod telemetry;
mod tls;
