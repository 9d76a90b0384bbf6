#!/usr/bin/env bash
# Takes the whole chain through a real cluster with Istio, and says claim by claim what held. It installs the hops, Jaeger, the gateway and a
# certificate, follows the four tutorials, reads traces, applies every overlay, component, lane and scenario, and takes it all away again.
#
#   scripts/e2e-cluster.sh [--only PART,...] [--restarts N] [--keep]
#
#   --only PART,...  of: tutorials, traces, check, strangers, security, lanes, scenarios, lessons, restarts, components, gateway-api; default: all of them, in this order
#   --restarts N     of each Deployment, in the part restarts; default: 1
#   --keep           leave everything standing at the end
#
# Before: a cluster that kubectl talks to, Istio in it (istioctl install -y -f istio/install.yaml), and the image in the cluster
# (make docker-build docker-load). It refuses to start where a namespace "httpserver" or "tracing" is there already.
# What the cluster cannot do (a tracing provider that is not installed, no CRDs of the Gateway API) is named at the end, not hidden.
#
# Exit: 0 every claim held, 1 one did not, 2 the cluster or a tool is missing something it needs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

parts=tutorials,traces,check,strangers,security,lanes,scenarios,lessons,restarts,components,gateway-api
only=$parts keep=no restarts=1
parse "only restarts" keep "$@"
whole restarts "$restarts"
for part in ${only//,/ }; do
  [[ ,$parts, == *",$part,"* ]] || usage_error "--only: no part $part: there are $parts"
done
need kubectl curl openssl python3
cd "$top"
kubectl get --raw /readyz >/dev/null || { say "kubectl reaches no cluster"; exit 2; }
mesh=$(kubectl -n istio-system get configmap istio -o jsonpath='{.data.mesh}' 2>/dev/null) || { say "no Istio in istio-system: istioctl install -y -f istio/install.yaml"; exit 2; }
for namespace in httpserver tracing sticky; do
  ! kubectl get namespace "$namespace" >/dev/null 2>&1 || { say "the namespace $namespace is there already: not touching it"; exit 2; }
done

work=$top/target/e2e-cluster
# Where scripts/e2e-grpc.sh --install puts grpcurl.
PATH=$PATH:$top/target/e2e/grpc/bin
rm -rf "$work" && mkdir -p "$work"
jaeger_is_ours=no forward=""

# ---------------------------------------------------------------- helpers

part() { printf '\n-- %s\n' "$1"; }
# Not for what runs in the background: kill would end the shell around the function, and kubectl would live on.
k() { kubectl -n httpserver "$@"; }

# request HOST PATH [curl arguments]: through the HTTPS gateway
request() {
  curl -s --max-time 30 --cacert "$work/certs/ca.crt" --resolve "$1:$SECURE_INGRESS_PORT:$INGRESS_HOST" "https://$1:$SECURE_INGRESS_PORT$2" "${@:3}"
}
json() { request "$@" -H 'accept: application/json'; }
code() { request "$@" -o /dev/null -w '%{http_code}'; }
# statuses HOST PATH...: "200 404"
statuses() { local path; for path in "${@:2}"; do code "$1" "$path"; echo; done | paste -sd' '; }
# between LOW HIGH ACTUAL
between() { [ "$3" -ge "$1" ] && [ "$3" -le "$2" ] || { printf 'wanted: %s to %s\ngot:    %s\n' "$1" "$2" "$3"; return 1; }; echo "$3"; }
# rpc HOST: Chain/Call through the HTTPS gateway; the code of its status, and its traceresponse
rpc() {
  grpcurl_call "$1" -v 2>&1 | awk '$1 == "traceresponse:" {trace = $2} $1 == "Code:" {code = $2} /^Response trailers received/ {ended = 1}
    END {print (code != "" ? code : ended ? "OK" : "none"), trace}'
}
rpc_code() { rpc "$1" | cut -d' ' -f1; }
# grpcurl_call HOST [grpcurl arguments]: as the manifests say
grpcurl_call() {
  grpcurl -max-time 30 -cacert "$work/certs/ca.crt" -authority "$1" -import-path proto -proto httpserver/v1/chain.proto -d '{"service": 1}' "${@:2}" \
    "$INGRESS_HOST:$SECURE_INGRESS_PORT" httpserver.v1.Chain/Call
}
# codes COUNT HOST PATH [curl arguments]: "200 x 17, 503 x 3"
codes() {
  local i
  for ((i = 0; i < $1; i++)); do code "${@:2}"; echo; done | sort | uniq -c | awk '{printf "%s%s x %s", (NR > 1 ? ", " : ""), $2, $1}'
}
# how_many CODE "200 x 17, 503 x 3"
how_many() { tr ',' '\n' <<<"$2" | awk -v code="$1" '$1 == code {n = $3} END {print n + 0}'; }

# retry SECONDS COMMAND...: until it succeeds; prints what it printed at last
retry() {
  local end=$((SECONDS + $1)) out
  until out=$("${@:2}" 2>&1); do
    [ $SECONDS -lt $end ] || { printf '%s\n' "$out"; return 1; }
    sleep 0.3
  done
  printf '%s\n' "$out"
}
# forwarded TARGET[:PORT] COMMAND...: the command, with the URL of the target's port behind it; 8080 where none is named
forwarded() {
  local port pid status=0 there=8080
  [[ $1 != *:* ]] || there=${1##*:}
  port=$(free_ports 1)
  kubectl -n httpserver port-forward --address 127.0.0.1 "${1%:*}" "$port:$there" >/dev/null 2>&1 &
  pid=$!
  eventually 20 "the port of $1" curl -s "http://127.0.0.1:$port/healthz"
  "${@:2}" "http://127.0.0.1:$port" || status=$?
  kill $pid
  return $status
}

# can_grpc: whether there is a client; said once where there is none
can_grpc() {
  command -v grpcurl >/dev/null && return 0
  [[ " ${not_run[*]-} " == *grpcurl* ]] || not_run+=("gRPC through the gateways: no grpcurl in PATH (scripts/e2e-grpc.sh --install)")
  return 1
}

# settled: every Deployment of ours has the pods it wants, and no pod is still going
settled() {
  k rollout status deployment --timeout=180s >/dev/null || { k get pods >&2; return 1; }
  eventually 90 "old pods gone" no_pod_is_going
}
# pods_are COUNT READY: that many pods, each with READY of its containers, as 2/2
pods_are() { is "$1 pods $2" "$(k get pods --no-headers | awk -v ready="$2" '$2 == ready {n++} END {print n + 0, "pods", ready}')"; }
no_pod_is_going() { ! k get pods -o jsonpath='{.items[*].metadata.deletionTimestamp}' | grep -q .; }

# overlay NAME [COMPONENT...]: that overlay with those components, as a kustomization of its own
overlay() {
  local list
  list=$(printf ', ../../../k8s/components/%s' "${@:2}")
  [ $# -gt 1 ] || list=""
  mkdir -p "$work/overlay"
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../../k8s/overlays/%s]\ncomponents: [%s]\n' \
    "$1" "${list#, }" >"$work/overlay/kustomization.yaml"
}
# deploy NAME [COMPONENT...]
deploy() { overlay "$@"; kubectl apply -k "$work/overlay" >/dev/null; settled; }

# lanes_of PATH [curl arguments]: "gray base gray"
lanes_of() { json service1.cncamp.io "$1" "${@:2}" | py '" ".join(h["lane"] for h in hops(r))'; }
gray_of() { lanes_of "${1:-/hello/service1}" -H 'x-lane: gray'; }
# soon SECONDS WANTED COMMAND...: the command's output becomes that, and is still that a second later: a configuration reaches the proxies,
# and the threads of each, one by one, so seen once is not seen by all
soon() { retry "$1" twice "${@:2}"; }
twice() { prints "$@" && sleep 1 && prints "$@"; }
prints() { is "$1" "$("${@:2}" 2>&1 || true)"; }

# What changes the inbound side of a sidecar (mTLS, policies, filters) makes Envoy drain the connections it had for 45 s, and then cut them,
# with what is in flight on them. That is Istio's way, and not what the claims after it are about.
inbound_drained() { sleep 47; }

cleanup() {
  local status=$?
  trap - EXIT
  [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
  if [ $keep = yes ]; then
    say "left standing, as asked; KUBECONFIG and certificates: $work/certs"
    exit $status
  fi
  say "taking everything away again"
  {
    kubectl delete --ignore-not-found -f istio/security/lane-needs-jwt.yaml -f istio/scenarios/metrics-for-one-address.yaml
    kubectl delete --ignore-not-found -f istio/telemetry.yaml
    kubectl -n istio-system delete secret --ignore-not-found cncamp-credential cncamp-mtls-credential
    [ $jaeger_is_ours = no ] || kubectl delete --ignore-not-found -k k8s/jaeger
    kubectl delete namespace --ignore-not-found httpserver tracing
  } >/dev/null 2>&1 || true
  exit $status
}
trap cleanup EXIT

# ---------------------------------------------------------------- up

part "deploy"
if kubectl -n istio-system get service tracing >/dev/null 2>&1; then
  say "using the Jaeger that is there"
else
  jaeger_is_ours=yes
  claim "kubectl apply -k k8s/jaeger: Jaeger 2 starts on a volume" sh -c 'kubectl apply -k k8s/jaeger && kubectl -n istio-system rollout status deployment/jaeger --timeout=120s'
fi
deployed() { kubectl apply -k k8s >/dev/null && settled && pods_are 6 2/2; }
claim "kubectl apply -k k8s: six pods, each with a sidecar" deployed
[ $claims_failed -eq 0 ] || { k get pods; k get events | tail -n 20; die "the hops do not start (ImagePullBackOff: make docker-build docker-load)"; }
claim "scripts/certificate.sh puts the secret beside the gateway's pods" scripts/certificate.sh --dir "$work/certs" --client
claim "scripts/certificate.sh works twice in a row" scripts/certificate.sh --dir "$work/certs" --client
claim "kubectl apply -k istio" kubectl apply -k istio
variables=$(scripts/gateway-address.sh)
eval "$variables"
say "the gateway is $INGRESS_HOST, HTTPS at $SECURE_INGRESS_PORT"
claim "the chain answers through the gateway" soon 60 200 code service1.cncamp.io /hello/service1

# Jaeger's query API, through a port of our own. kubectl ends when the pod does; a busy node may start Jaeger anew.
jaeger_port=$(free_ports 1)
forward_jaeger() {
  local child=""
  trap '[ -z "$child" ] || kill "$child"; exit' TERM
  while :; do
    kubectl -n istio-system port-forward --address 127.0.0.1 service/tracing "$jaeger_port:80" >>"$work/port-forward.log" 2>&1 &
    child=$!
    wait "$child" || sleep 1
  done
}
forward_jaeger &
forward=$!
jaeger=http://127.0.0.1:$jaeger_port/jaeger
eventually 30 "Jaeger's query API" curl -sf "$jaeger/api/services"

analyzed() {
  local out
  out=$(istioctl analyze -n httpserver --failure-threshold Info "$@" 2>&1) || { printf '%s\n' "$out"; return 1; }
  grep -q 'No validation issues' <<<"$out" || { printf '%s\n' "$out"; return 1; }
  echo "no finding"
}
# analyze WHAT [arguments for istioctl]: with what is applied now
analyze() {
  if command -v istioctl >/dev/null; then claim "istioctl analyze finds nothing: $1" analyzed "${@:2}"; fi
}
command -v istioctl >/dev/null || not_run+=("istioctl analyze: no istioctl in PATH")
analyze "hops, gateway, routes, tracing"

# ---------------------------------------------------------------- the four tutorials

tutorials() {
  part "the four tutorials"
  # A: two services behind an HTTPS gateway
  claim "A: https://httpsserver.cncamp.io/http/service0 is rewritten to /service0" is /service0 "$(json httpsserver.cncamp.io /http/service0 | py 'r["path"]')"
  claim "A: 100 sampling requests, all 200" scripts/send-requests.sh --cacert "$work/certs/ca.crt" --parallel 4
  claim "A: the certificate has a SAN and verifies for both names" is "200 200" "$(code httpsserver.cncamp.io /http/service0) $(code service1.cncamp.io /hello/golang)"
  # B: layer-7 rules
  claim "B: /test/hello is rewritten to /hello" is "Hello from service1 v1" "$(request httpsserver.cncamp.io /test/hello | sed 's/ (.*//')"
  claim "B: /test/metrics, /metrics, /healthz, /readyz, /headers and / are not published" is "404 404 404 404 404 404" \
    "$(statuses httpsserver.cncamp.io /test/metrics /metrics /healthz /readyz /headers /)"
  claim "B: port 80 redirects to https" is "301 https://httpsserver.cncamp.io/test/hello" \
    "$(curl -s -o /dev/null -w '%{http_code} %{redirect_url}' -H 'host: httpsserver.cncamp.io' "http://$INGRESS_HOST:$INGRESS_PORT/test/hello")"
  claim "B: HSTS is set" is "max-age=31536000; includeSubDomains" "$(request httpsserver.cncamp.io /test/hello -o /dev/null -w '%header{strict-transport-security}')"
  claim "B: TLS 1.1 is refused" old_tls_refused
  claim "B: another name gets no certificate" other_name_refused
  # C: three hops
  claim "C: /hello/golang greets" is "Hello, Golang!" "$(request service1.cncamp.io /hello/golang)"
  claim "C: /hello/service1 goes through three hops" is "service1 service2 service3" "$(json service1.cncamp.io /hello/service1 | py '" ".join(h["service"] for h in hops(r))')"
  claim "C: the last hop lists the headers it received" grep -q 'x-request-id:' <(request service1.cncamp.io /hello/service1)
  claim "C: the header version says which version answered" is v1 "$(request service1.cncamp.io /hello/service1 -o /dev/null -w '%header{version}')"
  claim "C: every hop has pod and node in its spans" pod_and_node_in_spans
  # D: addresses; its two versions are the scenario you-have-hit
  claim "D: scripts/gateway-address.sh prints the four variables" is 4 "$(scripts/gateway-address.sh | grep -c '^export [A-Z_]*=.')"
}
# It must be the server that says no: by default today's client would not even try.
old_tls_refused() {
  { request service1.cncamp.io /hello/golang --tls-max 1.1 --tlsv1.0 --ciphers DEFAULT@SECLEVEL=0 -v 2>&1 || true; } | grep -o 'alert protocol version' | head -n 1 | grep .
}
other_name_refused() { ! request other.cncamp.io /hello/golang >/dev/null; }
pod_and_node_in_spans() {
  local id
  id=$(json service1.cncamp.io /hello/service1 | py 'r["trace_id"]')
  retry 30 k8s_tags "$id"
}
k8s_tags() {
  curl -sf "$jaeger/api/traces/$1" | py 'sorted({t["key"] for p in r["data"][0]["processes"].values() for t in p["tags"] if t["key"].startswith("k8s.")})' |
    grep k8s.node.name
}

# ---------------------------------------------------------------- traces

# judge_trace SPANS SERVICES [OPTION...]: the reply on stdin, and what Jaeger has of its request (OPTION: of httpserver trace). Every app runs
# beside a sidecar that reports.
judge_trace() {
  local spans=$1 services=$2
  find_httpserver
  shift 2
  "$HTTPSERVER" trace - --traces "$jaeger" --settle 3s --traces-wait 40s --sidecars --expect-spans "$spans" --expect-services "$services" "$@"
}
# trace SPANS TRACES [more for httpserver trace] -- [curl arguments]: one request, and what Jaeger has of it
trace() {
  local spans=$1 traces=$2 more=()
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do more+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  json service1.cncamp.io /hello/service1 "$@" | judge_trace "$spans" 4 --expect-traces "$traces" ${more[@]+"${more[@]}"}
}
provider() { grep -qE "name: $1\$" <<<"$mesh"; }
# A caller that is itself traced by W3C, and asks a mesh that may not understand it
# fresh_caller: another trace each time, so that no claim finds the spans of an earlier one
fresh_caller() {
  stale_trace=$(openssl rand -hex 16) stale_span=$(openssl rand -hex 8)
  stale=(-H "traceparent: 00-$stale_trace-$stale_span-01")
}

# speaks CONDITION: what the hops receive is so 16 times in a row: with two pods of each hop, every proxy has its new tracer
speaks() {
  for _ in $(seq 16); do
    json service1.cncamp.io /hello/service1 | py "$1" | grep -qx True || return 1
  done
}
# proxies_speak PROVIDER: every hop receives what that tracer writes, and nothing else
proxies_speak() {
  local want='(True, False)'
  case $1 in zipkin) want='(True, True)' ;; zipkin-b3) want='(False, True)' ;; esac
  eventually 120 "W3C, B3 as $want" speaks "all((\"traceparent\" in h[\"received\"], \"x-b3-traceid\" in h[\"received\"]) == $want for h in hops(r))"
}
tracer() { # PROVIDER: switch the proxies to it
  case $1 in
    jaeger) kubectl apply -f istio/telemetry.yaml ;;
    *) kubectl apply -f "istio/telemetry-$1.yaml" ;;
  esac >/dev/null
  proxies_speak "$1"
  sleep 2
}

