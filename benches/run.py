#!/usr/bin/env python3
"""Runs the contenders in rotation, reads the CPU time of the server processes, writes tables, JSON and a chart.

Standard library only. Started by scripts/bench.sh, which builds what is measured here. What each figure means and how
each contender was brought to the same job stands in the tables that it writes.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from ports import free_port

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# What a mesh's ingress adds to a request: every contender gets the same. The trace is sampled.
HEADERS = [
    "x-request-id: 5f0c2a52-6a5f-4b53-b0f6-6a1c5c2d7b11",
    "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01",
    "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124",
    "x-b3-spanid: a2fb4a1d1a96d312",
    "x-b3-sampled: 1",
]
# The load generator is the bottleneck when its threads were busy for more of the time than this.
GENERATOR_LIMIT = 0.90
QUEUE = {"OTEL_BSP_MAX_QUEUE_SIZE": "16384", "OTEL_BSP_SCHEDULE_DELAY": "1000"}


def built(name):
    """What scripts/bench.sh built; a path that does not exist where it did not."""
    return next((ROOT / "target/bench").glob(f"rust*/*/release/{name}"), ROOT / "target/bench" / name)


def fetch(url, headers=()):
    request = urllib.request.Request(url, headers=dict(header.split(": ", 1) for header in headers))
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.status, answer.read()


def cpu_seconds(pid):
    """utime + stime of a process and all its threads, also ended ones, in nanosecond steps.

    The process's CPU clock: what /proc/PID/stat shows in ticks of 10 ms, which is too coarse for a short round.
    """
    return time.clock_gettime((~pid << 3) | 2)


def status_kb(pid, field):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M)[1])


def connections_of(port):
    """The connections that callers have or had open to a port of ours: open ones and those in TIME_WAIT."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            local, remote = (end.rsplit(":", 1) for end in fields[1:3])
            if int(remote[1], 16) == port:
                found.add(local[1])
            elif int(local[1], 16) == port and remote[1] != "0000":
                found.add(remote[1])
    return found


class Server:
    """One server process: started on a free port, its stdout to a file, ended by its own pid."""

    def __init__(self, bench, name, command, env=None, port=None, ready="/healthz"):
        self.name, self.port = name, port or free_port()
        self.log = bench.out / f"{name}.log"
        self.errors = bench.out / f"{name}.err"
        argv = [str(part).replace("{port}", str(self.port)) for part in command]
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("wb"),
            stderr=self.errors.open("wb"),
            env={**{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}, **QUEUE, **(env or {})},
        )
        bench.servers.append(self)
        deadline = time.monotonic() + 15
        while True:
            try:
                fetch(self.url(ready))
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not answer: {self.errors.read_text()[-500:]}") from None
                time.sleep(0.02)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.pids = [self.process.pid, *map(int, children)]

    def url(self, path=""):
        return f"http://127.0.0.1:{self.port}{path}"

    def cpu(self):
        return sum(cpu_seconds(pid) for pid in self.pids)

    def rss_kb(self):
        return sum(status_kb(pid, "VmRSS") for pid in self.pids)

    def peak_kb(self):
        return sum(status_kb(pid, "VmHWM") for pid in self.pids)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Load:
    """One run of wrk and what it cost."""

    def __init__(self, url, seconds, connections=16, threads=2, headers=HEADERS, pause_ms=None):
        argv = ["wrk", "-t", min(threads, connections), "-c", connections, "-d", f"{seconds}s", "-s", HERE / "load.lua"]
        for header in ["accept: application/json", *headers]:
            argv += ["-H", header]
        argv += [url, "--", pause_ms or 0]
        begun = time.monotonic()
        process = subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        text = process.stdout.read()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        wall = time.monotonic() - begun
        result = re.search(r"^RESULT (.*)$", text, re.M)
        if not result:
            raise RuntimeError(f"wrk failed: {text[-400:]}")
        seen = json.loads(result[1])
        self.requests, self.failed = seen["requests"], seen["failed"]
        self.p50_us, self.p99_us = seen["p50_us"], seen["p99_us"]
        self.rate = self.requests / seen["seconds"]
        self.generator_busy = (usage.ru_utime + usage.ru_stime) / wall / min(threads, connections)


class Contender:
    """Servers that do one job together, and the rounds measured of them."""

    def __init__(self, name, servers, url, spans=0, job="", leaves_out="", sink=None, logs=False):
        self.name, self.servers, self.url, self.spans = name, servers, url, spans
        self.job, self.leaves_out, self.sink, self.logs = job, leaves_out, sink, logs
        self.us, self.by_server, self.rates, self.busy = [], [], [], []
        self.requests = self.failed = self.exported = self.log_bytes = 0
        self.connections = 0
        self.idle_kb = self.peak_kb = 0
        self.p50, self.p99 = [], []

    @property
    def refused(self):
        """Why there is no ratio, if there is none."""
        if self.failed:
            return f"{self.failed} requests failed"
        if self.busy and statistics.median(self.busy) > GENERATOR_LIMIT:
            return "the load generator was the bottleneck"
        return None

    @property
    def median(self):
        return statistics.median(self.us)

    def middle(self):
        return statistics.median(cpu[1] for cpu in self.by_server)


