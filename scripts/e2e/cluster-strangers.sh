# shellcheck shell=bash
# The part "strangers" of scripts/e2e-cluster.sh, which sources this file: service1 calls a foreign app (tests/apps/catalog), which calls
# service3; all of them have sidecars. What check, doctor and probe say of it, whatever the app does to the trace headers.
#
# The app needs the image of catalog.yaml in the cluster.

# catalog_is FORWARD ANSWER: the app as it forwards (all, request-id, none) and answers (nested: with service3's reply in it; own)
catalog_is() {
  k set env deployment/catalog "FORWARD=$1" "ANSWER=$2" >/dev/null 2>&1
  settled
}
# behind NAME VERDICT IDS PATTERN [OPTION...]: as `named` and `healthy`, with that verdict
behind() {
  local name=$1 verdict=$2 ids=$3 pattern=$4 code=0 status=0
  shift 4
  checked "$name" "$@" || status=$?
  judged "$name" $status "$ids" "$pattern" || return 1
  [ "$verdict" != broken ] || code=1
  is "$verdict, exit code $code" "$(py 'r["verdict"]' <"${reports:?}/$name.json"), exit code $status"
}

# alone COMMAND...: without a trace backend
# shellcheck disable=SC2034  # `checked` reads these two
alone() { local check_traces=no; "$@"; }

flavours() {
  # shellcheck disable=SC2034
  local check_expect=service1,catalog,service3
  local fine='All 60 requests succeeded' lost='Trace broke between service1 and service3, at catalog'
  catalog_is all nested
  claim "the app forwards, its answer has service3's in it, no backend: healthy" alone behind all healthy "" "$fine"
  claim "the same, with the backend: healthy" behind all-traces healthy "" "$fine"
  claim "the same, --cluster: service3 behind the app is on the way" behind all-cluster healthy "" 'catalog +sidecar.*service3 +sidecar' --cluster
  catalog_is request-id nested
  claim "it forwards x-request-id alone, no backend: broken at the app" alone behind id broken propagation.trace "$lost"
  claim "the same, with the backend: broken at the app" behind id-traces broken propagation.trace "$lost"
  catalog_is none nested
  claim "it forwards nothing, no backend: broken at the app" alone behind none broken propagation.trace "$lost"
  claim "the same, with the backend: broken at the app" behind none-traces broken propagation.trace "$lost"
  catalog_is all own
  claim "it forwards, and its answer shows nothing, no backend: unknown, --expect or not" alone behind own-all unknown "" "$fine"
  claim "the same, with the backend: healthy, by what is reported behind it" behind own-all-traces healthy "" 'catalog .*passes the trace on'
  catalog_is request-id own
  claim "it forwards x-request-id alone and shows nothing, no backend: unknown" alone behind own-id unknown "" "$fine"
  claim "the same, with the backend: broken behind the app" behind own-id-traces broken traces.stranger 'Trace broke behind catalog'
  catalog_is none own
  claim "it forwards nothing and shows nothing, no backend: unknown" alone behind own-none unknown "" "$fine"
  claim "the same, with the backend: broken behind the app" behind own-none-traces broken traces.stranger 'Trace broke behind catalog'
}

# diagnosed NAME SERVICES: after requests through the chain, doctor names these services (split by blanks) as those that drop the context
diagnosed() {
  local i begun=$SECONDS report=$reports/doctor-$1.json
  for ((i = 0; i < 60; i++)); do json service1.cncamp.io /hello/service1 >/dev/null || :; done
  # Envoy and the apps report every five seconds.
  sleep 8
  "${checker:?}" doctor --traces "${jaeger:?}" --lookback $((SECONDS - begun))s --output json >"$report" || return 1
  is "$2" "$(py '" ".join(sorted(f["service"] for f in r["findings"] if f["id"] == "context.dropped" and f["level"] == "fault"))' <"$report")" || { cat "$report"; return 1; }
}

# The manifests of docs/probe.md, as a reader copies them
probe_manifests() { awk '/^```yaml/ {on = 1; block = ""; next} /^```/ {if (on && block ~ /kind: Job/) printf "%s", block; on = 0} on {block = block $0 "\n"}' docs/probe.md; }
# probed FORWARD CONDITION: the Job ends so for an app that forwards so
probed() {
  sed 's/catalog$/app-under-test/; s#http://service3/service3#http://probe:9001#; s/value: all/value: '"$1"'/; s/port: 80,/port: 8080,/; s/labels: {app: catalog}/labels: {app: app-under-test, sidecar.istio.io\/inject: "false"}/; s/app: catalog}/app: app-under-test}/g; s/configMap: {name: app-under-test}/configMap: {name: catalog}/' \
    tests/apps/catalog/catalog.yaml | kubectl apply -f - >/dev/null 2>&1
  settled
  probe_manifests | k apply -f - >/dev/null 2>&1
  eventually 180 "the Job ends" sh -c "kubectl -n httpserver get job probe -o jsonpath='{.status.conditions[*].type}' | grep -qE 'Complete|Failed'" || :
  k logs job/probe >"$reports/probe-$1.xml" 2>&1
  local got
  got=$(k get job probe -o jsonpath='{.status.conditions[*].type}')
  k delete job/probe service/probe >/dev/null
  grep -q "$2" <<<"$got" || { echo "$got"; cat "$reports/probe-$1.xml"; return 1; }
  grep -o 'tests="[0-9]*".* failures="[0-9]*"' "$reports/probe-$1.xml" | head -n 1
}

strangers() {
  part "a foreign app in the middle"
  find_checker
  [ -x "$checker" ] || { not_run+=("a foreign app: no binary to run here: cargo build, or name one in HTTPSERVER"); return; }
  overlay sidecar ../../tests/apps/catalog
  kubectl apply -k "${work:?}/overlay" >/dev/null 2>&1
  if ! k rollout status deployment/catalog --timeout=90s >/dev/null; then
    not_run+=("a foreign app: its image $(k get deployment catalog -o jsonpath='{.spec.template.spec.containers[0].image}') does not start")
  else
    settled
    flavours
    claim "doctor: the app that drops the context is named, and nobody else" diagnosed catalog catalog.httpserver
    claim "probe: the Job of docs/probe.md completes for an app that forwards" probed all Complete
    claim "probe: the same Job fails for one that drops" probed none Failed
  fi
  k delete deployment,service,serviceaccount catalog >/dev/null
  k delete configmap catalog >/dev/null
  k delete deployment,service,serviceaccount app-under-test --ignore-not-found >/dev/null
  deploy sidecar forward-only broken-hop
  claim "doctor: with broken-hop, service1 and service2 are named, and nobody else" diagnosed broken-hop "service1.httpserver service2.httpserver"
  deploy sidecar
}