# trace_of_caller CLAIM SPANS yes|no: a caller that brings a traceparent, which the mesh understands or not
trace_of_caller() {
  local goes_on=()
  fresh_caller
  [ "$3" = no ] || goes_on=(--trace-id "$stale_trace" --caller "$stale_span")
  claim "$1" trace "$2" 1 ${goes_on[@]+"${goes_on[@]}"} -- "${stale[@]}"
}
traces() {
  part "traces"
  provider jaeger || die "no provider \"jaeger\" in the mesh: istioctl install -f istio/install.yaml"
  # The apps report, too: 12 spans.
  claim "OpenTelemetry: one trace of 12 spans, no orphan, each app span below its own sidecar's" trace 12 1
  trace_of_caller "OpenTelemetry, the caller brings a traceparent: its trace goes on, whole" 12 yes
  if provider zipkin; then
    tracer zipkin
    claim "Zipkin with W3C: one trace of 12 spans" trace 12 1
    trace_of_caller "Zipkin with W3C, the caller brings a traceparent: its trace goes on, whole" 12 yes
  else
    not_run+=("Zipkin with W3C: the provider \"zipkin\" is not installed")
  fi
  if provider zipkin-b3; then
    deploy sidecar b3-first
    tracer zipkin-b3
    claim "Zipkin with B3, component b3-first: one trace of 12 spans" trace 12 1
    trace_of_caller "Zipkin with B3, the caller brings a traceparent, which is stale here: one trace of 12 spans all the same" 12 no
  else
    not_run+=("Zipkin with B3 alone: the provider \"zipkin-b3\" is not installed")
  fi
  # The apps only forward: 7 spans.
  deploy sidecar forward-only
  local one
  for one in jaeger:OpenTelemetry "zipkin:Zipkin with W3C" "zipkin-b3:Zipkin with B3"; do
    provider "${one%%:*}" || continue
    tracer "${one%%:*}"
    claim "forward-only, ${one#*:}: one trace of 7 spans" trace 7 1
  done
  ! provider zipkin-b3 || trace_of_caller "forward-only, Zipkin with B3, stale traceparent: one trace of 7 spans" 7 no
  # What a broken hop looks like, so that the numbers above mean something.
  deploy sidecar forward-only broken-hop
  tracer jaeger
  claim "negative control: forward-only with broken-hop: one request falls into 3 traces" trace 7 3
  deploy sidecar
}