class Bench:
    def __init__(self, args):
        self.args, self.out, self.servers = args, args.out, []
        self.results = {}
        self.missing = []
        self.product = args.server.resolve()
        self.off = built("telemetry-off")
        if not self.off.exists():
            print("bench: no telemetry-off here, so its rows keep the access log", file=sys.stderr)
            self.off = self.product
        self.off_keeps = "spans" if self.off == self.product else "spans, access log"
        self.contenders = built("contenders")

    # -- who takes part -------------------------------------------------------------------------------------------------

    def sink(self, delay_ms=0):
        name = "sink" if not delay_ms else "slow-sink"
        return Server(self, name, [self.contenders, "span-sink", "127.0.0.1:{port}", delay_ms], ready="/count")

    def spans_at(self, sink):
        return json.loads(fetch(sink.url("/count"))[1])["spans"]

    def hop(self, name, service, upstreams=(), exporter="zipkin", sink=None, binary=None, extra=()):
        env = {}
        if sink:
            env = {
                "OTEL_EXPORTER_ZIPKIN_ENDPOINT": sink.url("/api/v2/spans"),
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": sink.url("/v1/traces"),
            }
        command = [binary or self.product, "serve", "--addr", "127.0.0.1:{port}", "--name", service]
        command += ["--trace-exporter", exporter if sink else "none", *extra]
        for upstream in upstreams:
            command += ["--upstream", upstream]
        return Server(self, name, command, env)

    def chain(self, label, make):
        """Three servers, the last one first; `make(name, n, upstream)` starts one."""
        third = make(f"{label}3", 3, None)
        second = make(f"{label}2", 2, third)
        return [make(f"{label}1", 1, second), second, third]

    def own_chain(self, label, sink, exporter="zipkin", binary=None, scheme="http"):
        return self.chain(
            label,
            lambda name, n, up: self.hop(
                name, f"service{n}", [up.url(f"/service{n + 1}").replace("http", scheme, 1)] if up else [], exporter, sink, binary
            ),
        )

    def nginx(self):
        if not shutil.which("nginx"):
            self.missing.append(("one hop", "nginx, access log to a file", "nginx is not installed"))
            return None
        port = free_port()
        config = self.out / "nginx.conf"
        config.write_text(
            f"""daemon off; worker_processes 2; pid {self.out}/nginx.pid; error_log {self.out}/nginx-error.log;
            events {{ worker_connections 4096; }}
            http {{
              access_log {self.out}/nginx-access.log combined; keepalive_requests 1000000000; default_type text/plain;
              client_body_temp_path {self.out}/nginx-tmp; proxy_temp_path {self.out}/nginx-tmp;
              fastcgi_temp_path {self.out}/nginx-tmp; uwsgi_temp_path {self.out}/nginx-tmp; scgi_temp_path {self.out}/nginx-tmp;
              server {{ listen 127.0.0.1:{port} reuseport; location / {{ return 200 "Hello from service1 v1 (localhost)\\n"; }} }}
            }}"""
        )
        server = Server(self, "nginx", ["nginx", "-p", self.out, "-c", config], port=port)
        server.log = self.out / "nginx-access.log"
        return server

    def go(self, name, group):
        path = self.out / "go" / name
        if path.exists():
            return path
        self.missing.append((group, name, "does not build here (go is missing, or see the build log)"))
        return None

    def one_hop(self, sink):
        bind = "127.0.0.1:{port}"
        full = not self.args.quick
        bare = Server(self, "bare-hyper", [self.contenders, "bare-hyper", bind])
        rows = [Contender("bare hyper", [bare], bare.url("/hello"), job="hyper on tokio, one fixed answer", leaves_out="everything else")]
        own = self.hop("own-hello", "service1", sink=sink)
        rows.append(
            Contender("httpserver, everything on (Zipkin)", [own], own.url("/hello"), 1, sink=sink, logs=True,
                      job="span, access line, histogram with exemplar, request id", leaves_out="nothing"))
        otlp = self.hop("own-hello-otlp", "service1", exporter="otlp", sink=sink)
        rows.append(
            Contender("httpserver, everything on (OTLP)", [otlp], otlp.url("/hello"), 1, sink=sink, logs=True,
                      job="the same, spans as protobuf", leaves_out="nothing"))
        off = self.hop("off-hello", "service1", binary=self.off)
        rows.append(Contender("httpserver, telemetry off", [off], off.url("/hello"),
                              job="metrics and request id", leaves_out=self.off_keeps))
        if nginx := self.nginx():
            rows.append(Contender("nginx, access log to a file", [nginx], nginx.url("/hello"), logs=True,
                                  job="`return 200`, combined log, 2 workers", leaves_out="spans, metrics, request id"))
        obvious = Server(self, "obvious-hello", [self.contenders, "obvious", bind, "service1", sink.url("/v1/traces")])
        rows.append(Contender("obvious composition", [obvious], obvious.url("/hello"), 1, sink=sink, logs=True,
                              job="axum::serve, TraceLayer, JSON logs, tracing-opentelemetry, OTLP",
                              leaves_out="metrics, request id, header and idle timeouts"))
        if full and (path := self.go("go-httpbin", "one hop")):
            go = Server(self, "go-httpbin", [path, "-host", "127.0.0.1", "-port", "{port}"], ready="/status/200")
            rows.append(Contender("go-httpbin, /status/200", [go], go.url("/status/200"), logs=True,
                                  job="Go net/http, access line", leaves_out="spans, metrics, request id"))
        if path := self.go("podinfo", "one hop"):
            info = self.podinfo(path, "podinfo-hello", sink)
            rows.append(Contender("podinfo, traced", [info], info.url("/echo"), 2, sink=sink,
                                  job="`/echo` without a backend, OTLP over gRPC, metrics", leaves_out="access log, request id"))
        return rows

    def podinfo(self, path, name, sink, backend=None):
        command = [path, "--host=127.0.0.1", "--port={port}", "--level=info", f"--otel-service-name={name}"]
        if backend:
            command.append(f"--backend-url={backend}")
        return Server(self, name, command, {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url()})

    def fake_service(self, path, name, sink, upstream):
        port = free_port()
        # Without keep-alive, its default, connections would be most of the cost.
        env = {"LISTEN_ADDR": f"127.0.0.1:{port}", "NAME": name, "TRACING_ZIPKIN": sink.url(), "UPSTREAM_URIS": upstream,
               "HTTP_SERVER_KEEP_ALIVES": "true", "HTTP_CLIENT_KEEP_ALIVES": "true"}
        return Server(self, name, [path], env, port=port, ready="/health")

    def three_hops(self, sink):
        bind = "127.0.0.1:{port}"
        bare = self.chain(
            "bare",
            lambda name, n, up: Server(
                self, name, [self.contenders, "bare-chain", bind, *([up.url(f"/service{n + 1}")] if up else [])]
            ),
        )
        rows = [Contender("bare chain", bare, bare[0].url("/service1"), job="axum::serve, hyper-util client, 8 headers carried",
                          leaves_out="all telemetry; the answer is a name and the next hop's answer")]
        own = self.own_chain("own", sink)
        rows.append(Contender("httpserver, everything on (Zipkin)", own, own[0].url("/service1"), 5, sink=sink, logs=True,
                              job="3 access lines, histograms, the reply tree", leaves_out="nothing"))
        otlp = self.own_chain("own-otlp", sink, "otlp")
        rows.append(Contender("httpserver, everything on (OTLP)", otlp, otlp[0].url("/service1"), 5, sink=sink, logs=True,
                              job="the same, spans as protobuf", leaves_out="nothing"))
        for name, scheme in (("h2c", "h2c"), ("gRPC", "grpc")):
            over = self.own_chain(f"own-{scheme}", sink, "otlp", scheme=scheme)
            rows.append(Contender(f"httpserver over {name} (OTLP)", over, over[0].url("/service1"), 5, sink=sink, logs=True,
                                  job=f"as above, the hops call each other over {name}", leaves_out="nothing"))
        off = self.own_chain("off", None, binary=self.off)
        rows.append(Contender("httpserver, telemetry off", off, off[0].url("/service1"),
                              job="metrics, request id, the reply tree", leaves_out=self.off_keeps))
        for kind, name, job in (("obvious", "obvious composition", "as above, reqwest"),
                                ("obvious-grpc", "obvious composition over gRPC", "as above, tonic")):
            obvious = self.chain(
                kind,
                lambda name, n, up, kind=kind: Server(
                    self,
                    name,
                    [self.contenders, kind, bind, f"service{n}", sink.url("/v1/traces")]
                    + ([up.url(f"/service{n + 1}" if kind == "obvious" else "")] if up else []),
                ),
            )
            rows.append(Contender(name, obvious, obvious[0].url("/service1"), 5, sink=sink, logs=True, job=job,
                                  leaves_out="metrics, request id, the reply tree"))
        if path := self.go("fake-service", "chain of three"):
            for kind, name in (("http", "fake-service, HTTP"), ("grpc", "fake-service, gRPC")):
                fake = self.chain(
                    f"fake-{kind}",
                    lambda name, n, up, kind=kind: self.fake_service(path, name, sink, up.url().replace("http", kind) if up else ""),
                )
                rows.append(Contender(name, fake, fake[0].url("/"), None, sink=sink, logs=True,
                                      job="Zipkin spans, log at info, a reply tree", leaves_out="metrics, request id"))
        if path := self.go("podinfo", "chain of three"):
            info = self.chain("podinfo", lambda name, n, up: self.podinfo(path, name, sink, up.url("/echo") if up else None))
            rows.append(Contender("podinfo, traced", info, info[0].url("/echo"), None, sink=sink,
                                  job="GET /echo fans out to its one backend, OTLP over gRPC, metrics",
                                  leaves_out="access log, request id, the reply tree"))
        return rows

    # -- measuring ------------------------------------------------------------------------------------------------------

    def drained(self, contender, want):
        """Waits until the exporters have handed over what the round made, or nothing more comes."""
        deadline, last, since = time.monotonic() + 6, -1, time.monotonic()
        while time.monotonic() < deadline:
            now = self.spans_at(contender.sink)
            if want is not None and now >= want:
                return now
            if now != last:
                last, since = now, time.monotonic()
            # Longer than the exporters' schedule of 1 s.
            elif time.monotonic() - since > 1.6:
                return now
            time.sleep(0.05)
        return self.spans_at(contender.sink)

    def round(self, contender, seconds):
        first = not contender.us
        spans = self.spans_at(contender.sink) if contender.sink else 0
        log = sum(server.log.stat().st_size for server in contender.servers)
        known = [connections_of(server.port) for server in contender.servers[1:]] if first else []
        before = [server.cpu() for server in contender.servers]
        load = Load(contender.url, seconds)
        if contender.sink:
            want = None if contender.spans is None else spans + load.requests * contender.spans
            contender.exported += self.drained(contender, want) - spans
        cpu = [server.cpu() - begun for server, begun in zip(contender.servers, before)]
        if first:
            opened = [connections_of(server.port) - old for server, old in zip(contender.servers[1:], known)]
            contender.connections = sum(map(len, opened))
            contender.first_requests = load.requests
        contender.us.append(sum(cpu) / load.requests * 1e6)
        contender.by_server.append([one / load.requests * 1e6 for one in cpu])
        contender.rates.append(load.rate)
        contender.busy.append(load.generator_busy)
        contender.requests += load.requests
        contender.failed += load.failed
        contender.log_bytes += sum(server.log.stat().st_size for server in contender.servers) - log
        contender.peak_kb = max(server.peak_kb() for server in contender.servers)

    def rotate(self, group, rows, rounds, seconds):
        for row in rows:
            for _ in range(3):
                status, _ = fetch(row.url, HEADERS)
                assert 200 <= status < 300, (row.name, status)
            row.idle_kb = max(server.rss_kb() for server in row.servers)
            Load(row.url, 1)
            if row.sink:
                self.drained(row, None)
        for number in range(1, rounds + 1):
            for row in rows:
                print(f"\rbench: {group}, round {number} of {rounds}: {row.name:<40}", end="", file=sys.stderr)
                self.round(row, seconds)
                row.log_bytes_per = row.log_bytes / row.requests
        print(file=sys.stderr)

    def latency(self, rows, rounds, seconds):
        for number in range(1, rounds + 1):
            for row in rows:
                print(f"\rbench: latency, round {number} of {rounds}: {row.name:<40}", end="", file=sys.stderr)
                load = Load(row.url, seconds, connections=1)
                row.p50.append(load.p50_us)
                row.p99.append(load.p99_us)
                row.failed += load.failed
        print(file=sys.stderr)

    def start_time(self, times):
        """Microseconds from exec to the first 200, the best of the product and of the floor."""
        took = {}
        for name, command in {
            "httpserver": [self.product, "serve", "--trace-exporter", "zipkin", "--addr", "127.0.0.1:{port}"],
            "bare hyper": [self.contenders, "bare-hyper", "127.0.0.1:{port}"],
        }.items():
            seen = []
            for _ in range(times):
                port = free_port()
                argv = [str(part).replace("{port}", str(port)) for part in command]
                tool = [str(self.contenders), "first-200", f"127.0.0.1:{port}", "/hello", "--", *argv]
                seen.append(int(subprocess.run(tool, capture_output=True, text=True, check=True).stdout))
            took[name] = seen
        return took

    def memory(self, sink):
        """RSS after 1 million requests, and after 10,000 connections opened and closed."""
        hop = self.hop("memory", "service1", sink=sink)
        fetch(hop.url("/hello"))
        points = [("at the start", hop.rss_kb())]
        served = 0
        for million in (1, 2, 3, 4):
            while served < million * 250_000:
                served += Load(hop.url("/hello"), 2, connections=16).requests
            time.sleep(1.5)
            points.append((f"after {served:,} requests", hop.rss_kb()))
        for turn in (1, 2):
            tool = [str(self.contenders), "connections", f"127.0.0.1:{hop.port}", "/hello", "5000"]
            assert subprocess.run(tool, capture_output=True, text=True, check=True).stdout.strip() == "5000"
            time.sleep(1.5)
            points.append((f"after {turn * 5000:,} more connections, opened and closed", hop.rss_kb()))
        hop.stop()
        return points

    def slow_collector(self):
        """Every span is delivered, dropped and counted, or still queued: nothing is lost in silence."""
        sink = self.sink(delay_ms=400)
        hop = self.hop("slow", "service1", sink=sink)
        load = Load(hop.url("/hello"), 4)
        time.sleep(0.2)

        def metric(name, label=""):
            lines = fetch(hop.url("/metrics"))[1].decode().splitlines()
            return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and label in line)

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            made = metric("http_server_request_duration_seconds_count", '"/hello"')
            exported, dropped = metric("httpserver_spans_exported_total"), metric("httpserver_spans_dropped_total")
            if exported + dropped >= made:
                break
            time.sleep(0.5)
        counted = {"requests": int(made), "exported": int(exported), "dropped_and_counted": int(dropped),
                   "at_the_sink": self.spans_at(sink), "failed": load.failed}
        hop.stop()
        sink.stop()
        return counted

    def cost(self, servers, url, seconds, rounds, **load):
        """Median CPU per request of all servers, and the rate; a failed request is an error."""
        seen, rates, p50, p99 = [], [], [], []
        for _ in range(rounds):
            before = [server.cpu() for server in servers]
            run = Load(url, seconds, **load)
            time.sleep(1.2)
            if run.failed:
                raise RuntimeError(f"{run.failed} requests failed at {url}")
            seen.append(sum(server.cpu() - begun for server, begun in zip(servers, before)) / run.requests * 1e6)
            rates.append(run.rate)
            p50.append(run.p50_us)
            p99.append(run.p99_us)
        return {"us": statistics.median(seen), "rate": statistics.median(rates),
                "p50_us": statistics.median(p50), "p99_us": statistics.median(p99)}

    def curves(self, sink):
        curves = {}
        hops, upstream = [], None
        for n in range(10, 0, -1):
            hops.insert(0, self.hop(f"deep{n}", f"service{n}", [upstream] if upstream else [], sink=sink))
            upstream = hops[0].url(f"/service{n}")
        print("bench: curve of hops", file=sys.stderr)
        curves["hops"] = [
            (n, self.cost(hops[-n:], hops[-n].url(f"/service{11 - n}"), 2, 3)) for n in range(1, 11)
        ]
        leaf = hops[-1].url("/service10")
        for hop in hops[:-1]:
            hop.stop()
        print("bench: curve of fan-out", file=sys.stderr)
        curves["fan-out"] = []
        for n in (1, 2, 5, 10, 20, 50):
            front = self.hop(f"wide{n}", "service1", [leaf] * n, sink=sink)
            curves["fan-out"].append((n, self.cost([front, hops[-1]], front.url("/service1"), 2, 3)))
            front.stop()
        print("bench: curve of concurrency", file=sys.stderr)
        last = self.hop("busy2", "service2", sink=sink, extra=["--max-concurrency", "4096"])
        front = self.hop("busy1", "service1", [last.url("/service2")], sink=sink, extra=["--max-concurrency", "4096"])
        curves["concurrency"] = [
            (n, self.cost([front, last], front.url("/service1"), 3, 3, connections=n)) for n in (1, 4, 16, 64, 256, 1000, 2000)
        ]
        print("bench: curve of headers", file=sys.stderr)
        every = HEADERS + [
            "tracestate: a=1", "baggage: user=1", "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1",
            "x-b3-parentspanid: a2fb4a1d1a96d311", "x-b3-flags: 0", "x-ot-span-context: a;b;c;d",
            "x-cloud-trace-context: 463ac35c9f6413ad48485a3953bb6124/1;o=1", "grpc-trace-bin: AAB", "x-datadog-trace-id: 1",
            "x-datadog-parent-id: 1", "x-datadog-sampling-priority: 1", "sw8: 1-a-b-3-c-d-e-f", "x-lane: base",
        ]
        curves["headers"] = [
            (len(headers), self.cost([front, last], front.url("/service1"), 2, 3, headers=headers))
            for headers in ([], HEADERS, every)
        ]
        front.stop()
        last.stop()
        hops[-1].stop()
        return curves

    def half_load(self, row):
        """p50 and p99 at half of the rate at which the chain is saturated: 64 callers who pause between requests."""
        callers, half = 64, statistics.median(row.rates) / 2
        pause = callers / half * 1000
        seen = []
        for _ in range(3):
            run = Load(row.url, 5, connections=callers, pause_ms=f"{pause:.3f}")
            # The pause does not count the answer's own time; one correction gets near enough to half.
            pause *= run.rate / half
            seen.append(run)
        return {"rate": seen[-1].rate, "of_saturation": seen[-1].rate / half / 2,
                "p50_us": statistics.median(run.p50_us for run in seen[1:]),
                "p99_us": statistics.median(run.p99_us for run in seen[1:]), "failed": sum(run.failed for run in seen)}

    # -- the run --------------------------------------------------------------------------------------------------------

    def run(self):
        args = self.args
        rounds, seconds = (args.rounds or 3, 1) if args.quick else (args.rounds or 11, 2)
        results = {"machine": machine(), "quick": args.quick, "rounds": rounds, "seconds": seconds}
        sink = self.sink()
        parts = args.only.split(",") if args.only else ["one-hop", "chain", "latency", "start", "memory", "slow", "half", "curves"]
        one = chain = []
        if "one-hop" in parts:
            one = self.one_hop(sink)
            self.rotate("one hop", one, rounds, seconds)
            for row in one:
                for server in row.servers:
                    server.stop()
        if "chain" in parts or "latency" in parts or "half" in parts:
            chain = self.three_hops(sink)
            for row in [row for row in chain if args.rows and not any(name in row.name for name in args.rows.split(","))]:
                chain.remove(row)
                for server in row.servers:
                    server.stop()
        if "chain" in parts:
            self.rotate("chain of three", chain, rounds, seconds)
        if "latency" in parts:
            self.latency(chain[:2] if args.quick else chain, rounds, seconds)
        if "half" in parts and not args.quick:
            results["half_load"] = self.half_load(chain[1])
        for server in (server for row in chain for server in row.servers):
            server.stop()
        if "start" in parts:
            results["start_us"] = self.start_time(5 if args.quick else 40)
        results["binary_bytes"] = self.product.stat().st_size
        allocations = built("allocations")
        if allocations.exists():
            results["allocations"] = subprocess.run([allocations], capture_output=True, text=True, check=True).stdout
        if not args.quick:
            if "slow" in parts:
                results["slow_collector"] = self.slow_collector()
            if "memory" in parts:
                results["memory_kb"] = self.memory(sink)
            if "curves" in parts:
                results["curves"] = self.curves(sink)
        results["one_hop"] = [told(row, one[0]) for row in one if row.us]
        results["chain"] = [told(row, chain[0]) for row in chain if row.us or row.p50]
        results["missing"] = self.missing
        results["machine"]["load_at_the_end"] = os.getloadavg()
        return results


