//! `httpserver`: the traced demo microservice chain. One binary plays any hop.
//!
//! The modules in the order in which a request meets them:
//!
//! 1. [`cli`] and [`config`] turn the command line into plain values; [`app`] takes them apart, binds and runs.
//! 2. `server` accepts connections and closes those that do nothing for too long; `connection` is one of them, [`tls`] its
//!    encryption.
//! 3. `observe` reads a request's head once and measures it around everything else: when its `Exchange` is dropped it tells
//!    `metrics`, [`trace`] and `access_log`.
//! 4. `limits` sheds what is too much; [`fault`] delays and aborts on purpose.
//! 5. `routes` holds the endpoints, `route` their templates; `upstream` calls the next hops with the headers that
//!    [`trace_context`] writes, on connections of its `pool`, and all of it becomes the [`reply`], which `json` writes and checks;
//!    `stranger` is what a failed answer says that is no reply.
//! 6. [`export`] takes finished spans from the queue to a collector; `lines` takes log lines to stdout and stderr.
//! 7. `lifecycle` says whether the hop is ready; `error` is where a failure becomes a response.
//!
//! Configuration stops at `app`: parts own their option types. `state` holds what requests share and knows no handler.

pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
#[doc(hidden)]
pub mod fuzzing;
pub mod hop;
mod net;
pub mod server;
pub mod telemetry;
mod text;
pub mod trace_context;
pub mod traces;
pub mod upstream;
pub mod values;
