"""What scripts/soak.sh runs: see there.

    load -> Envoy :front -> service1 (2) -> Envoy -> service2 (2) -> Envoy -> service3 (2)

Envoy looks at /readyz and takes a hop that drains out of rotation, as Kubernetes would. Hops report their spans by Zipkin to a
sink in this process, which counts them.
"""

import argparse
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HOPS, COPIES = 3, 2
# What must not outlive this process beside the hops.
running = []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


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
        self.memory, self.exits = [], []
        self.start()

    def start(self):
        with open(self.log, "a") as log, open(self.log + ".err", "a") as err:
            self.process = subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=err)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).read()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit(f"soak: service{self.number} does not come up, see {self.log}.err")

    def restart(self):
        self.stop()
        self.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.exits.append(self.process.wait(timeout=60))

    def resident(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

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
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


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
        for attempt in range(300):
            try:
                clusters = urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=5).read().decode()
                if clusters.count("::health_flags::healthy") == HOPS * COPIES:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        else:
            sys.exit(f"soak: Envoy does not see every hop, see {folder}/envoy.log")
        rate = args.rate
        if not rate:
            capacity = json.loads(load(fronts[1], 0, 10, 32).communicate()[0])["requests"] / 10
            rate = capacity / 2
            print(f"the chain takes {capacity:.0f} requests a second here, so the load is {rate:.0f}", flush=True)
        sys.exit(soak(args, rate, fronts[1], hops, sink, folder))
    finally:
        for process in [hop.process for hop in hops] + running:
            if process.poll() is None:
                process.kill()


def soak(args, rate, front, hops, sink, folder):
    # Front first: its restarts are the ones that callers would see.
    order = sorted(hops, key=lambda hop: (hop.number, hop.copy))
    seconds = args.minutes * 60
    if args.rounds:
        # A restart takes the drain delay, the drain and the start; what is left over is plain load.
        seconds = args.rounds * len(hops) * 8 + 10
    loading = load(front, rate, seconds)
    running.append(loading)
    begun, restarts = time.monotonic(), 0
    while True:
        now = time.monotonic() - begun
        if args.rounds:
            if restarts == args.rounds * len(hops) or loading.poll() is not None:
                break
        elif now >= seconds - 30:
            break
        due = 1 + restarts * (0 if args.rounds else args.every)
        if now >= due:
            order[restarts % len(order)].restart()
            # In again before the next one goes out: a rollout waits for ready.
            time.sleep(1.5)
            restarts += 1
        else:
            time.sleep(0.2)
        for hop in hops:
            hop.memory.append((time.monotonic() - begun, hop.process.pid, hop.resident()))
    result = json.loads(loading.communicate()[0])
    for hop in hops:
        hop.stop()
    expected = {f"service{n}": sum(hop.expected_spans() for hop in hops if hop.number == n) for n in range(1, HOPS + 1)}
    codes = [code for hop in hops for code in hop.exits]
    # After a minute of warming up a process may not grow: the last quarter of each long life beside its second.
    growth = []
    for hop in hops:
        lives = {}
        for when, pid, kib in hop.memory:
            lives.setdefault(pid, []).append((when, kib))
        for life in lives.values():
            if life[-1][0] - life[0][0] > 240:
                quarter = len(life) // 4
                early, late = life[quarter : 2 * quarter], life[3 * quarter :]
                before, after = (sum(kib for _, kib in part) / len(part) for part in (early, late))
                growth.append((after / before, after - before))
    peak = max(kib for hop in hops for _, _, kib in hop.memory)
    failed = {status: told["count"] for status, told in result["statuses"].items() if status != "200"}
    ok = result["statuses"].get("200", {"count": 0, "p50_ms": 0, "p99_ms": 0, "max_ms": 0})
    claims = [
        (
            f"no request failed: {ok['count']} at {rate:.0f} a second ({result['unsent']} not sent for want of connections), p50 {ok['p50_ms']} ms, p99 {ok['p99_ms']} ms",
            not failed and not result["errors"] and ok["count"] > 0,
            {**failed, **result["errors"]},
        ),
        (f"every process ended with 0: {restarts} restarts, {len(codes)} ends", not any(codes), codes),
        (f"no span was lost: {sum(expected.values())}", expected == sink.spans, {"expected": expected, "arrived": sink.spans}),
        (
            f"memory is flat: at most {peak // 1024} MiB a hop"
            + (f", late over early {max(growth)[0]:.2f} at most ({max(growth)[1] / 1024:.1f} MiB)" if growth else ", no life was long enough to compare"),
            # A few MiB come and go with the number of connections; a leak does not stay below both.
            all(ratio < 1.2 or kib < 8 << 10 for ratio, kib in growth) and peak < 200 << 10,
            growth,
        ),
    ]
    for text, held, why in claims:
        print(f"  {'ok  ' if held else 'FAIL'}  {text}" + ("" if held else f"\n          {why}, logs in {folder}"))
    return 0 if all(held for _, held, _ in claims) else 1


main()