def machine():
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1])

    def first_line(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return "unknown"

    return {
        "cpu": cpu[1] if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**20),
        "kernel": os.uname().release,
        "rustc": first_line("rustc", "--version"),
        "commit": first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
        "load_at_the_start": os.getloadavg(),
    }


def told(row, floor):
    """What is written down of a contender."""
    told = {"name": row.name, "job": row.job, "leaves_out": row.leaves_out, "refused": row.refused, "requests": row.requests,
            "idle_kb": row.idle_kb, "peak_kb": row.peak_kb, "connections_opened": row.connections}
    if row.us:
        ordered = sorted(row.us)
        told |= {
            "us": row.median, "us_rounds": row.us, "us_low": ordered[0], "us_high": ordered[-1],
            "us_by_hop": [statistics.median(hop) for hop in zip(*row.by_server)],
            "rate": statistics.median(row.rates), "generator_busy": statistics.median(row.busy),
            "log_bytes": row.log_bytes / row.requests,
            "spans": row.exported / row.requests if row.sink else 0.0,
            "spans_lost": max(0, row.requests * row.spans - row.exported) if row.spans else None,
        }
        if not row.refused and not floor.refused:
            # Rounds that ran next to each other are compared with each other, so that a busy minute cancels out.
            ratios = sorted(own / base for own, base in zip(row.us, floor.us))
            told |= {"ratio": row.median / floor.median, "ratio_low": ratios[0], "ratio_high": ratios[-1],
                     "ratio_median_of_rounds": statistics.median(ratios)}
    if row.p50:
        told |= {"p50_us": statistics.median(row.p50), "p99_us": statistics.median(row.p99)}
    return told