# ---------------------------------------------------------------- security

# The API server asks a pod in plain text, as anybody without a sidecar would.
plain_text() { kubectl get --raw "/api/v1/namespaces/httpserver/pods/$(k get pod -l "app=$1,lane=base" -o jsonpath='{.items[0].metadata.name}'):8080/proxy/service9"; }
refused() { ! plain_text "$1" >/dev/null 2>&1 && echo "refused"; }
denied_to_others() {
  # A pod of the mesh with an identity of its own, which calls service3: the reply tree says what it got.
  local got
  k run intruder --image="$(k get deployment service1 -o jsonpath='{.spec.template.spec.containers[0].image}')" --env=UPSTREAM=http://service3/service3 \
    --overrides='{"spec":{"securityContext":{"runAsNonRoot":true,"runAsUser":65532}}}' >/dev/null
  k wait --for=condition=Ready pod/intruder --timeout=60s >/dev/null
  got=$(forwarded pod/intruder reply_of | py 'r["upstreams"][0]["status"]')
  k delete pod intruder --grace-period=1 --wait=false >/dev/null
  is 403 "$got"
}
reply_of() { curl -s -H 'accept: application/json' "$1/hello/service1"; }
# A Service has its endpoints a moment after its pods are ready.
first_reply_of() { curl -sf --retry 20 --retry-delay 1 --retry-all-errors -H 'accept: application/json' "$1/hello/service1"; }
identities() {
  json service1.cncamp.io /hello/service1 | py '" ".join(h["client"]["identity"].rsplit("/", 1)[1] for h in hops(r))'
}
security() {
  part "security"
  local hop
  claim "before: a hop answers in plain text" plain_text service2
  kubectl apply -k istio/security >/dev/null
  claim "the chain answers with STRICT mTLS and one door per hop" soon 60 200 code service1.cncamp.io /hello/service1
  claim "every hop names its caller's identity" is "istio-ingressgateway-service-account service1 service2" "$(identities)"
  for hop in service1 service2 service3; do claim "plain text is refused at $hop" soon 30 refused refused $hop; done
  claim "another pod of the mesh may not call service3: 403" denied_to_others
  claim "every published path is still open" is "200 200 200 200" \
    "$(statuses service1.cncamp.io /http/service0 /test/hello /hello/golang /hello/service1)"
  analyze "with istio/security"
  inbound_drained
}

