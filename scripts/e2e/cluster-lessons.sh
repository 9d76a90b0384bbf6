# shellcheck shell=bash
# The part "lessons" of scripts/e2e-cluster.sh, which sources this file: one hop is broken on purpose, by name, while it runs, and what the mesh makes of it
# is measured from the client: the runtime API of a pod, a replayed trace, one sick replica and outlier detection, retries that multiply, a
# circuit that opens and closes, a canary that is slow only at p99.

# pod_of HOP: one of its pods
pod_of() { k get pods -l "app=$1,version=v1" -o jsonpath='{.items[0].metadata.name}'; }
# asked METHOD PATH BODY URL: what the runtime API answers, and the status on a line of its own
asked() { curl -s --max-time 10 -X "$1" ${3:+-d "$3"} -w '\n%{http_code}' "$4$2"; }
# ordered POD METHOD PATH [BODY]
ordered() { forwarded "pod/$1:9901" asked "$2" "$3" "${4:-}"; }
# told WANTED POD METHOD PATH [BODY]: the status of an order
told() { is "$1" "$(ordered "${@:2}" | tail -n 1)"; }
# pods_at HOP COUNT: of so many requests, which pods of that hop answered
pods_at() { for _ in $(seq "$2"); do json service1.cncamp.io /hello/service1; echo; done | grep -o "\"hostname\":\"$1-[^\"]*\"" | sort -u | cut -d'"' -f4 | paste -sd' '; }
# measured NAME OPTION...: check of the path on which the gateway repeats nothing; its report is $reports/NAME.json, its exit code ours
# Where a lesson breaks the chain on purpose check exits with 1, and the caller ignores that: the claims read the report, and fail without one.
measured() {
  "${checker:?}" check "https://service1.cncamp.io:$SECURE_INGRESS_PORT/hello/service1" --resolve "service1.cncamp.io:$SECURE_INGRESS_PORT:$INGRESS_HOST" \
    --plain-port "$INGRESS_PORT" --cacert "${work:?}/certs/ca.crt" --expect service1,service2,service3 --output json "${@:2}" >"${reports:?}/$1.json"
}
# of_report NAME EXPRESSION: of a report of check, called r; one(ID) is its check of that id
of_report() {
  python3 -c '
import json, sys
r = json.load(open(sys.argv[1]))
one = lambda id: next((c for c in r["checks"] if c["id"] == id), {"text": "", "detail": [], "cause": "", "data": []})
print(eval(sys.argv[2]))' "$reports/$1.json" "$2"
}

# ---------------------------------------------------------------- the runtime API

runtime_api() {
  local pod other got
  pod=$(pod_of service3)
  other=$(k get pods -l app=service3,version=v1 -o name | cut -d/ -f2 | grep -v "$pod")
  claim "admin: GET /config is that of the pod that was named" is "service3 $pod [] True" \
    "$(ordered "$pod" GET /config | head -n 1 | py '"%s %s %s %s" % (r["name"], r["hostname"], r["faults"], r["ready"])')"
  claim "admin: it listens at loopback: the API server, which reaches the pod's address, reaches no runtime API" \
    not_there kubectl get --raw "/api/v1/namespaces/httpserver/pods/$pod:9901/proxy/config"
  claim "admin: a fault that is none is 400, with what is accepted" grep -q 'accepted are abort=503' <(ordered "$pod" PUT /faults '{"faults": ["abot=503"]}')
  claim "admin: PUT /faults with a ttl" told 200 "$pod" PUT /faults '{"faults": ["abort=503"], "ttl": "20s"}'
  claim "admin: that pod fails and its sibling does not" soon 15 "$pod" failing_pods
  claim "admin: it is over after the ttl" soon 40 "" failing_pods
  claim "admin: PUT /ready false" told 200 "$pod" PUT /ready false
  claim "admin: the pod is not ready, and still runs" soon 30 "False Running" pod_state "$pod"
  claim "admin: nobody calls it" soon 30 "$other" pods_at service3 20
  claim "admin: PUT /ready true" told 200 "$pod" PUT /ready true
  claim "admin: the pod is ready, and called again" soon 60 "$(printf '%s\n' "$pod" "$other" | sort | paste -sd' ')" pods_at service3 20
  claim "admin: PUT /log-level debug" told 200 "$pod" PUT /log-level debug
  claim "admin: its log says so, and has debug lines from there on" retry 30 debug_seen "$pod"
  claim "admin: PUT /log-level info" told 200 "$pod" PUT /log-level info
  got=$(k logs "$pod" -c httpserver | grep -c 'admin API' || true)
  claim "admin: every change is in the log of the pod: faults, their end, readiness twice, the level twice" between 6 7 "$got"
}
not_there() { ! "$@" >/dev/null 2>&1; }
pod_state() { k get pod "$1" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status} {.status.phase}'; }
failing_pods() { for _ in $(seq 16); do json service1.cncamp.io /hello/service1 | py '" ".join(h["hostname"] for h in hops(r) if (h["injected"] or {}).get("abort_status"))'; done | sort -u | grep . | paste -sd' '; }
debug_seen() {
  json service1.cncamp.io /hello/service1 >/dev/null
  k logs "$1" -c httpserver --since=60s | grep -m 1 'DEBUG\|"level":"debug"' | cut -c 1-100
}

