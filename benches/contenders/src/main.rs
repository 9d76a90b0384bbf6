//! What `httpserver` is measured against, each brought to the same job, and the tools that measure.
//!
//! `contenders bare-hyper ADDR` · `bare-chain ADDR [UPSTREAM]` · `obvious ADDR NAME COLLECTOR [UPSTREAM]` · `obvious-grpc …` ·
//! `span-sink ADDR [DELAY_MS]` · `first-200 ADDR PATH -- COMMAND…` · `connections ADDR PATH COUNT`

mod bare_chain;
mod bare_hyper;
mod obvious;
mod obvious_grpc;
mod span_sink;
mod tools;

use std::process::ExitCode;

/// The headers that every contender carries to the next hop: the tutorials' list and W3C's.
pub const CARRIED: [&str; 8] = [
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "traceparent",
    "tracestate",
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["bare-hyper", addr] => bare_hyper::run(addr),
        ["bare-chain", addr] => bare_chain::run(addr, None),
        ["bare-chain", addr, upstream] => bare_chain::run(addr, Some(upstream)),
        ["obvious", addr, name, collector] => obvious::run(addr, name, collector, None),
        ["obvious", addr, name, collector, upstream] => obvious::run(addr, name, collector, Some(upstream)),
        ["obvious-grpc", addr, name, collector] => obvious_grpc::run(addr, name, collector, None),
        ["obvious-grpc", addr, name, collector, upstream] => obvious_grpc::run(addr, name, collector, Some(upstream)),
        ["span-sink", addr] => span_sink::run(addr, 0),
        ["span-sink", addr, delay_ms] => span_sink::run(addr, delay_ms.parse().expect("milliseconds")),
        ["first-200", addr, path, "--", command @ ..] => tools::first_200(addr, path, command),
        ["connections", addr, path, count] => tools::connections(addr, path, count.parse().expect("a number")),
        _ => {
            eprintln!("usage: see the top of main.rs");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
