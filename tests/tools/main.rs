//! What is not a hop: `check`, `trace`, `demo` with its page and its store. `cargo test --test tools check::` runs one file.

#[path = "../common/mod.rs"]
mod common;

// Tests start in the order of their names: those of probe wait the longest, and compute the least.
#[path = "probe.rs"]
mod app_probe;
mod check;
mod demo;
mod doctor;
mod page;
mod store;
