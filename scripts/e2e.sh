#!/usr/bin/env bash
# The whole thing against real software, without containers: builds the release binary, then runs the parts. Everything listens on loopback, on
# free ports, and is stopped at the end.
#
#   scripts/e2e.sh [--install] [PART...]
#
#   zipkin       a Zipkin server: one whole trace for each request                     tests/e2e/backends.rs
#   jaeger       a Jaeger 2, by OTLP and in Zipkin's format: the same                  tests/e2e/backends.rs
#   collector    an OpenTelemetry Collector: traces, metrics and logs, both transports    tests/e2e/collector.rs
#                and tail sampling, as lesson 20 of the course has it                  tests/docs/course.rs
#   prometheus   a Prometheus scrapes the hops: histograms, labels, exemplars          tests/e2e/prometheus.rs
#   page         the demo's page in a real Chromium, as a person uses it               scripts/e2e-page.sh
#   envoy        the chain behind a gateway and sidecars: tracers, lanes, restarts     tests/e2e/envoy.rs
#   healthy      a thousand runs of check against healthy chains raise no alarm        tests/e2e/healthy.rs
#   names        a next hop's name changes: scale-out, rollout, move. Needs root and       tests/e2e/names.rs
#                seven minutes, so it is run only when it is named
#   reliability  no request and no span lost over restarts; excess is shed             tests/e2e/restarts.rs, overload.rs
#
#   --install    get what is missing: environments, jars and Go tools under target/, system packages by apt.
#                Without it, what is missing is listed, nothing is started, and the exit code is 2.
#
#   HTTPSERVER                       a release binary to use instead of building one
#   JAEGER_BIN, OTELCOL_BIN, ENVOY   a Jaeger 2, a Collector, an Envoy to use instead of getting one
#   RELEASE=yes         build the load generator of reliability with optimisations, for the measurements of docs/reliability.md:
#     SOAK_MINUTES=1 SOAK_EVERY=15 SOAK_ROUNDS=0 SOAK_RATE=30 SOAK_DRAIN_DELAY=10s              restarts: see tests/e2e/restarts.rs
#     OVERLOAD_SECONDS=8 OVERLOAD_LATENCY=250 OVERLOAD_LIMIT=32 OVERLOAD_TIMES=no               overload: see tests/e2e/overload.rs
#
# Exit: 0 every part passed, 1 one did not (logs of the servers in target/tmp/e2e), 2 something needed is missing.
set -euo pipefail
given=${HTTPSERVER:-}
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"

# needs PART
needs() {
  case $1 in
    zipkin) echo java zipkin script ;;
    jaeger) echo jaeger ;;
    collector) echo otelcol ;;
    prometheus) echo prometheus promtool ;;
    page) echo node npm chromium page_packages ;;
    names) echo unshare ;;
    envoy | healthy | reliability) echo python3 openssl envoy ;;
    *) return 1 ;;
  esac
}
# run PART: restarts one after the other with the overload, for which a slow probe is not to be blamed on it
run() {
  case $1 in
    page) scripts/e2e-page.sh ;;
    zipkin | jaeger) cargo_e2e 1 "backends::$1" ;;
    collector) cargo_e2e 1 collector:: && cargo test --quiet --locked --test docs collector -- --ignored ;;
    envoy) cargo_e2e 3 envoy:: ;;
    reliability) cargo_e2e 1 restarts:: overload:: ;;
    *) cargo_e2e 1 "$1::" ;;
  esac
}
# cargo_e2e THREADS FILTER...: those of tests/e2e
cargo_e2e() { cargo test --quiet --locked ${RELEASE:+--release} --test e2e -- --ignored --nocapture --test-threads="$1" "${@:2}"; }

parse ... install "$@"
parts=("${arguments[@]}") what=(cargo)
[ ${#parts[@]} -gt 0 ] || parts=(zipkin jaeger collector prometheus page envoy healthy reliability)
for part in "${parts[@]}"; do
  needs "$part" >/dev/null || usage_error "unknown part: $part"
  read -ra more < <(needs "$part") && what+=("${more[@]}")
done
provide "${what[@]}"

cd "$top"
if [ -z "$given" ]; then
  say "the release binary"
  cargo build --release --locked
  HTTPSERVER=$top/target/release/httpserver
fi
failed=()
for part in "${parts[@]}"; do
  printf '\n'
  say "$part"
  start=$SECONDS
  run "$part" || failed+=("$part")
  say "$part: $((SECONDS - start)) s"
done
printf '\n'
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
say "passed: ${parts[*]}"
