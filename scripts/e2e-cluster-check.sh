# shellcheck shell=bash
# The part "check" of e2e-cluster.sh, which sources this file: `httpserver check` through the gateway. In each tracer mode a healthy mesh must be
# called healthy; then come the faults that users make, one at a time: each must be named, with its cause, and nothing else be said to be wrong.
#
#   HTTPSERVER   the binary that checks; default: target/release/httpserver, else target/debug/httpserver

check_host=httpsserver.cncamp.io
reports=${work:?}/check

# checked NAME [OPTION...]: a run of check, of $check_url where that is set; its report is $reports/NAME.json, its exit code ours
checked() {
  local name=$1 through=(--resolve "$check_host:$SECURE_INGRESS_PORT:$INGRESS_HOST" --plain-port "$INGRESS_PORT" --cacert "$work/certs/ca.crt" --traces "${jaeger:?}")
  shift
  [ -z "${check_url:-}" ] || through=()
  "$checker" check "${check_url:-https://$check_host:$SECURE_INGRESS_PORT/http/service0}" ${through[@]+"${through[@]}"} \
    --expect service1,service2,service3 --count 60 --output json "$@" >"$reports/$name.json"
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
print(report["verdict"] if not ids else hit[0]["text"])
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

# What a proxy that traces would have changed between the hop N - 1 and the hop N
untouched() { echo "hops(r)[$1-2][\"upstreams\"][0][\"sent\"][\"traceparent\"] == hops(r)[$1-1][\"received\"][\"traceparent\"]"; }

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
# Twelve times in a row: each of the two pods of service2 has the policy.
denied() {
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
    [ "$(code "$check_host" /http/service0)" = 502 ] || return 1
  done
}
old_gateway_gone() { ! kubectl -n istio-system get pods -l istio=ingressgateway -o jsonpath='{.items[*].metadata.deletionTimestamp}' | grep -q .; }
refused_outside() { ! curl -s --max-time 5 -o /dev/null "$1"; }
restarted_anew() { k rollout restart "deployment/$1" >/dev/null; settled; }
sidecar_of() { # DEPLOYMENT yes|no: with a sidecar or without
  local value
  case $2 in yes) value=null ;; no) value='"false"' ;; esac
  k patch deployment "$1" --type merge -p "{\"spec\":{\"template\":{\"metadata\":{\"labels\":{\"sidecar.istio.io/inject\":$value}}}}}" >/dev/null
  settled
}

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

  # Injection left out a hop.
  sidecar_of service2 no
  claim "check: injection missing at service2" named injection propagation.sidecar \
    'service2 has no sidecar.*Injection is missing at service2.*kubectl -n httpserver get pod -l app=service2'
  sidecar_of service2 yes
  claim "check: injection undone" again injection

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

  # Names in a VirtualService.
  sed "s/httpsserver.cncamp.io/httpserver.cncamp.io/" istio/routes.yaml | kubectl apply -f - >/dev/null
  reached 60 "404 at the gateway" soon 1 404 code "$check_host" /http/service0
  claim "check: VirtualService host misspelt" named host reach.http 'no route for this host and path.*The host in the VirtualService or HTTPRoute is not the one in the URL'
  sed '0,/host: service1.httpserver/s//host: servcie1.httpserver/' istio/routes.yaml | kubectl apply -f - >/dev/null
  reached 60 "503 at the gateway" soon 1 503 code "$check_host" /http/service0
  claim "check: VirtualService destination misspelt" named destination reach.http 'a Service that does not exist.*destination host of the VirtualService is misspelt'
  kubectl apply -f istio/routes.yaml >/dev/null
  claim "check: VirtualService undone" again host

  # A subset that no pod is in, at the front and between two hops.
  sed '0,/version: v1/s//version: v9/' istio/destination-rules.yaml | kubectl apply -f - >/dev/null
  reached 60 "503 at the gateway" soon 1 503 code "$check_host" /http/service0
  claim "check: subset without pods at service1" named subset-front reach.http 'no pod to send it to \(503, flag UH\).*subset that the route names selects no ready pod'
  sed '/name: service2/,$s/version: v1/version: v9/' istio/destination-rules.yaml | sed '/name: service3/,$s/version: v9/version: v1/' | kubectl apply -f - >/dev/null
  reached 60 "502 by service1" soon 1 502 code "$check_host" /http/service0
  claim "check: subset without pods at service2" named subset chain.hops,traffic.success 'service1 called service2 and got 503 without a hop.s reply: no healthy upstream.*No ready pod stands behind service2 \(flag UH\)'
  kubectl apply -f istio/destination-rules.yaml >/dev/null
  claim "check: subset undone" again subset

  # What the mesh answers in place of a hop: a subset that no DestinationRule has, and a fault on purpose.
  sed '/name: service2$/,/^---/s/subset: base/subset: bass/' istio/routes.yaml | kubectl apply -f - >/dev/null
  reached 60 "502 by service1" soon 1 502 code "$check_host" /http/service0
  claim "check: subset misspelt at service2" named subset-misspelt chain.hops,traffic.success 'service1 called service2 and got 503 without a hop.s reply, empty body.*Service or subset that does not exist \(flag NC\)'
  kubectl apply -f istio/routes.yaml >/dev/null
  sed 's/value: 50/value: 100/' istio/scenarios/abort.yaml | kubectl apply -f - >/dev/null
  reached 60 "a fault in front of service3" speaks 'len(hops(r)) == 2'
  claim "check: the mesh's fault injection" named abort chain.hops,traffic.success 'service2 called service3 and got 503 without a hop.s reply: fault filter abort.*aborts calls from service2 to service3 on purpose \(flag FI\)'
  kubectl apply -f istio/routes.yaml >/dev/null
  claim "check: fault injection undone" again abort

  # The port's name is no protocol that the mesh knows as HTTP. A connection that is there is used as it was, so the caller is started anew.
  k patch service service2 --type json -p '[{"op":"replace","path":"/spec/ports/0/name","value":"tcp-web"},{"op":"remove","path":"/spec/ports/0/appProtocol"}]' >/dev/null
  restarted_anew service1
  reached 120 "calls to service2 as bytes" speaks "$(untouched 2)"
  claim "check: port named wrongly" named port propagation.coverage 'No proxy traces between service1 and service2.*does not know the port of Service service2 as HTTP'
  kubectl apply -k "$work/overlay" >/dev/null
  restarted_anew service1
  claim "check: port undone" again port

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
  sidecar_of service2 no
  claim "check: STRICT mTLS, called by a hop without a sidecar" named strict-hop chain.hops,traffic.success,traffic.identity \
    'connection from service2 to service3 ended before an answer.*refuses plain text \(STRICT mTLS\) because service2 has no sidecar'
  kubectl delete -f istio/security/mutual-tls.yaml >/dev/null
  sidecar_of service2 yes
  claim "check: STRICT mTLS undone" again strict-hop

  # A hop may not be called.
  kubectl apply -f - >/dev/null <<'Y'
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: nobody-calls-service2
  namespace: httpserver
