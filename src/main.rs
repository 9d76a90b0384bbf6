//! The `httpserver` binary: parse, dispatch, exit code. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    httpserver::cli::main(std::env::args_os())
}
