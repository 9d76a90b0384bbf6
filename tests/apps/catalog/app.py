"""A foreign app for a mesh: the standard library alone, no tracing SDK.

NEXT: what it calls. FORWARD: all (the usual trace headers), request-id, none. ANSWER: nested (with the answer of NEXT in it), own."""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TRACE = ["traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"]
NAMES = {"all": ["x-request-id", *TRACE], "request-id": ["x-request-id"], "none": []}[os.environ.get("FORWARD", "all")]
NEXT = os.environ["NEXT"]


class Catalog(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = {"items": ["book", "pen"]}
        if self.path != "/ready":
            headers = {name: self.headers[name] for name in NAMES if self.headers[name]}
            with urllib.request.urlopen(urllib.request.Request(NEXT, headers={"accept": "application/json", **headers}), timeout=3) as answer:
                stock = json.load(answer)
            if os.environ.get("ANSWER", "nested") == "nested":
                body["stock"] = stock
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("", 8080), Catalog).serve_forever()