def ratio(row):
    if row.get("ratio") is None:
        return row["refused"] or "no ratio: " + "its floor has none"
    return f"{row['ratio']:.2f} x ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"


def find(rows, name):
    return next((row for row in rows if row["name"].startswith(name) and "us" in row), None)


def targets(results):
    """The figures that the project promises, as rows of (what, target, measured, met)."""
    one, chain = results["one_hop"], results["chain"]
    rows = []

    def compare(what, limit, left, right, value):
        if not left or not right:
            rows.append((what, limit, "not measured", None))
        elif left["refused"] or right["refused"]:
            rows.append((what, limit, "no ratio: " + (left["refused"] or right["refused"]), None))
        else:
            measured = value(left, right)
            rows.append((what, limit, f"{measured:.2f} x", measured <= limit))

    us = lambda left, right: left["us"] / right["us"]
    # The manifests and Compose deploy OTLP.
    for exporter, hello, three in (("OTLP", 1.5, 1.3), ("Zipkin", 1.45, 1.25)):
        own, bare = find(one, f"httpserver, everything on ({exporter}"), find(one, "bare")
        compare(f"`/hello`, everything on, by {exporter}, against bare hyper", hello, own, bare, us)
        own, bare = find(chain, f"httpserver, everything on ({exporter}"), find(chain, "bare")
        compare(f"the chain of three, everything on, by {exporter}, against the bare chain", three, own, bare, us)
    for name in ("h2c", "gRPC"):
        compare(f"the chain over {name}, against the same over HTTP/1.1", 1.5, find(chain, f"httpserver over {name}"),
                find(chain, "httpserver, everything on (OTLP"), us)
    compare("a middle hop, everything on, against telemetry off", 1.2, own, find(chain, "httpserver, telemetry off"),
            lambda on, off: on["us_by_hop"][1] / off["us_by_hop"][1])
    compare("the chain, everything on, against the obvious composition", 0.5, own, find(chain, "obvious composition"), us)
    compare("the chain, everything on, against podinfo, traced", 0.125, own, find(chain, "podinfo"), us)
    if own and bare and "p50_us" in own and "p50_us" in bare:
        for field, limit in (("p50_us", 1.3), ("p99_us", 2.0)):
            compare(f"latency of the chain with one client, {field[:3]}, against the bare chain", limit, own, bare,
                    lambda left, right, field=field: left[field] / right[field])
    lost = [row["spans_lost"] for row in one + chain if row["name"].startswith("httpserver, everything on") and "us" in row]
    made = sum(row["requests"] * round(row["spans"]) for row in one + chain if row["name"].startswith("httpserver, everything on") and "us" in row)
    if lost:
        rows.append(("spans lost at full load, default queue", 0, f"{int(sum(lost))} of {made:,}", sum(lost) == 0))
    if slow := results.get("slow_collector"):
        gone = slow["requests"] - slow["exported"] - slow["dropped_and_counted"]
        rows.append(("spans of a collector that cannot keep up: neither delivered nor counted as dropped", 0,
                     f"{gone} of {slow['requests']:,} ({slow['dropped_and_counted']:,} dropped and counted)", gone == 0))
    if own:
        rows.append(("memory of a hop, idle", "6 MB", f"{own['idle_kb'] / 1024:.1f} MB", own["idle_kb"] <= 6 * 1024))
        peak = max(row["peak_kb"] for row in one + chain if row["name"].startswith("httpserver, everything on"))
        rows.append(("memory of a hop under full load, peak", "24 MB", f"{peak / 1024:.1f} MB", peak <= 24 * 1024))
    size = results["binary_bytes"]
    rows.append(("release binary", "6 MB", f"{size / 1e6:.2f} MB", size <= 6e6))
    if start := results.get("start_us"):
        median = statistics.median(start["httpserver"])
        rows.append(("start to the first 200", "5 ms", f"{median / 1000:.1f} ms", median <= 5000))
    if memory := results.get("memory_kb"):
        warm, last = memory[1][1], memory[-1][1]
        rows.append(("memory after 1 million requests and 10,000 connections, against after 250,000 requests", "flat",
                     f"{last / 1024:.1f} MB against {warm / 1024:.1f} MB", last <= warm * 1.1))
    if half := results.get("half_load"):
        spread = half["p99_us"] / half["p50_us"]
        rows.append((f"p99 of the chain at {half['of_saturation']:.0%} of its saturation, against its own p50", 6, f"{spread:.1f} x", spread <= 6))
    return rows


