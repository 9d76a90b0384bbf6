//! What is not a hop: `check`, `trace`, `demo` with its page and its store. `cargo test --test tools check::` runs one file.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod demo;
mod doctor;
mod page;
mod probe;
mod store;
