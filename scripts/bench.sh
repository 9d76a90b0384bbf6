#!/usr/bin/env bash
# Measures httpserver against other ways to do the same job, side by side on this machine.
#
#   scripts/bench.sh            every row and curve, about 25 minutes
#   scripts/bench.sh --quick    the main rows, under 3 minutes once everything is built
#
# Needs cargo, python3 and wrk; with go also podinfo and go-httpbin, with nginx its row. What is missing is a row that says so.
# Writes target/bench/: results.json, results.md, chart.svg. Further options: python3 benches/run.py --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$top"
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || { help "$0"; exit 0; }

for tool in cargo python3 wrk; do
  command -v "$tool" > /dev/null || { echo "bench: $tool is missing (Debian: apt install wrk python3)" >&2; exit 2; }
done
out=target/bench
mkdir -p "$out/go"

build() { # what, command…: a contender that does not build is a row that says so
  local what=$1
  shift
  echo "bench: building $what" >&2
  "$@" > "$out/build-$what.log" 2>&1 || { echo "bench: $what does not build, see $out/build-$what.log" >&2; return 1; }
}

# Its module lacks the web page that it embeds, which its own Makefile builds with Docker: an empty one takes its place.
fake_service() {
  local module source=$PWD/$out/fake-service
  module=$(go mod download -json github.com/nicholasjackson/fake-service@v0.26.2 | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  rm -rf "$source" && cp -r "$module" "$source" && chmod -R u+w "$source"
  mkdir -p "$source/ui/build" && echo fake-service >"$source/ui/build/index.html"
  (cd "$source" && go build -o "../go/fake-service" .)
}

# As the Dockerfile builds what users run, with its flags. The target is named although it is the host's own: without a
# name the flags would also hit build scripts and macros, which cannot be static. Every Rust contender is built the same way.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS=$(sed -n 's/.*RUSTFLAGS="\([^"]*\)".*/\1/p' Dockerfile)
[ -n "$RUSTFLAGS" ] || { echo "bench: the Dockerfile sets no RUSTFLAGS" >&2; exit 1; }
export RUSTFLAGS CARGO_BUILD_TARGET=$target
build httpserver cargo build --release --locked --bin httpserver --target-dir "$out/rust"
build contenders cargo build --release --locked --manifest-path benches/contenders/Cargo.toml --target-dir "$out/rust-contenders"
# A hop without any telemetry shares the compiled packages with the product: the same versions, so the same lock file, and the same profile.
cp Cargo.lock benches/in_process/Cargo.lock
build in_process cargo build --release --manifest-path benches/in_process/Cargo.toml --target-dir "$out/rust" || true
cp Cargo.lock benches/prices/Cargo.lock
build prices cargo build --release --manifest-path benches/prices/Cargo.toml --target-dir "$out/prices" || true
unset RUSTFLAGS CARGO_BUILD_TARGET
if command -v go > /dev/null; then
  GOBIN="$PWD/$out/go" build podinfo go install github.com/stefanprodan/podinfo/cmd/podinfo@latest || true
  GOBIN="$PWD/$out/go" build go-httpbin go install github.com/mccutchen/go-httpbin/v2/cmd/go-httpbin@latest || true
  build fake-service fake_service || true
fi
exec python3 benches/run.py --out "$out" "$@"
