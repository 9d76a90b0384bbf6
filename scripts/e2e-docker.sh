#!/usr/bin/env bash
# Builds the image and runs it as a user would: alone, as a chain of read-only containers, stopped under load, and by Docker Compose
# behind an HTTPS gateway with Jaeger.
#
#   scripts/e2e-docker.sh [--no-build]
#
#   --no-build    take the image httpserver at the version of Cargo.toml as it is
#
#   OUTSIDE_URL   an https address with a certificate of a public authority, to show that TLS is verified without files in the image
#   SIZE_LIMIT    bytes the image may have, default 16500000: see "Fast before small" in ARCHITECTURE.md
#   READY_LIMIT   milliseconds from the container's start to its first answer, default 50
#
# Needs docker with compose, and the images that compose.yaml names (pulled, unless they are here). Stops and removes what it started.
# Exit: 0 every claim held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

no_build=no SIZE_LIMIT=${SIZE_LIMIT:-16500000} READY_LIMIT=${READY_LIMIT:-50}
parse "" no-build "$@"
need docker curl python3 make openssl
cd "$top"
docker info >/dev/null 2>&1 || { say "no Docker daemon answers"; exit 2; }
docker compose version >/dev/null 2>&1 || { say "docker has no compose"; exit 2; }

image=httpserver:$(release_version)
prefix=httpserver-e2e-$$
work=$top/target/e2e-docker
rm -rf "$work" && mkdir -p "$work"
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges --network "$prefix")
compose_is_up=no

cleanup() {
  local status=$?
  trap - EXIT
  [ $compose_is_up = no ] || make compose-down >/dev/null 2>&1 || true
  docker ps -aq --filter "name=^$prefix" | xargs -r docker rm -f >/dev/null 2>&1 || true
  docker network rm "$prefix" >/dev/null 2>&1 || true
  exit $status
}
trap cleanup EXIT

at_most() { [ "$2" -le "$1" ] || { printf 'wanted: at most %s\ngot:    %s\n' "$1" "$2"; return 1; }; echo "$2${3:+ $3}"; }
# run NAME [docker arguments]: a hop in the background; prints its address on loopback
run() {
  docker run -d --name "$prefix-$1" --network-alias "$1" "${hardened[@]}" -p 127.0.0.1::8080 -e SERVICE_NAME="$1" "${@:2}" "$image" >/dev/null
  docker port "$prefix-$1" 8080/tcp | head -n 1
}
# json URL [curl arguments]
json() { curl -s -H 'accept: application/json' "$@"; }

# ---------------------------------------------------------------- the image

if [ $no_build = no ]; then claim "make docker-build" make docker-build; fi
docker image inspect "$image" >/dev/null 2>&1 || { say "no image $image"; exit 2; }
inspect() { docker image inspect "$image" --format "$1"; }
claim "the image has at most $SIZE_LIMIT bytes" at_most "$SIZE_LIMIT" "$(inspect '{{.Size}}')" bytes
one_file() {
  docker create --name "$prefix-files" "$image" >/dev/null
  is httpserver "$(docker export "$prefix-files" | tar -t | grep -vE '/$|^\.dockerenv$|^etc/(hostname|hosts|resolv.conf|mtab)$|^dev/')"
}
claim "it holds one file" one_file
claim "it runs as 65532" is 65532:65532 "$(inspect '{{.Config.User}}')"
claim "its labels have version and revision" is "$(release_version) $(git describe --always --dirty --abbrev=12)" \
  "$(inspect '{{index .Config.Labels "org.opencontainers.image.version"}} {{index .Config.Labels "org.opencontainers.image.revision"}}')"

docker network create "$prefix" >/dev/null
# How long from the start of the container until the server says it listens, by the clock of the daemon. It notes the start when the process is
# on its way already, so a server that is quick enough listens before that: below 0.
start_time() {
  local i times=() name started said
  for i in 1 2 3 4 5; do
    name=$prefix-start-$i
    docker run -d --name "$name" "${hardened[@]}" "$image" >/dev/null
    eventually 10 "a log line" sh -c "docker logs $name 2>&1 | grep -q ." || return 1
    started=$(date -d "$(docker inspect "$name" --format '{{.State.StartedAt}}')" +%s%N)
    said=$(date -d "$(docker logs -t "$name" 2>&1 | sort | head -n 1 | cut -d' ' -f1)" +%s%N)
    times+=($(((said - started) / 1000000)))
    docker rm -f "$name" >/dev/null
  done
  mapfile -t times < <(printf '%s\n' "${times[@]}" | sort -n)
  at_most "$READY_LIMIT" "${times[2]}" "ms after the daemon noted the start (median of 5: ${times[*]})"
}
claim "it listens at most $READY_LIMIT ms after its start" start_time

