#!/usr/bin/env bash
# gRPC as others speak it: grpcio as the client of a hop and as the hop in the middle, with the interoperability cases that apply; with
# grpcurl also reflection and health as it asks for them, with h2load a load of calls; a WebSocket client in Python. The output names each case that holds.
#
#   scripts/e2e-grpc.sh [--install]
#
#   --install    get what is missing: grpcio, websockets and, with Go, grpcurl into target/e2e/grpc; without it, what is missing is listed and the exit code is 2
#
# HTTPSERVER: the binary (default target/debug/httpserver).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

install=no
parse "" install "$@"
folder=$top/target/e2e/grpc
binary=${HTTPSERVER:-$top/target/debug/httpserver}
packages=(grpcio==1.85.3 grpcio-tools==1.85.1 grpcio-health-checking==1.85.1 grpcio-reflection==1.85.1 googleapis-common-protos==1.76.0 websockets==17.4)
if [ $install = yes ]; then
  mkdir -p "$folder"
  [ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install -q "${packages[@]}"
  [ -x "$folder/bin/grpcurl" ] || ! command -v go >/dev/null || GOBIN=$folder/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
fi
if [ ! -x "$folder/venv/bin/python" ] || [ ! -x "$binary" ]; then
  echo "missing: $folder/venv (scripts/e2e-grpc.sh --install) or $binary (cargo build)" >&2
  exit 2
fi
mkdir -p "$folder/generated"
"$folder/venv/bin/python" -m grpc_tools.protoc -I "$top/proto" --python_out="$folder/generated" --grpc_python_out="$folder/generated" \
  httpserver/v1/chain.proto
PYTHONPATH=$folder/generated "$folder/venv/bin/python" "$top/tests/grpc/interop.py" "$binary"
PATH=$folder/bin:$PATH
log=$(mktemp)
"$binary" serve --addr 127.0.0.1:0 2>"$log" >/dev/null &
hop=$!
trap 'kill "$hop"; rm -f "$log"' EXIT
until grep -q address= "$log"; do sleep 0.1; done
address=$(sed -n 's/.*address=\([^ ]*\).*/\1/p' "$log")
if command -v grpcurl >/dev/null; then
  grpcurl -plaintext "$address" list | grep -qx httpserver.v1.Chain
  grpcurl -plaintext -d '{"service": 1}' "$address" httpserver.v1.Chain/Call | grep -q '"service": "httpserver"'
  [ "$(grpcurl -plaintext -d '{"count": 3, "interval_ms": 10}' "$address" httpserver.v1.Chain/Stream | grep -c '"service": "httpserver"')" = 3 ]
  grpcurl -plaintext "$address" grpc.health.v1.Health/Check | grep -q SERVING
  echo "ok grpcurl: list, Call, Stream, health"
fi
if command -v h2load >/dev/null; then
  # A call without fields: a prefix of five zeros.
  body=$(mktemp)
  printf '\0\0\0\0\0' >"$body"
  loaded=$(h2load -n 2000 -c 4 -m 20 -d "$body" -H 'content-type: application/grpc' -H 'te: trailers' "http://$address/httpserver.v1.Chain/Call")
  rm -f "$body"
  grep -q 'requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed' <<<"$loaded"
  echo "ok h2load: $(sed -n 's/^finished in/2000 calls in/p' <<<"$loaded")"
fi
