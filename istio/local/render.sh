#!/usr/bin/env bash
# Fills in the Envoy configuration of this folder.
#
#   istio/local/render.sh gateway|sidecar NAME=VALUE...     to stdout
#   istio/local/render.sh --compose DIR                     the gateway of compose.yaml, to DIR/envoy.yaml
#
#   TRACER        otel, zipkin (B3 and W3C) or zipkin-b3; it reports to COLLECTOR
#   NAME          the name under which this proxy reports
#   LISTEN        default 127.0.0.1
#   ADMIN_PORT    default 0: any
#   COLLECTOR, SERVICE1, SERVICE1_GRAY, APP, NEXT, NEXT_GRAY    host:port, or several with commas
#   HTTPS_PORT, HTTP_PORT, PUBLIC_PORT (where port 80 sends people), CERTS    of the gateway
#   INBOUND_PORT, OUTBOUND_PORT                                 of a sidecar
#
# A part that a value is missing for is left out where it may be: the gray lane, the next hop. Anything else is an error.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

die() { printf 'render.sh: %s\n' "$*" >&2; exit 2; }

ports="ADMIN_PORT HTTPS_PORT HTTP_PORT PUBLIC_PORT INBOUND_PORT OUTBOUND_PORT"
declare -A value=([LISTEN]=127.0.0.1 [ADMIN_PORT]=0)

# endpoints HOST:PORT,...: the list as Envoy writes it, on one line
endpoints() {
  local entry list=()
  for entry in ${1//,/ }; do
    [[ $entry =~ ^.+:[0-9]{1,5}$ ]] || die "not host:port: $entry"
    list+=("{endpoint: {address: {socket_address: {address: ${entry%:*}, port_value: ${entry##*:}}}}}")
  done
  local IFS=,
  printf '[%s]' "${list[*]}"
}

# provider TRACER: the tracer's configuration, on one line
provider() {
  local type=type.googleapis.com/envoy.config.trace.v3 option=USE_B3_WITH_W3C_PROPAGATION
  case $1 in
    otel)
      printf '{name: envoy.tracers.opentelemetry, typed_config: {"@type": %s.OpenTelemetryConfig, service_name: "%s", http_service: {http_uri: {uri: "http://collector/v1/traces", cluster: collector, timeout: 2s}}}}' \
        "$type" "${value[NAME]}"
      return ;;
    zipkin) ;;
    zipkin-b3) option=USE_B3 ;;
    *) die "TRACER is otel, zipkin or zipkin-b3, not: $1" ;;
  esac
  printf '{name: envoy.tracers.zipkin, typed_config: {"@type": %s.ZipkinConfig, collector_cluster: collector, collector_endpoint: /api/v2/spans, collector_hostname: collector, collector_endpoint_version: HTTP_JSON, trace_id_128bit: true, shared_span_context: false, trace_context_option: %s}}' \
    "$type" "$option"
}

render() {
  local template=$1 text key drop=()
  for key in NAME TRACER COLLECTOR; do [ -n "${value[$key]:-}" ] || die "$key is missing"; done
  [ -n "${value[NEXT]:-}" ] || drop+=(outbound)
  [ -n "${value[NEXT_GRAY]:-}${value[SERVICE1_GRAY]:-}" ] || drop+=(lanes)
  # Blocks may stand in blocks: a line is kept while no block around it is dropped.
  text=$(awk -v drop=" ${drop[*]} " '
    /^#@end/ { depth--; if (depth < off) off = 0; next }
    /^#@/ { depth++; if (!off && index(drop, " " substr($0, 3) " ")) off = depth; next }
    !off' "$here/$template.yaml")
  text=${text//@TRACER@/$(provider "${value[TRACER]}")}
  for key in COLLECTOR SERVICE1 SERVICE1_GRAY APP NEXT NEXT_GRAY; do
    [ -z "${value[$key]:-}" ] || text=${text//@$key@/$(endpoints "${value[$key]}")}
  done
  for key in NAME LISTEN ADMIN_PORT HTTPS_PORT HTTP_PORT PUBLIC_PORT CERTS INBOUND_PORT OUTBOUND_PORT; do
    [ -z "${value[$key]:-}" ] || text=${text//@$key@/${value[$key]}}
  done
  # Only the lines that are configuration: the comment at the top speaks of @NAMES@.
  ! grep -v '^ *#' <<<"$text" | grep -oE '@[A-Z][A-Z0-9_]*@' | sort -u | grep . >&2 || die "no value for the names above"
  printf '%s\n' "$text"
}

case ${1:-} in
  -h | --help) sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
  --compose)
    [ $# -eq 2 ] || die "--compose DIR"
    value+=([NAME]=gateway [TRACER]=otel [LISTEN]=0.0.0.0 [COLLECTOR]=jaeger:4318 [SERVICE1]=service1:8080
      [HTTPS_PORT]=8443 [HTTP_PORT]=8080 [PUBLIC_PORT]="${HTTPS_PORT:-8443}" [CERTS]=/etc/envoy/certs)
    mkdir -p "$2"
    render gateway >"$2/envoy.yaml"
    ;;
  gateway | sidecar)
    template=$1; shift
    for pair; do
      [[ $pair == [A-Z]*=* ]] || die "not NAME=VALUE: $pair"
      [[ " TRACER NAME COLLECTOR SERVICE1 SERVICE1_GRAY APP NEXT NEXT_GRAY LISTEN CERTS $ports " == *" ${pair%%=*} "* ]] || die "no value is called ${pair%%=*} (see --help)"
      [[ " $ports " != *" ${pair%%=*} "* || ${pair#*=} =~ ^[0-9]{1,5}$ ]] || die "${pair%%=*} is the number of a port, not: ${pair#*=}"
      value[${pair%%=*}]=${pair#*=}
    done
    render "$template"
    ;;
  *) die "gateway, sidecar or --compose (see --help)" ;;
esac
