{{/* Microseconds of a duration such as 20ms or 1m30s; -1 when it is none. */}}
{{- define "httpserver.micros" -}}
{{- if eq . "0" }}0
{{- else if not (regexMatch "^([0-9]+([.][0-9]+)?(us|ms|s|sec|m|min|h))+$" .) }}-1
{{- else -}}
{{- $units := dict "us" 1 "ms" 1e3 "s" 1e6 "sec" 1e6 "m" 6e7 "min" 6e7 "h" 3.6e9 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+[a-z]+" . -1 -}}
{{- $sum = addf $sum (mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[a-z]+$" .) | float64)) -}}
{{- end -}}
{{- printf "%.0f" $sum -}}
{{- end -}}
{{- end }}

{{/* What is wrong with a latency; empty when nothing is. */}}
{{- define "httpserver.wrongLatency" -}}
{{- $last := 0.0 -}}
{{- $share := 0.0 -}}
{{- $parts := hasPrefix "p" . | ternary (splitList "," .) (splitList ".." .) -}}
{{- if and (not (hasPrefix "p" .)) (gt (len $parts) 2) }}?{{ end -}}
{{- range $parts -}}
{{- $time := . -}}
{{- if hasPrefix "p" (trim .) -}}
{{- if not (regexMatch "^ *p[0-9]+([.][0-9]+)?=[^=]+$" .) }}?{{ end -}}
{{- $percent := regexFind "[0-9.]+" . | float64 -}}
{{- if or (le $percent $share) (ge $percent 100.0) }}?{{ end -}}
{{- $share = $percent -}}
{{- $time = splitList "=" . | last -}}
{{- end -}}
{{- $micros := include "httpserver.micros" $time | float64 -}}
{{- if or (lt $micros $last) (gt $micros 3.6e9) (and (gt $share 0.0) (le $micros 0.0)) }}?{{ end -}}
{{- $last = $micros -}}
{{- end -}}
{{- end }}

{{/* Refuses latency, faults and dropHeaders that a hop would refuse at its start. Argument: dict where, of, forwarded (it carries more headers) */}}
{{- define "httpserver.validBehaviour" -}}
{{- $where := .where -}}
{{- $forwarded := .forwarded -}}
{{- with .of.latency -}}
{{- if include "httpserver.wrongLatency" . }}{{ fail (printf "%s: latency '%s' is none: 20ms, 10ms..2s or p50=20ms,p90=80ms,p99=400ms is accepted, rising, an hour at most" $where .) }}{{ end -}}
{{- end -}}
{{- range .of.faults -}}
{{- $kind := regexReplaceAll "@([0-9]{1,2}([.][0-9]+)?|[.][0-9]+|100([.]0+)?) ?%$" . "" -}}
{{- $known := regexMatch "^(abort=[45][0-9][0-9]|(delay|cpu)=.+|reset|hang|truncate|close|slow-body=[1-9][0-9]*(B|KiB|MiB)?/s|limit=([1-9][0-9]{0,5}|1000000)/[smh]|memory=([1-9][0-9]*(B|KiB)?|([1-9][0-9]{0,2}|[1-3][0-9]{3}|40[0-8][0-9]|409[0-6])MiB))$" $kind -}}
{{- if and $known (regexMatch "^(delay|cpu)=" $kind) -}}
{{- $micros := include "httpserver.micros" (regexReplaceAll "^[a-z]+=" $kind "") | float64 -}}
{{- $known = and (ge $micros 0.0) (le $micros 3.6e9) -}}
{{- end -}}
{{- if not $known }}{{ fail (printf "%s: '%s' is no fault: abort=503, delay=2s, reset, hang, truncate, slow-body=1KiB/s, limit=10/s, cpu=50ms, memory=64MiB or close is accepted, with @10%% for a share of the requests (docs/faults.md)" $where .) }}{{ end -}}
{{- end -}}
{{- $carried := include "httpserver.carried" . | splitList " " -}}
{{- range .of.dropHeaders -}}
{{- if not (or $forwarded (has (lower .) $carried)) }}{{ fail (printf "%s: dropHeaders: a hop does not carry '%s'; it carries %s, and what its env FORWARD_HEADERS names" $where . (join ", " $carried)) }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Refuses an upstream that a hop would refuse. Argument: dict where, url */}}
{{- define "httpserver.validUpstream" -}}
{{- $host := "([^][/?#:@ ]+|\\[[0-9a-f:]+\\])(:[0-9]{1,5})?" -}}
{{- $url := regexReplaceAll "^[0-9]+([.][0-9]+)?%=" .url "" -}}
{{- $port := regexFind ":[0-9]+$" (regexFind "^[a-z0-9]+://[^/?]+" $url) | trimPrefix ":" | default "1" | int -}}
{{- $share := .url | trimSuffix $url | trimSuffix "%=" | float64 -}}
{{- if or (not (regexMatch (printf "^((https?|h2c)://%s([/?].*)?|grpcs?://%s(/(service(0|[1-9][0-9]{0,3}))?)?)$" $host $host) $url)) (lt $port 1) (gt $port 65535) (gt $share 100.0) -}}
{{ fail (printf "%s: upstream '%s' is none: http://service2/service2, https://host:port/path, h2c://service2, grpc://service2 or grpcs://host:port is accepted, with 20%%= before it for a share of the requests, 100%% at most" .where .url) }}
{{- end -}}
{{- end }}

{{/* The headers that a hop carries, as docs/reference/headers.md lists them. */}}
{{- define "httpserver.carried" -}}
x-request-id traceparent tracestate baggage b3 x-b3-traceid x-b3-spanid x-b3-parentspanid x-b3-sampled x-b3-flags x-ot-span-context x-cloud-trace-context grpc-trace-bin x-datadog-trace-id x-datadog-parent-id x-datadog-sampling-priority x-datadog-tags x-datadog-origin x-amzn-trace-id uber-trace-id sw8 x-lane
{{- end }}

{{/* true if a NetworkPolicy of ours lets the hops reach the collector. */}}
{{- define "httpserver.collectorIsLetThrough" -}}
{{- $host := regexReplaceAll ":[0-9]+$" (urlParse .Values.exporter.endpoint).host "" -}}
{{- $home := printf "[.](istio-system|%s)([.]svc([.]cluster[.]local)?)?$" .Values.jaeger.namespace -}}
{{- if and (regexMatch $home $host) (has (include "httpserver.port" .Values.exporter.endpoint) (list "4317" "4318" "9411")) }}true{{ end -}}
{{- end }}
