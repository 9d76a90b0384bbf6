#!/usr/bin/env bash
# Takes the chart through a real cluster with Istio: install, `helm test`, an upgrade that adds the gateway and a lane, `helm test` again, which walks the
# lane through the gateway, an install beside what is there in a namespace, and uninstall, which must leave nothing. In namespaces of its own.
#
#   scripts/e2e-chart.sh
#
#   HELM   default: the one on the PATH, else the one that scripts/check-chart.sh --install gets
#
# Before: a cluster that kubectl talks to, Istio in it, and the image in the cluster (make docker-build docker-load). Without the CRDs of the
# Gateway API the upgrade is not run, and the end says so.
#
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

parse "" "" "$@"
HELM=${HELM:-$(command -v helm || echo "$top/target/manifests/bin/helm")}
need kubectl openssl "$HELM"
cd "$top"
kubectl get --raw /readyz >/dev/null || { say "kubectl reaches no cluster"; exit 2; }
namespace=httpserver-chart-e2e work=$top/target/e2e-chart
for name in $namespace $namespace-own; do
  ! kubectl get namespace $name >/dev/null 2>&1 || { say "the namespace $name is there already: not touching it"; exit 2; }
done
rm -rf "$work" && mkdir -p "$work"

helm() { "$HELM" "$@" 2> >(grep -v 'found symbolic link in path' >&2); }
cleanup() {
  local status=$?
  trap - EXIT
  helm uninstall chart-e2e -n default >/dev/null 2>&1 || true
  kubectl delete namespace $namespace $namespace-own --ignore-not-found --wait=false >/dev/null 2>&1 || true
  exit $status
}
trap cleanup EXIT

few=(--set "exporter.type=none,hopDefaults.replicas=1,hopDefaults.latency=1ms..5ms,test.count=20" --wait --timeout 180s)
lane=(--set "gateway.mode=gateway-api,traffic.enabled=true,test.caConfigMap=gateway-ca" --set-json 'lanes=[{"name":"gray","hops":["service1","service3"]}]')

# run COMMAND...: its last line, or all that it printed
run() { local out; if out=$("$@" 2>&1); then tail -n 1 <<<"$out"; else echo "$out"; return 1; fi; }
pods() { is "$1" "$(kubectl -n $namespace get pods -l "${2:-app.kubernetes.io/part-of=httpserver}" --field-selector status.phase=Running -o name | wc -l | tr -d ' ')"; }
# verdict: what `check` said in the Pod of `helm test`
verdict() { helm test chart-e2e -n "${1:-default}" --timeout 150s >"$work/test.log" 2>&1 || { cat "$work/test.log"; return 1; }; grep '^Verdict' "$work/test.log"; }
gone() { ! kubectl get namespace "$1" >/dev/null 2>&1 || return 1; is 0 "$(kubectl get all,serviceaccounts,poddisruptionbudgets -A --no-headers 2>/dev/null | grep -c "^$1 ")"; }
certificate() {
  scripts/certificate.sh --dir "$work/certs" --namespace $namespace
  kubectl -n $namespace create configmap gateway-ca --from-file=ca.crt="$work/certs/ca.crt"
}
left_in_own() { is "" "$(kubectl -n $namespace-own get deployments,services,poddisruptionbudgets,networkpolicies -o name)"; }

claim "helm install makes the namespace and the three hops" run helm install chart-e2e charts/httpserver -n default --set namespace.name=$namespace "${few[@]}"
claim "one pod for each hop" pods 3
claim "each with a sidecar, by the label of the namespace" is "istio-proxy istio-proxy istio-proxy" \
  "$(kubectl -n $namespace get pods -o jsonpath='{range .items[*]}{.spec.initContainers[*].name} {.spec.containers[*].name} {end}' | tr ' ' '\n' | grep -x istio-proxy | xargs)"
claim "helm test, right after it, finds it healthy" verdict
if kubectl get crd httproutes.gateway.networking.k8s.io >/dev/null 2>&1; then
  claim "a certificate for its gateway" run certificate
  claim "an upgrade adds the gateway, a lane and traffic" run helm upgrade chart-e2e charts/httpserver -n default --set namespace.name=$namespace "${few[@]}" "${lane[@]}"
  claim "two more hops, for the lane" pods 2 lane=gray
  claim "helm test goes through the gateway and walks the lane" verdict
  claim "the report has the lane: service1 and service3 gray, service2 the baseline" grep -A1 "Lane gray" "$work/test.log"
  claim "the traffic reaches the first hop" eventually 60 "a request every half a second" \
    bash -c "[ \$(kubectl -n $namespace logs deployment/service1 -c httpserver --since=5s | grep -c '\"path\":\"/hello/service1\"') -ge 5 ]"
  claim "without the lane its hops are gone" run helm upgrade chart-e2e charts/httpserver -n default --set namespace.name=$namespace "${few[@]}"
  claim "and the baseline is as it was" eventually 60 "three pods" pods 3
else
  not_run+=("the gateway and a lane: no CRDs of the Gateway API")
fi
claim "helm uninstall leaves nothing" run helm uninstall chart-e2e -n default --wait --timeout 180s
claim "neither the namespace nor anything in it" eventually 60 "nothing" gone $namespace

kubectl create namespace $namespace-own >/dev/null
claim "into a namespace that is there, with policies" run helm install chart-e2e charts/httpserver -n $namespace-own --set namespace.name=,networkPolicy.enabled=true "${few[@]}"
claim "helm test finds it healthy there" verdict $namespace-own
claim "uninstalled" run helm uninstall chart-e2e -n $namespace-own --wait --timeout 180s
claim "what is left is what was there" left_in_own
claims_end