# ---------------------------------------------------------------- lanes

lanes() {
  part "swim lanes"
  local token
  deploy sidecar lane-gray lane-blue lane-green
  claim "closed: x-lane: gray is the baseline, three times" is "base base base" "$(gray_of)"
  kubectl apply -f istio/lanes/root.yaml >/dev/null
  sleep 2
  claim "root.yaml alone changes nothing (its delegates are missing)" is "base base base" "$(gray_of)"
  kubectl apply -f istio/lanes/gray.yaml >/dev/null
  claim "gray: service1 gray, service2 base (it has none), service3 gray" soon 30 "gray base gray" gray_of
  claim "gray by the rewritten path, too" is "gray base gray" "$(gray_of /http/service0)"
  claim "gray by cookie, in the middle of others" is "gray base gray" "$(lanes_of /hello/service1 -H 'cookie: a=1; lane=gray; b=2')"
  claim "40 requests without a lane never meet gray" never_gray
  kubectl apply -f istio/lanes/blue.yaml >/dev/null
  claim "blue, additive: service2 alone, behind a front door without a blue version" soon 30 "base blue base" lanes_of /hello/service1 -H 'x-lane: blue'
  claim "gray is as it was" is "gray base gray" "$(gray_of)"
  analyze "two lanes open"
  kubectl apply -f istio/lanes/percentage.yaml >/dev/null
  claim "percentage: of 150 requests some enter gray, whole; the others are the baseline, whole (wanted 3 to 35)" percentage
  claim "whom the percentage draws gets a cookie" retry 60 cookie_seen
  kubectl delete -f istio/lanes/percentage.yaml >/dev/null
  kubectl delete -f istio/lanes/gray.yaml >/dev/null
  claim "gray closed: the baseline again, and blue as it was" soon 30 "base base base|base blue base" both_lanes
  kubectl delete -f istio/lanes/blue.yaml >/dev/null
  kubectl apply -f istio/lanes/strict-green.yaml >/dev/null
  claim "strict: green from end to end" soon 30 "green green green" lanes_of /hello/service1 -H 'x-lane: green'
  claim "strict: no hop receives x-lane; the caller's label decides" is False "$(json service1.cncamp.io /hello/service1 -H 'x-lane: green' | py 'any("x-lane" in h["received"] for h in hops(r))')"
  claim "strict: without the header the baseline" is "base base base" "$(lanes_of /hello/service1)"
  analyze "strict lane"
  kubectl apply -k istio >/dev/null
  k delete destinationrule -l lane=green >/dev/null
  claim "lanes undone by kubectl apply -k istio" soon 30 "base base base" lanes_of /hello/service1 -H 'x-lane: green'
  kubectl apply -f istio/lanes/root.yaml -f istio/lanes/gray.yaml >/dev/null
  token=$(scripts/lane-token.sh --dir "$work/certs" --apply 2>/dev/null)
  claim "lane-needs-jwt: x-lane: gray without a token is 403" soon 30 403 code service1.cncamp.io /hello/service1 -H 'x-lane: gray'
  claim "lane-needs-jwt: the cookie without a token is 403, too" is 403 "$(code service1.cncamp.io /hello/service1 -H 'cookie: a=1; lane=gray; b=2')"
  claim "lane-needs-jwt: with a token it enters" is "gray base gray" "$(lanes_of /hello/service1 -H 'x-lane: gray' -H "authorization: Bearer $token")"
  claim "lane-needs-jwt: without a lane no token is needed" is 200 "$(code service1.cncamp.io /hello/service1)"
  kubectl delete -f istio/security/lane-needs-jwt.yaml >/dev/null
  kubectl delete -f istio/lanes/gray.yaml >/dev/null
  kubectl apply -k istio >/dev/null
  inbound_drained
  deploy sidecar
  k delete deployment service1-gray service3-gray service2-blue service1-green service2-green service3-green >/dev/null
  settled
}
never_gray() { is "base base base" "$(for _ in $(seq 40); do lanes_of /hello/service1; done | sort -u)"; }
both_lanes() { printf '%s|%s' "$(gray_of)" "$(lanes_of /hello/service1 -H 'x-lane: blue')"; }
cookie_seen() { request service1.cncamp.io /hello/golang -o /dev/null -D - | grep -qi '^set-cookie: lane=gray'; }
percentage() {
  local all
  all=$(for _ in $(seq 150); do lanes_of /hello/service1; done)
  is "base base base,gray base gray" "$(sort -u <<<"$all" | paste -sd,)" >/dev/null || { sort <<<"$all" | uniq -c; return 1; }
  between 3 35 "$(grep -c '^gray' <<<"$all")"
}

# ---------------------------------------------------------------- scenarios

on() { kubectl apply -f "istio/scenarios/$1.yaml" >/dev/null; }
off() { kubectl delete --ignore-not-found -f "istio/scenarios/$1.yaml" >/dev/null; }
reset() { kubectl apply -k istio >/dev/null; sleep 2; }
base_again() { soon 30 "200 base base base" state_now; }
state_now() { printf '%s %s' "$(code service1.cncamp.io /hello/service1)" "$(lanes_of /hello/service1)"; }
versions() { for _ in $(seq "$1"); do request service1.cncamp.io /hello/golang -o /dev/null -w '%header{version}\n'; done; }
took_ms() { request "$@" -o /dev/null -w '%{http_code} %{time_total}' | awk '{printf "%d %d", $1, $2 * 1000}'; }

protocols() { json service1.cncamp.io /hello/service1 | py '" ".join(h["protocol"] for h in hops(r))'; }
# pods_met COUNT: 30 requests to service0, sent by its own pod's Service, meet so many pods of service1
pods_met() {
  local port pid met
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  kubectl -n sticky port-forward service/service0 "$port:80" >/dev/null 2>&1 &
  pid=$!
  met=$(for _ in $(seq 30); do curl -s --retry 5 --retry-connrefused --retry-delay 1 -m 10 "http://127.0.0.1:$port/service0?format=json"; echo; done |
    grep -o '"hostname":"service1[^"]*"' | sort -u | wc -l)
  kill "$pid"
  is "$1" "$met"
}

