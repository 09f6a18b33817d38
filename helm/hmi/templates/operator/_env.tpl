{{/* Variables of the operator: about itself and about the Jobs that it creates. */}}
{{- define "hmi.operatorEnv" -}}
- {name: HMI_LEASE_SECONDS, value: {{ .Values.operator.leaseSeconds | quote }}}
- {name: HMI_REVOCATION_GRACE_SECONDS, value: {{ .Values.operator.revocationGraceSeconds | int64 | quote }}}
- {name: HMI_ORPHAN_GRACE_SECONDS, value: {{ .Values.operator.orphanGraceSeconds | int64 | quote }}}
- {name: HMI_INHERITED_GRACE_SECONDS, value: {{ .Values.operator.inheritedGraceSeconds | int64 | quote }}}
- {name: HMI_WATCH_NAMESPACES, value: {{ .Values.watchNamespaces | toJson | squote }}}
- {name: HMI_EXCLUDED_NAMESPACES, value: {{ .Values.excludeNamespaces | toJson | squote }}}
{{- if .Values.webhook.enabled }}
- {name: HMI_WEBHOOK_CERT_FILE, value: /etc/hmi/webhook/tls.crt}
- {name: HMI_WEBHOOK_KEY_FILE, value: /etc/hmi/webhook/tls.key}
{{- end }}
{{- with .Values.trainer }}
- {name: HMI_TRAINER_INSTANCE, value: {{ $.Release.Name | quote }}}
- {name: HMI_TRAINER_IMAGE, value: {{ include "hmi.image" (list $ "runtime") }}}
- {name: HMI_TRAINER_IMAGE_PULL_POLICY, value: {{ $.Values.image.pullPolicy }}}
- {name: HMI_TRAINER_IMAGE_PULL_SECRETS, value: {{ .imagePullSecrets | toJson | squote }}}
- {name: HMI_TRAINER_CONTROL_PLANE_URL, value: {{ include "hmi.controlPlaneUrl" $ }}}
- {name: HMI_TRAINER_NODE_SELECTOR, value: {{ .nodeSelector | toJson | squote }}}
- {name: HMI_TRAINER_TOLERATIONS, value: {{ .tolerations | toJson | squote }}}
- {name: HMI_TRAINER_DEFAULT_RESOURCES, value: {{ include "hmi.resourcesAsText" .resources | squote }}}
- {name: HMI_TRAINER_DEADLINE_SECONDS, value: {{ .deadlineSeconds | int64 | quote }}}
- {name: HMI_TRAINER_TTL_SECONDS, value: {{ .ttlSeconds | int64 | quote }}}
- {name: HMI_TRAINER_SUCCEEDED_TTL_SECONDS, value: {{ .succeededTtlSeconds | int64 | quote }}}
- {name: HMI_TRAINER_CHECKPOINT_SIZE, value: {{ .checkpoints.size | quote }}}
- {name: HMI_TRAINER_AFFINITY, value: {{ .affinity | toJson | squote }}}
- {name: HMI_TRAINER_PRIORITY_CLASS_NAME, value: {{ .priorityClassName | quote }}}
- {name: HMI_TRAINER_RUNTIME_CLASS_NAME, value: {{ .runtimeClassName | quote }}}
- {name: HMI_TRAINER_POD_LABELS, value: {{ .podLabels | toJson | squote }}}
- {name: HMI_TRAINER_POD_ANNOTATIONS, value: {{ .podAnnotations | toJson | squote }}}
- {name: HMI_TRAINER_EXTRA_ENV, value: {{ .extraEnv | toJson | squote }}}
- {name: HMI_TRAINER_EXTRA_VOLUMES, value: {{ .extraVolumes | toJson | squote }}}
- {name: HMI_TRAINER_EXTRA_VOLUME_MOUNTS, value: {{ .extraVolumeMounts | toJson | squote }}}
{{- with .checkpoints.storageClass }}
- {name: HMI_TRAINER_CHECKPOINT_STORAGE_CLASS, value: {{ . }}}
{{- end }}
{{- end }}
{{- include "hmi.adapterLimitsEnv" . }}
{{ include "hmi.dataEnv" . }}
- {name: HMI_TRAINER_HTTP_PROXY, value: {{ .Values.proxy.httpProxy | quote }}}
- {name: HMI_TRAINER_HTTPS_PROXY, value: {{ .Values.proxy.httpsProxy | quote }}}
- {name: HMI_TRAINER_NO_PROXY, value: {{ .Values.proxy.noProxy | quote }}}
- {name: HMI_TRAINER_NETWORK_POLICY, value: {{ .Values.networkPolicy.enabled | quote }}}
- {name: HMI_TRAINER_EGRESS, value: {{ concat .Values.networkPolicy.trainerEgress (include "hmi.proxyEgress" . | fromYamlArray) | toJson | squote }}}
{{- include "hmi.certificatesEnv" . }}
{{- end }}

{{/* The largest adapters that fit every pool, since an adapter may be placed on any of them. */}}
{{- define "hmi.adapterLimitsEnv" -}}
{{- $least := dict -}}
{{- range $name, $own := .Values.runtime.pools -}}
{{- $pool := mustMergeOverwrite (deepCopy $.Values.runtime.defaults) (deepCopy $own) -}}
{{- if $pool.enabled -}}
{{- range $limit := list "maxRank" "maxBottleneck" "maxLabels" -}}
{{- $here := get $pool.slots $limit | int64 -}}
{{- $_ := set $least $limit (min $here (ternary (get $least $limit) $here (hasKey $least $limit))) -}}
{{- end -}}
{{- end -}}
{{- end }}
{{- range $limit, $variable := dict "maxRank" "HMI_MAX_RANK" "maxBottleneck" "HMI_MAX_BOTTLENECK" "maxLabels" "HMI_MAX_LABELS" }}
{{- if hasKey $least $limit }}
- {name: {{ $variable }}, value: {{ get $least $limit | int64 | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Resources as JSON whose quantities are text: YAML reads `1` as a number. */}}
{{- define "hmi.resourcesAsText" -}}
{{- $all := dict -}}
{{- range $kind, $quantities := . -}}
{{- $texts := dict -}}
{{- range $name, $quantity := $quantities -}}
{{- $_ := set $texts $name (toString $quantity) -}}
{{- end -}}
{{- $_ := set $all $kind $texts -}}
{{- end -}}
{{- toJson $all -}}
{{- end }}
