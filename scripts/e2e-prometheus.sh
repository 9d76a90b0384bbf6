#!/usr/bin/env bash
# A real Prometheus scrapes the three hops, and its API returns the histograms with their labels, and exemplars that lead to the traces.
#
#   scripts/e2e-prometheus.sh [--install] [--missing]
#
#   --install    get what is missing: Debian's package "prometheus" (which, where systemd runs, starts a server of its own on port 9090)
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#
# Exit: 0 every claim held, 1 one did not (the logs are in target/e2e/logs/prometheus), 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"
options "$@"
provide curl python3 prometheus promtool httpserver

requests=7
# Spans are written to stderr: exemplars need traces, not a collector.
start_chain OTEL_TRACES_EXPORTER=console OTEL_BSP_SCHEDULE_DELAY=100

{
  printf 'global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n- job_name: chain\n  static_configs:\n'
  for n in 1 2 3; do printf '  - {targets: ["%s"], labels: {hop: service%s}}\n' "${hops[n - 1]#http://}" "$n"; done
} >"$logs/prometheus.yml"
start prometheus prometheus --config.file="$logs/prometheus.yml" --storage.tsdb.path="$logs/data" --enable-feature=exemplar-storage \
  --web.listen-address=127.0.0.1:0
address() { said "$logs/prometheus.err" 'msg="Listening on" address=([^ ]*)'; }
ready "$pid" "Prometheus listens" address
prometheus=http://$(address)
ready "$pid" "Prometheus is ready" get_json "$prometheus/-/ready"

# query EXPRESSION: "service1=3 service2=3", by the label hop
query() {
  get_json -G --data-urlencode "query=$1" "$prometheus/api/v1/query" | python3 -c '
import json, sys
print(*sorted("%s=%s" % (one["metric"].get("hop", ""), one["value"][1]) for one in json.load(sys.stdin)["data"]["result"]))'
}
each() { echo "service1=$1 service2=$1 service3=$1"; }
claim "every hop is up" becomes "$(each 1)" query 'up{job="chain"}'

ids=()
for ((n = 1; n <= requests; n++)); do
  ids+=("$(new_id 16)")
  send "reply$n" "x-b3-traceid: ${ids[n - 1]}" "x-b3-spanid: $(new_id 8)" "x-b3-sampled: 1"
done

ours='http_request_method="GET",http_route="/service{n}",http_response_status_code="200"'
claim "the histogram counts every request, with method, route and status" \
  becomes "$(each $requests)" query "http_server_request_duration_seconds_count{$ours}"
claim "its last bucket has them all" becomes "$(each $requests)" query "http_server_request_duration_seconds_bucket{le=\"+Inf\",$ours}"
claim "a quantile can be had of it, above 0 and below 10 s" \
  becomes "$(each 1)" query "(0 < histogram_quantile(0.9, http_server_request_duration_seconds_bucket{$ours}) < bool 10)"
claim "the calls to the next hop are counted where they are made" \
  becomes "service1=$requests service2=$requests" query 'http_client_request_duration_seconds_count{server_address="127.0.0.1",http_response_status_code="200"}'
claim "who runs there is told" becomes "$(each 1)" query 'httpserver_build_info{service_version="v1",lane="base",service=~"service[123]"}'
claim "every span is counted as exported" becomes "service1=$((2 * requests)) service2=$((2 * requests)) service3=$requests" query httpserver_spans_exported_total
claim "no span was lost" becomes "$(each 0)" query 'sum by (hop) (httpserver_spans_dropped_total)'
claim "the process tells its memory" becomes "$(each 1)" query 'process_resident_memory_bytes > bool 1e6'

# exemplars HOP: "ours" when there are some and each is of a trace that was sent
exemplars() {
  get_json -G --data-urlencode "query=http_server_request_duration_seconds_bucket{hop=\"$1\",$ours}" -d "start=$since" \
    -d "end=$(($(date +%s) + 60))" "$prometheus/api/v1/query_exemplars" | python3 -c '
import json, sys
found = {one["labels"]["trace_id"] for series in json.load(sys.stdin)["data"] for one in series["exemplars"]}
print("ours" if found and found <= set(sys.argv[1:]) else sorted(found))' "${ids[@]}"
}
since=$(($(date +%s) - SECONDS - 60))
for n in 1 2 3; do claim "an exemplar of service$n leads to the trace of one of the requests" becomes ours exemplars "service$n"; done

lint() { get_json "$1/metrics" | promtool check metrics; }
for n in 1 2 3; do claim "promtool finds nothing to mend in the metrics of service$n" lint "${hops[n - 1]}"; done

stop_chain
claim "SIGTERM ends every hop with exit code 0" is "0 0 0" "$hop_statuses"
claims_end
