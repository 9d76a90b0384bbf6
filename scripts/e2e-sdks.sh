#!/usr/bin/env bash
# `httpserver store` with real OpenTelemetry SDKs: one for Python, one for JavaScript, one for Go, each with its own way of OTLP over HTTP.
# Each reports the same trace (tests/sdks), and the store has to have all of it: spans, kinds, attributes, events, links, status.
#
#   scripts/e2e-sdks.sh [--install]
#
#   --install    get what is missing: the SDKs into target/e2e/sdks; without it, what is missing is listed and the exit code is 2
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#
# Exit: 0 every SDK's trace is whole, 1 one is not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"

parse "" install "$@"
need python3 node npm go curl
sdks=$e2e/sdks python_sdk=1.45.2 go_sdk=v1.47.0
node_sdk=(@opentelemetry/api@1.9.1 @opentelemetry/resources@2.12.1 @opentelemetry/sdk-trace-base@2.12.1 @opentelemetry/exporter-trace-otlp-http@0.223.1)
if [ "$install" = yes ]; then
  mkdir -p "$sdks/go"
  [ -x "$sdks/venv/bin/python" ] || python3 -m venv "$sdks/venv"
  "$sdks/venv/bin/pip" install -q "opentelemetry-sdk==$python_sdk" "opentelemetry-exporter-otlp-proto-http==$python_sdk"
  npm install --prefix "$sdks/node" --no-audit --no-fund --loglevel error --save-exact "${node_sdk[@]}"
  cp "$top/tests/sdks/report.go" "$sdks/go/"
  (
    cd "$sdks/go"
    [ -f go.mod ] || go mod init sdks
    go get "go.opentelemetry.io/otel/sdk@$go_sdk" "go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp@$go_sdk"
    go mod tidy && go build -o report .
  ) >"$sdks/go.log" 2>&1 || { cat "$sdks/go.log" >&2; exit 1; }
fi
for part in venv/bin/python node/node_modules go/report; do
  [ -e "$sdks/$part" ] || { echo "missing: the SDKs in $sdks (--install)" >&2; exit 2; }
done
[ -x "$HTTPSERVER" ] || { echo "missing: $HTTPSERVER" >&2; exit 2; }

work=$(mktemp -d)
"$HTTPSERVER" store --port 0 --otlp-port 0 --otlp-grpc-port 0 >"$work/out" 2>"$work/err" &
store=$!
trap 'kill $store 2>/dev/null; wait $store || true; rm -rf "$work"' EXIT
eventually 20 "the store says where it is" grep -q "^ *page" "$work/out"
read -r page otlp < <(awk '$1 == "traces" {split($2, a, "/api"); page = a[1]} $1 == "otlp" {split($2, b, "/v1"); otlp = b[1]} END {print page, otlp}' "$work/out")
export OTEL_EXPORTER_OTLP_ENDPOINT=$otlp MODULES=$sdks/node/node_modules

# whole SERVICE ID: everything that was reported is there
whole() {
  curl -sf "$page/api/v2/trace/$2" >"$work/trace" && curl -sf "$page/demo/verdict/$2" >"$work/verdict" || return 1
  python3 - "$1" "$work/trace" "$work/verdict" <<'PYTHON'
import json, sys

service, spans, verdict = sys.argv[1], json.load(open(sys.argv[2])), json.load(open(sys.argv[3]))
by = {span["name"]: span for span in spans}
root, price, call = by["GET /cart"], by["price"], by["POST"]
assert len(spans) == 3 and all(span["localEndpoint"] == {"serviceName": service} for span in spans), spans
assert (root.get("kind"), price.get("kind"), call.get("kind")) == ("SERVER", None, "CLIENT"), spans
assert "parentId" not in root and price["parentId"] == root["id"] and call["parentId"] == price["id"], spans
assert all(span["timestamp"] > 0 and span["duration"] > 0 for span in spans), spans
tags = {"http.response.status_code": "502", "items": '["a","b"]', "ratio": "0.5", "cached": "true", "team": "shop", "otel.scope.name": "tests/sdks", "otel.status_code": "ERROR"}
assert tags.items() <= root["tags"].items(), root
assert root["links"] == [{"traceId": "1234567890abcdef1234567890abcdef", "spanId": "1234567890abcdef", "tags": {"why": "batch"}}], root
assert call["tags"]["error"] == "no answer" and call["annotations"][0]["value"] == 'retry: {"attempt":2}', call
assert call["remoteEndpoint"] == {"serviceName": "stock.example", "port": 8080}, call
assert verdict["whole"] and verdict["failure"] == f"The request failed with 502: {service} called stock.example in vain (timeout).", verdict
PYTHON
}

failed=0
report() {
  local service=$1 id
  shift
  id=$("$@" | tail -n 1)
  if eventually 15 "the trace of $service" whole "$service" "$id"; then
    echo "ok      $service: trace $id is whole"
  else
    whole "$service" "$id" || true
    echo "FAILED  $service: trace $id"
    failed=1
  fi
}
report sdk-python "$sdks/venv/bin/python" "$top/tests/sdks/report.py"
OTEL_EXPORTER_OTLP_COMPRESSION=gzip report sdk-python "$sdks/venv/bin/python" "$top/tests/sdks/report.py"
report sdk-node node "$top/tests/sdks/report.mjs"
report sdk-go "$sdks/go/report"
exit $failed
