// One trace by the OpenTelemetry SDK for JavaScript, reported by its defaults: OTLP over HTTP in JSON. Prints the trace id.

import { createRequire } from 'node:module';
import { join } from 'node:path';

const require = createRequire(join(process.env.MODULES, 'x.js'));
const { SpanKind, SpanStatusCode, context, trace } = require('@opentelemetry/api');
const { BasicTracerProvider, BatchSpanProcessor } = require('@opentelemetry/sdk-trace-base');
const { OTLPTraceExporter } = require('@opentelemetry/exporter-trace-otlp-http');
const { resourceFromAttributes } = require('@opentelemetry/resources');

const provider = new BasicTracerProvider({
  resource: resourceFromAttributes({ 'service.name': 'sdk-node', team: 'shop' }),
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
});
const tracer = provider.getTracer('tests/sdks', '1.2.3');
const below = (span) => trace.setSpan(context.active(), span);

const other = { traceId: '1234567890abcdef1234567890abcdef', spanId: '1234567890abcdef', traceFlags: 1 };
const root = tracer.startSpan('GET /cart', { kind: SpanKind.SERVER, links: [{ context: other, attributes: { why: 'batch' } }] });
root.setAttributes({ 'http.request.method': 'GET', 'http.response.status_code': 502, items: ['a', 'b'], ratio: 0.5, cached: true });
const price = tracer.startSpan('price', {}, below(root));
const call = tracer.startSpan('POST', { kind: SpanKind.CLIENT }, below(price));
call.setAttributes({ 'server.address': 'stock.example', 'server.port': 8080, 'error.type': 'timeout' });
call.addEvent('retry', { attempt: 2 });
call.setStatus({ code: SpanStatusCode.ERROR, message: 'no answer' });
call.end();
price.end();
root.setStatus({ code: SpanStatusCode.ERROR });
root.end();
console.log(root.spanContext().traceId);
await provider.shutdown();