# ---------------------------------------------------------------- a chain of containers

run service3 >/dev/null
run service2 -e UPSTREAM=http://service3:8080/service3 -e UPSTREAM_TIMEOUT=3s >/dev/null
front=$(run service1 -e UPSTREAM=http://service2:8080/service2 -e UPSTREAM_TIMEOUT=4s -e LATENCY=20ms)
claim "three read-only containers without capabilities answer as a chain; names resolve" eventually 15 "the chain" \
  sh -c "curl -sf http://$front/hello/service1 | grep -q service3"
claim "each hop says who it is" is "service1 service2 service3" "$(json "http://$front/hello/service1" | py '" ".join(h["service"] for h in hops(r))')"
claim "HEALTHCHECK finds them healthy" eventually 60 "healthy" sh -c "[ \"\$(docker inspect $prefix-service1 --format '{{.State.Health.Status}}')\" = healthy ]"
claim "httpserver_build_info has version and revision" sh -c \
  "curl -s http://$front/metrics | grep '^httpserver_build_info' | grep 'revision=\"$(inspect '{{index .Config.Labels "org.opencontainers.image.revision"}}')\"' | grep 'version=\"$(release_version)\"'"
# A server with a certificate of nobody: the call must fail, and say why.
tls_refused() {
  local port pid address status
  port=$(free_ports 1)
  scripts/certificate.sh --local --dir "$work/certs" 2>/dev/null
  (cd "$work/certs" && exec openssl s_server -quiet -accept "$port" -cert tls.crt -key tls.key -www >/dev/null 2>&1) &
  pid=$!
  # On the host's own network, as the server is.
  docker run -d --name "$prefix-tls" --read-only --cap-drop ALL --network host -e ADDR=127.0.0.1:0 -e SERVICE_NAME=tls -e UPSTREAM="https://localhost:$port/" "$image" >/dev/null
  listens() { docker logs "$prefix-tls" 2>&1 | grep -oE '127\.0\.0\.1:[1-9][0-9]*' | head -n 1 | grep .; }
  eventually 10 "its address" listens || { kill $pid; return 1; }
  address=$(listens)
  status=$(json "http://$address/service1" | py '[r["status"], r["upstreams"][0]["error"]]')
  kill $pid
  docker rm -f "$prefix-tls" >/dev/null
  grep -qi '502.*certificate\|502.*tls' <<<"$status" || { echo "$status"; return 1; }
  echo "$status"
}
claim "TLS to the outside is verified: a certificate of nobody is refused" tls_refused
if [ -n "${OUTSIDE_URL:-}" ]; then
  outside() {
    local address
    address=$(run outside -e UPSTREAM="$OUTSIDE_URL")
    eventually 10 "it answers" curl -sf "http://$address/readyz" || return 1
    is 200 "$(json "http://$address/service1" | py 'r["upstreams"][0]["status"]')"
  }
  claim "TLS to $OUTSIDE_URL verifies without files from the image" outside
else
  not_run+=("TLS to a public address: set OUTSIDE_URL to one that is reachable from here")
fi

# One request after the other, four at a time, until the container is gone; to the container's own address, as Docker's proxy for published
# ports would take a connection before it knows. Not being connected at all is what is left of a server that has ended; anything else
# that is not 200 is a request that the server took and dropped.
stopped_under_load() {
  local loaders=() took started codes bad address
  address=$(docker inspect "$prefix-service1" --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}'):8080
  for i in 1 2 3 4; do
    while [ ! -e "$work/stopped" ]; do
      curl -s -o /dev/null --max-time 10 -w '%{http_code} connected:%{time_connect}\n' "http://$address/hello/service1" || true
    done >"$work/load.$i" &
    loaders+=($!)
  done
  sleep 2
  started=$(date +%s%N)
  docker stop -t 30 "$prefix-service1" >/dev/null
  took=$((($(date +%s%N) - started) / 1000000))
  touch "$work/stopped"
  wait "${loaders[@]}"
  codes=$(cat "$work"/load.* | sed -e 's/^000 connected:0.000000$/not connected/' -e 's/ connected:.*//' | sort | uniq -c |
    awk '{n = $1; $1 = ""; printf "%s%s x%s", (NR > 1 ? ", " : ""), n, $0}')
  bad=$(cat "$work"/load.* | grep -cvE '^200 |^000 connected:0.000000$' || true)
  is 0 "$(docker inspect "$prefix-service1" --format '{{.State.ExitCode}}')" >/dev/null || return 1
  echo "$codes; the stop took $took ms, exit 0"
  [ "$bad" -eq 0 ] && [ "$took" -ge 5000 ] && [ "$took" -lt 29000 ]
}
claim "docker stop -t 30 under load: served for 5 s more, nothing dropped, exit 0" stopped_under_load

demo_in_a_container() {
  local address page key
  docker run -d --name "$prefix-demo" --read-only --cap-drop ALL -p 127.0.0.1::8080 -p 127.0.0.1::9411 "$image" demo --listen 0.0.0.0 >/dev/null
  address=$(docker port "$prefix-demo" 8080/tcp | head -n 1)
  eventually 15 "the demo's chain" sh -c "curl -sf http://$address/hello/service1 | grep -q service3" || return 1
  page=$(docker port "$prefix-demo" 9411/tcp | head -n 1)
  is 200 "$(curl -s -o /dev/null -w '%{http_code}' "http://$page/")" >/dev/null || return 1
  order() { curl -s -o /dev/null -w '%{http_code}' "$@" -H "origin: http://$page" --json '{"send": {"headers": []}}' "http://$page/demo/control"; }
  is 403 "$(order)" >/dev/null || return 1
  key=$(docker logs "$prefix-demo" | sed -n 's/^ *page .*?key=\([0-9a-f]*\).*/\1/p')
  curl -s -o /dev/null -c "$work/cookies" "http://$page/?key=$key"
  is 200 "$(order -b "$work/cookies")"
}
claim "demo --listen 0.0.0.0 in a container: the chain, the page of its traces, and orders with the key of its URL" demo_in_a_container

# ---------------------------------------------------------------- Compose

docker rm -f "$prefix-service2" "$prefix-service3" >/dev/null
while read -r name; do
  docker image inspect "$name" >/dev/null 2>&1 || docker pull -q "$name" >/dev/null || { say "no image $name, and it cannot be pulled"; exit 2; }
done < <(sed -n 's/^    image: \([a-z].*\)$/\1/p' compose.yaml)
read -r HTTPS_PORT HTTP_PORT JAEGER_PORT < <(free_ports 3)
export HTTPS_PORT HTTP_PORT JAEGER_PORT
compose_is_up=yes
claim "make compose-up" make compose-up
request() { curl -s --cacert target/compose/certs/ca.crt --resolve "$1:$HTTPS_PORT:127.0.0.1" "https://$1:$HTTPS_PORT$2" "${@:3}"; }
claim "Compose: the chain answers through the HTTPS gateway" eventually 30 "200" sh -c \
  "curl -sf --cacert target/compose/certs/ca.crt --resolve service1.cncamp.io:$HTTPS_PORT:127.0.0.1 https://service1.cncamp.io:$HTTPS_PORT/hello/service1 | grep -q service3"
claim "Compose: the same paths as in the cluster" is "200 200 200 200 404 404" \
  "$(for path in /http/service0 /test/hello /hello/golang /hello/service1 /metrics /healthz; do request httpsserver.cncamp.io $path -o /dev/null -w '%{http_code} '; done | sed 's/ $//')"
claim "Compose: port 80 redirects to where HTTPS is" is "301 https://service1.cncamp.io:$HTTPS_PORT/hello/golang" \
  "$(curl -s -o /dev/null -w '%{http_code} %{redirect_url}' -H 'host: service1.cncamp.io' "http://127.0.0.1:$HTTP_PORT/hello/golang")"
claim "Compose: HSTS is set" is "max-age=31536000; includeSubDomains" "$(request service1.cncamp.io /hello/golang -o /dev/null -w '%header{strict-transport-security}')"
find_httpserver
one_trace() {
  request service1.cncamp.io /hello/service1 -H 'accept: application/json' |
    "$HTTPSERVER" trace - --traces "http://127.0.0.1:$JAEGER_PORT/jaeger" --settle 3s --traces-wait 40s --expect-spans 7 --expect-services 4
}
claim "Compose: one trace of 7 spans in Jaeger: the gateway's 2, the apps' 5" one_trace
claim "make compose-up works twice in a row" make compose-up
claim "make compose-down" make compose-down
compose_is_up=no

claims_end
