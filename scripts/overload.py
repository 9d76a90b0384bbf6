"""What scripts/overload.sh runs: see there."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request


def load(base, path, rate, seconds, connections):
    command = [os.environ["LOAD"], "--rate", str(rate), "--seconds", str(seconds), "--connections", str(connections), base + path]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(process):
    return json.loads(process.communicate()[0])


def retry_after(base):
    """The header of one answer that was shed; None when none was within some tries."""
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{base}/hello", timeout=10).read()
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return error.headers.get("retry-after")
    return None


def main():
    parser = argparse.ArgumentParser(prog="scripts/overload.sh")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--latency", type=int, default=250)
    parser.add_argument("--limit", type=int, default=1024)
    args = parser.parse_args()
    command = [os.environ["HTTPSERVER"], "serve", "--addr", "127.0.0.1:0", "--latency", f"{args.latency}ms"]
    command += ["--max-concurrency", str(args.limit)]
    hop = subprocess.Popen(command, env={}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found[1] for found in (re.search(r"serving address=(\S+)", line) for line in hop.stderr) if found)
        base = f"http://{address}"
        saturation = args.limit * 1000 / args.latency
        quiet = told(load(base, "/hello", saturation / 20, 10, 512))["statuses"]["200"]
        # Twice what the hop holds at once: what is shed comes back at once, and needs few.
        flood = load(base, "/hello", 4 * saturation, args.seconds, 4 * args.limit)
        probes = [load(base, path, 10, args.seconds, 16) for path in ("/healthz", "/metrics")]
        time.sleep(args.seconds / 2)
        retry = retry_after(base)
        flooded = told(flood)
        # The load's last requests are answered by now; a second to recover is all it gets.
        time.sleep(1)
        after = told(load(base, "/hello", saturation / 20, 5, 512))
        probes = [told(probe) for probe in probes]
    finally:
        hop.kill()
    accepted, shed = (flooded["statuses"].get(status, {"count": 0, "p99_ms": 0.0}) for status in ("200", "503"))
    others = {status: count for status, count in flooded["statuses"].items() if status not in ("200", "503")}
    recovered = after["statuses"].get("200", {"count": 0, "p99_ms": 0.0})
    probed = [probe["statuses"].get("200", {"count": 0, "p99_ms": 0.0}) for probe in probes]
    claims = [
        (f"quiet: {saturation / 20:.0f} a second, p50 {quiet['p50_ms']} ms, p99 {quiet['p99_ms']} ms", True, ""),
        (
            f"offered {4 * saturation:.0f} a second: {accepted['count'] / args.seconds:.0f} accepted, "
            f"{shed['count'] / args.seconds:.0f} shed, {flooded['unsent'] / args.seconds:.0f} not sent for want of connections",
            accepted["count"] > 0.5 * saturation * args.seconds and not flooded["errors"] and not others,
            {**flooded["errors"], **others},
        ),
        (f"accepted requests: p99 {accepted['p99_ms']} ms, under 5 x quiet", 0 < accepted["p99_ms"] < 5 * quiet["p99_ms"], ""),
        (f"shed requests: p99 {shed['p99_ms']} ms, sooner than an answer", shed["count"] > 0 and shed["p99_ms"] < args.latency, ""),
        (f"what is shed says Retry-After: {retry}", bool(retry), ""),
        (
            f"health and metrics answered every time, p99 {probed[0]['p99_ms']} and {probed[1]['p99_ms']} ms",
            all(probe["requests"] == told["count"] for probe, told in zip(probes, probed)),
            [probe["statuses"] for probe in probes],
        ),
        (
            f"a second later: nothing shed, p99 {recovered['p99_ms']} ms",
            recovered["count"] == after["requests"] and recovered["p99_ms"] < 2 * quiet["p99_ms"],
            after["statuses"],
        ),
    ]
    for text, held, why in claims:
        print(f"  {'ok  ' if held else 'FAIL'}  {text}" + ("" if held else f"\n          {why}"))
    return 0 if all(held for _, held, _ in claims) else 1


sys.exit(main())
