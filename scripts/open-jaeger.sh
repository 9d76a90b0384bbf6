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
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) help "$0"; exit 0 ;;
    --port | --namespace)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      name=${1#--}; printf -v "$name" %s "$2"; shift 2 ;;
    *) usage_error "unknown option: $1" ;;
  esac
done
need kubectl
kubectl -n "$namespace" get service tracing >/dev/null || die "no Service tracing in $namespace: kubectl apply -k k8s/jaeger"
say "http://127.0.0.1:$port/jaeger"
exec kubectl -n "$namespace" port-forward --address 127.0.0.1 service/tracing "$port:80"