# ---------------------------------------------------------------- the same again

# In demo and in the mesh, by the same seed, service2 fails and service3 is late for a share of the traces.
seed=7
seeded_demo() {
  local port
  port=$(free_ports 1)
  "$checker" demo --quiet --port "$port" --store-port 0 --seed $seed --latency 0 --fault service2:abort=503@30% --fault service3:delay=40ms@40% >"$work/demo.log" 2>&1 &
  demo=$!
  demo_url=http://127.0.0.1:$port/service1
  eventually 20 "the demo" curl -sf "http://127.0.0.1:$port/readyz"
}
# outcome: of a reply on stdin, what was injected at each hop, and the statuses
outcome() { py '" ".join("%s=%s:%s" % (h["service"], h["status"], (h["injected"] or {}).get("abort_status") or (h["injected"] or {}).get("delay_ms") or "-") for h in hops(r))'; }
replayed() {
  local n id here there again struck=""
  for n in $(seq 24); do
    id=$(printf '%032x' $((n * 7919)))
    here=$(curl -s -H "traceparent: 00-$id-00f067aa0ba902b7-01" -H 'accept: application/json' "$demo_url" | outcome)
    there=$(json service1.cncamp.io /hello/service1 -H "traceparent: 00-$id-00f067aa0ba902b7-01" | outcome)
    again=$(json service1.cncamp.io /hello/service1 -H "traceparent: 00-$id-00f067aa0ba902b7-01" | outcome)
    [ "$here" = "$there" ] && [ "$here" = "$again" ] || { printf '%s\ndemo:    %s\ncluster: %s\nagain:   %s\n' "$id" "$here" "$there" "$again"; return 1; }
    struck+="$here"$'\n'
  done
  # All of the four things that can happen must be among them, or the same would be no wonder.
  sort <<<"$struck" | grep . | uniq -c | sort -rn | awk '{printf "%s%s x %s", (NR > 1 ? ", " : ""), $1, $0}' | sed 's/ x  *[0-9]* /: /g'
  [ "$(sort -u <<<"$struck" | grep -c .)" -ge 3 ]
}
# chosen ID: what check says of that trace in demo, and in the cluster
chosen() {
  local here there says='" ".join(sorted(c["text"] for c in r["checks"] if c["status"] == "fail" and c["id"] == "chain.hops"))'
  here=$("${checker:?}" check "$demo_url" --trace-id "$1" --count 0 --output json | py "$says")
  measured "chosen-$1" --count 0 --trace-id "$1" || true
  there=$(py "$says" <"$reports/chosen-$1.json")
  is "$here" "$there" >/dev/null || { printf 'demo:    %s\ncluster: %s\n' "$here" "$there"; return 1; }
  echo "${here:-fine}"
}
# traces_that STATUS: the first id of the series that the demo answers so
trace_that() {
  local n id
  for n in $(seq 200); do
    id=$(printf '%032x' $((n * 7919)))
    [ "$(curl -s -o /dev/null -w '%{http_code}' -H "traceparent: 00-$id-00f067aa0ba902b7-01" "$demo_url")" = "$1" ] && { echo "$id"; return; }
  done
  return 1
}
replay() {
  k set env deployment/service1 deployment/service2 deployment/service3 SEED=$seed LATENCY=0 >/dev/null
  k set env deployment/service2 'FAULT=abort=503@30%' >/dev/null
  k set env deployment/service3 'FAULT=delay=40ms@40%' >/dev/null
  settled
  seeded_demo
  claim "replay: 24 traces have the same outcome in demo and in the cluster, and there twice, at whichever pod" soon_same replayed
  claim "replay: check --trace-id of a trace that fails says the same of both" failing_says chosen "$(trace_that 502)"
  claim "replay: check --trace-id of one that does not" is fine "$(chosen "$(trace_that 200)")"
  kill "$demo"
  k set env deployment/service1 deployment/service2 deployment/service3 SEED- FAULT- >/dev/null
  kubectl apply -k "$work/overlay" >/dev/null
  settled
}
soon_same() { retry 40 "$@"; }
failing_says() { local out; out=$("$@") || { echo "$out"; return 1; }; grep 'service2 answered 503 by its own fault injection' <<<"$out"; }

