#!/usr/bin/env bash
# Finds where the ingress gateway can be reached, and prints it as variables for your shell:
#   eval "$(scripts/gateway-address.sh)"
#   curl --resolve "service1.cncamp.io:$SECURE_INGRESS_PORT:$INGRESS_HOST" "https://service1.cncamp.io:$SECURE_INGRESS_PORT/hello/service1"
#
#   scripts/gateway-address.sh [--namespace istio-system] [--service istio-ingressgateway] [--forward | --stop]
#
#   --forward   where that address cannot be reached from here (Docker Desktop, macOS), forward the ports 18080 and 18443 of this machine to the
#               gateway, in the background; from then on this script prints those. HTTP_PORT and HTTPS_PORT are other ports
#   --stop      end that
#
# Prints INGRESS_HOST, INGRESS_PORT, SECURE_INGRESS_PORT, GATEWAY_URL. A gateway with an address of a load balancer has ports 80 and 443;
# one without is reached at a node, by the NodePorts of its Service. For the Gateway API: --namespace httpserver --service httpserver-istio.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

namespace=istio-system service=istio-ingressgateway
forward=no stop=no
parse "namespace service" "forward stop" "$@"
need kubectl

# One line: pid, namespace/service, HTTP port, HTTPS port
record=$top/target/gateway-forward
pid="" of="" port="" secure=""
[ ! -s "$record" ] || read -r pid of port secure <"$record"
[ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || pid=""
if [ $stop = yes ]; then
  [ -z "$pid" ] || kill "$pid"
  rm -f "$record"
  exit 0
fi
print() {
  printf 'export INGRESS_HOST=%s\nexport INGRESS_PORT=%s\nexport SECURE_INGRESS_PORT=%s\nexport GATEWAY_URL=%s:%s\n' "$1" "$2" "$3" "$1" "$2"
}
if [ -n "$pid" ] && [ "$of" = "$namespace/$service" ]; then
  print 127.0.0.1 "$port" "$secure"
  exit 0
fi

get() { kubectl -n "$namespace" get service "$service" -o jsonpath="$1"; }
cluster_answers
get '{.metadata.name}' >/dev/null || die "no Service $service in $namespace: name yours with --namespace and --service"

# A load balancer has an IP address, or a name as on AWS.
host=$(get '{.status.loadBalancer.ingress[0].ip}{.status.loadBalancer.ingress[0].hostname}')
if [ -n "$host" ]; then
  field=port
else
  field=nodePort
  host=$(kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
fi
port=$(get "{.spec.ports[?(@.port==80)].$field}")
secure=$(get "{.spec.ports[?(@.port==443)].$field}")
if [ -z "$host" ] || [ -z "$secure" ]; then
  [ $forward = yes ] || die "$service has neither a load balancer's address nor NodePorts yet"
  host="$service"
fi

# 7 and 28: no connection; whatever else happens, somebody is there.
answers() { local code=0; curl -s -o /dev/null --connect-timeout 3 --max-time 5 "http://$1:$2/" || code=$?; [ $code != 7 ] && [ $code != 28 ]; }
if [ "$host" = "$service" ] || { command -v curl >/dev/null && ! answers "$host" "$port"; }; then
  if [ $forward = no ]; then
    say "WARNING: $host:$port cannot be reached from here: --forward forwards ports of this machine to the gateway"
  else
    port=${HTTP_PORT:-18080} secure=${HTTPS_PORT:-18443}
    mkdir -p "${record%/*}"
    nohup kubectl -n "$namespace" port-forward --address 127.0.0.1 "service/$service" "$port:80" "$secure:443" >"$record.log" 2>&1 </dev/null &
    pid=$!
    eventually 20 "the forwarded port $port" answers 127.0.0.1 "$port" || { kill $pid 2>/dev/null || true; cat "$record.log" >&2; exit 1; }
    echo "$pid $namespace/$service $port $secure" >"$record"
    say "$host cannot be reached from here: 127.0.0.1:$port and :$secure are forwarded to $service until scripts/gateway-address.sh --stop"
    host=127.0.0.1
  fi
fi
print "$host" "$port" "$secure"
