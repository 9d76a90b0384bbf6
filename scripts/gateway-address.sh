#!/usr/bin/env bash
# Finds where the ingress gateway can be reached, and prints it as variables for your shell:
#   eval "$(scripts/gateway-address.sh)"
#   curl --resolve "service1.cncamp.io:$SECURE_INGRESS_PORT:$INGRESS_HOST" "https://service1.cncamp.io:$SECURE_INGRESS_PORT/hello/service1"
#
#   scripts/gateway-address.sh [--namespace istio-system] [--service istio-ingressgateway]
#
# Prints INGRESS_HOST, INGRESS_PORT, SECURE_INGRESS_PORT, GATEWAY_URL. A gateway with an address of a load balancer has ports 80 and 443;
# one without is reached at a node, by the NodePorts of its Service. For the Gateway API: --namespace httpserver --service httpserver-istio.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

namespace=istio-system service=istio-ingressgateway
parse "namespace service" "" "$@"
need kubectl

get() { kubectl -n "$namespace" get service "$service" -o jsonpath="$1"; }
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
[ -n "$host" ] && [ -n "$secure" ] || die "$service has neither a load balancer's address nor NodePorts yet"

printf 'export INGRESS_HOST=%s\nexport INGRESS_PORT=%s\nexport SECURE_INGRESS_PORT=%s\nexport GATEWAY_URL=%s:%s\n' "$host" "$port" "$secure" "$host" "$port"
