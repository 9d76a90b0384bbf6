#!/usr/bin/env bash
# The chain reports to a real Zipkin server, and Zipkin's API returns one whole trace for each request.
#
#   scripts/e2e-zipkin.sh [--install] [--missing]
#
#   --install    get what is missing: the server with Maven under target/e2e, Java and Maven by apt
#   --missing    only list what is missing
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#
# Exit: 0 every claim held, 1 one did not (the logs are in target/e2e/logs/zipkin), 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"
options "$@"
provide curl python3 java zipkin httpserver

start_zipkin
collector=$zipkin
start_chain OTEL_TRACES_EXPORTER=zipkin OTEL_EXPORTER_ZIPKIN_ENDPOINT="$zipkin/api/v2/spans"
whole_traces "Zipkin"

services() { get_json "$zipkin/api/v2/services" | python3 -c 'import json, sys; print(*sorted(json.load(sys.stdin)))'; }
claim "Zipkin lists the three services, and no other" becomes "service1 service2 service3" services
# Six requests: the five kinds of caller and the last one.
links() {
  get_json "$zipkin/api/v2/dependencies?endTs=$(date +%s)999" |
    python3 -c 'import json, sys; print(*sorted("%(parent)s>%(child)s=%(callCount)s" % link for link in json.load(sys.stdin)))'
}
claim "Zipkin draws who calls whom" becomes "service1>service2=6 service2>service3=6" links

# Whoever looks for a fault reads the same Zipkin. Exit code 0: whole, every hop's spans there, parents right, all sampled.
checked() { "$HTTPSERVER" check "$front/service1" --expect service1,service2,service3 --traces "$zipkin" --traces-wait "$1" --count 20; }
start_chain OTEL_TRACES_EXPORTER=zipkin OTEL_EXPORTER_ZIPKIN_ENDPOINT="$zipkin/api/v2/spans"
claim "httpserver check reads a healthy chain's trace from Zipkin" checked "${patience}s"
# Somebody who waits at a terminal sees how far it is, and then a report without a trace of that.
bar() {
  python3 - "$logs/terminal.txt" "$HTTPSERVER" check "$front/service1" --count 40 <<'P'
import os, pty, sys
seen = b""
def read(terminal):
    global seen
    data = os.read(terminal, 65536)
    seen += data
    return data
os.environ["TERM"] = "xterm"
with open(os.devnull, "wb") as sink:
    os.dup2(sink.fileno(), 1)
status = os.waitstatus_to_exitcode(pty.spawn(sys.argv[2:], read, lambda _: b""))
open(sys.argv[1], "wb").write(seen)
last = "█" * 24 + " 40/40 requests\x1b[?7h\r\x1b[2K"
text = seen.decode()
sys.exit(status or not (last in text and "█" not in text.split(last)[1] and "Verdict" in text.split(last)[1]))
P
}
claim "on a terminal httpserver check shows its progress, and takes it away again" bar
no_bar() { checked 5s >/dev/null 2>"$logs/beside.txt" && [ ! -s "$logs/beside.txt" ]; }
claim "elsewhere it writes nothing beside the report" no_bar
stop_chain

# A check that finds nothing wrong in a chain that is wrong would be worth nothing.
start_chain OTEL_TRACES_EXPORTER=zipkin OTEL_EXPORTER_ZIPKIN_ENDPOINT="$zipkin/api/v2/spans" \
  DROP_HEADERS=traceparent,x-b3-traceid,x-b3-spanid,x-b3-parentspanid,x-b3-sampled
send broken
found_out() { ! whole_trace "$@" && ! "$HTTPSERVER" trace "$logs/$1.json" --traces "$collector" --traces-wait 3s; }
claim "negative control: a chain whose hops lose the trace headers is found out" found_out broken
told_seam() { ! checked 5s >"$logs/check.txt" && grep -m 1 '✗ Trace broke between service1 and service2' "$logs/check.txt"; }
claim "negative control: httpserver check says where" told_seam
claims_end
