//! One hop: what it is made of, its endpoints, and one request from its head to its last byte.
//!
//! Imports `server`, `upstream`, `telemetry`, `trace_context` and the leaves; never `config`, `demo` or `check`. In reading
//! order:
//!
//! 1. [`config`]: the options as plain values. [`capacity`]: how much a hop holds at once, from the memory and descriptor limits. [`app`]: bind, run, drain, flush; `start_line`: what it logs of the configuration. [`state`]: what requests share.
//! 2. `service`: the layers around the router. `exchange`: one value per request, which reads the head and reports the end.
//!    `limits`: what a request may ask for. `target`: the host that it is for. [`watch`]: who observes requests from within the process.
//! 3. `routes`: the endpoints. `layers`: what a request passes before its handler. [`fault`] and [`latency`]: what strikes it. [`request_faults`]: those of one request. `effects`: what a fault does.
//! 4. `chain`: `/service<N>`. [`reply`]: its JSON. `streams` and `websocket`: what lasts longer than an
//!    answer. `response` and `error`: every other answer.
//! 5. `admin`: the API that changes a hop while it runs.

pub(crate) mod admin;
pub mod app;
pub mod capacity;
pub(crate) mod chain;
pub mod config;
pub(crate) mod effects;
pub(crate) mod error;
pub(crate) mod exchange;
pub mod fault;
pub(crate) mod grpc;
pub(crate) mod head;
pub mod identity;
pub mod latency;
pub(crate) mod layers;
pub mod limits;
pub(crate) mod observed_body;
pub mod reply;
pub mod request_faults;
pub(crate) mod response;
pub(crate) mod routes;
pub(crate) mod service;
pub(crate) mod start_line;
pub mod state;
pub(crate) mod streams;
pub(crate) mod target;
pub mod watch;
pub(crate) mod websocket;
