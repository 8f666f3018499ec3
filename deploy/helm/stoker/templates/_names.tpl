{{/* The name of all objects: the release's, with the chart's where that is not in it. */}}
{{- define "stoker.fullname" -}}
{{- $name := .Values.fullnameOverride | default (contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name)) -}}
{{- $name | trunc 44 | trimSuffix "-" -}}
{{- end }}

{{- define "stoker.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "stoker.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{/* Labels of an object, never of a pod's template: the chart's version changes them. Takes root and component. */}}
{{- define "stoker.labels" -}}
{{ include "stoker.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{/* What finds pods, and does not change. Takes root, component and slot ("": of whatever slot). */}}
{{- define "stoker.podLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component | default "server" }}
{{- with .slot }}
stoker.dev/slot: {{ . }}
{{- end }}
{{- end }}

{{/* The slot that does not serve. */}}
{{- define "stoker.idle" -}}
{{ eq .Values.active "blue" | ternary "green" "blue" }}
{{- end }}

{{- define "stoker.argo" -}}
{{- if eq .Values.rollout.engine "argo" }}true{{ end -}}
{{- end }}

{{/* The slot of the active pods; with Argo Rollouts there are none. */}}
{{- define "stoker.activeSlot" -}}
{{- if not (include "stoker.argo" .) }}{{ .Values.active }}{{ end -}}
{{- end }}

{{- define "stoker.port" -}}
{{ int (.Values.config.port | default 8080) }}
{{- end }}

{{- define "stoker.metricsPort" -}}
{{ int (dig "monitor" "port" nil .Values.config | default 9464) }}
{{- end }}

{{- define "stoker.dataDir" -}}
{{ .Values.config.data_dir | default "/data" }}
{{- end }}
