"""What scripts/soak.sh runs: see there.

    load -> Envoy :front -> service1 (2) -> Envoy -> service2 (2) -> Envoy -> service3 (2)

Envoy looks at /readyz and takes a hop that drains out of rotation, as Kubernetes would. Hops report their spans by Zipkin to a
sink in this process, which counts them.
"""

import argparse
import datetime
import http.server
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from ports import free_port

HOPS, COPIES = 3, 2
SPANS_A_REQUEST = 2 * HOPS - 1
# How long anything may take to happen on a machine that is busy with other things.
PATIENCE = 120
# Memory. A life is one process from its start to its restart. One shorter than LONG is all warming up and proves nothing. Of the
# others the median of the last quarter is held against the median of the second: a leak makes every life grow, so the life in the
# middle may grow by no more than TYPICAL; the allocator's and the connections' coming and going makes one or the other grow, but none
# by more than WORST. All in KiB, the first in seconds.
LONG, TYPICAL, WORST, PEAK = 240, 1536, 6 << 10, 64 << 10
# What must not outlive this process.
running = []


def eventually(what, condition):
    """Waits until the condition holds; ends the run when it does not come true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"soak: {what}: not after {PATIENCE} s")


def fetch(port, path):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).read().decode()


class Sink(http.server.ThreadingHTTPServer):
    """Counts the spans of each service."""

    daemon_threads = True

    def __init__(self):
        self.spans, self.lock = {}, threading.Lock()
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                # Cheaper than reading all of it as JSON: one localEndpoint a span.
                found = re.findall(rb'"localEndpoint":\{"serviceName":"(\w+)"', body)
                with sink.lock:
                    for service in found:
                        sink.spans[service.decode()] = sink.spans.get(service.decode(), 0) + 1
                self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Hop:
    """One copy of one hop. It keeps its port over restarts."""

    def __init__(self, number, copy, upstream, sink, folder, drain_delay):
        self.number, self.copy, self.port, self.log = number, copy, free_port(), f"{folder}/service{number}-{copy}.log"
        self.command = [os.environ["HTTPSERVER"], "serve", "--addr", f"127.0.0.1:{self.port}", "--name", f"service{number}"]
        self.command += ["--upstream-timeout", f"{20 - 2 * number}s"]
        self.command += ["--drain-delay", drain_delay]
        if upstream:
            self.command += ["--upstream", f"http://127.0.0.1:{upstream}/service{number + 1}"]
        self.env = {
            "OTEL_TRACES_EXPORTER": "zipkin",
            "OTEL_EXPORTER_ZIPKIN_ENDPOINT": f"http://127.0.0.1:{sink.server_port}/api/v2/spans",
        }
        open(self.log, "w").close()
        # Of each process in turn: when, and its resident memory in KiB.
        self.lives, self.exits = [], []
        self.start()

    def start(self):
        with open(self.log, "a") as log, open(self.log + ".err", "a") as err:
            self.process = subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=err)
        running.append(self.process)
        self.lives.append([])
        eventually(f"service{self.number} is ready ({self.log}.err)", lambda: fetch(self.port, "/readyz"))

    def restart(self):
        self.stop()
        self.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.exits.append(self.process.wait(timeout=PATIENCE))
        running.remove(self.process)

    def weigh(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        self.lives[-1].append((time.monotonic(), kib))

    def expected_spans(self):
        """A server span for each traced request, and a client span where there is a next hop."""
        with open(self.log) as log:
            traced = sum(" trace=" in line for line in log)
        return traced * (2 if self.number < HOPS else 1)


def envoy_config(hops, fronts, admin):
    def cluster(number):
        endpoints = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": hop.port}}}}
            for hop in hops
            if hop.number == number
        ]
        return {
            "name": f"service{number}",
            "type": "STATIC",
            "connect_timeout": "5s",
            # One copy of two is what a rollout leaves: that is no panic, in which Envoy would send to copies that are not ready.
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "health_checks": [
                {
                    # The kubelet's patience with a probe, and the speed at which a Terminating pod leaves its Service.
                    "timeout": "10s",
                    "interval": "0.5s",
                    "no_traffic_interval": "0.5s",
                    "unhealthy_threshold": 1,
                    "healthy_threshold": 1,
                    "http_health_check": {"path": "/readyz"},
                }
            ],
            "load_assignment": {"cluster_name": f"service{number}", "endpoints": [{"lb_endpoints": endpoints}]},
        }

    def listener(number, port):
        router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
        only_errors = {
            "status_code_filter": {
                "comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "soak"}},
            }
        }
        errors = {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {
                "text_format_source": {
                    "inline_string": f"service{number} %START_TIME% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% "
                    "%UPSTREAM_HOST% %UPSTREAM_TRANSPORT_FAILURE_REASON% %DURATION%ms\n"
                }
            },
        }
        # No retries: a request that a restart loses must show.
        route = {"match": {"prefix": "/"}, "route": {"cluster": f"service{number}", "timeout": "0s"}}
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": f"service{number}",
            "generate_request_id": True,
            "access_log": [{"name": "envoy.access_loggers.stdout", "filter": only_errors, "typed_config": errors}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        return {
            "name": f"service{number}",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": filters}],
        }

    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "static_resources": {
            "listeners": [listener(number, fronts[number]) for number in fronts],
            "clusters": [cluster(number) for number in fronts],
        },
    }


def load(front, rate, seconds, connections=200):
    url = f"http://127.0.0.1:{front}/service1"
    command = [os.environ["LOAD"], "--rate", str(rate), "--seconds", str(seconds), "--connections", str(connections), url]
    running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    return running[-1]


def healthy(admin):
    return fetch(admin, "/clusters").count("::health_flags::healthy")


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak.sh")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=60)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--drain-delay", default="5s")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="soak-")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("soak: stopped"))
    sink, hops = Sink(), []
    fronts = {number: free_port() for number in range(1, HOPS + 1)}
    try:
        for number in range(HOPS, 0, -1):
            for copy in range(COPIES):
                hops.append(Hop(number, copy, fronts.get(number + 1), sink, folder, args.drain_delay))
        admin = free_port()
        with open(f"{folder}/envoy.json", "w") as config:
            json.dump(envoy_config(hops, fronts, admin), config)
        with open(f"{folder}/envoy.log", "w") as log:
            command = [os.environ["ENVOY"], "-c", f"{folder}/envoy.json", "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn"]
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
        eventually(f"Envoy sees every hop ({folder}/envoy.log)", lambda: healthy(admin) == len(hops))
        rate, measured = args.rate, 0
        if not rate:
            measured = told(load(fronts[1], 0, 10, 32))["requests"]
            rate = measured / 10 / 2
            print(f"the chain takes {2 * rate:.0f} requests a second here, so the load is {rate:.0f}", flush=True)
        restarts, wanted, minutes, result = soak(args, rate, fronts[1], admin, hops)
        for hop in hops:
            hop.stop()
        sys.exit(verdict(args, rate, restarts, wanted, minutes, result, measured, hops, sink, folder))
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()


def told(loading):
    """What a load tells at its end."""
    result = json.loads(loading.communicate()[0])
    running.remove(loading)
    return result


def soak(args, rate, front, admin, hops):
    # Hop after hop, the front first: its restarts are the ones that callers would see. By the clock every service in turn, so that
    # the shortest run restarts one of each.
    order = sorted(hops, key=lambda hop: (hop.number, hop.copy) if args.rounds else (hop.copy, hop.number))
    seconds = args.minutes * 60
    # By the clock none begins so late that the load would end before it has.
    wanted = args.rounds * len(hops) if args.rounds else int(max(0, seconds - 30) // args.every) + 1
    # It is stopped when all is done; this is only to end, should all else fail.
    loading = load(front, rate, 24 * 3600)
    begun, restarts = time.monotonic(), 0
    while restarts < wanted or (not args.rounds and time.monotonic() - begun < seconds):
        if loading.poll() is not None:
            sys.exit("soak: the load ended early")
        if restarts < wanted and time.monotonic() - begun >= 1 + restarts * (0 if args.rounds else args.every):
            hop = order[restarts % len(order)]
            hop.restart()
            # In again before the next one goes out: a rollout waits for ready.
            eventually(f"Envoy sees service{hop.number} again", lambda: healthy(admin) == len(hops))
            restarts += 1
        time.sleep(0.2)
        for hop in hops:
            hop.weigh()
    minutes = (time.monotonic() - begun) / 60
    loading.send_signal(signal.SIGTERM)
    return restarts, wanted, minutes, told(loading)


def growth(hops):
    """How much each life that was long enough has grown from its second quarter to its last, in KiB, the smallest first."""
    grown = []
    for life in (life for hop in hops for life in hop.lives if life and life[-1][0] - life[0][0] >= LONG):
        begun, length = life[0][0], life[-1][0] - life[0][0]
        second, last = (
            statistics.median(kib for when, kib in life if first <= (when - begun) / length <= first + 0.25) for first in (0.25, 0.75)
        )
        grown.append(last - second)
    return sorted(grown)


def mib(kib):
    return f"{kib / 1024:.1f} MiB"


def verdict(args, rate, restarts, wanted, minutes, result, measured, hops, sink, folder):
    from_logs = {f"service{n}": sum(hop.expected_spans() for hop in hops if hop.number == n) for n in range(1, HOPS + 1)}
    codes = [code for hop in hops for code in hop.exits]
    failed = {status: told["count"] for status, told in result["statuses"].items() if status != "200"}
    ok = result["statuses"].get("200", {"count": 0, "p50_ms": 0, "p99_ms": 0, "max_ms": 0})
    expected = SPANS_A_REQUEST * (ok["count"] + measured)
    arrived = sum(sink.spans.values())
    grown, peak = growth(hops), max(kib for hop in hops for life in hop.lives for _, kib in life)
    typical, worst = (statistics.median(grown), grown[-1]) if grown else (0, 0)
    memory = (
        f"of {len(grown)} lives of {LONG // 60} minutes or more the one in the middle grew by {mib(typical)} from its second quarter to its"
        f" last, the most by {mib(worst)}; at most {mib(peak)} a hop"
        if grown
        else f"at most {mib(peak)} a hop; no life was long enough to look for a leak"
    )
    claims = [
        (
            f"no request failed: {ok['count']} at {rate:.0f} a second ({result['unsent']} not sent for want of connections), "
            f"p50 {ok['p50_ms']} ms, p99 {ok['p99_ms']} ms",
            not failed and not result["errors"] and ok["count"] > 0,
            {**failed, **result["errors"]},
        ),
        (
            f"every restart was made under load and every process ended with 0: {restarts} restarts, {len(codes)} ends",
            restarts == wanted and len(codes) == restarts + len(hops) and not any(codes),
            {"wanted": wanted, "codes": codes},
        ),
        (
            f"no span was lost: {arrived}, which is {SPANS_A_REQUEST} a request",
            sink.spans == from_logs and (arrived == expected or failed or result["errors"]),
            {"by the requests": expected, "by the access logs": from_logs, "arrived": sink.spans},
        ),
        (f"memory is flat: {memory}", typical <= TYPICAL and worst <= WORST and peak <= PEAK, {"KiB": grown}),
    ]
    for text, held, why in claims:
        print(f"  {'ok  ' if held else 'FAIL'}  {text}" + ("" if held else f"\n          {why}, logs in {folder}"))
    version = subprocess.run([os.environ["ENVOY"], "--version"], capture_output=True, text=True).stdout
    version = next(iter(re.findall(r"/(\d+\.\d+)\.\d+/", version)), "")
    one = f"every hop restarted {args.rounds} times" if args.rounds else f"one restarted every {args.every:.0f} s"
    lost = sum(failed.values()) + sum(result["errors"].values())
    print(
        f"\nfor docs/reliability.md, {datetime.date.today()}, {os.cpu_count()} cores:\n"
        f"| {minutes:.0f} minutes at {rate:.0f} requests a second through a real Envoy {version}, three hops of two copies, {one} "
        f"| `{shlex.join(['scripts/soak.sh', *sys.argv[1:]])}` "
        f"| {ok['count']:,} requests, {lost} failed; {restarts} restarts and {len(hops)} stops, "
        f"{'exit code 0 each' if not any(codes) else f'exit codes {sorted(set(codes))}'}; {arrived:,} spans, {expected - arrived} lost; {memory} |"
    )
    return 0 if all(held for _, held, _ in claims) else 1


main()
