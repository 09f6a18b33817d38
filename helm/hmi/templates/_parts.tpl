{{/* How HMI's parts authenticate to one another: service-account tokens for one audience, checked by the API server. */}}
{{- define "hmi.audience" -}}hmi-control-plane{{- end }}

{{- define "hmi.controlPlaneUrl" -}}
http://{{ include "hmi.fullname" . }}-control-plane.{{ .Release.Namespace }}.svc
{{- with .Values.controlPlane.service.port }}{{ if ne (int .) 80 }}:{{ . }}{{ end }}{{ end }}
{{- end }}

{{- define "hmi.tokenVolume" -}}
- name: internal-token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {audience: {{ include "hmi.audience" . }}, expirationSeconds: 3600, path: token}
{{- end }}

{{- define "hmi.tokenMount" -}}
- {name: internal-token, mountPath: /var/run/secrets/hmi.dev, readOnly: true}
{{- end }}

{{- define "hmi.tokenEnv" -}}
- {name: HMI_INTERNAL_TOKEN_FILE, value: /var/run/secrets/hmi.dev/token}
{{- end }}

{{- define "hmi.reviewEnv" -}}
- {name: HMI_TOKEN_REVIEW, value: "true"}
- {name: HMI_TOKEN_AUDIENCE, value: {{ include "hmi.audience" . }}}
{{- range list "operator" "control-plane" "gateway" "runtime" }}
- name: HMI_ROLES__{{ . | replace "-" "_" | upper }}
  value: system:serviceaccount:{{ $.Release.Namespace }}:{{ include "hmi.accountName" (list $ .) }}
{{- end }}
{{- end }}

{{/* The Secret with the database's address, and its key. */}}
{{- define "hmi.databaseEnv" -}}
- name: HMI_DATABASE_URL
  valueFrom:
    secretKeyRef:
      {{- if .Values.postgresql.enabled }}
      name: {{ include "hmi.fullname" . }}-postgresql
      key: url
      {{- else }}
      name: {{ required "database.existingSecret is needed when postgresql.enabled is false" .Values.database.existingSecret }}
      key: {{ .Values.database.key }}
      {{- end }}
{{- end }}

{{- define "hmi.adminSecret" -}}
{{- default (printf "%s-admin" (include "hmi.fullname" .)) .Values.admin.existingSecret -}}
{{- end }}

