#!/usr/bin/env bash
# Builds the release binary twice, from two copies of the sources in two places, and compares the bytes. Ten minutes or so.
#
#   scripts/reproducible.sh
#
# Exit: 0 the binaries are equal, 1 they are not.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
case ${1:-} in -h | --help) help "$0"; exit 0 ;; "") ;; *) usage_error "unknown option: $1" ;; esac
need cargo git sha256sum
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for build in one two; do
  mkdir "$work/$build"
  git -C "$top" archive HEAD | tar -x -C "$work/$build"
  # Panic messages name source files: by their place in the sources and in cargo's home, not on this machine.
  flags="--remap-path-prefix=$work/$build=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
  (cd "$work/$build" && RUSTFLAGS=$flags CARGO_TARGET_DIR="$work/$build/target" cargo build --quiet --release --locked --bin httpserver)
done
one=$(sha256sum <"$work/one/target/release/httpserver")
two=$(sha256sum <"$work/two/target/release/httpserver")
printf '%s\n%s\n' "$one" "$two"
[ "$one" = "$two" ] || die "two builds of the same commit differ"