spec:
  selector:
    matchLabels:
      app: service2
  action: DENY
  rules:
    - from:
        - source:
            principals: ["*"]
Y
  reached 60 "502 by service1, whichever pod of service2 is called" denied
  claim "check: authorization denies service2" named authorization chain.hops,traffic.success 'service1 called service2 and got 403 without a hop.s reply: RBAC: access denied.*AuthorizationPolicy at service2 denies service1'
  k delete authorizationpolicy nobody-calls-service2 >/dev/null
  claim "check: authorization undone" again authorization

  # Telemetry: a provider that nobody defined, everywhere and behind the gateway alone; and Istio's own rate.
  sed 's/name: jaeger$/name: jeager/' istio/telemetry.yaml | kubectl apply -f - >/dev/null
  reached 120 "proxies that do not trace" speaks "\"traceparent\" not in r[\"received\"] and $(untouched 2) and $(untouched 3)"
  claim "check: provider misspelt" named provider traces.proxies \
    'The proxies in front of service1, service2, service3 report no spans.*names a provider that meshConfig.extensionProviders does not have.*kubectl get telemetry -A.*extensionProviders'
  sed '1,/^---/s/name: jaeger$/name: jeager/' istio/telemetry.yaml | kubectl apply -f - >/dev/null
  reached 120 "sidecars that do not trace" speaks "\"traceparent\" in r[\"received\"] and $(untouched 2) and $(untouched 3)"
  claim "check: provider misspelt in the app's namespace alone" named provider-app propagation.coverage \
    'The sidecars in front of service2, service3 do not trace.*names a provider that meshConfig.extensionProviders does not have'
  kubectl apply -f istio/telemetry.yaml >/dev/null
  claim "check: provider undone" again provider

  sed 's/randomSamplingPercentage: 100/randomSamplingPercentage: 1/' istio/telemetry.yaml | kubectl apply -f - >/dev/null
  reached 120 "a gateway that samples hardly anything" speaks 'r["sampled"] is False'
  claim "check: sampling at 1 %" named sampling traces.sampling 'of 60 requests that bring no trace context are sampled.*100 % promised.*randomSamplingPercentage'
  claim "check: sampling at 1 %, as it was meant" healthy sampling-meant 'All 60 requests succeeded' --expect-sampling 1
  kubectl apply -f istio/telemetry.yaml >/dev/null
  claim "check: sampling undone" again sampling
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

checks() {
  part "check"
  checker=${HTTPSERVER:-target/release/httpserver}
  [ -x "$checker" ] || checker=target/debug/httpserver
  mkdir -p "$reports"
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
