{{- define "hmi.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "hmi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels that select the pods of a component. Call with (list $ "component"). */}}
{{- define "hmi.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "hmi.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object. Call with (list $ "component"). */}}
{{- define "hmi.labels" -}}
{{- $root := index . 0 -}}
{{ include "hmi.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: hmi
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Labels of a pod: no version and no chart, so that a template changes only when the pod does.
Call with (list $ "component" .Values.component). The component's own podLabels win over those of all pods.
*/}}
{{- define "hmi.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "hmi.selector" (list $root (index . 1)) }}
app.kubernetes.io/part-of: hmi
{{- with merge dict ((index . 2).podLabels | default dict) $root.Values.podLabels $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Annotations of a pod. Call with (list $ .Values.component). */}}
{{- define "hmi.podAnnotations" -}}
{{- with merge dict ((index . 1).podAnnotations | default dict) (index . 0).Values.podAnnotations }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/*
The name of a StatefulSet and its Service. Its pods carry a label of this name and eleven more letters, and labels end
at 63: a longer name is cut, and made unique by a hash. Call with the name that it would have.
*/}}
{{- define "hmi.statefulSetName" -}}
{{- if gt (len .) 52 -}}
{{- printf "%s-%s" (trunc 43 . | trimSuffix "-") (sha256sum . | trunc 8) -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end }}

{{/* The reference of an image. Call with (list $ "controlPlane"). */}}
{{- define "hmi.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- $override := index $image.overrides (index . 1) -}}
{{- if $override -}}
{{- $override -}}
{{- else -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- printf "%s-%s:%s" $image.name (kebabcase (index . 1)) (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end }}

{{- define "hmi.pullSecrets" -}}
{{- $names := .Values.image.pullSecrets -}}
{{- if .Values.image.credentials }}{{ $names = append $names (printf "%s-images" (include "hmi.fullname" .)) }}{{ end -}}
{{- with $names }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "hmi.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hmi.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Scheduling of a pod. Call with (list $ "component" .Values.component). */}}
{{- define "hmi.scheduling" -}}
{{- $at := index . 2 -}}
topologySpreadConstraints:
  {{- if $at.topologySpreadConstraints }}
  {{- toYaml $at.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "hmi.selector" (list (index $ 0) (index $ 1)) | nindent 8 }}
  {{- end }}
  {{- end }}
{{- with $at.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $at.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $at.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $at.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $at.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}

{{/* An HTTP probe. Call with (dict "path" "/healthz" "port" "http" "period" 10 "failures" 3). */}}
{{- define "hmi.probe" -}}
httpGet: {path: {{ .path }}, port: {{ .port }}}
periodSeconds: {{ .period }}
timeoutSeconds: 5
failureThreshold: {{ .failures }}
{{- end }}

{{/* Bytes of a quantity such as 512Mi, 1.5Gi, 500G or 1048576; 0 of an empty one. */}}
{{- define "hmi.bytes" -}}
{{- $binary := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $decimal := dict "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[A-Za-z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get (merge $binary $decimal) $unit | default 1) | int64 -}}
{{- end }}