scenarios() {
  part "scenarios"
  local got

  on you-have-hit; settled
  soon 30 200 code service1.cncamp.io / >/dev/null || true
  got=$(for _ in $(seq 60); do request service1.cncamp.io /; done)
  claim "you-have-hit: of 60 answers about half are v2, from 1 of 4 pods (wanted 15 to 45)" between 15 45 "$(grep -c "You've hit v2" <<<"$got")"
  claim "you-have-hit: v1 answers from 3 pods, v2 from 1" is "3 1" "$(grep 'hit v1' <<<"$got" | awk '{print $4}' | sort -u | wc -l) $(grep 'hit v2' <<<"$got" | awk '{print $4}' | sort -u | wc -l)"
  analyze "you-have-hit"
  off you-have-hit
  claim "you-have-hit undone: / is 404" soon 30 404 code service1.cncamp.io /

  kubectl apply -f k8s/components/version-v2/service1.yaml >/dev/null; settled
  claim "version v2 is no lane: 40 requests meet v1 alone" is v1 "$(versions 40 | sort -u | paste -sd,)"
  on canary; sleep 3
  claim "canary: of 200 requests about 20 meet v2 (wanted 6 to 40)" between 6 40 "$(versions 200 | grep -c v2)"
  analyze "canary"
  off canary; kubectl apply -k istio >/dev/null
  kubectl delete -f k8s/components/version-v2/service1.yaml >/dev/null
  claim "canary undone" soon 30 "200 base base base" state_now

  on two-services
  kubectl -n tracing rollout status deployment --timeout=120s >/dev/null
  claim "two-services: /two/http/service0 goes through service0 and service1" soon 30 "service0 service1" two_services
  claim "two-services: one trace of 8 spans" two_services_trace
  off two-services
  claim "two-services undone: 404" soon 60 404 code service1.cncamp.io /two/http/service0

  on wrong-port-name; k set env deployment/service1 UPSTREAM=grpc://service2/service2 >/dev/null; settled
  claim "wrong-port-name: gRPC at a port that is named for HTTP/1.1 is 502" soon 30 502 code service1.cncamp.io /hello/service1
  on mixed
  let_grpc_in
  # A sidecar drains connections of the port's earlier protocol for 45 seconds.
  claim "mixed: HTTP/2 to service1, gRPC to service2, HTTP/1.1 to service3" soon 90 "http/2 grpc http/1.1" protocols
  claim "mixed: one trace of 12 spans" trace 12 1
  k set env deployment/service1 UPSTREAM=http://service2/service2 >/dev/null; kubectl apply -k k8s >/dev/null; settled; keep_grpc_out
  claim "mixed undone" base_again

  on sticky
  kubectl -n sticky rollout status deployment --timeout=120s >/dev/null
  claim "sticky: without a mesh one of three pods has all calls" retry 30 pods_met 1
  kubectl label namespace sticky istio-injection=enabled >/dev/null
  kubectl -n sticky rollout restart deployment >/dev/null; kubectl -n sticky rollout status deployment --timeout=180s >/dev/null
  claim "sticky: with sidecars the calls spread over the three pods" retry 60 pods_met 3
  off sticky

  websocket_route apply
  claim "websocket: through gateway and sidecar: the trace of the mesh and the caller in its first message, and an echo" retry 60 websocket echo
  claim "websocket: a pod that is told to stop closes it with 1001" websocket_drained
  websocket_route delete
  claim "websocket undone: 404" soon 30 404 code service1.cncamp.io /ws

  on delay
  claim "delay: two seconds more" retry 20 took 200 1900 3500
  reset
  claim "delay undone" base_again

  on abort; sleep 2
  got=$(codes 40 service1.cncamp.io /hello/service1)
  claim "abort: of 40 requests about half are 502 ($got; wanted 8 to 32)" between 8 32 "$(how_many 502 "$got")"
  claim "abort: the reply tree names the hop: service2's call has status 503" retry 30 abort_in_tree
  reset
  claim "abort undone" base_again

  on timeout; sleep 2
  claim "timeout: 504 after half a second" took 504 450 1500
  reset
  claim "timeout undone" base_again

  on retries; settled
  sleep 3
  got=$(codes 40 service1.cncamp.io /flaky/bare)
  claim "retries: bare, of 40 about half fail ($got; wanted 8 to 32)" between 8 32 "$(how_many 503 "$got")"
  got=$(codes 40 service1.cncamp.io /flaky/retried)
  claim "retries: with 3 retries hardly any of 40 fails ($got; wanted 0 to 8)" between 0 8 "$(how_many 503 "$got")"
  claim "retries: the reply says which attempt got through" retry 30 later_attempt
  analyze "retries"
  off retries
  claim "retries undone" soon 30 404 code service1.cncamp.io /flaky/bare

  on circuit-breaking; sleep 2
  claim "circuit-breaking: one at a time, 10 requests are 200" is "200 x 10" "$(codes 10 service1.cncamp.io /hello/service1)"
  claim "circuit-breaking: ten at a time, some are turned away" some_turned_away
  reset
  claim "circuit-breaking undone: ten at a time, all 200" scripts/send-requests.sh --cacert "$work/certs/ca.crt" --requests 40 --parallel 10

  on outlier-detection; settled; sleep 2
  claim "outlier-detection: at first some of the answers are 503, after a few seconds none" outlier_seen
  off outlier-detection
  claim "outlier-detection undone" soon 30 404 code service1.cncamp.io /outlier

  on mirroring; settled; sleep 3
  claim "mirroring: answers come from v1, and the mirrored pod logs the same request" mirror_seen
  analyze "mirroring"
  k delete deployment,destinationrule service3-mirrored >/dev/null; reset
  claim "mirroring undone" base_again

  on gateway-mtls
  claim "gateway-mtls: with a client certificate" soon 30 "Hello, Golang!" request mtls.cncamp.io /hello/golang --cert "$work/certs/client.crt" --key "$work/certs/client.key"
  claim "gateway-mtls: without one the handshake fails" mtls_refused
  claim "gateway-mtls: the public host needs none" is 200 "$(code service1.cncamp.io /hello/golang)"
  analyze "gateway-mtls"
  off gateway-mtls

  on metrics-for-one-address
  claim "metrics-for-one-address: 403 for everybody else" soon 30 403 code service1.cncamp.io /test/metrics
  claim "metrics-for-one-address: everything else is as it was" is 200 "$(code service1.cncamp.io /hello/service1)"
  # Whatever address the gateway sees us under: the reply of the chain tells.
  got=$(json service1.cncamp.io /hello/service1 | py 'r["client"]["ip"]')
  sed "s#203.0.113.7/32#$got/32#" istio/scenarios/metrics-for-one-address.yaml | kubectl apply -f - >/dev/null
  claim "metrics-for-one-address: 200 for that address ($got)" soon 30 200 code service1.cncamp.io /test/metrics
  claim "metrics-for-one-address: it is service1's metrics" eventually 20 "service1's build info" service1_metrics
  off metrics-for-one-address
  claim "metrics-for-one-address undone" soon 30 404 code service1.cncamp.io /test/metrics

  on local-rate-limit
  eventually 60 "a 429" limited
  sleep 5
  # Two pods with 10 each, and at most one refill while we look.
  got=$(codes 70 service1.cncamp.io /hello/golang)
  claim "local-rate-limit: at most 10 a minute for each of 2 pods, then 429 ($got; wanted 30 to 70 x 429)" between 30 70 "$(how_many 429 "$got")"
  off local-rate-limit
  claim "local-rate-limit undone" soon 30 "200 x 25" codes 25 service1.cncamp.io /hello/golang
  inbound_drained
}
# websocket_route apply|delete: the gateway publishes /ws; where istio/security is applied, service1 lets it in
websocket_route() {
  local policy=""
  ! is_secured || policy='---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: service1-websocket, namespace: httpserver}
spec:
  selector: {matchLabels: {app: service1}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account]}}], to: [{operation: {paths: [/ws]}}]}]'
  kubectl "$1" -f - >/dev/null <<<"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: websocket, namespace: httpserver}
