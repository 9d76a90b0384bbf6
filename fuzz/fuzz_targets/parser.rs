//! One parser of `httpserver::fuzzing::PARSERS`: the one that the variable `PARSER` names. One binary for all, because
//! building one for each takes longer than running them.
#![no_main]

use std::sync::LazyLock;

static PARSER: LazyLock<String> = LazyLock::new(|| std::env::var("PARSER").expect("PARSER names one of fuzzing::PARSERS"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| httpserver::fuzzing::run(&PARSER, data));
