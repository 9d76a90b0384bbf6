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
need kubectl
kubectl get --raw /readyz >/dev/null || die "the cluster does not answer: kubectl config current-context names the one that was asked"
kubectl -n "$namespace" get service tracing >/dev/null || die "no Service tracing in $namespace: kubectl apply -k k8s/jaeger"
say "http://127.0.0.1:$port/jaeger"
exec kubectl -n "$namespace" port-forward --address 127.0.0.1 service/tracing "$port:80"
