#!/usr/bin/env python3
"""Counts the instructions of one request in user space, under valgrind's callgrind.

CPU time on a shared machine is noisy by a tenth and more; this count is the same to a percent whatever else runs, so it tells
whether a change to the request path was worth it. It leaves the kernel out, which is more than half of a request's CPU time:
scripts/bench.sh has the last word. Needs valgrind and what scripts/bench.sh builds.

    python3 benches/instructions.py [case…]       e.g. own-hello own-middle bare-middle
    python3 benches/instructions.py --server target/release/httpserver own-middle --functions 40
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

from run import HEADERS, built, free_port

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


def total(args, case, times, sink, profile):
    which, exporter, path, calls = CASES[case]
    env = {
        **os.environ,
        "OTEL_EXPORTER_ZIPKIN_ENDPOINT": f"http://127.0.0.1:{sink}/api/v2/spans",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{sink}/v1/traces",
    }
    quiet = {"env": env, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    leaf, upstream = None, None
    if calls:
        below = free_port()
        upstream = f"http://127.0.0.1:{below}/service3"
        leaf = subprocess.Popen(
            list(map(str, command(args.server, which, exporter, below, "service3", None))), stderr=subprocess.DEVNULL, **quiet
        )
        wait_for(below)
    port = free_port()
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}"]
    argv += command(args.server, which, exporter, port, "service2", upstream)
    process = subprocess.Popen(list(map(str, argv)), stderr=subprocess.PIPE, text=True, **quiet)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--server", type=Path, default=built("httpserver"))
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="the N costliest functions (needs symbols)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        sink = subprocess.Popen([str(CONTENDERS), "span-sink", f"127.0.0.1:{port}"])
        try:
            wait_for(port)
            for case in args.cases:
                profile = Path(folder) / f"{case}.out"
                few, many = (total(args, case, times, port, profile) for times in (300, 1500))
                print(f"{case:<20}{(many - few) / 1200:>10,.0f} instructions per request", flush=True)
                if args.functions:
                    told = subprocess.run(["callgrind_annotate", profile], capture_output=True, text=True, check=True).stdout
                    print("\n".join(told.splitlines()[20 : 26 + args.functions]))
        finally:
            sink.terminate()
            sink.wait()


if __name__ == "__main__":
    main()
