#!/usr/bin/env bash
# Hands a local image to a local cluster, which cannot pull it from anywhere.
#
#   scripts/load-image.sh [IMAGE] [--into kind|minikube|k3d|ctr] [--cluster NAME]
#
#   IMAGE       default: httpserver at the version of Cargo.toml
#   --into      default: what the current context of kubectl is called after (kind-..., minikube, k3d-...)
#   --cluster   of several kind or k3d clusters, or minikube profiles, this one
#
#   CTR         for --into ctr, a containerd of your own: how to call its client; default: ctr -n k8s.io
#
# For a cluster with a registry: make docker-push IMAGE=registry.example.org/you/httpserver, then
#   cd k8s && kustomize edit set image httpserver=registry.example.org/you/httpserver:TAG
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

into="" cluster=""
parse "into cluster ..." "" "$@"
image=${arguments[0]:-httpserver:$(release_version)}
need docker
docker image inspect "$image" >/dev/null 2>&1 || die "no image $image here: make docker-build"

if [ -z "$into" ]; then
  need kubectl
  context=$(kubectl config current-context 2>/dev/null || true)
  case $context in
    kind-*) into=kind cluster=${cluster:-${context#kind-}} ;;
    k3d-*) into=k3d cluster=${cluster:-${context#k3d-}} ;;
    minikube) into=minikube ;;
    *) die "cannot tell what kind of cluster '$context' is: say --into kind, minikube, k3d or ctr" ;;
  esac
fi
case $into in
  kind) need kind; kind load docker-image "$image" ${cluster:+--name "$cluster"} ;;
  k3d) need k3d; k3d image import "$image" ${cluster:+--cluster "$cluster"} ;;
  minikube) need minikube; minikube image load "$image" ${cluster:+--profile "$cluster"} ;;
  ctr)
    read -ra client <<<"${CTR:-ctr -n k8s.io}"
    need "${client[0]}"
    docker save "$image" | "${client[@]}" images import - >/dev/null
    ;;
  *) usage_error "--into kind, minikube, k3d or ctr, not: $into" ;;
esac
say "$image is in the cluster ($into)"
