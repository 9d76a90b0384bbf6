{{/* The namespace of the hops. */}}
{{- define "httpserver.namespace" -}}
{{ .Values.namespace.name | default .Release.Namespace }}
{{- end }}

{{- define "httpserver.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* true if the chart makes the namespace: never that of the release, which is there already. */}}
{{- define "httpserver.createsNamespace" -}}
{{- if and .Values.namespace.create .Values.namespace.name (ne .Values.namespace.name .Release.Namespace) -}}
true
{{- end -}}
{{- end }}

{{/* Labels of a hop's objects; argument: the hop's name. app.kubernetes.io/name is the hop's own: shared by all, Istio and Kiali would show one service. */}}
{{- define "httpserver.labels" -}}
app: {{ . | quote }}
app.kubernetes.io/name: {{ . | quote }}
app.kubernetes.io/part-of: httpserver
{{- end }}

{{- define "httpserver.endpoint" -}}
{{- $e := .Values.exporter -}}
{{- if $e.endpoint }}{{ $e.endpoint }}
{{- else if eq $e.type "otlp" }}http://jaeger-collector.{{ .Values.jaeger.namespace }}.svc.cluster.local:4318
{{- else if eq $e.type "zipkin" }}http://jaeger-collector.{{ .Values.jaeger.namespace }}.svc.cluster.local:9411/api/v2/spans
{{- end }}
{{- end }}

{{/* The port of a URL: what the sidecar must leave alone. */}}
{{- define "httpserver.port" -}}
{{- $url := urlParse . -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (eq $url.scheme "https" | ternary "443" "80") -}}
{{- end }}

{{- define "httpserver.propagators" -}}
{{- if .Values.exporter.propagators }}{{ .Values.exporter.propagators }}
{{- else if eq .Values.mesh.tracing.provider "zipkin-b3" }}b3multi,b3,tracecontext,baggage
{{- end }}
{{- end }}

{{/* The name of the hop that an upstream URL calls; empty when it is none of ours. Argument: dict root, url */}}
{{- define "httpserver.callee" -}}
{{- $host := regexFind "^[^/?#:]+" (regexReplaceAll "^.*?://" .url "") -}}
{{- $namespace := include "httpserver.namespace" .root -}}
{{- range .root.Values.hops -}}
{{- $short := printf "%s.%s" .name $namespace -}}
{{- if has $host (list .name $short (printf "%s.svc" $short) (printf "%s.svc.cluster.local" $short)) }}{{ .name }}{{ end -}}
{{- end -}}
{{- end }}

{{/* JSON list of the names of the hops that a hop calls. Argument: dict root, hop. */}}
{{- define "httpserver.callees" -}}
{{- $root := .root -}}
{{- $found := list -}}
{{- range .hop.upstreams -}}
{{- with include "httpserver.callee" (dict "root" $root "url" .) }}{{ $found = append $found . }}{{ end -}}
{{- end -}}
{{ $found | uniq | toJson }}
{{- end }}

{{/* What `check --expect` is given for a chain or one fan-out; empty for anything else. Argument: dict root, hop, depth. */}}
{{- define "httpserver.expect" -}}
{{- $callees := include "httpserver.callees" . | fromJsonArray -}}
{{- $root := .root -}}
{{- $drawn := false -}}
{{- range .hop.upstreams }}{{ if contains "%=" . }}{{ $drawn = true }}{{ end }}{{ end -}}
{{- if or $drawn (ne (len $callees) (len (.hop.upstreams | default list))) (gt (int .depth) 50) -}}?
{{- else -}}
{{ .hop.name }}
{{- if eq (len $callees) 1 -}}
{{- range $root.Values.hops }}{{ if eq .name (first $callees) }},{{ include "httpserver.expect" (dict "root" $root "hop" . "depth" (add1 $.depth)) }}{{ end }}{{ end -}}
{{- else if $callees -}}
{{- range $root.Values.hops }}{{ if and (has .name $callees) .upstreams }}?{{ end }}{{ end -}}
({{ join "," $callees }})
{{- end -}}
{{- end -}}
{{- end }}

{{/*
The Deployment of one version of a hop, in one lane.
Argument: dict root, hop, name, version, lane, replicas (null: the HPA's), own: what this version says otherwise
*/}}
{{- define "httpserver.deployment" -}}
{{- $root := .root -}}
{{- $hop := mergeOverwrite (deepCopy .root.Values.hopDefaults) (deepCopy .hop) (deepCopy .own) -}}
{{- /* A merge leaves out what is empty, such as the faults of a version that has none. */ -}}
{{- range list .hop .own }}{{ range $key, $value := . }}{{ if not (kindIs "map" $value) }}{{ $_ := set $hop $key $value }}{{ end }}{{ end }}{{ end -}}
{{- $endpoint := include "httpserver.endpoint" $root -}}
{{- $propagators := include "httpserver.propagators" $root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name | quote }}
  namespace: {{ include "httpserver.namespace" $root | quote }}
  labels:
    {{- include "httpserver.labels" .hop.name | nindent 4 }}
spec:
  {{- if ne .replicas nil }}
  replicas: {{ int64 .replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  selector:
    matchLabels:
      app: {{ .hop.name | quote }}
      version: {{ .version | quote }}
      lane: {{ .lane | quote }}
  template:
    metadata:
      labels:
        app: {{ .hop.name | quote }}
        version: {{ .version | quote }}
        lane: {{ .lane | quote }}
        app.kubernetes.io/name: {{ .hop.name | quote }}
        app.kubernetes.io/part-of: httpserver
        {{- if not (include "httpserver.createsNamespace" $root) }}
        {{- if eq $root.Values.mesh.mode "sidecar" }}
        sidecar.istio.io/inject: "true"
        {{- else if eq $root.Values.mesh.mode "ambient" }}
        istio.io/dataplane-mode: ambient
        {{- end }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: httpserver
        {{- if $endpoint }}
        # The app hands its spans to the collector itself; through the sidecar each batch would become a trace of its own.
        traffic.sidecar.istio.io/excludeOutboundPorts: {{ include "httpserver.port" $endpoint | quote }}
        {{- end }}
        {{- if $root.Values.monitoring.annotations }}
        # With a sidecar the injector points these at the merged endpoint of the agent (15020), which STRICT mTLS does not close.
        prometheus.io/scrape: "true"
        prometheus.io/port: "8080"
        prometheus.io/path: /metrics
        {{- end }}
    spec:
      serviceAccountName: {{ .hop.name | quote }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      # Holds the drain delay (5 s), the drain timeout (20 s) and the flush (3 s); the server drains by itself, so there is no preStop.
      terminationGracePeriodSeconds: 30
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        seccompProfile:
          type: RuntimeDefault
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              app: {{ .hop.name | quote }}
              lane: {{ .lane | quote }}
          matchLabelKeys:
            - pod-template-hash
      containers:
        - name: httpserver
          image: {{ include "httpserver.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          ports:
            - name: http
              containerPort: 8080
          env:
            - name: SERVICE_NAME
              value: {{ .hop.name | quote }}
            - name: VERSION
              valueFrom:
                fieldRef:
                  fieldPath: metadata.labels['version']
            - name: LANE
              valueFrom:
                fieldRef:
                  fieldPath: metadata.labels['lane']
            {{- with $hop.upstreams }}
            - name: UPSTREAM
              value: {{ join "," . | quote }}
            {{- end }}
            {{- with $hop.upstreamTimeout }}
            - name: UPSTREAM_TIMEOUT
              value: {{ . | quote }}
            {{- end }}
            {{- with $hop.fanOut }}
            - name: FAN_OUT
              value: {{ . | quote }}
            {{- end }}
            {{- with $hop.latency }}
            - name: LATENCY
              value: {{ . | quote }}
            {{- end }}
            {{- with $hop.faults }}
            - name: FAULT
              value: {{ join "," . | quote }}
            {{- end }}
            {{- with $hop.dropHeaders }}
            - name: DROP_HEADERS
              value: {{ join "," . | quote }}
            {{- end }}
            - name: LOG_FORMAT
              value: json
            - name: POD_NAME
              valueFrom:
                fieldRef:
                  fieldPath: metadata.name
            - name: POD_NAMESPACE
              valueFrom:
                fieldRef:
                  fieldPath: metadata.namespace
            - name: NODE_NAME
              valueFrom:
                fieldRef:
                  fieldPath: spec.nodeName
            # The name under which the sidecar reports, so that Jaeger shows one service for proxy and app.
            - name: OTEL_SERVICE_NAME
              value: {{ .hop.name }}.$(POD_NAMESPACE)
            - name: OTEL_RESOURCE_ATTRIBUTES
              value: k8s.namespace.name=$(POD_NAMESPACE),k8s.pod.name=$(POD_NAME),k8s.node.name=$(NODE_NAME)
            - name: OTEL_TRACES_EXPORTER
              value: {{ $root.Values.exporter.type | quote }}
            {{- if $endpoint }}
            - name: {{ eq $root.Values.exporter.type "zipkin" | ternary "OTEL_EXPORTER_ZIPKIN_ENDPOINT" "OTEL_EXPORTER_OTLP_ENDPOINT" }}
              value: {{ $endpoint | quote }}
            {{- end }}
            {{- with $propagators }}
            - name: OTEL_PROPAGATORS
              value: {{ . | quote }}
            {{- end }}
            {{- with $hop.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          startupProbe:
            httpGet:
              path: /healthz
              port: http
            periodSeconds: 1
            failureThreshold: 30
          livenessProbe:
            httpGet:
              path: /healthz
              port: http
            periodSeconds: 10
            timeoutSeconds: 2
            failureThreshold: 3
          readinessProbe:
            httpGet:
              path: /readyz
              port: http
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 1
          resources:
            {{- toYaml $hop.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop:
                - ALL
{{- end }}

{{/* The budget of a baseline version. Argument: dict root, hop, name, version */}}
{{- define "httpserver.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name | quote }}
  namespace: {{ include "httpserver.namespace" .root | quote }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      app: {{ .hop.name | quote }}
      version: {{ .version | quote }}
      lane: base
{{- end }}

{{/* A port of a Service of a hop. */}}
{{- define "httpserver.servicePorts" -}}
ports:
  - name: http
    port: 80
    targetPort: http
    appProtocol: http
{{- end }}

{{/* The names of the hops that have an HPA. */}}
{{- define "httpserver.scaled" -}}
{{- if .Values.autoscaling.enabled -}}
{{ .Values.autoscaling.hops | default (list (first .Values.hops).name) | toJson }}
{{- else -}}[]
{{- end -}}
{{- end }}
