#!/usr/bin/env python3
"""Counts the instructions of one request in user space, under valgrind's callgrind.

CPU time on a shared machine is noisy by a tenth and more; this count is the same to a percent whatever else runs, so it tells
whether a change to the request path was worth it. It leaves the kernel out, which is more than half of a request's CPU time:
scripts/bench.sh has the last word. Needs valgrind and what scripts/bench.sh builds.

    python3 benches/instructions.py [case…]       e.g. own-hello own-middle bare-middle
    python3 benches/instructions.py --growth      a middle hop whose next hop answers a chain of 1, 2, 5, 9, 10, 20, 49 hops
    python3 benches/instructions.py --server target/release/httpserver own-middle --functions 40
    python3 benches/instructions.py --prices       own mechanisms of telemetry against libraries, alone (benches/prices)
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from canned import CannedHop, flat, replies
from run import HEADERS, ROOT, built, free_port

CONTENDERS = built("contenders")
# Case -> (which server, exporter, path, whether it calls a next hop).
CASES = {
    "bare-hello": ("bare-hyper", None, "/hello", False),
    "own-hello": ("own", "zipkin", "/hello", False),
    "own-hello-otlp": ("own", "otlp", "/hello", False),
    "own-hello-none": ("own", "none", "/hello", False),
    "bare-last": ("bare-chain", None, "/service3", False),
    "own-last": ("own", "zipkin", "/service3", False),
    "bare-middle": ("bare-chain", None, "/service2", True),
    "own-middle": ("own", "zipkin", "/service2", True),
    "own-middle-otlp": ("own", "otlp", "/service2", True),
    "own-middle-none": ("own", "none", "/service2", True),
}


# The depths of the reply that a hop nests, and the middle hops that are compared by it. `flat` nests one reply of as many bytes,
# which is what the bytes alone cost to read and to write.
DEPTHS = (1, 2, 5, 9, 10, 20, 49)

# Mechanism -> the variants of `prices`, ours first.
PRICES = {
    "escape": ("own", "serde_json"),
    "address": ("own", "std"),
    "milliseconds": ("own", "std"),
    "time": ("humantime",),
    "access_line": ("own", "serde_json"),
    "histogram": ("own", "prometheus"),
    "record_span": ("own", "sdk"),
    "encode_zipkin": ("own", "serde_json", "opentelemetry_zipkin"),
    "encode_otlp": ("own", "opentelemetry_otlp"),
    "scrape": ("own", "prometheus"),
}


def prices():
    """Instructions of one run of each mechanism: the difference between few runs and many."""
    binary = next((ROOT / "target/bench").glob("prices/*/release/prices"), ROOT / "target/bench/prices/release/prices")

    def count(case, times):
        argv = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, case, str(times)]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
        return int(re.search(r"Collected : (\d+)", said)[1])

    for mechanism, variants in PRICES.items():
        few, many = (20, 120) if mechanism == "scrape" else (1000, 6000)
        for variant in variants:
            case = f"{mechanism}-{variant}"
            price = (count(case, many) - count(case, few)) / (many - few)
            print(f"{mechanism:<16}{variant:<24}{price:>10,.0f}", flush=True)


def wait_for(port):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def ask(port, path, times):
    """Requests one after the other on one connection."""
    head = [f"GET {path} HTTP/1.1", "host: localhost", "accept: application/json", *HEADERS]
    request = ("\r\n".join(head) + "\r\n\r\n").encode()
    got = b""
    with socket.create_connection(("127.0.0.1", port)) as stream:
        for _ in range(times):
            stream.sendall(request)
            while True:
                end = got.find(b"\r\n\r\n")
                if end >= 0:
                    whole = end + 4 + int(re.search(rb"content-length: (\d+)", got[:end])[1])
                    if len(got) >= whole:
                        assert got.startswith(b"HTTP/1.1 200"), got[:200]
                        got = got[whole:]
                        break
                more = stream.recv(1 << 16)
                assert more, "the server hung up"
                got += more


def command(server, which, exporter, port, name, upstream):
    bind = f"127.0.0.1:{port}"
    if which == "own":
        calls = ["--upstream", upstream] if upstream else []
        return [server, "serve", "--addr", bind, "--name", name, "--trace-exporter", exporter, "--drain-delay", "0s", *calls]
    return [CONTENDERS, which, bind, *([upstream] if upstream else [])]


def run_server(argv, **options):
    return subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)


def environment(sink):
    return {
        **os.environ,
        "OTEL_EXPORTER_ZIPKIN_ENDPOINT": f"http://127.0.0.1:{sink}/api/v2/spans",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{sink}/v1/traces",
    }


def total(args, case, times, sink, profile, upstream=None):
    """The instructions of a server that answers so many requests; `upstream` in place of a next hop of its own kind."""
    which, exporter, path, calls = CASES[case]
    env = environment(sink)
    leaf = None
    if calls and not upstream:
        below = free_port()
        upstream = f"http://127.0.0.1:{below}/service3"
        leaf = run_server(command(args.server, which, exporter, below, "service3", None), env=env, stderr=subprocess.DEVNULL)
        wait_for(below)
    port = free_port()
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}"]
    argv += command(args.server, which, exporter, port, "service2", upstream)
    process = run_server(argv, env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(port)
        ask(port, path, times)
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
        if leaf:
            leaf.kill()
            leaf.wait()
    return int(re.search(r"Collected : (\d+)", said)[1])


def per_request(args, case, sink, profile, upstream=None, times=(300, 1500)):
    few, many = (total(args, case, count, sink, profile, upstream) for count in times)
    return (many - few) / (times[1] - times[0])


def growth(args, sink, profile):
    """What a middle hop costs by the depth of the reply that it nests, and by that reply's bytes."""
    canned = CannedHop()
    ports = free_port(), free_port()
    calls = (None, canned.url)
    hops = [
        run_server(command(args.server, "own", "zipkin", port, "service2", url), env=environment(sink), stderr=subprocess.DEVNULL)
        for port, url in zip(ports, calls)
    ]
    try:
        for port in ports:
            wait_for(port)
        nested = replies(*ports, canned, dict(header.split(": ", 1) for header in HEADERS), DEPTHS)
    finally:
        for hop in hops:
            hop.kill()
            hop.wait()
    print(f"{'nests':>6}{'bytes':>9}{'own-middle':>13}{'flat':>13}{'bare-middle':>13}")
    for depth, reply in nested.items():
        counts = []
        for case, body in (("own-middle", reply), ("own-middle", flat(nested[1], len(reply))), ("bare-middle", reply)):
            canned.body = reply if depth == 1 else body
            counts.append(per_request(args, case, sink, profile, canned.url, (100, 500)))
        print(f"{depth:>6}{len(reply):>9,}" + "".join(f"{count:>13,.0f}" for count in counts), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--server", type=Path, default=built("httpserver"))
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="the N costliest functions (needs symbols)")
    parser.add_argument("--growth", action="store_true", help="by the depth of the reply that a middle hop nests")
    parser.add_argument("--prices", action="store_true", help="own mechanisms against libraries, each alone")
    args = parser.parse_args()
    if args.prices:
        return prices()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        sink = subprocess.Popen([str(CONTENDERS), "span-sink", f"127.0.0.1:{port}"])
        try:
            wait_for(port)
            if args.growth:
                growth(args, port, Path(folder) / "growth.out")
                return
            for case in args.cases:
                profile = Path(folder) / f"{case}.out"
                print(f"{case:<20}{per_request(args, case, port, profile):>10,.0f} instructions per request", flush=True)
                if args.functions:
                    told = subprocess.run(["callgrind_annotate", profile], capture_output=True, text=True, check=True).stdout
                    print("\n".join(told.splitlines()[20 : 26 + args.functions]))
        finally:
            sink.terminate()
            sink.wait()


if __name__ == "__main__":
    main()
