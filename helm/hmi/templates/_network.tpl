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
