#!/usr/bin/env bash
# Sends requests through the gateway, 100 unless told otherwise, and counts the answers, so that Jaeger has something to show.
#
#   scripts/send-requests.sh [--requests 100] [--parallel 1] [--path /hello/service1] [--host service1.cncamp.io]
#                            [--address HOST:PORT] [--cacert certs/ca.crt] [--header 'name: value']...
#
#   --address   where the gateway's HTTPS is; default: what scripts/gateway-address.sh finds
#
# Exit: 0 if every answer was 200, 1 otherwise.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

requests=100 parallel=1 path=/hello/service1 host=service1.cncamp.io address="" cacert=certs/ca.crt headers=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) help "$0"; exit 0 ;;
    --requests | --parallel | --path | --host | --address | --cacert | --header)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      if [ "$1" = --header ]; then headers+=(-H "$2"); else name=${1#--}; printf -v "$name" %s "$2"; fi
      shift 2 ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    *) usage_error "unknown option: $1" ;;
  esac
done
whole requests "$requests"
whole parallel "$parallel"
need curl
[ -s "$cacert" ] || die "no $cacert: scripts/certificate.sh makes it"
if [ -z "$address" ]; then
  variables=$("$top/scripts/gateway-address.sh")
  eval "$variables"
  address=$INGRESS_HOST:$SECURE_INGRESS_PORT
fi
port=${address##*:}

codes=$(seq "$requests" | xargs -P "$parallel" -I{} \
  curl -s -o /dev/null -w '%{http_code}\n' --max-time 30 --cacert "$cacert" --resolve "$host:$port:${address%:*}" ${headers[@]+"${headers[@]}"} \
  "https://$host:$port$path" || true)
sort <<<"$codes" | uniq -c | awk '{printf "%6d x %s\n", $1, $2 == "000" ? "no answer" : $2}'
! grep -qv '^200$' <<<"$codes"
