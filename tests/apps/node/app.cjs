// Express and fetch. Variants: otel, copies (right); bare-client, doubled, sampler, global, drops (wrong).
const { VARIANT, NEXT, PORT } = process.env;

if (['otel', 'bare-client', 'doubled', 'sampler'].includes(VARIANT)) {
  const { NodeSDK, tracing } = require('@opentelemetry/sdk-node');
  const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http');
  const { ExpressInstrumentation } = require('@opentelemetry/instrumentation-express');
  const { UndiciInstrumentation } = require('@opentelemetry/instrumentation-undici');
  const instrumentations = [new HttpInstrumentation(), new ExpressInstrumentation()];
  if (VARIANT !== 'bare-client') instrumentations.push(new UndiciInstrumentation());
  const sampler = VARIANT === 'sampler' ? new tracing.AlwaysOnSampler() : undefined;
  const spanProcessors = [new tracing.SimpleSpanProcessor(new tracing.InMemorySpanExporter())];
  new NodeSDK({ instrumentations, sampler, spanProcessors, autoDetectResources: false }).start();
}

const express = require('express');
const names = ['traceparent', 'tracestate', 'baggage', 'b3', 'x-b3-traceid', 'x-b3-spanid', 'x-b3-sampled', 'x-b3-flags', 'x-request-id'];
const copied = (req) => Object.fromEntries(names.filter((name) => req.headers[name]).map((name) => [name, req.headers[name]]));
let current = {};

const app = express();
app.get('/orders', async (req, res) => {
  let headers = {};
  if (VARIANT === 'copies') headers = copied(req);
  if (VARIANT === 'doubled') headers = { traceparent: req.headers.traceparent ?? '' };
  if (VARIANT === 'global') {
    current = copied(req);
    await new Promise((done) => setTimeout(done, 10)); // Looks something up.
    headers = current;
  }
  try {
    const answer = await fetch(`${NEXT}/stock?id=${req.query.id}`, { headers, signal: AbortSignal.timeout(2000) });
    res.status(answer.status).send(await answer.text());
  } catch (error) {
    res.status(502).send(String(error));
  }
});
app.listen(PORT, '127.0.0.1');
