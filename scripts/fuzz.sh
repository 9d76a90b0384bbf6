#!/usr/bin/env bash
# Fuzzes every parser that reads from the network or from the user, guided by coverage (cargo-fuzz, libFuzzer).
#
#   scripts/fuzz.sh [--runs N] [PARSER...]
#
#   --runs N     executions of each parser (default 10000000)
#   PARSER       only these; default: all of src/fuzzing.rs
#
# Needs the nightly toolchain and cargo-fuzz (`cargo install cargo-fuzz --locked`). Starts from the saved inputs in fuzz/corpus and
# keeps what it finds under target/fuzz; an input that fails is printed with its place, and belongs into fuzz/corpus with its fix.
# A short run without any of this is part of `cargo test` (tests/fuzz.rs).
#
# Exit: 0 nothing was found, 1 something was, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
runs=10000000 parsers=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) help "$0"; exit 0 ;;
    --runs) [ $# -gt 1 ] || usage_error "--runs needs a number"; runs=$2; shift ;;
    -*) usage_error "unknown option: $1" ;;
    *) parsers+=("$1") ;;
  esac
  shift
done
need cargo cargo-fuzz
cargo +nightly --version >/dev/null 2>&1 || { echo "fuzz.sh: no nightly toolchain: rustup toolchain install nightly" >&2; exit 2; }
[ ${#parsers[@]} -gt 0 ] || mapfile -t parsers < <(sed -n '/^pub const PARSERS/,/^];/s/^    ("\([a-z0-9_]*\)".*/\1/p' "$top/src/fuzzing.rs")
cd "$top"
# No sanitizer: the server has no unsafe code, and without one the same time runs five times as many inputs.
cargo +nightly fuzz build --fuzz-dir fuzz --sanitizer none --target-dir target/fuzz parser
binary=$(find target/fuzz -path '*/release/parser' -type f -perm -u+x | head -n 1)
failed=0
printf '| parser | executions | a second | inputs that reach something new | result |\n|---|---|---|---|---|\n'
for parser in "${parsers[@]}"; do
  found=target/fuzz/corpus/$parser log=target/fuzz/$parser.log
  mkdir -p "$found" target/fuzz/artifacts
  result=ok
  PARSER=$parser "$binary" -runs="$runs" -max_len=4096 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="target/fuzz/artifacts/$parser-" "$found" "fuzz/corpus/$parser" >"$log" 2>&1 || { result="**failed**, see $log" failed=1; }
  stat() { sed -n "s/^stat::$1: *//p" "$log"; }
  # shellcheck disable=SC2016 # the backticks are Markdown's
  printf '| `%s` | %s | %s | %s | %s |\n' "$parser" "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" "$(find "$found" -type f | wc -l)" "$result"
done
exit $failed
