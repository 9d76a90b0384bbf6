//! One hop: its composition, its endpoints, the exchange of one request, faults, the reply and the errors.

pub mod app;
pub(crate) mod chain;
pub mod config;
pub(crate) mod error;
pub(crate) mod exchange;
pub mod fault;
pub(crate) mod layers;
pub mod limits;
pub mod reply;
pub(crate) mod response;
pub(crate) mod routes;
pub(crate) mod service;
pub mod state;
