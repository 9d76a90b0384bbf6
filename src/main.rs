//! The `httpserver` binary: parse, dispatch, exit code. Everything else is in the library.

use std::process::ExitCode;

/// Returns memory to the system ten seconds after a load, from a thread of its own; glibc's keeps the peak.
#[cfg(all(target_os = "linux", feature = "jemalloc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    httpserver::cli::main(std::env::args_os())
}
