"""Flask with py_zipkin, which reads and writes B3. Variants: right; no-headers, short (wrong)."""

import os

import flask
import requests
from py_zipkin import Encoding
from py_zipkin.request_helpers import create_http_headers, extract_zipkin_attrs_from_headers
from py_zipkin.transport import BaseTransportHandler
from py_zipkin.zipkin import zipkin_client_span, zipkin_server_span

VARIANT, NEXT, PORT = os.environ["VARIANT"], os.environ["NEXT"], int(os.environ["PORT"])
app = flask.Flask(__name__)


class Nowhere(BaseTransportHandler):
    def get_max_payload_bytes(self):
        return None

    def send(self, payload):
        pass


@app.get("/orders")
def orders():
    attrs = extract_zipkin_attrs_from_headers(flask.request.headers)
    if attrs and VARIANT == "short":
        attrs = attrs._replace(trace_id=attrs.trace_id[-16:])
    options = {"zipkin_attrs": attrs} if attrs else {"sample_rate": 100.0, "use_128bit_trace_id": True}
    server = zipkin_server_span(
        service_name="orders", span_name="GET /orders", transport_handler=Nowhere(), encoding=Encoding.V2_JSON, **options
    )
    with server, zipkin_client_span(service_name="orders", span_name="GET /stock"):
        headers = {} if VARIANT == "no-headers" else create_http_headers()
        return requests.get(f"{NEXT}/stock", params={"id": flask.request.args["id"]}, headers=headers, timeout=2).text


app.run(host="127.0.0.1", port=PORT, threaded=True)
