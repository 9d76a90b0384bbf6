//! `httpserver`: the traced demo microservice chain. One binary plays any hop.
//!
//! The library is for the binary, the benchmarks and the fuzz targets. Its centre is [`hop::app::App`]: bind it, ask for its
//! address, run it until a future resolves.
//!
//! ```
//! use httpserver::hop::app::{App, Output};
//! use httpserver::hop::config::HopConfig;
//! use httpserver::server::shutdown::Stop;
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! use tokio::net::TcpStream;
//! use tokio::sync::oneshot;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Port 0: the kernel picks one, `addr` returns it.
//!     let config = HopConfig::new("service1", "127.0.0.1:0".parse()?);
//!     let app = App::bind(config, &Output::new()).await?;
//!     let addr = app.addr();
//!     let (stop, stopped) = oneshot::channel();
//!     let running = tokio::spawn(app.run(async { stopped.await.unwrap_or(Stop::Now) }));
//!
//!     let mut connection = TcpStream::connect(addr).await?;
//!     connection.write_all(b"GET /hello HTTP/1.1\r\nhost: service1\r\nconnection: close\r\n\r\n").await?;
//!     let mut answer = String::new();
//!     connection.read_to_string(&mut answer).await?;
//!     assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
//!     assert!(answer.contains("Hello from service1 v1"));
//!
//!     // `Stop::Graceful` would first serve on for the drain delay, as after SIGTERM.
//!     stop.send(Stop::Now).map_err(|_| "the app has ended")?;
//!     assert_eq!(running.await?.requests_cut, 0);
//!     Ok(())
//! }
//! ```
//!
//! # A tour, in the order in which a request meets the modules
//!
//! 1. [`cli`] parses the command line and maps the result to an exit code. [`config`] turns flags and variables into the plain
//!    option types of the modules below it: `serve` becomes a [`hop::config::HopConfig`].
//! 2. [`hop::app`] is the composition root. It binds the listener, builds what the requests of a hop share, runs the server and
//!    drains it.
//! 3. [`server`] accepts connections (HTTP/1.1, HTTP/2, TLS), enforces their timeouts and their number, and calls a tower
//!    service for each request. It does not depend on `hop`.
//! 4. [`hop`] is that service. `hop::service` lists its layers; `hop::exchange` reads the request head once, and writes metric,
//!    span and access line when the request ends; `hop::routes` is the axum `Router`; [`hop::fault`] has
//!    the kinds of faults, `hop::effects` what they do.
//! 5. `hop::chain` answers `/service<N>`: [`upstream`] calls the next hops, and [`hop::reply`] is the JSON that nests their
//!    answers. `hop::error` is the only place where a failure becomes a response.
//! 6. [`trace_context`] parses and writes W3C and B3, and has the table of carried headers. It reads every request and writes
//!    every call.
//! 7. [`telemetry`] samples, queues and exports spans, counts, and writes log lines. No request waits for it.
//!
//! Four commands stand beside the request path. [`demo`] runs a chain of `App`s in one process with a trace store and a page;
//! [`check`] sends requests through a deployed chain and reports what is broken; [`probe`] calls one app and is its next hop;
//! [`doctor`] reads the traces of any mesh and reports which service breaks them. All use [`traces`], which reads collected
//! spans and says whether a trace is whole.
//!
//! # The floors
//!
//! A module imports from the floors below its own, never from its own or from above; there is no import cycle.
//! `tests/house.rs` has this table as data and checks every `crate::` and `super::` path.
//!
//! ```text
//! main
//! cli  fuzzing
//! demo  doctor  probe
//! check
//! report
//! config
//! hop
//! server  upstream
//! telemetry
//! trace_context  traces
//! values  net  text  system  rpc
//! ```
//!
//! `ARCHITECTURE.md` has the picture, two walkthroughs, and the place for the next change.

pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
pub mod doctor;
#[doc(hidden)]
pub mod fuzzing;
pub mod hop;
mod net;
pub mod probe;
mod report;
mod rpc;
pub mod server;
mod system;
pub mod telemetry;
mod text;
pub mod trace_context;
pub mod traces;
pub mod upstream;
pub mod values;
