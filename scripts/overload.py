"""What scripts/overload.sh runs: see there."""

import argparse
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request


NONE = {"count": 0, "p50_ms": 0.0, "p99_ms": 0.0}


def ok(result):
    return result["statuses"].get("200", NONE)


def load(base, path, rate, seconds, connections):
    command = [os.environ["LOAD"], "--rate", str(rate), "--seconds", str(seconds), "--connections", str(connections), base + path]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(process):
    return json.loads(process.communicate()[0])


def retry_after(base, flood):
    """The headers of up to 20 answers that were shed while the flood lasts."""
    found = []
    while flood.poll() is None and len(found) < 20:
        try:
            urllib.request.urlopen(f"{base}/hello", timeout=60).read()
        except urllib.error.HTTPError as error:
            if error.code == 503:
                found.append(error.headers.get("retry-after"))
    return found


def main():
    parser = argparse.ArgumentParser(prog="scripts/overload.sh")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--latency", type=int, default=250)
    parser.add_argument("--limit", type=int, default=1024)
    parser.add_argument("--no-times", action="store_true")
    args = parser.parse_args()
    command = [os.environ["HTTPSERVER"], "serve", "--addr", "127.0.0.1:0", "--latency", f"{args.latency}ms"]
    command += ["--max-concurrency", str(args.limit)]
    hop = subprocess.Popen(command, env={}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found[1] for found in (re.search(r"serving address=(\S+)", line) for line in hop.stderr) if found)
        # What else it says must not wait for a reader.
        threading.Thread(target=hop.stderr.read, daemon=True).start()
        base = f"http://{address}"
        saturation = args.limit * 1000 / args.latency
        usual = saturation / 20
        quiet = ok(told(load(base, "/hello", usual, 3 if args.no_times else 10, 512)))
        # Twice what the hop holds at once: what is shed comes back at once, and needs few.
        flood = load(base, "/hello", 4 * saturation, args.seconds, 4 * args.limit)
        probes = [load(base, path, 10, args.seconds, 16) for path in ("/healthz", "/metrics")]
        time.sleep(args.seconds / 2)
        retries = retry_after(base, flood)
        flooded = told(flood)
        # The load's last requests are answered by now; a second to recover is all it gets.
        time.sleep(1)
        after = told(load(base, "/hello", usual, 5, 512))
        for _ in range(20 if args.no_times else 0):
            if ok(after)["count"] == after["requests"]:
                break
            after = told(load(base, "/hello", usual, 5, 512))
        probes = [told(probe) for probe in probes]
        # A server that an overload has left in some bad state would not end.
        hop.terminate()
        code = hop.wait(timeout=120)
    finally:
        if hop.poll() is None:
            hop.kill()
    accepted, shed = ok(flooded), flooded["statuses"].get("503", NONE)
    others = {status: told["count"] for status, told in flooded["statuses"].items() if status not in ("200", "503")}
    recovered, probed = ok(after), [ok(probe) for probe in probes]
    offered = flooded["requests"] + flooded["unsent"]
    # (what, whether it holds, why not, whether it is about time)
    claims = [
        (f"quiet: {usual:.0f} a second, p50 {quiet['p50_ms']} ms, p99 {quiet['p99_ms']} ms", quiet["count"] > 0, "", False),
        (
            f"offered {4 * saturation:.0f} a second: {accepted['count'] / args.seconds:.0f} accepted, "
            f"{shed['count'] / args.seconds:.0f} shed, and no other answer",
            accepted["count"] > 0 and shed["count"] > 0 and not flooded["errors"] and not others,
            {**flooded["errors"], **others},
            False,
        ),
        (
            f"it was four times what the hop takes: {flooded['unsent'] / max(offered, 1):.1%} not sent for want of connections, "
            f"{accepted['count'] / args.seconds / saturation:.0%} of what the hop could take was accepted",
            flooded["unsent"] <= 0.01 * offered and accepted["count"] > 0.9 * saturation * args.seconds,
            "this machine is too slow or too busy for this load, so it shows nothing: try a smaller --limit",
            True,
        ),
        (f"accepted requests: p99 {accepted['p99_ms']} ms, under 5 x quiet", 0 < accepted["p99_ms"] < 5 * quiet["p99_ms"], "", True),
        (f"shed requests: p99 {shed['p99_ms']} ms, sooner than an answer", shed["p99_ms"] < args.latency, "", True),
        (f"what is shed says Retry-After: all of {len(retries)} that were looked at", bool(retries) and all(retries), retries, False),
        (
            f"health and metrics answered every time, p99 {probed[0]['p99_ms']} and {probed[1]['p99_ms']} ms",
            all(probe["requests"] == probe_ok["count"] > 0 for probe, probe_ok in zip(probes, probed)),
            [probe["statuses"] for probe in probes],
            False,
        ),
        (f"{'then' if args.no_times else 'a second later'}: nothing shed", 0 < recovered["count"] == after["requests"], after["statuses"], False),
        (f"and the times of before: p99 {recovered['p99_ms']} ms", recovered["p99_ms"] < 2 * quiet["p99_ms"], "", True),
        ("SIGTERM ended it with exit code 0", code == 0, code, False),
    ]
    failed = False
    for text, held, why, timed in claims:
        if timed and args.no_times:
            print(f"  told  {text}")
            continue
        failed |= not held
        print(f"  {'ok  ' if held else 'FAIL'}  {text}" + ("" if held or not why else f"\n          {why}"))
    print(
        f"\nfor docs/reliability.md, {datetime.date.today()}, {os.cpu_count()} cores:\n"
        f"| {args.seconds} s of {4 * saturation:.0f} requests a second, four times what `--max-concurrency {args.limit}` takes at "
        f"{args.latency} ms each | `{shlex.join(['scripts/overload.sh', *sys.argv[1:]])}` "
        f"| {accepted['count'] / args.seconds:.0f} a second accepted with p99 {accepted['p99_ms']} ms (quiet: {quiet['p99_ms']} ms), "
        f"{shed['count'] / args.seconds:.0f} shed with 503 and p99 {shed['p99_ms']} ms; `/healthz` and `/metrics` always answered, p99 "
        f"{probed[0]['p99_ms']} and {probed[1]['p99_ms']} ms; a second after it {after['requests'] - recovered['count']} of "
        f"{after['requests']} shed, p99 {recovered['p99_ms']} ms |"
    )
    return 1 if failed else 0


sys.exit(main())
