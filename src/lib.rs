//! `httpserver`: the traced demo microservice chain.

pub mod demo;
pub mod reply;
