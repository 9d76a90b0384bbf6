#!/usr/bin/env bash
# Four times more requests than a hop takes, for a minute: what is too much must be shed at once, what is accepted must stay fast,
# probes and metrics must answer, and a second later everything must be as before. On loopback.
#
#   scripts/overload.sh [--seconds N] [--latency MS] [--limit N] [--no-times]
#
#   --seconds N       how long (default 60)
#   --latency MS      how long a request of the hop takes (default 250): work that waits, as a hop with upstreams does
#   --limit N         --max-concurrency of the hop (default: the hop's own, 1024)
#   --no-times        times are told, but none fails the run: for a machine that is busy with other things
#
#   HTTPSERVER        the binary to test; default: target/release/httpserver
#   LOAD              the load generator; default: built from examples/load.rs
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
case ${1:-} in -h | --help) help "$0"; exit 0 ;; esac
need python3
if [ -z "${HTTPSERVER:-}" ] || [ -z "${LOAD:-}" ]; then
  need cargo
  (cd "$top" && cargo build --quiet --release --locked --bin httpserver --example load)
fi
export HTTPSERVER="${HTTPSERVER:-$top/target/release/httpserver}" LOAD="${LOAD:-$top/target/release/examples/load}"
exec python3 "$top/scripts/overload.py" "$@"