def markdown(results):
    lines = []
    box = results["machine"]
    lines.append(
        f"{box['date']}, commit {box['commit']}, {box['rustc']}; {box['cores']} cores of {box['cpu']}, {box['memory_gib']} GiB, "
        f"Linux {box['kernel']}; load average {box['load_at_the_start'][0]:.1f} before and {box['load_at_the_end'][0]:.1f} after. "
        f"{results['rounds']} rounds of {results['seconds']} s in rotation, wrk with 2 threads and 16 connections on the same machine.\n"
    )
    lines += ["### Targets\n", "| what | target | measured | |", "|---|---|---|---|"]
    for what, limit, measured, met in targets(results):
        limit = f"<= {limit} x" if isinstance(limit, float) or limit == 6 else ("flat" if limit == "flat" else f"<= {limit}")
        lines.append(f"| {what} | {limit} | {measured} | {'met' if met else '' if met is None else '**missed**'} |")
    for title, key in (("One hop", "one_hop"), ("Chain of three hops", "chain")):
        rows = [row for row in results[key] if "us" in row]
        if not rows:
            continue
        lines += ["", f"### {title}\n", "| contender | CPU us per request | by hop | against the first row (spread) | requests/s |",
                  "|---|---|---|---|---|"]
        for row in rows:
            hops = " / ".join(f"{hop:.1f}" for hop in row["us_by_hop"])
            lines.append(f"| {row['name']} | {row['us']:.1f} ({row['us_low']:.1f}-{row['us_high']:.1f}) | {hops} | {ratio(row)} | {row['rate']:,.0f} |")
        lines += [f"| {name} | | | {why} | |" for group, name, why in results["missing"]
                  if (group == "one hop") == (key == "one_hop")]
        lines += ["", "| contender | its job | spans per request at the sink | log bytes per request | connections opened between hops "
                  "| generator busy | memory idle / peak MB | leaves out |", "|---|---|---|---|---|---|---|---|"]
        for row in rows:
            lines.append(
                f"| {row['name']} | {row['job']} | {row['spans']:.2f} | {row['log_bytes']:.0f} | {row['connections_opened']} "
                f"| {row['generator_busy']:.0%} | {row['idle_kb'] / 1024:.1f} / {row['peak_kb'] / 1024:.1f} | {row['leaves_out']} |")
    timed = [row for row in results["chain"] if "p50_us" in row]
    if timed:
        lines += ["", "### Latency of the chain, one client\n", "| contender | p50 us | p99 us |", "|---|---|---|"]
        lines += [f"| {row['name']} | {row['p50_us']:.0f} | {row['p99_us']:.0f} |" for row in timed]
    if start := results.get("start_us"):
        lines += ["", "### Start to the first 200\n", "| | median ms | best ms |", "|---|---|---|"]
        lines += [f"| {name} | {statistics.median(us) / 1000:.1f} | {min(us) / 1000:.1f} |" for name, us in start.items()]
    if memory := results.get("memory_kb"):
        lines += ["", "### Memory over time\n", "| when | RSS MB |", "|---|---|"]
        lines += [f"| {when} | {kb / 1024:.1f} |" for when, kb in memory]
    if allocations := results.get("allocations"):
        lines += ["", "### Allocations of a request, in the hop that serves it\n", "```", allocations.rstrip(), "```"]
    if curves := results.get("curves"):
        for name, points in curves.items():
            lines += ["", f"### Curve: {name}\n", "| " + name + " | CPU us per request | requests/s | p50 ms | p99 ms |", "|---|---|---|---|---|"]
            lines += [f"| {n} | {c['us']:.1f} | {c['rate']:,.0f} | {c['p50_us'] / 1000:.2f} | {c['p99_us'] / 1000:.2f} |" for n, c in points]
    return "\n".join(lines) + "\n"


