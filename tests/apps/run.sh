#!/usr/bin/env bash
# Runs `httpserver probe` on small apps with real frameworks, each in right and wrong variants, and compares the verdicts with the
# expected ones. Installs from the package registries into a scratch folder, so neither `cargo test` nor CI calls it.
#
#   tests/apps/run.sh [WORD…]      only the rows whose name has one of the words; all rows: writes the table into docs/probe.md
#
# APPS_DIR: the scratch folder (default /tmp/httpserver-apps; what is installed there is used again).
# HTTPSERVER: the binary (default target/debug/httpserver).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
scratch=${APPS_DIR:-/tmp/httpserver-apps}
probe=${HTTPSERVER:-$root/target/debug/httpserver}
mkdir -p "$scratch"

# name | kind | variant | what is right or wrong about it | more options | exit code | checks that fail
rows() {
    cat <<'ROWS'
Flask, OpenTelemetry, requests|flask|otel|right: server and client are instrumented|--expect w3c,baggage|0|
Flask, OpenTelemetry, requests|flask|bare-client|wrong: the client is not instrumented||1|probe.context
Flask, OpenTelemetry, requests|flask|pool|wrong: calls from a thread pool without the context||1|probe.context
Flask, OpenTelemetry, requests|flask|sampler|wrong: the sampler is not parent-based||1|probe.sampling
Flask, requests|flask|copies|right: copies the headers|--expect w3c,b3,b3-single,x-request-id,baggage|0|
Flask, requests|flask|copies-async|right: copies the headers, and calls after its answer|--expect w3c,b3|0|
Flask, requests|flask|global|wrong: the headers are in a global||1|probe.cross-talk
Flask, requests|flask|request-id-only|wrong: forwards only `x-request-id`||1|probe.context
Flask, requests|flask|drops|wrong: forwards nothing||1|probe.context
FastAPI, OpenTelemetry, httpx|fastapi|otel|right: server and client are instrumented|--expect w3c,baggage|0|
FastAPI, OpenTelemetry, httpx|fastapi|bare-client|wrong: the client is not instrumented||1|probe.context
FastAPI, OpenTelemetry, httpx|fastapi|b3-only|wrong: reads B3 alone, and its callers send W3C|--expect w3c|1|probe.w3c
FastAPI, httpx|fastapi|context-var|right: copies the headers, in a context variable|--expect w3c,x-request-id|0|
FastAPI, httpx|fastapi|global|wrong: the headers are in a global||1|probe.cross-talk
Flask, py_zipkin|zipkin|right|right: continues B3|--expect b3|0|
Flask, py_zipkin|zipkin|no-headers|wrong: the client sends no headers||1|probe.context
Flask, py_zipkin|zipkin|short|wrong: trace ids of 64 bits||1|probe.b3 probe.context
Express, OpenTelemetry, fetch|node|otel|right: server and client are instrumented|--expect w3c,baggage|0|
Express, OpenTelemetry, fetch|node|bare-client|wrong: the client is not instrumented||1|probe.context
Express, OpenTelemetry, fetch|node|doubled|wrong: copies `traceparent` by hand, too||1|probe.w3c probe.context
Express, OpenTelemetry, fetch|node|sampler|wrong: the sampler is not parent-based||1|probe.sampling
Express, fetch|node|copies|right: copies the headers|--expect w3c,b3,b3-single,x-request-id,baggage|0|
Express, fetch|node|global|wrong: the headers are in a global||1|probe.cross-talk
Express, fetch|node|drops|wrong: forwards nothing||1|probe.context
Go net/http, otelhttp|go|otel|right: server and client are instrumented|--expect w3c,baggage|0|
Go net/http, otelhttp|go|no-context|wrong: the call is made without the request's context||1|probe.context
Go net/http, otelhttp|go|no-propagator|wrong: no propagator is set||1|probe.context
Go net/http|go|copies|right: copies the headers|--expect w3c,b3,b3-single,x-request-id,baggage|0|
Go net/http|go|drops|wrong: forwards nothing||1|probe.context
Spring Boot, Micrometer with Brave|spring|builder|right: RestTemplate made by the builder|--expect w3c|0|
Spring Boot, Micrometer with Brave|spring|new|wrong: RestTemplate made by `new`||1|probe.context
Spring Boot, Micrometer with Brave|spring|pool|wrong: calls from a thread pool without the context||1|probe.context
ROWS
}

