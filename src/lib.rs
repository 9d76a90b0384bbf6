//! `httpserver`: the traced demo microservice chain.

pub mod reply;