def chart(results):
    """Bars: CPU per request, one hop above, chain below; ours in colour."""
    width, left, bar, gap = 860, 250, 20, 9
    parts, y = [], 14
    for title, key in (("One hop: CPU per request, µs", "one_hop"), ("Chain of three hops: CPU per request, µs", "chain")):
        rows = [row for row in results[key] if "us" in row and not row["refused"]]
        if not rows:
            continue
        y += 16
        parts.append(f'<text x="0" y="{y}" class="title">{title}</text>')
        y += 14
        scale = (width - left - 120) / max(row["us"] for row in rows)
        for row in sorted(rows, key=lambda row: row["us"]):
            own = "own" if row["name"].startswith("httpserver") else "other"
            length = max(2, row["us"] * scale)
            parts.append(f'<text x="{left - 8}" y="{y + 14}" class="name">{row["name"]}</text>')
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar}" rx="2" class="{own}"/>')
            times = f" · {row['ratio']:.2f} x" if row.get("ratio") else ""
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 14}" class="figure">{row["us"]:.1f}{times}</text>')
            y += bar + gap
        y += 12
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}.name{text-anchor:end}.figure{fill:#57606a}"
        ".own{fill:#2f6feb}.other{fill:#afb8c1}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.figure{fill:#9198a1}.other{fill:#484f58}.own{fill:#4c8dff}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img" '
        f'aria-label="CPU time per request of httpserver and of other ways to do the same job"><style>{style}</style>'
        + "".join(parts)
        + "</svg>\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the main rows, 3 short rounds")
    parser.add_argument("--rounds", type=int, help="rounds in rotation (11, quick 3)")
    parser.add_argument("--only", help="parts, comma separated: one-hop, chain, latency, start, memory, slow, half, curves")
    parser.add_argument("--rows", help="of the chain only the contenders with one of these in their name, comma separated")
    parser.add_argument("--server", type=Path, default=built("httpserver"), help="the product's binary")
    parser.add_argument("--out", type=Path, default=ROOT / "target/bench", help="where results are written")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    try:
        results = bench.run()
    finally:
        for server in bench.servers:
            server.stop()
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    (args.out / "results.md").write_text(text)
    (args.out / "chart.svg").write_text(chart(results))
    print(text)
    print(f"written: {args.out}/results.json, results.md, chart.svg", file=sys.stderr)


if __name__ == "__main__":
    main()
