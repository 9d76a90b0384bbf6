# shellcheck shell=bash
# The part "check" of scripts/e2e-cluster.sh, which sources this file: `httpserver check` through the gateway. In each tracer mode a healthy mesh must be
# called healthy; then come the faults that users make, one at a time: each must be named, with its cause, and nothing else be said to be wrong.
# Most of them are in tests/e2e/faults.json, which tests/e2e/cluster_faults.rs takes through the cluster; here are those that need more than a change.
#
#   HTTPSERVER   the binary that checks; default: target/release/httpserver, else target/debug/httpserver

check_host=httpsserver.cncamp.io
reports=${work:?}/check

# checked NAME [OPTION...]: a run of check, of $check_url where that is set; its report is $reports/NAME.json, its exit code ours.
# $check_expect: the hops that are expected; $check_traces: "no" asks no trace backend
checked() {
  local name=$1 through=(--resolve "$check_host:$SECURE_INGRESS_PORT:$INGRESS_HOST" --plain-port "$INGRESS_PORT" --cacert "$work/certs/ca.crt")
  shift
  [ "${check_traces:-yes}" = no ] || through+=(--traces "${jaeger:?}")
  [ -z "${check_url:-}" ] || through=()
  "$checker" check "${check_url:-https://$check_host:$SECURE_INGRESS_PORT/http/service0}" ${through[@]+"${through[@]}"} \
    --expect "${check_expect:-service1,service2,service3}" --count 60 --output json "$@" >"$reports/$name.json"
}

# judged NAME CODE IDS PATTERN: the report has that exit code, its failures are among IDS (split by commas) with the first of them there, and what
# is said in that one matches. Where nothing must fail, IDS is empty and PATTERN is looked for in what passed.
judged() {
  python3 - "$reports/$1.json" "${@:2}" <<'P'
import json, re, sys
path, code, ids, pattern = sys.argv[1:]
report = json.load(open(path))
failed = [c for c in report["checks"] if c["status"] == "fail"]
def said(c):
    return " | ".join([c["id"], c["text"], c.get("cause", ""), *c.get("detail", []), *c.get("next", [])])
ids = [one for one in ids.split(",") if one]
wrong = []
if code != ("1" if ids else "0"):
    wrong.append(f"exit code {code}")
wrong += [f"not about this fault: {said(c)}" for c in failed if c["id"] not in ids]
where = [c for c in report["checks"] if c["status"] == "pass"] if not ids else [c for c in failed if c["id"] == ids[0]]
hit = [c for c in where if re.search(pattern, said(c))]
if not hit:
    wrong.append(f"nothing matches {pattern!r} in:")
    wrong += [f"  {said(c)}" for c in (where if ids else report["checks"])]
if wrong:
    print("\n".join(wrong))
    sys.exit(1)
print(report["summary"] if not ids else hit[0]["text"])
P
}

# healthy NAME PATTERN [OPTION...]: exit 0, nothing failed, and what passed says so
healthy() {
  local status=0
  checked "$1" "${@:3}" || status=$?
  judged "$1" $status "" "$2"
}

# again NAME: healthy after a fault is undone; the mesh takes its time (Envoy drains what it replaced for 45 s), so not at the first try
again() {
  local end=$((SECONDS + 180)) out
  until out=$(healthy "$1-undone" '12 spans: 7 of proxies, 5 of the app'); do
    [ $SECONDS -lt $end ] || { echo "$out"; return 1; }
  done
  echo "$out"
}

# named NAME IDS PATTERN [OPTION...]: the fault is named
named() {
  local status=0
  checked "$1" "${@:4}" || status=$?
  judged "$1" $status "$2" "$3"
}

# reached SECONDS TEXT COMMAND...: waits for what a fault brings about. If it does not come, the claim behind it says so, and the run goes on.
reached() { eventually "$@" || :; }
# Five times in a row: the old gateway, which has the secret in memory, resets connections while it goes, too.
no_handshake() {
  local status
  for _ in 1 2 3 4 5; do
    status=0
    request "$check_host" /http/service0 >/dev/null || status=$?
    [ $status -eq 35 ] || return 1
  done
}
old_gateway_gone() { ! kubectl -n istio-system get pods -l istio=ingressgateway -o jsonpath='{.items[*].metadata.deletionTimestamp}' | grep -q .; }
refused_outside() { ! curl -s --max-time 5 -o /dev/null "$1"; }

tracer_modes() {
  local w3c='W3C \(OpenTelemetry tracer\), seen in front of service1, service2, service3'
  claim "check: healthy with OpenTelemetry" healthy otel "$w3c"
  claim "check: it counts 12 spans, 7 of them the proxies'" judged otel 0 "" '12 spans: 7 of proxies, 5 of the app'
  claim "check: every hop's caller has an identity" judged otel 0 "" 'mTLS with an identity wherever a proxy is seen'
  if provider zipkin; then
    tracer zipkin && inbound_drained
    claim "check: healthy with Zipkin and W3C" healthy zipkin 'B3 and W3C \(Zipkin tracer with W3C\), seen in front of service1, service2, service3'
    claim "check: it counts 12 spans there, too" judged zipkin 0 "" '12 spans: 7 of proxies, 5 of the app'
  else
    not_run+=("check with Zipkin and W3C: the provider \"zipkin\" is not installed")
  fi
  if provider zipkin-b3; then
    deploy sidecar b3-first
    tracer zipkin-b3 && inbound_drained
    claim "check: healthy with Zipkin's B3 and the component b3-first" healthy zipkin-b3 'B3 \(Zipkin tracer\), seen in front of service1, service2, service3'
    deploy sidecar
    claim "check: without b3-first the order of propagators is what does not fit" named zipkin-b3-order propagation.order \
      'OTEL_PROPAGATORS at service1 does not fit a mesh that speaks B3: set it to b3multi'
  else
    not_run+=("check with Zipkin's B3: the provider \"zipkin-b3\" is not installed")
  fi
  tracer jaeger
}