spec:
  gateways: [httpserver/httpserver]
  hosts: [service1.cncamp.io]
  http: [{match: [{uri: {exact: /ws}}], route: [{destination: {host: service1.httpserver.svc.cluster.local, subset: base, port: {number: 80}}}]}]
$policy"
}
# websocket echo|close [FILE]: opens one through the HTTPS gateway; the first message's facts and an echo, or, with the pod's name written to FILE,
# the code that it is closed with
websocket() {
  python3 - "$work/certs/ca.crt" "$INGRESS_HOST" "$SECURE_INGRESS_PORT" "$@" <<'P'
import json, socket, ssl, sys
ca, host, port, what, *file = sys.argv[1:]
plain = socket.create_connection((host, int(port)), timeout=90)
stream = ssl.create_default_context(cafile=ca).wrap_socket(plain, server_hostname="service1.cncamp.io")
stream.sendall(b"GET /ws HTTP/1.1\r\nhost: service1.cncamp.io\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
               b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
read = stream.makefile("rb")
status = read.readline().split()[1].decode()
if status != "101":
    sys.exit(f"the handshake is answered with {status}")
while read.readline().strip():
    pass
def frame():
    first, length = read.read(2)
    length = int.from_bytes(read.read(2), "big") if length == 126 else length
    return first & 15, read.read(length)
first = json.loads(frame()[1])
if what == "echo":
    identity = (first["client"]["identity"] or "").rsplit("/", 1)[-1]
    stream.sendall(b"\x81\x84\0\0\0\0echo")
    print(first["status"], "traceparent" in first["received"] or "x-b3-traceid" in first["received"], identity, frame()[1].decode())
    sys.exit((first["status"], identity != "") != (101, True))
open(file[0], "w").write(first["hostname"])
while (got := frame())[0] != 8:
    pass
print(int.from_bytes(got[1][:2], "big"), got[1][2:].decode())
P
}
websocket_drained() {
  local pod
  rm -f "$work/websocket.pod"
  websocket close "$work/websocket.pod" >"$work/websocket.closed" 2>&1 &
  eventually 60 "a WebSocket is open" test -s "$work/websocket.pod"
  pod=$(cat "$work/websocket.pod")
  k delete pod "$pod" --wait=false >/dev/null
  wait $!
  settled
  is "1001 draining" "$(cat "$work/websocket.closed")"
}
service1_metrics() { request service1.cncamp.io /test/metrics >"$work/metrics" && grep -q 'httpserver_build_info{.*service="service1"' "$work/metrics"; }
limited() { [ "$(code service1.cncamp.io /hello/golang)" = 429 ]; }
two_services() { json service1.cncamp.io /two/http/service0 | py '" ".join(h["service"] for h in hops(r))'; }
two_services_trace() { json service1.cncamp.io /two/http/service0 | judge_trace 8 3; }
# took STATUS LOW HIGH: one request of the chain is answered so, within these milliseconds
took() {
  local status ms
  read -r status ms <<<"$(took_ms service1.cncamp.io /hello/service1)"
  echo "$status after $ms ms"
  [ "$status" = "$1" ] && [ "$ms" -ge "$2" ] && [ "$ms" -le "$3" ]
}
abort_in_tree() { json service1.cncamp.io /hello/service1 | py 'hops(r)[1]["upstreams"][0]["status"] == 503 and r["status"] == 502' | grep -qx True; }
later_attempt() { json service1.cncamp.io /flaky/retried | py 'r["attempt"] > 1' 2>/dev/null | grep -qx True; }
some_turned_away() {
  local out
  out=$(scripts/send-requests.sh --cacert "$work/certs/ca.crt" --requests 60 --parallel 10 || true)
  if ! grep -q '502' <<<"$out" || ! grep -q '200' <<<"$out"; then echo "$out"; return 1; fi
  paste -sd, <<<"$out" | tr -s ' '
}
outlier_seen() {
  local first later
  first=$(codes 20 service1.cncamp.io /outlier)
  sleep 3
  later=$(codes 30 service1.cncamp.io /outlier)
  echo "first: $first; later: $later"
  [ "$(how_many 503 "$first")" -ge 1 ] && [ "$later" = "200 x 30" ]
}
mirror_seen() {
  local id
  id=$(json service1.cncamp.io /hello/service1 | py 'r["request_id"] if hops(r)[2]["version"] == "v1" else "wrong version"')
  eventually 20 "the mirrored request in the log" sh -c "kubectl -n httpserver logs deploy/service3-mirrored -c httpserver | grep -q '$id'"
}
mtls_refused() { ! request mtls.cncamp.io /hello/golang >/dev/null; }

# ---------------------------------------------------------------- restarts under load

# load FILE COMMAND...: one after the other, four at a time, until FILE.stop is there; a line each: status, trace id, span id and flags
load() {
  local i
  for i in 1 2 3 4; do
    while [ ! -e "$1.stop" ]; do
      "${@:2}" || true
    done >"$1.$i" &
  done
  wait
  cat "$1".[1-4] >"$1"
}
one_request() { request service1.cncamp.io /hello/service1 -o /dev/null -w '%{http_code} %header{traceresponse}\n'; }
# OK is 200 here.
one_rpc() { rpc service1.cncamp.io | sed 's/^OK /200 /'; }
# whole_traces FILE: of 200 requests from all over that load, each has the five spans of the apps, those of ended pods, too
whole_traces() {
  local id asked=0
  for id in $(sed -n 's/^200 [0-9a-f]*-\([0-9a-f]*\)-.*/\1/p' "$1" | shuf -n 200); do
    retry 60 prints 5 app_spans "$id" >/dev/null || { echo "not whole: $id: $(app_spans "$id") spans of the apps"; return 1; }
    asked=$((asked + 1))
  done
  echo "$asked traces have all spans of the apps"
  [ $asked -gt 0 ]
}
app_spans() { curl -sf "$jaeger/api/traces/$1" | py 'sum(("component", "proxy") not in {(t["key"], str(t["value"])) for t in s["tags"]} for d in r["data"] for s in d["spans"])'; }
restarted() { # DEPLOYMENT COMMAND, for load
  local file=$work/load-$1-$2 i total failed ended codes traces watcher loader
  rm -f "$file.stop"
  # What a container ended with is told in an event before its pod is gone.
  kubectl -n httpserver get pods -l "app=$1" --watch -o 'jsonpath={.metadata.name} {.status.containerStatuses[?(@.name=="httpserver")].state.terminated.exitCode}{"\n"}' >"$file.ended" 2>/dev/null &
  watcher=$!
  load "$file" "$2" &
  loader=$!
  sleep 2
  for ((i = 0; i < restarts; i++)); do
    k rollout restart "deployment/$1" >/dev/null
    k rollout status "deployment/$1" --timeout=120s >/dev/null || break
    eventually 90 "old pods gone" no_pod_is_going || break
  done
  touch "$file.stop"
  wait $loader
  kill $watcher
  total=$(wc -l <"$file") failed=$(grep -cv '^200 ' "$file" || true)
  ended=$(awk 'NF == 2 {print $1}' "$file.ended" | sort -u | wc -l) codes=$(awk 'NF == 2 {print $2}' "$file.ended" | sort -u | paste -sd,)
  [ $i -eq "$restarts" ] && [ "$total" -gt 100 ] && [ "$failed" -eq 0 ] || {
    echo "$i of $restarts restarts, $failed of $total requests failed: $(cut -d' ' -f1 "$file" | sort | uniq -c | paste -sd,)"
    return 1
  }
  is 0 "$codes" >/dev/null || { echo "exit codes of $ended pods: $codes"; return 1; }
  traces=$(whole_traces "$file") || { echo "$traces"; return 1; }
  echo "$restarts x, $total requests, 0 failed, $ended pods ended with 0; $traces"
}
restarts() {
  part "rolling restarts under load"
  local name
  for name in service1 service2 service3; do
    claim "rolling restart of $name under constant load through the gateway: no request fails, no span is lost, exit code 0" restarted "$name" one_request
  done
  can_grpc || return 0
  grpc_on
  for name in service1 service2 service3; do
    claim "rolling restart of $name under constant gRPC calls through the gateway, gRPC from hop to hop: no call fails, no span is lost, exit code 0" restarted "$name" one_rpc
  done
  grpc_off
}
# Where an earlier part has applied istio/security, gRPC needs rules of its own; where nothing is forbidden, they would forbid the rest.
is_secured() { k get authorizationpolicy service2 >/dev/null 2>&1; }
let_grpc_in() { ! is_secured || kubectl apply -f istio/security/grpc.yaml >/dev/null; }
keep_grpc_out() { kubectl delete --ignore-not-found -f istio/security/grpc.yaml >/dev/null; }
# gRPC at every seam, from the gateway on. Proxies drain the connections of the ports' earlier protocol.
grpc_on() {
  deploy sidecar grpc
  on grpc
  let_grpc_in
  soon 90 OK rpc_code service1.cncamp.io >/dev/null || true
  soon 90 "http/2 grpc grpc" protocols >/dev/null || true
  inbound_drained
}
grpc_off() {
  off grpc
  keep_grpc_out
  deploy sidecar
  inbound_drained
}

# ---------------------------------------------------------------- overlays and components

components() {
  part "overlays and components"
  deploy sidecar network-policy
  claim "network-policy: accepted, and the chain answers" soon 20 200 code service1.cncamp.io /hello/service1
  not_run+=("NetworkPolicy's enforcement: needs a CNI that enforces it; here only that the policies are accepted and break nothing")
  k delete networkpolicy --all >/dev/null
  overlay sidecar monitoring
  if kubectl get crd podmonitors.monitoring.coreos.com >/dev/null 2>&1; then
    kubectl apply -k "$work/overlay" >/dev/null
  else
    not_run+=("PodMonitor, PrometheusRule: the Prometheus operator's CRD is not in this cluster")
    kubectl kustomize "$work/overlay" | awk 'BEGIN {RS = ORS = "\n---\n"} !/kind: (PodMonitor|PrometheusRule)/' | kubectl apply -f - >/dev/null
  fi
  settled
  claim "monitoring: the agent serves the app's metrics, STRICT mTLS or not" merged_metrics
  claim "autoscaling: the HPA exists, and owns the replica count" autoscaled
  k delete hpa service1 >/dev/null
  not_run+=("the HPA's scaling: needs a metrics server and load")
  deploy sidecar slow-hops
  claim "slow-hops: a request takes up to 6 s; the slowest of 10 took more than 1.5 s" slow_seen
  deploy sidecar
  grpc_component
  deploy sidecar image-pull-secret
  claim "image-pull-secret: every ServiceAccount names it" is "registry-credentials registry-credentials registry-credentials" \
    "$(k get serviceaccount service1 service2 service3 -o jsonpath='{.items[*].imagePullSecrets[0].name}')"
  # The plain overlay, in a namespace that enforces the restricted profile.
  kubectl delete namespace httpserver >/dev/null
  deploy plain pod-security
  claim "plain with pod-security: six pods without sidecars in a namespace that enforces restricted" pods_are 6 1/1
  claim "pod-security: a pod outside the profile is refused" refused_by_profile
  claim "plain: the chain answers, and reports its own 5 spans as one trace" plain_trace
  deploy plain pod-security grpc
  claim "grpc without sidecars: kubelet's own gRPC probes start six pods and find them ready" grpc_probed 1/1
  claim "grpc without sidecars: gRPC from hop to hop, 5 spans as one trace" plain_trace
  not_run+=("ambient: no ztunnel here; its manifests are built and checked against the schemas")
  not_run+=("Pod Security enforce beside sidecars: needs Istio CNI")
}
grpc_component() {
  can_grpc || return 0
  grpc_on
  claim "grpc: the pods' gRPC probes start six pods and find them ready" grpc_probed 2/2
  claim "grpc: HTTP through the gateway to service1, gRPC to service2 and service3" soon 90 "http/2 grpc grpc" protocols
  claim "grpc: one trace of 12 spans" trace 12 1
  claim "scenario grpc: Chain/Call through the HTTPS gateway" soon 30 OK rpc_code service1.cncamp.io
  claim "scenario grpc: the reply has three hops" is "service1 service2 service3" "$(rpc_hops service1.cncamp.io)"
  local was_secured=yes
  is_secured || was_secured=no
  kubectl apply -k istio/security >/dev/null
  keep_grpc_out
  claim "grpc with istio/security alone: PERMISSION_DENIED" soon 60 PermissionDenied rpc_code service1.cncamp.io
  kubectl apply -f istio/security/grpc.yaml >/dev/null
  claim "grpc with istio/security/grpc.yaml: Chain/Call through three hops" soon 60 OK rpc_code service1.cncamp.io
  analyze "grpc with istio/security"
  keep_grpc_out
  [ $was_secured = yes ] || kubectl delete -k istio/security >/dev/null
  grpc_off
  claim "grpc undone" base_again
}
# grpc_probed READY: six such pods, whose containers are probed over gRPC and were never restarted
grpc_probed() {
  pods_are 6 "$1" >/dev/null || { k get pods; return 1; }
  is "service1 8080 httpserver.v1.Chain service2 8080 httpserver.v1.Chain service3 8080 httpserver.v1.Chain restarts 0" \
    "$(k get deployment -o jsonpath='{range .items[*]}{.metadata.name} {.spec.template.spec.containers[0].startupProbe.grpc.port} {.spec.template.spec.containers[0].readinessProbe.grpc.service} {end}')restarts $(
      k get pods -o jsonpath='{.items[*].status.containerStatuses[?(@.name=="httpserver")].restartCount}' | tr ' ' '\n' | awk '{n += $1} END {print n + 0}')"
}
# rpc_hops HOST: the services of a reply; each nested one is a message of its own
rpc_hops() {
  grpcurl_call "$1" >"$work/reply.json" || return 1
  python3 - "$work/reply.json" <<'PY'
import base64, json, re, sys
reply = json.load(open(sys.argv[1]))
# service is the first field of a Reply.
below = b"".join(base64.b64decode(call.get("reply", "")) for call in reply.get("upstreams", []))
print(" ".join([reply["service"], *(name.decode() for name in re.findall(rb"\x0a\x08(service\d)\x12", below))]))
PY
}
merged_metrics() {
  local pod
  pod=$(k get pod -l app=service1,lane=base -o jsonpath='{.items[0].metadata.name}')
  kubectl get --raw "/api/v1/namespaces/httpserver/pods/$pod:15020/proxy/stats/prometheus" >"$work/metrics"
  grep -q '^httpserver_build_info{.*service="service1"' "$work/metrics" || { head -n 5 "$work/metrics"; return 1; }
  grep -c . "$work/metrics" | sed 's/$/ lines/'
}
autoscaled() {
  overlay sidecar autoscaling
  ! kubectl kustomize "$work/overlay" | sed -n '/^kind: Deployment/,/^---/p' | sed -n '/name: service1$/,/^---/p' | grep -q 'replicas:' || return 1
  kubectl apply -k "$work/overlay" >/dev/null
  is "service1 2 6" "$(k get hpa service1 -o jsonpath='{.spec.scaleTargetRef.name} {.spec.minReplicas} {.spec.maxReplicas}')"
}
slow_seen() {
  local slowest
  slowest=$(for _ in $(seq 10); do took_ms service1.cncamp.io /hello/service1; echo; done | awk '{print $2}' | sort -n | tail -n 1)
  [ "$slowest" -gt 1500 ] && echo "$slowest ms"
}
refused_by_profile() {
  local out
  out=$(k run outside --image=httpserver --privileged 2>&1) && { k delete pod outside; return 1; }
  grep -o 'violates PodSecurity "restricted:latest"' <<<"$out"
}
plain_trace() {
  find_httpserver
  forwarded deployment/service1 first_reply_of | "$HTTPSERVER" trace - --traces "$jaeger" --traces-wait 40s --expect-spans 5 --expect-services 3
}

