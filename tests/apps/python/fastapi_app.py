"""FastAPI and httpx. Variants: otel, context-var (right); bare-client, b3-only, global (wrong)."""

import asyncio
import contextvars
import os

import fastapi
import httpx
import uvicorn

VARIANT, NEXT, PORT = os.environ["VARIANT"], os.environ["NEXT"], int(os.environ["PORT"])
HEADERS = ["traceparent", "tracestate", "baggage", "x-request-id"]

app = fastapi.FastAPI()
client = httpx.AsyncClient(timeout=2)
in_context = contextvars.ContextVar("headers")
in_global = {}

if VARIANT in ("otel", "bare-client", "b3-only"):
    from opentelemetry import trace
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.propagate import set_global_textmap
    from opentelemetry.propagators.b3 import B3MultiFormat
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())
    if VARIANT == "b3-only":
        set_global_textmap(B3MultiFormat())
    FastAPIInstrumentor.instrument_app(app)
    if VARIANT != "bare-client":
        HTTPXClientInstrumentor().instrument_client(client)


@app.get("/orders")
async def orders(request: fastapi.Request, id: str):
    headers = {name: request.headers[name] for name in HEADERS if name in request.headers}
    in_context.set(headers)
    if VARIANT == "global":
        in_global.clear()
        in_global.update(headers)
    await asyncio.sleep(0.01)  # Looks something up.
    sent = {"context-var": in_context.get(), "global": dict(in_global)}.get(VARIANT, {})
    answer = await client.get(f"{NEXT}/stock", params={"id": id}, headers=sent)
    return answer.json()


uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
