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
refused "upstream 'service2' is none" --set-json 'hops=[{"name":"a","upstreams":["service2"]}]'
refused "a is there twice" --set-json 'hops=[{"name":"a"},{"name":"a"}]'
refused "names the hop service9" --set gateway.mode=istio --set-json 'lanes=[{"name":"gray","hops":["service9"]}]'
refused "lanes need routes" --set-json 'lanes=[{"name":"gray","hops":["service1"]}]'
refused "gateway.mode istio needs mesh.mode sidecar" --set gateway.mode=istio,mesh.mode=ambient
refused "more than 100" --set-json 'hops=[{"name":"a","versions":[{"name":"v2","weight":60},{"name":"v3","weight":50}]}]'
refused "autoscaling.hops: x" --set 'autoscaling.enabled=true,autoscaling.hops={x}'
refused "minReplicas 5 is above maxReplicas 2" --set autoscaling.enabled=true,autoscaling.minReplicas=5,autoscaling.maxReplicas=2
refused "/namespace/name" --set namespace.name=Foo
refused "without a mesh has no namespace istio-system" --set mesh.mode=none,jaeger.enabled=true
refused "takes no fractions" --set gateway.mode=gateway-api,gateway.timeout=1.5s
refused "shop.example.com is not under gateway.listenerHostname" --set 'gateway.mode=gateway-api,gateway.hosts={shop.example.com}'
refused "service1 requests none" --set autoscaling.enabled=true,hopDefaults.resources.requests.cpu=null
refused "/traffic/rate" --set traffic.rate=0.0
for upstream in 101%=http://b grpc://b/x/y grpc://b/service01 ws://b http:// http://b:99999 http://b:0 b%=http://b '10%http://b'; do
  refused "upstream '$upstream' is none" --set-json "hops=[{\"name\":\"a\",\"upstreams\":[\"$upstream\"]}]"
done
# null takes a default away.
for gone in hops gateway gateway.hosts hopDefaults namespace mesh.tracing traffic jaeger.namespace exporter.type autoscaling.minReplicas; do
  refused "missing property '${gone##*.}'" --set "$gone=null"
done
refused "/exporter/endpoint" --set exporter.endpoint=http://collector:otlp
refused "/exporter/propagators" --set exporter.propagators=b4
refused "upstreamTimeout of a must be above 0" --set-json 'hops=[{"name":"a","upstreamTimeout":"0s"}]'
# What a hop would refuse at its start.
for latency in fast 2s..1s 2h 10 p50=20ms,p40=80ms p50=80ms,p90=20ms p100=1s p50=0ms 1ms..2ms..3ms; do
  refused "latency '$latency' is none" --set-json "hopDefaults.latency=\"$latency\""
done
for fault in abort abort=99 abort=200 delay=2 delay=2h reset=1 hang=1s limit=10 limit=0/s slow-body=1KiB cpu= memory=0 memory=5000MiB panic hung@5% abort=503@10 abort=503@101%; do
  refused "'$fault' is no fault" --set-json "hopDefaults.faults=[\"$fault\"]"
done
refused "version v2 of a: 'abort=99'" --set-json 'hops=[{"name":"a","versions":[{"name":"v2","faults":["abort=99"]}]}]'
refused "lanes: gray: latency 'fast'" --set gateway.mode=istio --set-json 'lanes=[{"name":"gray","hops":["service1"],"latency":"fast"}]'
refused "does not carry 'host'" --set 'hopDefaults.dropHeaders={host}'
# Names that are taken, or would be those of two objects.
refused "the version v2 of a is there twice" --set-json 'hops=[{"name":"a","versions":[{"name":"v2"},{"name":"v2"}]}]'
refused "gray is there twice" --set gateway.mode=istio --set-json 'lanes=[{"name":"gray","hops":["service1"]},{"name":"gray","hops":["service2"]}]'
refused "Deployment httpserver/a-v2" --set-json 'hops=[{"name":"a","versions":[{"name":"v2"}]},{"name":"a-v2"}]'
refused "Deployment httpserver/a-gray" --set gateway.mode=istio --set-json 'hops=[{"name":"a"},{"name":"a-gray"}]' --set-json 'lanes=[{"name":"gray","hops":["a"]}]'
refused "Deployment httpserver/a-gray" --set gateway.mode=istio --set-json 'hops=[{"name":"a","versions":[{"name":"gray"}]}]' --set-json 'lanes=[{"name":"gray","hops":["a"]}]'
refused "Service httpserver/a-base" --set gateway.mode=gateway-api --set-json 'hops=[{"name":"a"},{"name":"a-base"}]'
refused "VirtualService httpserver/httpserver" --set gateway.mode=istio --set-json 'hops=[{"name":"httpserver"}]'
refused "NetworkPolicy httpserver/platform" --set networkPolicy.enabled=true --set-json 'hops=[{"name":"platform"}]'
refused "NetworkPolicy httpserver/check-a" --set networkPolicy.enabled=true --set-json 'hops=[{"name":"a"},{"name":"check-a"}]'
refused "httpserver/jaeger" --set jaeger.enabled=true,jaeger.namespace=httpserver --set-json 'hops=[{"name":"jaeger"}]'
refused "no hop can be called traffic" --set traffic.enabled=true --set-json 'hops=[{"name":"traffic"}]'
for name in check default; do refused "no hop can be called $name" --set-json "hops=[{\"name\":\"$name\"}]"; done
refused "no hop can be called waypoint" --set mesh.mode=ambient --set-json 'hops=[{"name":"waypoint"}]'
refused "no version of a can be called v1" --set-json 'hops=[{"name":"a","versions":[{"name":"v1"}]}]'
refused "no lane can be called base" --set gateway.mode=istio --set-json 'lanes=[{"name":"base","hops":["service1"]}]'
# Calls that no policy lets through.
for upstream in http://b.other.svc/x http://c.example.com:9000/y; do
  refused "no rule lets a call $upstream" --set networkPolicy.enabled=true --set-json "hops=[{\"name\":\"a\",\"upstreams\":[\"$upstream\"]},{\"name\":\"b\"}]"
