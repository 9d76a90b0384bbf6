// net/http. Variants: otel, copies (right); no-context, no-propagator, drops (wrong).
package main

import (
	"io"
	"net/http"
	"os"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
)

var names = []string{"traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags", "x-request-id"}

func main() {
	variant, next := os.Getenv("VARIANT"), os.Getenv("NEXT")
	traced := variant == "otel" || variant == "no-context" || variant == "no-propagator"
	client := &http.Client{Timeout: 2 * time.Second}
	if traced {
		otel.SetTracerProvider(sdk.NewTracerProvider())
		client.Transport = otelhttp.NewTransport(http.DefaultTransport)
		if variant != "no-propagator" {
			otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
		}
	}
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request, _ := http.NewRequest("GET", next+"/stock?id="+r.URL.Query().Get("id"), nil)
		if variant != "no-context" {
			request = request.WithContext(r.Context())
		}
		if variant == "copies" {
			for _, name := range names {
				for _, value := range r.Header.Values(name) {
					request.Header.Add(name, value)
				}
			}
		}
		answer, err := client.Do(request)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		io.Copy(w, answer.Body)
	})
	if traced {
		handler = otelhttp.NewHandler(handler, "orders")
	}
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), handler))
}
