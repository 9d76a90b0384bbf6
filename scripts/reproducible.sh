#!/usr/bin/env bash
# Builds the image's binary twice, with the Dockerfile's flags, from two copies of the sources in two places, and compares the bytes.
# Ten minutes or so.
#
#   scripts/reproducible.sh
#
# Exit: 0 the binaries are equal, 1 they are not.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
case ${1:-} in -h | --help) help "$0"; exit 0 ;; "") ;; *) usage_error "unknown option: $1" ;; esac
need cargo rustc git sha256sum
image=$(sed -n 's/.*RUSTFLAGS="\([^"]*\)".*/\1/p' "$top/Dockerfile")
[ -n "$image" ] || die "the Dockerfile sets no RUSTFLAGS"
target=$(rustc -vV | sed -n 's/^host: //p')
revision=$(git -C "$top" rev-parse --short=12 HEAD)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for build in one two; do
  mkdir "$work/$build"
  git -C "$top" archive HEAD | tar -x -C "$work/$build"
  # Panic messages name source files: by their place in the sources and in cargo's home, not on this machine. The image is always built in
  # the same place.
  flags="$image --remap-path-prefix=$work/$build=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
  (cd "$work/$build" && REVISION=$revision RUSTFLAGS=$flags CARGO_TARGET_DIR="$work/$build/target" \
    cargo build --quiet --release --locked --bin httpserver --target "$target")
  binary=$work/$build/target/$target/release/httpserver
  printf '%s  %s bytes, commit %s, %s\n' "$(sha256sum <"$binary" | cut -d " " -f 1)" "$(stat -c %s "$binary")" "$revision" "$(rustc --version)"
done
cmp "$work/one/target/$target/release/httpserver" "$binary" || die "two builds of the same commit differ"
