#!/usr/bin/env bash
# Holds the dashboard and the rules of k8s/components/monitoring to what a hop really exports: promtool checks the rules and runs their unit
# tests; then a real Prometheus with those rules scrapes three hops with traffic, and every query of the dashboard, every query behind a variable
# and every recording rule must return data, and the panels with exemplars an exemplar of a request that was sent.
#
#   scripts/check-monitoring.sh [--install]
#
#   --install    get Prometheus as a system package
#
#   HTTPSERVER   the binary; default: target/debug/httpserver, else target/release/httpserver
#
# Exit: 0 everything returns data, 1 something does not, 2 something needed is missing.
set -euo pipefail
built=${HTTPSERVER:-}
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"

parse "" install "$@"
# The tests have built one; a release build takes minutes.
[ -n "$built" ] || [ ! -x "$top/target/debug/httpserver" ] || HTTPSERVER=$top/target/debug/httpserver
provide prometheus promtool python3 curl httpserver
cd "$top"
component=k8s/components/monitoring work=$top/target/monitoring
rm -rf "$work"
mkdir -p "$work"

# The list below `spec:`, two columns to the left, is what Prometheus reads.
sed -n '/^spec:$/,$p' $component/prometheus-rule.yaml | sed -n 's/^  //p' >"$work/rules.yml"
cp tests/monitoring/rules.yaml "$work/"
promtool check rules "$work/rules.yml"
promtool test rules "$work/rules.yaml"
# Unit tests that pass whatever the rules say would look the same.
sed 's/> 0.05/> 0.6/' "$work/rules.yml" >"$work/broken.yml"
sed 's/rules.yml/broken.yml/' "$work/rules.yaml" >"$work/broken-test.yaml"
! promtool test rules "$work/broken-test.yaml" >/dev/null 2>&1 || die "the unit tests pass with a changed threshold"

pids=()
stop() { [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true; wait; }
trap stop EXIT
read -ra ports < <(free_ports 4)
hop() { # NAME PORT LANE OPTION...
  OTEL_TRACES_EXPORTER=console "$HTTPSERVER" serve --name "$1" --addr "127.0.0.1:$2" --lane "$3" "${@:4}" >"$work/$1.log" 2>&1 &
  pids+=($!)
}
hop service3 "${ports[2]}" gray --fault abort=503@20%
hop service2 "${ports[1]}" base --upstream "http://127.0.0.1:${ports[2]}/service3"
hop service1 "${ports[0]}" base --upstream "http://127.0.0.1:${ports[1]}/service2"
cat >"$work/prometheus.yml" <<YAML
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs:
  - job_name: chain
    static_configs: [{targets: ["127.0.0.1:${ports[0]}", "127.0.0.1:${ports[1]}", "127.0.0.1:${ports[2]}"]}]
YAML
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --enable-feature=exemplar-storage \
  --web.listen-address="127.0.0.1:${ports[3]}" >"$work/prometheus.log" 2>&1 &
pids+=($!)
for port in "${ports[@]:0:3}"; do eventually 30 "port $port" curl -sf "http://127.0.0.1:$port/readyz"; done
eventually 30 "Prometheus" curl -sf "http://127.0.0.1:${ports[3]}/-/ready"

# Traffic until every query has its answer, for a minute and a half at most.
(for _ in $(seq 900); do curl -s "http://127.0.0.1:${ports[0]}/{service1,hello}" >/dev/null; sleep 0.1; done) &
pids+=($!)
python3 - "http://127.0.0.1:${ports[3]}/api/v1/" $component/dashboard.json <<'PYTHON'
import json, re, sys, time, urllib.parse, urllib.request

api, dashboard = sys.argv[1], json.load(open(sys.argv[2]))


def ask(path, **parameters):
    with urllib.request.urlopen(api + path + "?" + urllib.parse.urlencode(parameters)) as answer:
        return json.load(answer)["data"]


def filled(expression):
    for name, value in {"$__rate_interval": "15s", "$service": ".*", "$lane": ".*"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


# (what, whether it has data) for everything that must have some
wanted = []
for variable in dashboard["templating"]["list"]:
    if variable["type"] == "query":
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
        wanted.append((f"variable {variable['name']}", lambda m=metric, l=label: [s[l] for s in ask("series", **{"match[]": m})]))
for panel in dashboard["panels"]:
    for target in panel.get("targets", []):
        expression = filled(target["expr"])
        number = lambda e=expression: [v for v in ask("query", query=e)["result"] if v["value"][1] != "NaN"]
        wanted.append((f"panel {panel['title']!r}: {target['legendFormat']}", number))
        if target["exemplar"]:
            span = lambda: {"start": time.time() - 600, "end": time.time() + 60}
            trace = lambda e=expression: [x["labels"]["trace_id"] for s in ask("query_exemplars", query=e, **span()) for x in s["exemplars"]]
            wanted.append((f"panel {panel['title']!r}: exemplars", trace))
rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
for rule in rules:
    if rule["type"] == "recording":
        wanted.append((f"rule {rule['name']}", lambda n=rule["name"]: ask("query", query=n)["result"]))
assert len(wanted) >= 30 and len(rules) > 10, "the dashboard or the rules were not read as they should be"

end = time.time() + 80
while True:
    empty = [what for what, has in wanted if not has()]
    if not empty or time.time() > end:
        break
    time.sleep(1)
for what in empty:
    print(f"no data: {what}")
broken = [f"{rule['name']}: {rule['lastError']}" for group in ask("rules")["groups"] for rule in group["rules"] if rule["health"] != "ok"]
for what in broken:
    print(f"not evaluated: {what}")
# A query of a metric that does not exist must count as empty.
assert not ask("query", query="rate(httpserver_no_such_metric[15s])")["result"]
print(f"{len(wanted)} queries, {len(empty)} without data; {len(rules)} rules, {len(broken)} not evaluated")
sys.exit(1 if empty or broken else 0)
PYTHON