{{- define "hmi.artifactsEnv" -}}
{{- with .Values.artifacts.s3 }}
{{- if .uri }}
- {name: HMI_ARTIFACTS, value: {{ .uri | quote }}}
{{- with .endpointUrl }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .region }}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- range ternary (list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY") list (ne .existingSecret "") }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.artifacts.s3.existingSecret }}, key: {{ . }}}}
{{- end }}
{{- else }}
- {name: HMI_ARTIFACTS, value: /artifacts}
{{- end }}
{{- end }}
{{- end }}

{{- define "hmi.artifactsMount" -}}
{{- if not .Values.artifacts.s3.uri }}
- {name: artifacts, mountPath: /artifacts}
{{- end }}
{{- end }}

{{- define "hmi.artifactsVolume" -}}
{{- if not .Values.artifacts.s3.uri }}
- name: artifacts
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-artifacts" (include "hmi.fullname" .)) .Values.artifacts.persistence.existingClaim }}
{{- end }}
{{- end }}

{{/* A claim's spec. Call with (dict "size" "1Gi" "storageClass" "" "accessMode" "ReadWriteOnce"). */}}
{{- define "hmi.claim" -}}
accessModes: [{{ default "ReadWriteOnce" .accessMode }}]
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests: {storage: {{ .size }}}
{{- end }}

{{/*
Refuses another size of a StatefulSet's volumes than it was installed with, before anything is changed: the API
server refuses it too, but then the rest of the release has changed already.
Call with (list $ "statefulset" "setting" "1Gi"); without a size, no volumes are wanted.
*/}}
{{- define "hmi.keptVolumes" -}}
{{- $root := index . 0 -}}
{{- $set := index . 1 -}}
{{- $setting := index . 2 -}}
{{- $wanted := index . 3 -}}
{{- $found := lookup "apps/v1" "StatefulSet" $root.Release.Namespace $set -}}
{{- if $found -}}
{{- $was := "" -}}
{{- range $found.spec.volumeClaimTemplates -}}
{{- $was = .spec.resources.requests.storage -}}
{{- end -}}
{{- if ne (include "hmi.bytes" $was) (include "hmi.bytes" $wanted) -}}
{{- fail (printf "%s: %s was installed with %s, and a StatefulSet keeps its volumes; give what it was, or say `kubectl delete statefulset %s -n %s --cascade=orphan` first (its pods run on)" $setting $set (ternary (printf "volumes of %s" $was) "no volumes" (ne $was "")) $set $root.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A component's values by its name. Call with (list $ "control-plane"). */}}
{{- define "hmi.valuesOf" -}}
{{- index (index . 0).Values (index . 1 | camelcase | untitle) | toJson -}}
{{- end }}

{{/* The name of a component's service account. Call with (list $ "component"). */}}
{{- define "hmi.accountName" -}}
{{- $account := (include "hmi.valuesOf" . | fromJson).serviceAccount -}}
{{- default (printf "%s-%s" (include "hmi.fullname" (index . 0)) (index . 1)) $account.name -}}
{{- end }}

{{- define "hmi.serviceAccount" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "hmi.accountName" (list $root (index . 1)) }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "hmi.labels" (list $root (index . 1)) | nindent 4 }}
  {{- with (index . 2).serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}

{{/* Additional certificate authorities, for parts that call addresses outside of the cluster. */}}
{{- define "hmi.certificatesEnv" -}}
{{- with .Values.customCA }}
{{- if .configMap.name }}
- name: HMI_CA_CERTIFICATES
  valueFrom: {configMapKeyRef: {name: {{ .configMap.name }}, key: {{ .configMap.key }}}}
{{- else if .certificates }}
- {name: HMI_CA_CERTIFICATES, value: {{ .certificates | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{/* A Service's own settings. Call with the values of the Service. */}}
{{- define "hmi.serviceFields" -}}
{{- range $field := list "loadBalancerClass" "loadBalancerIP" "externalTrafficPolicy" "internalTrafficPolicy" "ipFamilyPolicy" "sessionAffinity" }}
{{- with get $ $field }}
{{ $field }}: {{ . }}
{{- end }}
{{- end }}
{{- range $field := list "loadBalancerSourceRanges" "externalIPs" "ipFamilies" }}
{{- with get $ $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Service of a component that others call. Call with (list $ "component" values-of-the-service). */}}
{{- define "hmi.service" -}}
{{- $root := index . 0 -}}
{{- $service := index . 2 -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "hmi.fullname" $root }}-{{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "hmi.labels" (list $root (index . 1)) | nindent 4 }}
    {{- with $service.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $service.type }}
  {{- include "hmi.serviceFields" $service | nindent 2 }}
  selector:
    {{- include "hmi.selector" (list $root (index . 1)) | nindent 4 }}
  ports:
    - name: http
      port: {{ $service.port }}
      targetPort: http
      {{- with $service.appProtocol }}
      appProtocol: {{ . }}
      {{- end }}
      {{- with $service.nodePort }}
      nodePort: {{ . }}
      {{- end }}
{{- end }}

{{/* The addresses that tenants may name. */}}
{{- define "hmi.dataEnv" -}}
- {name: HMI_DATA_ADDRESSES, value: cluster}
- {name: HMI_DATA_ALLOWED_HOSTS, value: {{ .Values.data.allowedHosts | toJson | squote }}}
- {name: HMI_DATA_ALLOWED_NETWORKS, value: {{ .Values.data.allowedNetworks | toJson | squote }}}
- {name: HMI_DATA_CLUSTER_NETWORKS, value: {{ .Values.data.clusterNetworks | toJson | squote }}}
{{- end }}

{{/* Proxies of a part that calls addresses outside of the cluster; its calls within HMI use none. */}}
{{- define "hmi.proxyEnv" -}}
{{- with .Values.proxy.httpProxy }}
- {name: HTTP_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with .Values.proxy.httpsProxy }}
- {name: HTTPS_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with .Values.proxy.noProxy }}
- {name: NO_PROXY, value: {{ . | quote }}}
{{- end }}
{{- end }}
