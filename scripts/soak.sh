#!/usr/bin/env bash
# Constant load on the chain behind a real Envoy while its hops are restarted: no request may fail, no span may be lost, memory
# must stay flat. On loopback; every hop runs twice, as a Deployment would.
#
#   scripts/soak.sh [--minutes N] [--every SECONDS] [--rate N] [--rounds N] [--drain-delay D]
#
#   --minutes N       how long (default 30)
#   --every SECONDS   a restart this often, of one hop after the other (default 60)
#   --rate N          requests a second; default: half of what the chain takes, measured first
#   --drain-delay D   of the hops (default 5s, the hop's own); on a machine so busy that Envoy's probes come late it must be longer
#   --rounds N        instead of --minutes: restart every hop N times, one after the other (a rollout: --rounds 20)
#
#   HTTPSERVER        the binary to test; default: target/release/httpserver
#   ENVOY             an Envoy; default: the one that scripts/e2e-envoy.sh --install put under target/
#   LOAD              the load generator; default: built from examples/load.rs
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
case ${1:-} in -h | --help) help "$0"; exit 0 ;; esac
need python3
find_envoy || { say "no Envoy: set ENVOY, or run scripts/e2e-envoy.sh --install" >&2; exit 2; }
if [ -z "${HTTPSERVER:-}" ] || [ -z "${LOAD:-}" ]; then
  need cargo
  (cd "$top" && cargo build --quiet --release --locked --bin httpserver --example load)
fi
export ENVOY HTTPSERVER="${HTTPSERVER:-$top/target/release/httpserver}" LOAD="${LOAD:-$top/target/release/examples/load}"
exec python3 "$top/scripts/soak.py" "$@"
