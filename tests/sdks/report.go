// One trace by the OpenTelemetry SDK for Go, reported by OTLP over HTTP in protobuf. Prints the trace id.
package main

import (
	"context"
	"fmt"
	"log"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func main() {
	ctx := context.Background()
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	about := resource.NewSchemaless(attribute.String("service.name", "sdk-go"), attribute.String("team", "shop"))
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	tracer := provider.Tracer("tests/sdks", trace.WithInstrumentationVersion("1.2.3"))

	traceID, _ := trace.TraceIDFromHex("1234567890abcdef1234567890abcdef")
	spanID, _ := trace.SpanIDFromHex("1234567890abcdef")
	other := trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID})
	link := trace.Link{SpanContext: other, Attributes: []attribute.KeyValue{attribute.String("why", "batch")}}
	ctx, root := tracer.Start(ctx, "GET /cart", trace.WithSpanKind(trace.SpanKindServer), trace.WithLinks(link))
	root.SetAttributes(attribute.String("http.request.method", "GET"), attribute.Int("http.response.status_code", 502),
		attribute.StringSlice("items", []string{"a", "b"}), attribute.Float64("ratio", 0.5), attribute.Bool("cached", true))
	inner, price := tracer.Start(ctx, "price")
	_, call := tracer.Start(inner, "POST", trace.WithSpanKind(trace.SpanKindClient))
	call.SetAttributes(attribute.String("server.address", "stock.example"), attribute.Int("server.port", 8080), attribute.String("error.type", "timeout"))
	call.AddEvent("retry", trace.WithAttributes(attribute.Int("attempt", 2)))
	call.SetStatus(codes.Error, "no answer")
	call.End()
	price.End()
	root.SetStatus(codes.Error, "")
	root.End()
	fmt.Println(root.SpanContext().TraceID())
	if err := provider.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
}
