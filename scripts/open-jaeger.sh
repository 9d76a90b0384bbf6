#!/usr/bin/env bash
# Makes Jaeger's page reachable at http://127.0.0.1:16686/jaeger until you press Ctrl-C.
#
#   scripts/open-jaeger.sh [--port 16686] [--namespace istio-system]
#
# `istioctl dashboard jaeger` does the same, for who has istioctl; this needs kubectl alone.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

port=16686 namespace=istio-system
parse "port namespace" "" "$@"
whole port "$port"
need kubectl
cluster_answers
kubectl -n "$namespace" get service tracing >/dev/null || die "no Service tracing in $namespace: kubectl apply -k k8s/jaeger"
say "http://127.0.0.1:$port/jaeger"
exec kubectl -n "$namespace" port-forward --address 127.0.0.1 service/tracing "$port:80"
