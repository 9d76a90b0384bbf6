#!/usr/bin/env bash
# Holds the chart to the manifests: `helm lint`, and `helm template` compared object by object with what kubectl would apply, for the default
# values and for each way to choose; and values that must be refused. check-manifests.sh calls it, and checks the schemas of what it renders.
#
#   scripts/check-chart.sh [--install]
#
#   --install   get what is missing, under target/: Helm with Go, and a Python package that reads YAML
#
# Exit: 0 the same objects, 1 they differ, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

work=$top/target/manifests
helm=${HELM:-$work/bin/helm} python=$work/venv/bin/python

install=no
parse "" install "$@"
if [ $install = yes ]; then
  need python3 go
  [ -x "$helm" ] || GOBIN=$work/bin go install -ldflags "-s -w" helm.sh/helm/v3/cmd/helm@v3.22.0
  [ -x "$python" ] || python3 -m venv "$work/venv"
  "$python" -c 'import yaml' 2>/dev/null || "$python" -m pip install --quiet --disable-pip-version-check PyYAML==6.0.3
fi
need kubectl
for tool in "$helm" "$python"; do
  [ -x "$tool" ] || { say "missing: ${tool#"$top/"}: scripts/check-chart.sh --install gets it"; exit 2; }
done

# Some files of the chart are links into k8s/; Helm says so each time.
helm() { "$helm" "$@" 2> >(grep -v 'found symbolic link in path' >&2); }

cd "$top"
chart=charts/httpserver out=$work/chart
rm -rf "$out"
mkdir -p "$out/over"
for field in version appVersion; do
  said=$(sed -n "s/^$field: *\"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" $chart/Chart.yaml)
  [ "$said" = "$(release_version)" ] || die "$chart/Chart.yaml: $field is $said, Cargo.toml says $(release_version)"
done
# A Helm that Go has built by itself knows of no Kubernetes of today.
kube=(--kube-version "${KUBERNETES:-1.32.0}")
helm lint --strict --quiet "${kube[@]}" $chart

