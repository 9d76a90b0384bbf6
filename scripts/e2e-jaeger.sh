#!/usr/bin/env bash
# The chain reports to a real Jaeger 2, by OTLP and then in Zipkin's format, and Jaeger's query API returns one whole trace for each request.
#
#   scripts/e2e-jaeger.sh [--install] [--missing]
#
#   --install    get what is missing: build a Jaeger with Go under target/e2e (scripts/e2e/jaeger/go.mod says which one)
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#   JAEGER_BIN   a Jaeger 2 to use instead of the one under target/e2e
#
# Exit: 0 every claim held, 1 one did not (the logs are in target/e2e/logs/jaeger), 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"
options "$@"
provide curl python3 jaeger httpserver

services() { get_json "$jaeger/api/services" | python3 -c 'import json, sys; print(*sorted(json.load(sys.stdin)["data"] or []))'; }
links() {
  get_json "$jaeger/api/dependencies?endTs=$(date +%s)999&lookback=3600000" |
    python3 -c 'import json, sys; print(*sorted("%(parent)s>%(child)s=%(callCount)s" % link for link in json.load(sys.stdin)["data"]))'
}

start_jaeger
collector=$jaeger
start_chain OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_ENDPOINT="$jaeger_otlp"
whole_traces "Jaeger, by OTLP"
claim "Jaeger lists the three services, and no other" becomes "service1 service2 service3" services
claim "Jaeger draws who calls whom" becomes "service1>service2=6 service2>service3=6" links

start_chain OTEL_TRACES_EXPORTER=zipkin OTEL_EXPORTER_ZIPKIN_ENDPOINT="$jaeger_zipkin"
whole_traces "Jaeger, in Zipkin's format"
claim "Jaeger counts both kinds of reports" becomes "service1>service2=12 service2>service3=12" links

# Whoever looks for a fault reads the same Jaeger. Exit code 0: whole, every hop's spans there, parents right, all sampled.
checked() { "$HTTPSERVER" check "$front/service1" --expect service1,service2,service3 --traces "$jaeger" --traces-wait "${patience}s" --count 20; }
start_chain OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_ENDPOINT="$jaeger_otlp"
claim "httpserver check reads a healthy chain's trace from Jaeger" checked
stop_chain
start_chain OTEL_TRACES_EXPORTER=zipkin OTEL_EXPORTER_ZIPKIN_ENDPOINT="$jaeger_zipkin"
claim "httpserver check does, in Zipkin's format" checked
claims_end
