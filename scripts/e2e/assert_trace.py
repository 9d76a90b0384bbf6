"""One request through three hops is one whole trace in a real collector. Called by the parts of e2e.sh.

    assert_trace.py zipkin|jaeger URL --reply FILE [--trace-id ID] [--parent ID] [--header NAME] [--access-log FILE]... [--seconds N]

Whole means: every hop's reply, the header --header as it arrived at every hop, and every hop's access line have the same trace id; the
collector has exactly five spans of it, of three services; each server span's parent is the client span of the hop above, each client
span's parent is the server span of its own hop; the first one's parent is the caller's span (--parent), or none; the span ids are those
that the replies told. Waits for the spans, at most N seconds. Exit: 0 and one line of what was seen, or 1 and what is wrong.
"""

import argparse
import collections
import json
import sys
import time
import urllib.error
import urllib.request

HOPS = ["service1", "service2", "service3"]
Span = collections.namedtuple("Span", "id parent service kind name trace tags")


class Wrong(Exception):
    """What is not as it should be."""


def same(what, want, got):
    if want != got:
        raise Wrong(f"{what}: wanted {want!r}, got {got!r}")


def get(url):
    """The JSON at a URL; None when there is none yet."""
    # A proxy that the environment names has no business on loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def zipkin(url, trace_id):
    spans = get(f"{url}/api/v2/trace/{trace_id}") or []
    return [
        Span(span["id"], span.get("parentId"), span["localEndpoint"]["serviceName"], span["kind"], span["name"], span["traceId"], span.get("tags", {}))
        for span in spans
    ]


def jaeger(url, trace_id):
    answer = get(f"{url}/api/traces/{trace_id}")
    spans = []
    for trace in (answer or {}).get("data") or []:
        for span in trace["spans"]:
            process = trace["processes"][span["processID"]]
            tags = {tag["key"]: str(tag["value"]) for tag in process.get("tags", []) + span["tags"]}
            parents = [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]
            if len(parents) > 1:
                raise Wrong(f"{span['spanID']} has {len(parents)} parents")
            kind = tags.get("span.kind", "none").upper()
            spans.append(Span(span["spanID"], parents[0] if parents else None, process["serviceName"], kind, span["operationName"], span["traceID"], tags))
    return spans


def check_replies(front, options):
    """The three replies, from the front on; their ids hang together."""
    replies = [front]
    while replies[-1]["upstreams"]:
        calls = replies[-1]["upstreams"]
        same("calls", 1, len(calls))
        same("status of the call", (200, None), (calls[0]["status"], calls[0]["error"]))
        replies.append(calls[0]["reply"])
    same("hops", HOPS, [reply["service"] for reply in replies])
    trace_id = (options.trace_id or front["trace_id"]).zfill(32)
    for reply in replies:
        name = reply["service"]
        same(f"status of {name}", 200, reply["status"])
        same(f"trace id in the reply of {name}", trace_id, reply["trace_id"])
        same(f"sampled at {name}", True, reply["sampled"])
        same(f"propagation of {name}", "continue", reply["propagation"])
        if options.header:
            values = reply["received"].get(options.header, [])
            same(f"{options.header} headers that {name} received", 1, len(values))
            if (options.trace_id or trace_id) not in values[0]:
                raise Wrong(f"{name} received {options.header}: {values[0]}, not of trace {options.trace_id or trace_id}")
    if options.parent:
        same("the front's parent", options.parent, front["parent_span_id"])
    return trace_id, replies


def check_access_logs(trace_id, replies, options):
    for path in options.access_log:
        def lines():
            with open(path, encoding="utf-8") as file:
                return [line for line in file if f"request={replies[0]['request_id']} " in line]
        # The line is written when the answer has been; the caller may be here sooner.
        eventually(options.deadline, lambda: same(f"access lines of the request in {path}", 1, len(lines())))
        if f" trace={trace_id} " not in lines()[0]:
            raise Wrong(f"{path}: not of trace {trace_id}: {lines()[0]}")


def check_spans(spans, trace_id, replies, options):
    def show():
        return "".join(f"\n  {s.service:9} {s.kind:7} {s.id} below {s.parent or '-':16} {s.name}" for s in spans)

    try:
        same("spans", 5, len(spans))
        same("different span ids", 5, len({span.id for span in spans}))
        same("trace ids", {trace_id}, {span.trace.zfill(32) for span in spans})
        same("services", set(HOPS), {span.service for span in spans})
        parent = options.parent
        for hop, reply in zip(HOPS, replies, strict=True):
            last = hop == HOPS[-1]
            own = [span for span in spans if span.service == hop]
            same(f"kinds of {hop}", ["SERVER"] if last else ["CLIENT", "SERVER"], sorted(span.kind for span in own))
            by_kind = {span.kind: span for span in own}
            server = by_kind["SERVER"]
            same(f"parent of {hop}'s server span", parent, server.parent)
            same(f"id of {hop}'s server span, as its reply tells it", reply["span_id"], server.id)
            # Zipkin keeps names in lower case.
            same(f"name of {hop}'s server span", "get /service{n}", server.name.lower())
            same(f"route of {hop}'s server span", "/service{n}", server.tags.get("http.route"))
            for span in own:
                same(f"status of {hop}'s {span.kind} span", "200", span.tags.get("http.response.status_code"))
                same(f"version of {hop}'s {span.kind} span", "v1", span.tags.get("service.version"))
                same(f"request id of {hop}'s {span.kind} span", replies[0]["request_id"], span.tags.get("request.id"))
                same(f"error of {hop}'s {span.kind} span", None, span.tags.get("error"))
            if last:
                break
            client = by_kind["CLIENT"]
            same(f"parent of {hop}'s client span", server.id, client.parent)
            same(f"name of {hop}'s client span", "get", client.name.lower())
            parent = client.id
        known = {span.id for span in spans} | {options.parent, None}
        same("orphans", [], [span.id for span in spans if span.parent not in known])
    except Wrong as wrong:
        raise Wrong(f"{wrong}{show()}") from None


def eventually(deadline, check):
    while True:
        try:
            return check()
        except Wrong:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("backend", choices=["zipkin", "jaeger"])
    parser.add_argument("url")
    parser.add_argument("--reply", required=True)
    parser.add_argument("--trace-id")
    parser.add_argument("--parent")
    parser.add_argument("--header")
    parser.add_argument("--access-log", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    options.deadline = time.monotonic() + options.seconds
    with open(options.reply, encoding="utf-8") as file:
        front = json.load(file)
    if not options.parent:
        options.parent = front["parent_span_id"]
    trace_id, replies = check_replies(front, options)
    check_access_logs(trace_id, replies, options)
    read = {"zipkin": zipkin, "jaeger": jaeger}[options.backend]
    found = []

    def arrived():
        found[:] = read(options.url, trace_id)
        if len(found) < 5:
            raise Wrong(f"spans of {trace_id}: wanted 5, got {len(found)} in {options.seconds:.0f} s: {found}")

    eventually(options.deadline, arrived)
    check_spans(found, trace_id, replies, options)
    print(f"trace {trace_id}: 5 spans, 3 services, no orphan")


try:
    main()
except (Wrong, OSError, KeyError, ValueError) as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(1)
