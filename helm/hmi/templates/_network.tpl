{{/* The pods of a component, as a NetworkPolicyPeer. Call with (list $ "component"). */}}
{{- define "hmi.peer" -}}
podSelector:
  matchLabels:
    {{- include "hmi.selector" . | nindent 4 }}
{{- end }}

{{/* An egress rule to address blocks and ports. Call with (dict "cidrs" (list) "ports" (list)). */}}
{{- define "hmi.egressTo" -}}
to:
  {{- range .cidrs }}
  - ipBlock: {cidr: {{ . | quote }}}
  {{- end }}
ports:
  {{- range .ports }}
  - {port: {{ . | int }}, protocol: TCP}
  {{- end }}
{{- end }}

{{/* Egress rules to the proxy, as a list; none where no proxy is set. */}}
{{- define "hmi.proxyEgress" -}}
{{- if and (or .Values.proxy.httpProxy .Values.proxy.httpsProxy) .Values.networkPolicy.proxy.cidrs }}
{{- list (include "hmi.egressTo" .Values.networkPolicy.proxy | fromYaml) | toYaml }}
{{- else -}}
[]
{{- end }}
{{- end }}

{{/* A Service for Prometheus alone, without an address of its own. Call with (list $ "component"). */}}
{{- define "hmi.metricsService" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "hmi.fullname" $root }}-{{ index . 1 }}-metrics
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "hmi.labels" . | nindent 4 }}
spec:
  clusterIP: None
  selector:
    {{- include "hmi.selector" . | nindent 4 }}
  ports:
    - {name: metrics, port: 9090, targetPort: metrics}
{{- end }}
