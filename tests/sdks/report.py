"""One trace by the OpenTelemetry SDK for Python, reported by its defaults: OTLP over HTTP in protobuf. Prints the trace id."""

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider(resource=Resource.create({"service.name": "sdk-python", "team": "shop"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("tests/sdks", "1.2.3")

other = trace.SpanContext(0x1234567890ABCDEF1234567890ABCDEF, 0x1234567890ABCDEF, is_remote=True)
with tracer.start_as_current_span("GET /cart", kind=trace.SpanKind.SERVER, links=[trace.Link(other, {"why": "batch"})]) as root:
    root.set_attributes({"http.request.method": "GET", "http.response.status_code": 502, "items": ["a", "b"], "ratio": 0.5, "cached": True})
    with tracer.start_as_current_span("price"):
        with tracer.start_as_current_span("POST", kind=trace.SpanKind.CLIENT) as call:
            call.set_attributes({"server.address": "stock.example", "server.port": 8080, "error.type": "timeout"})
            call.add_event("retry", {"attempt": 2})
            call.set_status(trace.Status(trace.StatusCode.ERROR, "no answer"))
    root.set_status(trace.Status(trace.StatusCode.ERROR))
    print(trace.format_trace_id(root.get_span_context().trace_id))
provider.shutdown()