faults() {
  local secret pod

  # The secret is in the app's namespace. Envoy keeps a secret that it has, so the gateway is started anew.
  secret=$(kubectl -n istio-system get secret cncamp-credential -o json | python3 -c '
import json, sys
r = json.load(sys.stdin)
r["metadata"] = {"name": r["metadata"]["name"], "namespace": "httpserver"}
print(json.dumps(r))')
  kubectl apply -f - >/dev/null <<<"$secret"
  kubectl -n istio-system delete secret cncamp-credential >/dev/null
  kubectl -n istio-system rollout restart deployment/istio-ingressgateway >/dev/null
  kubectl -n istio-system rollout status deployment/istio-ingressgateway --timeout=120s >/dev/null
  reached 120 "the old gateway gone" old_gateway_gone
  reached 60 "a gateway without its certificate" no_handshake
  claim "check: TLS secret in the wrong namespace" named secret reach.tls 'secret is missing: it must be in the namespace of the gateway.s pod \(istio-system\)'
  k delete secret cncamp-credential >/dev/null
  kubectl apply -f - >/dev/null <<<"${secret/\"namespace\": \"httpserver\"/\"namespace\": \"istio-system\"}"
  claim "check: TLS secret undone" again secret

  # STRICT mTLS, and callers that are not in the mesh: check itself, past the gateway, and a hop.
  pod=$(k get pod -l app=service1,lane=base -o jsonpath='{.items[0].status.podIP}')
  if curl -s --max-time 5 -o /dev/null "http://$pod:8080/service1"; then
    kubectl apply -f istio/security/mutual-tls.yaml >/dev/null
    reached 60 "plain text is refused" refused_outside "http://$pod:8080/service1"
    check_url=http://$pod:8080/service1
    claim "check: STRICT mTLS, called from outside the mesh" named strict reach.http 'A sidecar \(spiffe://.*/sa/service1\) refuses plain text.*PeerAuthentication STRICT.*outside the mesh'
    check_url=https://$pod:8080/service1
    claim "check: the same by https" named strict-https reach.certificate "a sidecar.s \\(spiffe://.*/sa/service1\\), not a gateway.s.*PeerAuthentication STRICT"
    check_url=""
    claim "check: STRICT mTLS is healthy through the gateway" again strict
  else
    not_run+=("check: STRICT mTLS, called from outside the mesh: pods cannot be reached from here")
    kubectl apply -f istio/security/mutual-tls.yaml >/dev/null
  fi
  kubectl delete -f istio/security/mutual-tls.yaml >/dev/null

  # Istio's own rate.
  sed 's/randomSamplingPercentage: 100/randomSamplingPercentage: 1/' istio/telemetry.yaml | kubectl apply -f - >/dev/null
  reached 120 "a gateway that samples hardly anything" speaks 'r["sampled"] is False'
  claim "check: sampling at 1 %, as it was meant" healthy sampling-meant 'All 60 requests succeeded' --expect-sampling 1
  kubectl apply -f istio/telemetry.yaml >/dev/null
  claim "check: sampling undone" again sampling

  # One fault after the other, each named with and without --cluster, and the healthy chain between them. The table in docs/check.md is theirs.
  claim "check: every fault of tests/e2e/faults.json is named, and nothing else" from_table every_fault
  claim "check: 50 runs against the healthy chain report nothing" from_table fifty_runs
}
from_table() {
  HTTPSERVER=$(realpath "$checker") CACERT=$work/certs/ca.crt TRACES=$jaeger INGRESS_HOST=$INGRESS_HOST INGRESS_PORT=$INGRESS_PORT SECURE_INGRESS_PORT=$SECURE_INGRESS_PORT \
    cargo test --test e2e -- --ignored --nocapture "cluster_faults::$1"
}

job() {
  k create configmap gateway-ca --from-file=ca.crt="$work/certs/ca.crt" >/dev/null
  overlay sidecar check
  kubectl apply -k "$work/overlay" >/dev/null
  claim "check: the Job of k8s/components/check completes" job_completes
  k delete job check >/dev/null
  k delete configmap gateway-ca >/dev/null
  overlay sidecar
}
job_completes() {
  eventually 180 "the Job ends" sh -c "kubectl -n httpserver get job check -o jsonpath='{.status.conditions[*].type}' | grep -qE 'Complete|Failed'" || :
  k logs job/check >"$reports/job.txt"
  k wait --for=condition=complete job/check --timeout=1s >/dev/null || { cat "$reports/job.txt"; return 1; }
  grep '^Verdict' "$reports/job.txt"
}

find_checker() {
  checker=${HTTPSERVER:-target/release/httpserver}
  [ -x "$checker" ] || checker=target/debug/httpserver
  mkdir -p "$reports"
}
checks() {
  part "check"
  find_checker
  provider jaeger || die "no provider \"jaeger\" in the mesh: istioctl install -f istio/install.yaml"
  overlay sidecar
  if [ -x "$checker" ]; then
    tracer_modes
    faults
  else
    not_run+=("check from outside the cluster: no binary to run here: cargo build, or name one in HTTPSERVER")
  fi
  job
}
