"""Takes spans by Zipkin (JSON) and OTLP (HTTP, protobuf) and answers Zipkin's API with them, for tests without a trace backend.

    span_sink.py            listens on a free port of loopback, prints it, serves until it is killed

    POST /api/v2/spans, POST /v1/traces     what proxies and apps report
    GET /api/v2/services, /api/v2/trace/ID, /api/v2/traces?annotationQuery=TAG=VALUE   what `httpserver trace` asks for
"""

import gzip
import json
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = {2: "SERVER", 3: "CLIENT"}
spans, lock = [], threading.Lock()


def fields(data):
    """(number, value) of each field of a protobuf message: bytes of length-delimited ones, integers of the others."""
    position = 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while position < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
        elif wire == 2:
            length = varint()
            yield number, data[position:position + length]
            position += length
        else:
            size = {1: 8, 5: 4}[wire]
            yield number, int.from_bytes(data[position:position + size], "little")
            position += size


def attributes(message, number):
    """The attributes (KeyValue) of texts and integers in the fields with this number, as texts."""
    found = {}
    for key_value in (value for field, value in fields(message) if field == number):
        parts = dict(fields(key_value))
        value = dict(fields(parts.get(2, b"")))
        if 1 in value:
            found[parts[1].decode()] = value[1].decode()
        elif 3 in value:
            found[parts[1].decode()] = str(value[3])
    return found


def from_otlp(body):
    for resource_spans in (value for field, value in fields(body) if field == 1):
        parts = list(fields(resource_spans))
        resource = next((attributes(value, 1) for field, value in parts if field == 1), {})
        for scope_spans in (value for field, value in parts if field == 2):
            for span in (value for field, value in fields(scope_spans) if field == 2):
                one = dict(fields(span))
                yield {"traceId": one[1].hex(), "id": one[2].hex(), "parentId": one.get(4, b"").hex() or None, "name": one.get(5, b"").decode(),
                       "kind": KINDS.get(one.get(6)), "localEndpoint": {"serviceName": resource.get("service.name")},
                       "tags": resource | attributes(span, 9)}


def trace_id(span):
    return span["traceId"].rjust(32, "0")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        whole = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self, status, body=b"", kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.body()
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/api/v2/spans":
            new, status, kind = json.loads(body), 202, "application/json"
        elif self.path == "/v1/traces":
            # Envoy takes any answer but 200 for a failure.
            new, status, kind = list(from_otlp(body)), 200, "application/x-protobuf"
        else:
            return self.answer(404)
        with lock:
            spans.extend(new)
        return self.answer(status, kind=kind)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        with lock:
            held = list(spans)
        if url.path == "/api/v2/services":
            found = sorted({span.get("localEndpoint", {}).get("serviceName") or "" for span in held})
        elif url.path.startswith("/api/v2/trace/"):
            found = [span for span in held if trace_id(span) == url.path.rsplit("/", 1)[1].rjust(32, "0")]
        elif url.path == "/api/v2/traces":
            tag, value = urllib.parse.parse_qs(url.query)["annotationQuery"][0].split("=", 1)
            wanted = {trace_id(span) for span in held if span.get("tags", {}).get(tag) == value}
            found = [[span for span in held if trace_id(span) == one] for one in sorted(wanted)]
        else:
            return self.answer(404)
        return self.answer(404 if found == [] and "/trace/" in url.path else 200, json.dumps(found).encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    sys.exit(0)
