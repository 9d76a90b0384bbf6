"""Reads the spans of one request from a trace backend and says whether they are one whole trace. Used by the e2e scripts.

    spans.py jaeger|sink URL REQUEST_ID --traces 1 --spans 12 [--trace-id ID] [--parent SPAN_ID] [--services a,b,...] [--without-sidecars] [--seconds 40]

jaeger: the query API below URL; sink: span_sink.py. Waits until the numbers are as expected and stay so for 3 s more.
Checked for one trace: a single root (or, with --parent, the span that continues the caller's); no span whose parent is missing; with the
apps' own spans, unless there are no sidecars, also that each app's server span is the child of its own inbound sidecar's span, and each outbound sidecar's
span the child of its app's client span. Exit: 0 as expected, 1 not; the last line says what was found.
"""

import argparse
import json
import sys
import time
import urllib.parse
import urllib.request

REQUEST_TAGS = ("guid:x-request-id", "request.id")


def get(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def from_jaeger(url, request_id, services):
    """Every span of every trace that a span with this request id belongs to."""
    traces = {}
    for service in services or get(f"{url}/api/services")["data"] or []:
        for tag in REQUEST_TAGS:
            query = urllib.parse.urlencode({"service": service, "tags": json.dumps({tag: request_id}), "limit": 20, "lookback": "1h"})
            for trace in get(f"{url}/api/traces?{query}")["data"] or []:
                traces[trace["traceID"]] = trace
    spans = []
    for trace_id in traces:
        # By id once more: the search may have met a trace that was still growing.
        trace = get(f"{url}/api/traces/{trace_id}")["data"][0]
        names = {key: process["serviceName"] for key, process in trace["processes"].items()}
        for span in trace["spans"]:
            tags = {tag["key"]: str(tag["value"]) for tag in span["tags"]}
            parents = [reference["spanID"] for reference in span.get("references") or [] if reference["refType"] == "CHILD_OF"]
            spans.append({"trace": trace_id, "id": span["spanID"], "parent": parents[0] if parents else None, "name": span["operationName"],
                          "service": names[span["processID"]], "kind": tags.get("span.kind", "").lower(), "proxy": tags.get("component") == "proxy"})
    return spans


def from_sink(url, request_id):
    return get(f"{url}/spans?{urllib.parse.urlencode({'request': request_id})}")


def problems(spans, parent, sidecars):
    """What is wrong with the spans of ONE trace."""
    found = []
    by_id = {span["id"]: span for span in spans}
    roots = [span for span in spans if span["parent"] == parent]
    if len(roots) != 1:
        found.append(f"{len(roots)} roots")
    for span in spans:
        if span["parent"] != parent and span["parent"] not in by_id:
            found.append(f"orphan: {span['service']} {span['name']}: its parent {span['parent']} is not there")
    # A gateway is a proxy without an app behind it.
    with_app = {span["service"] for span in spans if not span["proxy"]}
    if sidecars:
        for span in spans:
            above = by_id.get(span["parent"])
            same = above is not None and above["service"] == span["service"]
            if not span["proxy"] and span["kind"] == "server" and not (same and above["proxy"] and above["kind"] == "server"):
                found.append(f"the app's server span of {span['service']} is not the child of its inbound sidecar's")
            outbound = span["proxy"] and span["kind"] == "client" and span["service"] in with_app
            if outbound and not (same and not above["proxy"] and above["kind"] == "client"):
                found.append(f"the outbound sidecar's span of {span['service']} is not the child of its app's client span")
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("backend", choices=["jaeger", "sink"])
    parser.add_argument("url")
    parser.add_argument("request_id")
    parser.add_argument("--traces", type=int, default=1)
    parser.add_argument("--spans", type=int, required=True)
    parser.add_argument("--service-count", type=int, default=4)
    parser.add_argument("--services", default="")
    parser.add_argument("--trace-id")
    parser.add_argument("--parent")
    parser.add_argument("--without-sidecars", action="store_true")
    parser.add_argument("--seconds", type=float, default=40)
    args = parser.parse_args()
    services = [service for service in args.services.split(",") if service]

    def look():
        try:
            spans = from_jaeger(args.url, args.request_id, services) if args.backend == "jaeger" else from_sink(args.url, args.request_id)
        except OSError as error:
            return [f"{args.url}: {error}"], str(error)
        traces = {span["trace"] for span in spans}
        names = sorted({span["service"] for span in spans})
        found = []
        if len(traces) != args.traces:
            found.append(f"{len(traces)} traces, not {args.traces}")
        if len(spans) != args.spans:
            found.append(f"{len(spans)} spans, not {args.spans}")
        if len(names) != args.service_count:
            found.append(f"services {names}")
        if args.trace_id and traces != {args.trace_id}:
            found.append(f"trace {traces}, not {args.trace_id}")
        if args.traces == 1:
            found += problems(spans, args.parent, not args.without_sidecars)
        summary = f"{len(spans)} spans, {len(traces)} {'trace' if len(traces) == 1 else 'traces'}, {len(names)} services"
        detail = [f"  {s['trace'][:8]} {s['id']} <- {s['parent']} {s['service']} {'proxy' if s['proxy'] else 'app'} {s['kind']} {s['name']}" for s in spans]
        return found, "\n".join(detail + found + [summary]) if found else summary

    end, good_since = time.monotonic() + args.seconds, None
    while True:
        found, text = look()
        now = time.monotonic()
        if found:
            good_since = None
            if now > end:
                break
        else:
            good_since = good_since or now
            if now - good_since >= 3:
                break
        time.sleep(1)
    print(text)
    sys.exit(1 if found else 0)


main()
