#!/usr/bin/env bash
# Fuzzes every parser that reads from the network or from the user, guided by coverage (libFuzzer), and prints a row of a table for each.
#
#   scripts/fuzz.sh [--runs N] [PARSER...]
#
#   --runs N     executions of each parser (default 10000000)
#   PARSER       only these; default: all of src/fuzzing.rs
#
# Needs no nightly toolchain and no cargo-fuzz: the compiler's pass that counts coverage is in the stable one, and libFuzzer comes
# with the crate libfuzzer-sys, which a C++ compiler builds. `cargo +nightly fuzz run parser` finds what it needs in fuzz/, too.
# Starts from the saved inputs in fuzz/corpus and keeps what it finds under target/fuzz; an input that fails is left in
# target/fuzz/artifacts, and belongs into fuzz/corpus with its fix. A short run without any of this is part of `cargo test` (tests/fuzz.rs).
#
# Exit: 0 nothing was found, 1 something was, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
runs=10000000
parse "runs ..." "" "$@"
whole runs "$runs"
need cargo rustc "${CXX:-c++}"
mapfile -t known < <(sed -n '/^pub const PARSERS/,/^];/s/^    ("\([a-z0-9_]*\)".*/\1/p' "$top/src/fuzzing.rs")
parsers=("${arguments[@]}")
[ ${#parsers[@]} -gt 0 ] || parsers=("${known[@]}")
for parser in "${parsers[@]}"; do [[ " ${known[*]} " == *" $parser "* ]] || usage_error "no parser '$parser': there are ${known[*]}"; done
cd "$top"
target=$(rustc -vV | sed -n 's/^host: //p')
# The versions that the server is built with; libFuzzer's is in fuzz/Cargo.toml.
cp Cargo.lock fuzz/Cargo.lock
# fuzz/rustc.sh adds the coverage.
RUSTC_WRAPPER=$top/fuzz/rustc.sh cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target "$target" --target-dir target/fuzz
# A copy, so that another build does not change what is running.
mkdir -p target/fuzz/artifacts
binary=$(mktemp target/fuzz/parser.XXXXXX)
trap 'rm -f "$binary"' EXIT
install "target/fuzz/$target/release/parser" "$binary"

# Certificates are never kept in the repository; without a whole one to start from, most of that parser would not be reached.
seeds() {
  mkdir -p "$1"
  [ "$2" = certificate ] && command -v openssl >/dev/null || return 0
  local key
  for key in rsa:2048 ed25519; do
    openssl req -x509 -newkey "$key" -nodes -days 1 -subj /O=fuzz/CN=localhost -keyout /dev/null -outform DER -out "$1/${key%:*}" \
      -addext "subjectAltName=DNS:localhost,DNS:*.example.test,IP:127.0.0.1,URI:spiffe://cluster.local/ns/a/sa/b" 2>/dev/null
  done
}

# The longest input in bytes: where every further byte is the same work once more, the time is better spent on more inputs.
longest() {
  case $1 in
    zipkin | reply) echo 1024 ;;
    *) echo 4096 ;;
  esac
}

failed=0
printf '| parser | executions | a second | inputs that reach something new | result |\n|---|---|---|---|---|\n'
for parser in "${parsers[@]}"; do
  found=target/fuzz/corpus/$parser log=target/fuzz/$parser.log
  mkdir -p "$found"
  seeds "target/fuzz/seeds/$parser" "$parser"
  result="nothing found"
  PARSER=$parser "$binary" -runs="$runs" -max_len="$(longest "$parser")" -timeout=10 -print_final_stats=1 -artifact_prefix="target/fuzz/artifacts/$parser-" \
    "$found" "fuzz/corpus/$parser" "target/fuzz/seeds/$parser" >"$log" 2>&1 || { result="**failed**, see $log" failed=1; }
  stat() { sed -n "s/^stat::$1: *//p" "$log"; }
  # shellcheck disable=SC2016 # the backticks are Markdown's
  printf '| `%s` | %s | %s | %s | %s |\n' "$parser" "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" "$(find "$found" -type f | wc -l)" "$result"
done
exit $failed