# template NAME OPTION...: what `helm template` makes, without the Pod of `helm test`
template() { helm template httpserver $chart "${kube[@]}" --no-hooks "${@:2}" >"$out/$1.yaml"; }
# wanted NAME TARGET... -- FILE...: what kubectl would apply: targets and components of kustomize, then files
wanted() {
  local name=$1 kind=resources path
  shift
  { echo "apiVersion: kustomize.config.k8s.io/v1beta1"; echo "kind: Kustomization"; echo "resources:"; } >"$out/over/kustomization.yaml"
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    path=$1
    case $path in k8s/components/*) [ $kind = components ] || { kind=components; echo "components:"; } ;; esac >>"$out/over/kustomization.yaml"
    echo "  - ../../../../$path" >>"$out/over/kustomization.yaml"
    shift
  done
  kubectl kustomize "$out/over" >"$out/$name.wanted"
  # An object in a file replaces the one of the same name, as it does in a cluster.
  [ $# -le 1 ] || "$python" - "$out/$name.wanted" "${@:2}" <<'PYTHON'
import sys, yaml
objects = {}
for path in sys.argv[1:]:
    for value in filter(None, yaml.safe_load_all(open(path))):
        objects[value["kind"], value["metadata"].get("namespace"), value["metadata"]["name"]] = value
with open(sys.argv[1], "w") as file:
    yaml.dump_all(objects.values(), file)
PYTHON
}
status=0
same() {
  local result
  if result=$("$python" scripts/same-objects.py "$out/$1.wanted" "$out/$1.yaml"); then
    printf '  %-22s %s\n' "$1" "$result"
  else
    printf '%s: the chart differs from the manifests:\n%s\n' "$1" "$result" >&2
    status=1
  fi
}

both='lanes=[{"name":"gray","hops":["service1","service3"]},{"name":"blue","hops":["service2"]}]'
v2='hops=[{"name":"service1","upstreams":["http://service2/service2"],"upstreamTimeout":"4s","versions":[{"name":"v2"}]},'
v2+='{"name":"service2","upstreams":["http://service3/service3"],"upstreamTimeout":"3s"},{"name":"service3"}]'
lane_pods=(k8s/components/lane-gray k8s/components/lane-blue)

template defaults
wanted defaults k8s
same defaults
template no-mesh --set mesh.mode=none
wanted no-mesh k8s/overlays/plain
same no-mesh
template ambient --set mesh.mode=ambient
wanted ambient k8s/overlays/ambient
same ambient
template istio --set gateway.mode=istio,mesh.tracing.provider=jaeger,jaeger.enabled=true,traffic.enabled=true
wanted istio k8s istio k8s/jaeger k8s/components/traffic
same istio
template lanes --set gateway.mode=istio,mesh.tracing.provider=zipkin --set-json "$both"
wanted lanes k8s istio "${lane_pods[@]}" -- istio/telemetry-zipkin.yaml istio/lanes/root.yaml istio/lanes/gray.yaml istio/lanes/blue.yaml
same lanes
template gateway-api --set gateway.mode=gateway-api,mesh.tracing.provider=jaeger --set-json "$both"
wanted gateway-api k8s istio/gateway-api "${lane_pods[@]}" -- istio/telemetry.yaml istio/gateway-api/lanes/{gray,blue}.yaml
same gateway-api
template components --set podSecurity=enforce,networkPolicy.enabled=true,autoscaling.enabled=true \
  --set monitoring.annotations=true,monitoring.podMonitor=true,monitoring.rules=true,monitoring.dashboard=true,hopDefaults.latency=10ms..2s,"image.pullSecrets={registry-credentials}" --set-json "$v2"
wanted components k8s k8s/components/{version-v2,pod-security,network-policy,autoscaling,monitoring,slow-hops,image-pull-secret}
same components
template b3-first --set mesh.tracing.provider=zipkin-b3
wanted b3-first k8s k8s/components/b3-first -- istio/telemetry-zipkin-b3.yaml
same b3-first

# What no manifest has, for its schemas: the Pod of `helm test`, a canary by weight, a namespace that is there already, other hops.
shop='hops=[{"name":"front","upstreams":["http://cart/service2","50%=http://stock.shop:8080/service2"],"fanOut":"sequential","faults":["delay=2s@5%"]},'
shop+='{"name":"cart","upstreams":["http://stock/service3"],"replicas":1,"versions":[{"name":"v2","weight":10,"replicas":3}]},{"name":"stock"}]'
for mode in istio gateway-api; do
  helm template shop $chart "${kube[@]}" --namespace shop --set "namespace.name=,gateway.mode=$mode,networkPolicy.enabled=true,traffic.enabled=true,exporter.type=zipkin" \
    --set-json "$shop" --set-json 'lanes=[{"name":"pink","hops":["cart"],"version":"v7","latency":"1s"}]' >"$out/shop-$mode.yaml"
done
helm template httpserver $chart "${kube[@]}" --set test.caConfigMap=gateway-ca,gateway.mode=istio --show-only templates/tests/check.yaml >"$out/test.yaml"

# A comparison that finds nothing and a schema that takes everything look like a good chart: show that they can fail.
template changed --set hopDefaults.replicas=3
! "$python" scripts/same-objects.py "$out/defaults.wanted" "$out/changed.yaml" >/dev/null || die "the comparison itself is broken: it misses a changed replica count"
rm "$out/changed.yaml"
# refused WORDS OPTION...: the message names what is wrong
refused() {
  local words=$1 said
  shift
  if said=$(helm template httpserver $chart "${kube[@]}" "$@" 2>&1); then
    say "not refused: $*"
    status=1
  elif [[ $said != *"$words"* ]]; then
    say "refused without the words \"$words\": $* : $said"
    status=1
  fi
}
refused mode --set mesh.mode=sidecr
refused replica --set hopDefaults.replica=3
refused upstreams --set-json 'hops=[{"name":"a","upstreams":["service2"]}]'
refused "a is there twice" --set-json 'hops=[{"name":"a"},{"name":"a"}]'
refused "names the hop service9" --set gateway.mode=istio --set-json 'lanes=[{"name":"gray","hops":["service9"]}]'
refused "lanes need routes" --set-json 'lanes=[{"name":"gray","hops":["service1"]}]'
refused "gateway.mode istio needs mesh.mode sidecar" --set gateway.mode=istio,mesh.mode=ambient
refused "more than 100" --set-json 'hops=[{"name":"a","versions":[{"name":"v2","weight":60},{"name":"v3","weight":50}]}]'
refused "does not match pattern" --set 'hopDefaults.faults={hung@5%}'
refused "no text in YAML" --set-json 'hops=[{"name":"on"}]'
refused "object of the chart" --set-json 'hops=[{"name":"check"}]'
refused "would have the name a-v2" --set-json 'hops=[{"name":"a","versions":[{"name":"v2"}]},{"name":"a-v2"}]'
refused "minReplicas 5 is more" --set autoscaling.enabled=true,autoscaling.minReplicas=5,autoscaling.maxReplicas=2
refused "autoscaling.hops: x" --set 'autoscaling.enabled=true,autoscaling.hops={x}'
exit $status
