"""Flask and requests. Variants: otel, copies, copies-async (right); bare-client, pool, sampler, global, request-id-only, drops (wrong)."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import flask
import requests

VARIANT, NEXT, PORT = os.environ["VARIANT"], os.environ["NEXT"], int(os.environ["PORT"])
HEADERS = ["traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags", "x-request-id"]

app = flask.Flask(__name__)
pool = ThreadPoolExecutor(8)
current = {}

if VARIANT in ("otel", "bare-client", "pool", "sampler"):
    from opentelemetry import trace
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_ON) if VARIANT == "sampler" else TracerProvider())
    FlaskInstrumentor().instrument_app(app)
    if VARIANT != "bare-client":
        RequestsInstrumentor().instrument()


def call(order, headers):
    return requests.get(f"{NEXT}/stock", params={"id": order}, headers=headers, timeout=2).text


@app.get("/orders")
def orders():
    order = flask.request.args["id"]
    if VARIANT == "pool":
        return pool.submit(call, order, {}).result()
    if VARIANT == "global":
        current.clear()
        current.update(copied(HEADERS))
        time.sleep(0.02)  # Looks something up.
        return call(order, dict(current))
    if VARIANT == "copies-async":
        threading.Timer(0.7, call, [order, copied(HEADERS)]).start()
        return "accepted", 202
    names = {"copies": HEADERS, "request-id-only": ["x-request-id"]}.get(VARIANT, [])
    return call(order, copied(names))


def copied(names):
    return {name: flask.request.headers[name] for name in names if name in flask.request.headers}


app.run(host="127.0.0.1", port=PORT, threaded=True)
