#!/usr/bin/env bash
# The whole thing against real software, without containers: builds the release binary, then runs the parts, each a script that can be run
# alone. Everything listens on loopback, on free ports, and is stopped at the end.
#
#   scripts/e2e.sh [--install] [PART...]
#
#   zipkin       a Zipkin server: one whole trace for each request                     scripts/e2e-zipkin.sh
#   jaeger       a Jaeger 2, by OTLP and in Zipkin's format: the same                  scripts/e2e-jaeger.sh
#   prometheus   a Prometheus scrapes the hops: histograms, labels, exemplars          scripts/e2e-prometheus.sh
#   page         the demo's page in a real Chromium, as a person uses it               scripts/e2e-page.sh
#   envoy        the chain behind a gateway and sidecars: tracers, lanes, restarts     scripts/e2e-envoy.sh
#   reliability  no request and no span lost over restarts; excess is shed             scripts/e2e-reliability.sh
#
#   --install    get what is missing: environments, jars and Go tools under target/, system packages by apt.
#                Without it, what is missing is listed, nothing is started, and the exit code is 2.
#
#   JAEGER_BIN, ENVOY   a Jaeger 2, an Envoy to use instead of getting one
#
# Exit: 0 every part passed, 1 one did not (logs in target/e2e/logs), 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

known=(zipkin jaeger prometheus page envoy reliability)
install=() parts=()
for argument; do
  case $argument in
    -h | --help) help "$0"; exit 0 ;;
    --install) install=(--install) ;;
    -*) usage_error "unknown option: $argument" ;;
    *) [[ " ${known[*]} " == *" $argument "* ]] || usage_error "unknown part: $argument"; parts+=("$argument") ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=("${known[@]}")

cd "$top"
if [ ${#install[@]} -eq 0 ]; then
  lacking=""
  command -v cargo >/dev/null || lacking+=$'\n'"cargo: Rust $(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml) or later"
  # The binary is built below, so it is not missing; any other stands in for it here.
  for part in "${parts[@]}"; do lacking+=$'\n'$(HTTPSERVER=$BASH "scripts/e2e-$part.sh" --missing); done
  lacking=$(grep . <<<"$lacking" | sort -u || :)
  if [ -n "$lacking" ]; then
    printf '%s: missing; --install gets all but a toolchain:\n' "${0##*/}" >&2
    while read -r line; do printf '  %s\n' "$line"; done <<<"$lacking" >&2
    exit 2
  fi
fi

need cargo
say "the release binary"
cargo build --release --locked
export HTTPSERVER=$top/target/release/httpserver

failed=()
for part in "${parts[@]}"; do
  printf '\n'
  say "$part"
  start=$SECONDS
  "scripts/e2e-$part.sh" "${install[@]}" || failed+=("$part")
  say "$part: $((SECONDS - start)) s"
done
printf '\n'
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
say "passed: ${parts[*]}"
