#!/bin/sh
# What scripts/fuzz.sh has cargo run in place of rustc: with coverage for the crates in which the parsers are, as it is for all others.
# libFuzzer looks at every counter after every input, so what no parser calls costs the most: with all crates counted there were 600,000 of
# them, and an input took 60 microseconds instead of a few.
rustc=$1
shift
case " $* " in
  # Build scripts and macros have no --target; they must not be counted.
  *" --target "*) ;;
  *) exec "$rustc" "$@" ;;
esac
case " $* " in
  *" --crate-name parser "* | *" --crate-name httpserver "* | *" --crate-name http "* | *" --crate-name serde_json "* | *" --crate-name humantime "*)
    # What cargo-fuzz passes, by flags of the stable compiler: a counter at every edge, and libFuzzer is told what is compared with what.
    # No address sanitizer: the server has no unsafe code.
    exec "$rustc" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
      -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
      -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$rustc" "$@"