# ---------------------------------------------------------------- one sick replica

# One caller, so that its own count is seen: each sidecar decides for itself.
sick_replica() {
  local pod others watching
  k scale deployment service2 --replicas=1 >/dev/null; settled
  on sick-replica
  sleep 5
  pod=$(pod_of service3)
  # First the load, then the order: the probes of check would have the pod left out before anything is measured.
  (measured sick --count 0 --watch 60s --rate 20 || true) &
  watching=$!
  sleep 10
  told 200 "$pod" PUT /faults '{"faults": ["abort=503"], "ttl": "2m"}' >/dev/null
  wait $watching
  told 200 "$pod" DELETE /faults >/dev/null
  claim "sick replica: check --watch names the pod, and no other" is "$pod" \
    "$(of_report sick '" ".join(sorted({h["host"] for h in one("watch.instances")["data"] if h["left_out"] and h["hop"] == "service3"}))')"
  claim "sick replica: it says that the pod's own fault injection answered 503" grep -q 'service3 answered 503 by its own fault injection' <(of_report sick 'one("watch.failures")["text"]')
  others='[o for h in one("watch.instances")["data"] if h["host"] == "'$pod'" for o in h["left_out"]]'
  claim "sick replica: left out after 3 failures (wanted 3 to 5: what was under way counts, too)" between 3 5 "$(of_report sick "${others}[0]['failed_before']")"
  claim "sick replica: the first time for baseEjectionTime, 10 s (wanted 9500 to 12500 ms)" between 9500 12500 "$(of_report sick "round(1000 * (${others}[0]['to_s'] - ${others}[0]['from_s']))")"
  claim "sick replica: the second time for twice as long, 20 s (wanted 19500 to 22500 ms)" between 19500 22500 "$(of_report sick "round(1000 * (${others}[1]['to_s'] - ${others}[1]['from_s']))")"
  # Envoy takes a pod back and looks again once in an interval: what fails in that time, too, is of the second and third time.
  claim "sick replica: of 1,200 requests at most 60 fail" between 6 60 "$(of_report sick 'one("watch.failures")["data"]["failed"]')"
  reset
  claim "sick replica undone: it is well, and called again" soon 60 "" failing_pods
  kubectl apply -k "$work/overlay" >/dev/null; settled
}

# ---------------------------------------------------------------- retries, a circuit, a canary

# calls_of_one: how many requests service3's pods logged for one request of ours
calls_of_one() {
  local id
  id=$(json service1.cncamp.io /hello/service1 | py 'r["request_id"]')
  sleep 2
  k logs -l app=service3 -c httpserver --tail=-1 --since=60s | grep -c "$id"
}
nine() { measured "$1" --count 10 --rate 5 || true; grep -o 'service3 received 9 calls for 1 request' "$reports/$1.json" | head -n 1 | grep .; }
retries_multiply() {
  k set env deployment/service3 FAULT=abort=503 >/dev/null
  k set env deployment/service1 deployment/service2 RETRIES=2 >/dev/null
  settled
  claim "retries: RETRIES=2 at two hops, and check says: service3 received 9 calls for 1 request" nine retries-hops
  claim "retries: service3's own log has 9 lines of that request" soon 30 9 calls_of_one
  k set env deployment/service1 deployment/service2 RETRIES- >/dev/null
  settled
  claim "retries: without them 1" soon 60 1 calls_of_one
  on retries-multiply
  claim "retries: the same by two VirtualServices: 9 lines" soon 30 9 calls_of_one
  claim "retries: and check says so, from the attempts that Envoy counts" nine retries-mesh
  reset
  k set env deployment/service3 FAULT- >/dev/null
  settled
  claim "retries undone" base_again
}

