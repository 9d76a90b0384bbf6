//! The chain against real software (Zipkin, Jaeger, an OpenTelemetry Collector, Prometheus, Envoy) and under load: what a debug build and a quiet test run cannot show. Every
//! test prints the table of its claims.
//!
//! `scripts/e2e.sh` runs them, with the servers that it gets and the release binary:
//!
//!     ENVOY=/path/to/envoy HTTPSERVER=target/release/httpserver cargo test --test e2e -- --ignored --nocapture envoy::
#![allow(unreachable_pub, reason = "the harness is shared by other test binaries")]

#[path = "../common/mod.rs"]
mod common;

mod attack;
mod backends;
mod claims;
mod cluster_faults;
mod collector;
mod envoy;
mod healthy;
mod load;
mod mesh;
mod names;
mod overload;
mod prometheus;
mod restarts;
