#!/usr/bin/env bash
# gRPC as others speak it: grpcio as the client of a hop and as the hop in the middle, with the interoperability cases that apply; with
# grpcurl on the PATH also reflection and health as it asks for them. The output names each case that holds.
#
#   scripts/e2e-grpc.sh [--install]
#
#   --install    get what is missing: grpcio into target/e2e/grpc; without it, what is missing is listed and the exit code is 2
#
# HTTPSERVER: the binary (default target/debug/httpserver).
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
folder=$top/target/e2e/grpc
binary=${HTTPSERVER:-$top/target/debug/httpserver}
packages=(grpcio==1.85.3 grpcio-tools==1.85.1 grpcio-health-checking==1.85.1 grpcio-reflection==1.85.1 googleapis-common-protos==1.76.0)
if [ "${1:-}" = --install ]; then
  mkdir -p "$folder"
  [ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install -q "${packages[@]}"
fi
if [ ! -x "$folder/venv/bin/python" ] || [ ! -x "$binary" ]; then
  echo "missing: $folder/venv (scripts/e2e-grpc.sh --install) or $binary (cargo build)" >&2
  exit 2
fi
mkdir -p "$folder/generated"
"$folder/venv/bin/python" -m grpc_tools.protoc -I "$top/proto" --python_out="$folder/generated" --grpc_python_out="$folder/generated" \
  httpserver/v1/chain.proto
PYTHONPATH=$folder/generated "$folder/venv/bin/python" "$top/tests/grpc/interop.py" "$binary"
if command -v grpcurl >/dev/null; then
  log=$(mktemp)
  "$binary" serve --addr 127.0.0.1:0 2>"$log" >/dev/null &
  hop=$!
  trap 'kill "$hop"; rm -f "$log"' EXIT
  until grep -q address= "$log"; do sleep 0.1; done
  address=$(sed -n 's/.*address=\([^ ]*\).*/\1/p' "$log")
  grpcurl -plaintext "$address" list | grep -qx httpserver.v1.Chain
  grpcurl -plaintext -d '{"service": 1}' "$address" httpserver.v1.Chain/Call | grep -q '"service": "httpserver"'
  grpcurl -plaintext "$address" grpc.health.v1.Health/Check | grep -q SERVING
  echo "ok grpcurl: list, Call, health"
fi