# open_for NAME: how many requests of the watch failed, and the seconds of the first and the last of them
open_for() { of_report "$1" '(lambda times: "%d %d %d" % (len(times), times[0], times[-1]))([float(line.split()[0]) for line in one("watch.failures")["detail"] if line.split()[1:2] == ["s"]] or [-1])'; }
circuit() {
  local pod watching
  k scale deployment service2 service3 --replicas=1 >/dev/null; settled
  k set env deployment/service3 LATENCY=0 >/dev/null; settled
  on circuit-breaking
  sleep 5
  pod=$(pod_of service3)
  (measured circuit --count 0 --watch 30s --rate 2 || true) &
  watching=$!
  sleep 12
  told 200 "$pod" PUT /faults '{"faults": ["delay=1s"], "ttl": "8s"}' >/dev/null
  wait $watching
  claim "circuit: open for the 8 s in which service3 is slow (wanted 3 failures or more within 11 s), closed before and after" opened_and_closed "$(open_for circuit)"
  claim "circuit: check names the seam and the overflow" grep -q 'service2 called service3 and got 503 without a hop.s reply: upstream connect error.*overflow' <(of_report circuit 'one("watch.failures")["text"]')
  claim "circuit: and its cause" grep -qi 'circuit breaker\|connectionPool' <(of_report circuit 'one("watch.failures")["cause"]')
  reset
  kubectl apply -k "$work/overlay" >/dev/null; settled
  claim "circuit undone" base_again
}
opened_and_closed() {
  local count first last
  read -r count first last <<<"$1"
  echo "$count failures, from $first to $last s"
  [ "$count" -ge 3 ] && [ "$first" -ge 1 ] && [ $((last - first)) -le 11 ] && [ "$last" -le 27 ]
}

slow_canary() {
  local got
  kubectl apply -f k8s/components/version-v2/service1.yaml >/dev/null
  k set env deployment/service1-v2 'FAULT=delay=900ms@5%' >/dev/null
  settled
  on canary; sleep 3
  measured canary --count 1500 --rate 40 || true
  got=$(of_report canary '" ".join(line.strip() for c in r["checks"] if c["id"] == "traffic.latency" for line in c.get("detail", []) if "p99" in line)')
  claim "canary: p50 of v2 is that of v1 (at most 60 ms more), and p99 is not (at least 500 ms more): $got" slow_at_p99 "$got"
  claim "canary: it says that the delay is on purpose, and how often" grep -q 'service1 .*a delay of 900 ms in [0-9]* of' <(of_report canary '"\n".join(line for c in r["checks"] for line in c.get("detail", []))')
  off canary; kubectl apply -k istio >/dev/null
  kubectl delete -f k8s/components/version-v2/service1.yaml >/dev/null
  claim "canary undone, after p99" base_again
}
slow_at_p99() {
  python3 - "$1" <<'P'
import re, sys
found = {m[0]: [int(n) for n in m[1:]] for m in re.findall(r"service1\s+(v\d)\s+p50 (\d+) ms, p90 (\d+) ms, p99 (\d+) ms", sys.argv[1])}
(fast, _, fine), (slow, _, bad) = found["v1"], found["v2"]
print(found)
sys.exit(not (slow - fast <= 60 and bad - fine >= 500))
P
}

lessons() {
  part "break it on purpose"
  find_checker
  [ -x "$checker" ] || { not_run+=("the lessons: no binary to run here: cargo build, or name one in HTTPSERVER"); return; }
  mkdir -p "$reports"
  deploy sidecar admin
  runtime_api
  replay
  sick_replica
  retries_multiply
  circuit
  slow_canary
  deploy sidecar
  k set env deployment/service1 deployment/service2 deployment/service3 ADMIN_ADDR- >/dev/null
  settled
}
