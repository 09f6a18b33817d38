{{/* The disk budget and a quarter more, for artifacts that are being fetched. */}}
{{- define "hmi.cacheSize" -}}
{{- div (mul 5 (include "hmi.bytes" .budgets.disk)) 4 -}}
{{- end }}

{{/* Variables of a runtime. Call with (list $ pool name). */}}
{{- define "hmi.runtimeEnv" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{- if and (hasPrefix "cuda" $pool.device) (eq $pool.precision "int8") -}}
{{- fail (printf "runtime.pools.%s: precision int8 runs on CPUs only, and the device is %s; set the pool's precision to auto, float32 or bfloat16" (index . 2) $pool.device) -}}
{{- end -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: HMI_RUNTIME_ID
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- {name: HMI_RUNTIME_URL, value: "http://$(POD_IP):8081"}
- {name: HMI_RUNTIME_HOST, value: "::"}
- {name: HMI_RUNTIME_PORT, value: "8081"}
- {name: HMI_METRICS_PORT, value: "9090"}
- {name: HMI_CONTROL_PLANE_URL, value: {{ include "hmi.controlPlaneUrl" $root }}}
- {name: HMI_CACHE_DIR, value: /var/lib/hmi/cache}
- {name: HMI_DEVICE, value: {{ $pool.device | quote }}}
- {name: HMI_POOL, value: {{ index . 2 | quote }}}
- {name: HMI_PRECISION, value: {{ $pool.precision }}}
- {name: HMI_THREADS, value: {{ $pool.threads | quote }}}
- {name: HMI_DEVICE_BUDGET, value: {{ include "hmi.bytes" $pool.budgets.device | quote }}}
- {name: HMI_HOST_BUDGET, value: {{ include "hmi.bytes" $pool.budgets.host | quote }}}
- {name: HMI_TABLE_BUDGET, value: {{ include "hmi.bytes" $pool.budgets.tables | quote }}}
- {name: HMI_DISK_BUDGET, value: {{ include "hmi.bytes" $pool.budgets.disk | quote }}}
- {name: HMI_DEVICE_SLOTS, value: {{ $pool.slots.count | int64 | quote }}}
- {name: HMI_MAX_RANK, value: {{ $pool.slots.maxRank | int64 | quote }}}
- {name: HMI_MAX_BOTTLENECK, value: {{ $pool.slots.maxBottleneck | int64 | quote }}}
- {name: HMI_MAX_LABELS, value: {{ $pool.slots.maxLabels | int64 | quote }}}
- {name: HMI_BATCH_ROWS, value: {{ $pool.batch.rows | int64 | quote }}}
- {name: HMI_BATCH_TOKENS, value: {{ $pool.batch.tokens | int64 | quote }}}
- {name: HMI_MAX_WAIT_MS, value: {{ $pool.batch.maxWaitMs | quote }}}
- {name: HMI_MOVE_SECONDS, value: {{ $pool.moveSeconds | quote }}}
- {name: HMI_DRAIN_SECONDS, value: {{ $pool.drainSeconds | quote }}}
{{ include "hmi.artifactsEnv" $root | trim }}
{{ include "hmi.tokenEnv" $root }}
{{ include "hmi.reviewEnv" $root }}
{{ include "hmi.dataEnv" $root }}
{{- include "hmi.proxyEnv" $root }}
{{- include "hmi.certificatesEnv" $root }}
{{- with $pool.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