# Installs a kind once; its standard error says what is missing.
install() {
    local dir=$scratch/$1
    case $1 in
    flask | fastapi | zipkin)
        [ -x "$scratch/python/bin/python" ] || { python3 -m venv "$scratch/python" && "$scratch/python/bin/pip" install -q -r "$here/python/requirements.txt"; }
        ;;
    node)
        mkdir -p "$dir" && cp "$here/node/"* "$dir" && { [ -d "$dir/node_modules" ] || npm --prefix "$dir" install --no-audit --no-fund --silent; }
        ;;
    go)
        mkdir -p "$dir" && cp "$here/go/main.go" "$dir" && { [ -e "$dir/go.sum" ] || { cp "$here/go/go.mod" "$dir" && (cd "$dir" && GOFLAGS=-mod=mod go mod tidy); }; } &&
            (cd "$dir" && go build -o app .)
        ;;
    spring)
        mkdir -p "$dir" && cp -r "$here/spring/." "$dir" && { [ "$dir/target/app.jar" -nt "$here/spring/src/main/java/app/App.java" ] || (cd "$dir" && mvn -q -B package); }
        ;;
    esac
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() { # kind
    case $1 in
    flask | fastapi | zipkin) exec "$scratch/python/bin/python" "$here/python/$1_app.py" ;;
    node) exec node "$scratch/node/app.cjs" ;;
    go) exec "$scratch/go/app" ;;
    spring) exec java -jar "$scratch/spring/target/app.jar" --server.port="$PORT" ;;
    esac
}

app=
stop() {
    if [ -n "$app" ]; then
        kill "$app" 2>/dev/null || true
        wait "$app" 2>/dev/null || true
    fi
    app=
}
trap stop EXIT

table=$scratch/table.md
printf '| app | variant | verdict | checks that fail |\n|---|---|---|---|\n' >"$table"
wrong=0 total=0
declare -A installed
while IFS='|' read -r name kind variant what options code failing; do
    if [ $# -gt 0 ]; then
        chosen=
        for word in "$@"; do case "$kind $variant" in *"$word"*) chosen=1 ;; esac; done
        [ -n "$chosen" ] || continue
    fi
    if [ -z "${installed[$kind]:-}" ]; then
        if install "$kind" >"$scratch/$kind.install.log" 2>&1; then installed[$kind]=yes; else
            installed[$kind]=no
            echo "$kind: not installed, its rows are left out: see $scratch/$kind.install.log" >&2
        fi
    fi
    if [ "${installed[$kind]}" = no ]; then wrong=$((wrong + 1)); continue; fi
    PORT=$(free_port) downstream=$(free_port)
    export PORT VARIANT=$variant NEXT=http://127.0.0.1:$downstream
    log=$scratch/$kind-$variant
    start "$kind" >"$log.log" 2>&1 </dev/null &
    app=$!
    for _ in $(seq 600); do
        if (: <"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then break; fi
        sleep 0.1
    done
    got=0
    # shellcheck disable=SC2086 # the options are words
    "$probe" probe "http://127.0.0.1:$PORT/orders?id={nonce}" --downstream "127.0.0.1:$downstream" $options --output json >"$log.json" </dev/null || got=$?
    stop
    failed=$(python3 -c 'import json, sys; print(*[c["id"] for c in json.load(open(sys.argv[1]))["checks"] if c["status"] == "fail"])' "$log.json")
    total=$((total + 1))
    if [ "$got" = "$code" ] && [ "$failed" = "$failing" ]; then mark=ok; else
        mark=WRONG wrong=$((wrong + 1))
        echo "$name, $variant: expected exit $code and [$failing], got exit $got and [$failed]: see $log.json" >&2
    fi
    printf '%-5s %-36s %-16s exit %s  %s\n' "$mark" "$name" "$variant" "$got" "$failed"
    verdict=$([ "$got" = 0 ] && echo passes || echo "does not pass")
    [ -z "$options" ] || what="$what (\`$options\`)"
    # shellcheck disable=SC2016 # the backquotes are Markdown
    printf '| %s | %s | %s | %s|\n' "$name" "$what" "$verdict" "$(for id in $failed; do printf '`%s` ' "$id"; done)" >>"$table"
done < <(rows)
echo "$((total - wrong)) of $total verdicts as expected"
[ "$wrong" = 0 ] || exit 1
if [ $# = 0 ]; then
    sed -i -e "/^<!-- apps: begin/,/^<!-- apps: end/{//!d}" -e "/^<!-- apps: begin/r $table" "$root/docs/probe.md"
fi