done
refused "no rule lets the hops report" --set networkPolicy.enabled=true,exporter.endpoint=http://collector.mine:4318

# taken WORDS OPTION...: it is rendered, and the words are among it
taken() {
  local words=$1 said
  shift
  said=$(helm template httpserver $chart "${kube[@]}" "$@" 2>&1) && [[ $said == *"$words"* ]] || { say "not taken with \"$words\": $* : ${said:0:500}"; status=1; }
}
faults=$(sed -n 's/^ *Form { name: .*example: "\([^"]*\)".*/\1@5%/p' src/hop/fault.rs | paste -sd,)
taken "value: \"$faults\"" --set "hopDefaults.faults={$faults}"
headers=$(grep -o '^ *line("[^"]*"' src/trace_context/carried.rs | cut -d'"' -f2 | paste -sd,)
taken "value: \"$headers\"" --set "hopDefaults.dropHeaders={$headers}"
upstreams="http://b/service1,100%=https://b:65535/x?y=1,0.5%=h2c://b,grpc://b/service9999,grpcs://[::1]:443"
taken "value: \"$upstreams\"" --set-json "hops=[{\"name\":\"a\",\"upstreams\":[\"${upstreams//,/\",\"}\"]}]"
for gone in lanes hopDefaults.latency hopDefaults.resources image.tag; do taken "kind: Service" --set "$gone=null"; done
taken x-tenant --set 'hopDefaults.dropHeaders={x-tenant}' --set-json 'hopDefaults.env=[{"name":"FORWARD_HEADERS","value":"x-tenant"}]'
for latency in 0 1.5ms 1m30s 10ms..2s 0..5ms p50=20ms,p90=80ms,p99.9=400ms; do taken "value: \"$latency\"" --set-json "hopDefaults.latency=\"$latency\""; done
for name in on off yes no true false null y n; do taken "app: \"$name\"" --set-json "hops=[{\"name\":\"$name\"}]" --set networkPolicy.enabled=true; done
taken '"example.org:5000/httpserver@sha256:abc"' --set image.repository=example.org:5000/httpserver@sha256,image.tag=abc
taken 'namespace: "123"' --set-string namespace.name=123
for listener in shop.example.com '*.example.com'; do
  taken "hostname: \"$listener\"" --set "gateway.mode=gateway-api,gateway.hosts={shop.example.com},gateway.listenerHostname=$listener"
done
taken --rate=1.5 --set traffic.enabled=true,traffic.rate=1.5
taken "replicas: 0" --set-json 'hops=[{"name":"a","replicas":1,"versions":[{"name":"v2","replicas":0}]}]'
healed='hops=[{"name":"a","faults":["abort=503"],"versions":[{"name":"v2","faults":[]}]}]'
[ "$(helm template httpserver $chart "${kube[@]}" --set-json "$healed" | grep -c 'name: FAULT')" = 1 ] || { say "a version without faults has those of its hop"; status=1; }
taken "name: shop" --set networkPolicy.enabled=true --set-json 'hops=[{"name":"a","upstreams":["http://b.shop/x","http://c.httpserver.svc"]},{"name":"c"}]' \
  --set-json 'networkPolicy.egress=[{"to":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"shop"}}}]}]'
taken '"istio-ingress","mine"' --set networkPolicy.enabled=true,gateway.mode=istio,gateway.namespace=mine
taken "port: 16686" --set networkPolicy.enabled=true,jaeger.enabled=true,jaeger.namespace=httpserver,mesh.mode=none
exit $status