# ---------------------------------------------------------------- Gateway API

gateway_api() {
  part "Gateway API"
  if ! kubectl get crd httproutes.gateway.networking.k8s.io >/dev/null 2>&1; then
    not_run+=("Gateway API: its CRDs are not in this cluster (kubectl apply --server-side -f the release's standard-install.yaml)")
    return
  fi
  # From a fresh namespace, so that nothing of the other variant is left.
  kubectl delete namespace httpserver --ignore-not-found >/dev/null
  deploy sidecar lane-gray lane-blue
  scripts/certificate.sh --dir "$work/certs" --namespace httpserver >/dev/null 2>&1
  kubectl apply -f istio/telemetry.yaml >/dev/null
  kubectl apply -k istio/gateway-api >/dev/null
  eventually 60 "Istio makes the gateway" k get deployment httpserver-istio
  settled
  variables=$(scripts/gateway-address.sh --namespace httpserver --service httpserver-istio)
  eval "$variables"
  claim "the chain answers through a Gateway of the Gateway API" soon 60 200 code service1.cncamp.io /hello/service1
  claim "the same paths: rewritten, greeted, redirected, not published" is "/service0 Hello, Golang! 301 404" \
    "$(json httpsserver.cncamp.io /http/service0 | py 'r["path"]') $(request service1.cncamp.io /hello/golang) $(curl -s -o /dev/null -w '%{http_code}' -H 'host: service1.cncamp.io' "http://$INGRESS_HOST:$INGRESS_PORT/hello/golang") $(code service1.cncamp.io /metrics)"
  claim "HSTS is set" is "max-age=31536000; includeSubDomains" "$(request service1.cncamp.io /hello/golang -o /dev/null -w '%header{strict-transport-security}')"
  claim "one trace of 12 spans" trace 12 1
  claim "lanes closed: the baseline, three times" is "base base base" "$(gray_of)"
  kubectl apply -f istio/gateway-api/lanes/gray.yaml -f istio/gateway-api/lanes/blue.yaml >/dev/null
  claim "gray: service1 gray, service2 base, service3 gray" soon 30 "gray base gray" gray_of
  claim "gray by cookie" is "gray base gray" "$(lanes_of /hello/service1 -H 'cookie: a=1; lane=gray; b=2')"
  claim "blue: service2 alone" is "base blue base" "$(lanes_of /hello/service1 -H 'x-lane: blue')"
  claim "40 requests without a lane never meet one" never_gray
  kubectl apply -k istio/security >/dev/null
  claim "with STRICT mTLS and one door per hop" soon 60 "200 base base base" state_now
  claim "every hop names its caller's identity" is "httpserver-istio service1 service2" "$(identities)"
  if [ -n "$(k get service httpserver-istio -o jsonpath='{.status.loadBalancer.ingress}')" ]; then
    analyze "Gateway API with lanes and security"
  else
    not_run+=("an address for the Gateway of the Gateway API: no load balancer here, so istioctl's IST0171 about it is left out")
    analyze "Gateway API with lanes and security, but for the missing load balancer" -S "IST0171=Gateway httpserver*httpserver"
  fi
  kubectl delete -f istio/gateway-api/lanes/gray.yaml -f istio/gateway-api/lanes/blue.yaml >/dev/null
  claim "lanes closed again" soon 30 "base base base" gray_of
  can_grpc || return 0
  if ! kubectl get crd grpcroutes.gateway.networking.k8s.io >/dev/null 2>&1; then
    not_run+=("GRPCRoute: its CRD is not in this cluster (config/crd/standard of the Gateway API's release)")
    return
  fi
  deploy sidecar lane-gray lane-blue grpc
  kubectl apply -f istio/gateway-api/grpc.yaml -f istio/security/grpc.yaml >/dev/null
  claim "GRPCRoute: accepted beside the HTTPRoutes" soon 30 True grpc_route_accepted
  claim "GRPCRoute: Chain/Call through the HTTPS gateway" soon 90 OK rpc_code grpc.cncamp.io
  claim "GRPCRoute: the reply has three hops" is "service1 service2 service3" "$(rpc_hops grpc.cncamp.io)"
  claim "GRPCRoute: other hosts take no calls, and HTTP goes on" is "Unimplemented 200" "$(rpc_code service1.cncamp.io) $(code service1.cncamp.io /hello/service1)"
}

grpc_route_accepted() { k get grpcroute grpc -o jsonpath='{.status.parents[0].conditions[?(@.type=="Accepted")].status}'; }

# shellcheck source=scripts/e2e/cluster-check.sh
. scripts/e2e/cluster-check.sh
# shellcheck source=scripts/e2e/cluster-strangers.sh
. scripts/e2e/cluster-strangers.sh
# shellcheck source=scripts/e2e/cluster-lessons.sh
. scripts/e2e/cluster-lessons.sh

for part in ${only//,/ }; do
  case $part in
    check) checks ;;
    *) "${part//-/_}" ;;
  esac
done
not_run+=("ACME and a cloud's load balancer: need the internet and a cloud")
claims_end
