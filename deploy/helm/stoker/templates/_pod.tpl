{{/* Settings of the server: what the values say elsewhere, and over it `config`. */}}
{{- define "stoker.config" -}}
{{- $values := .Values -}}
{{- $settings := dict
      "host" "0.0.0.0"
      "port" (int (include "stoker.port" .))
      "data_dir" (include "stoker.dataDir" .)
      "allow_public" $values.keys.allowPublic
      "log" (dict "format" "json")
      "monitor" (dict "host" "0.0.0.0" "port" (int (include "stoker.metricsPort" .)))
      "timeouts" (dict "lame_duck" 5 "shutdown" $values.drainSeconds) -}}
{{- if $values.keys.existingSecret }}{{ $_ := set $settings "keys_file" "/etc/stoker/keys/keys.yaml" }}{{ end -}}
{{- if $values.redis.url }}{{ $_ := set $settings "store" (dict "redis" $values.redis.url) }}{{ end -}}
{{- if and $values.backup.enabled $values.backup.watch.enabled -}}
{{- $_ := set $settings "backup" (dict "repository" $values.backup.repository) -}}
{{- end -}}
{{ mergeOverwrite $settings (deepCopy $values.config) | toYaml }}
{{- end }}

{{/* Environment that every container of Stoker gets. The image's own variables go before the file, so that what the file
     may say of them is said again. Takes root and model. */}}
{{- define "stoker.env" -}}
{{- $settings := include "stoker.config" .root | fromYaml -}}
- {name: STOKER_CONFIG, value: /etc/stoker/stoker.yaml}
- {name: STOKER_HOST, value: {{ $settings.host | quote }}}
- {name: STOKER_PORT, value: {{ int $settings.port | quote }}}
- {name: STOKER_DATA_DIR, value: {{ $settings.data_dir | quote }}}
- {name: STOKER_LOG__FORMAT, value: {{ $settings.log.format | quote }}}
{{- with include "stoker.models" . }}
- name: STOKER_MODELS
  value: {{ . | quote }}
{{- end }}
{{- with .root.Values.redis.existingSecret }}
{{- if .name }}
- name: STOKER_STORE__REDIS
  valueFrom: {secretKeyRef: {name: {{ .name | quote }}, key: {{ .key | quote }}}}
{{- end }}
{{- end }}
{{- end }}

{{/* What every container of Stoker has mounted. Takes root and model. */}}
{{- define "stoker.mounts" -}}
- {name: config, mountPath: /etc/stoker/stoker.yaml, subPath: stoker.yaml, readOnly: true}
- {name: data, mountPath: {{ include "stoker.dataDir" .root | quote }}}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.keys.existingSecret }}
- {name: keys, mountPath: /etc/stoker/keys, readOnly: true}
{{- end }}
{{- if and (eq .model.delivery "claim") .model.source }}
- {name: model, mountPath: {{ printf "%s/models" (include "stoker.dataDir" .root) | quote }}}
{{- else if has .model.delivery (list "claim" "imageVolume") }}
- {name: model, mountPath: /models, readOnly: true}
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The volumes behind them. Takes root and model. */}}
{{- define "stoker.volumes" -}}
- name: config
  configMap: {name: {{ include "stoker.fullname" .root }}}
- name: data
  emptyDir: {sizeLimit: {{ .root.Values.dataVolume.sizeLimit | quote }}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- with .root.Values.keys.existingSecret }}
- name: keys
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- if eq .model.delivery "claim" }}
- name: model
  persistentVolumeClaim: {claimName: {{ include "stoker.claim" . | quote }}}
{{- else if eq .model.delivery "imageVolume" }}
- name: model
  image: {reference: {{ .model.imageVolume.reference | quote }}, pullPolicy: {{ .model.imageVolume.pullPolicy }}}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What every pod of this chart has, whatever runs in it. Takes root. */}}
{{- define "stoker.podBasics" -}}
serviceAccountName: {{ include "stoker.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Image and rights of a container. Takes root and image. */}}
{{- define "stoker.containerBasics" -}}
image: {{ include "stoker.image" . | quote }}
imagePullPolicy: {{ .image.pullPolicy }}
securityContext: {{- toYaml .root.Values.securityContext | nindent 2 }}
{{- end }}

{{/* An init container that brings the model onto its claim, unless it is there: then nobody is asked. Takes root, image and model. */}}
{{- define "stoker.fetch" -}}
{{- if and (eq .model.delivery "claim") .model.source }}
- name: fetch-model
  {{- include "stoker.containerBasics" . | nindent 2 }}
  command: ["/bin/sh", "-ec"]
  args:
    - >-
      stoker models show "$MODEL_NAME@$MODEL_VERSION" >/dev/null 2>&1
      || exec stoker models add "$MODEL_SOURCE" --name "$MODEL_NAME" --version "$MODEL_VERSION" ${MODEL_SHA256:+--sha256 "$MODEL_SHA256"}
  env:
    {{- include "stoker.env" . | nindent 4 }}
    - {name: MODEL_SOURCE, value: {{ .model.source | quote }}}
    - {name: MODEL_NAME, value: {{ .model.name | quote }}}
    - {name: MODEL_VERSION, value: {{ include "stoker.modelVersion" .model | quote }}}
    - {name: MODEL_SHA256, value: {{ .model.sha256 | quote }}}
  {{- with .model.existingSecret }}
  envFrom:
    - secretRef: {name: {{ . | quote }}}
  {{- end }}
  volumeMounts: {{- include "stoker.mounts" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 1Gi}
{{- end }}
{{- end }}

{{/* Secrets whose keys are variables of the server: for fetching, for looking at backups. Takes root and model. */}}
{{- define "stoker.envFrom" -}}
{{- $values := .root.Values -}}
{{- if and (eq .model.delivery "none") .model.existingSecret }}
- secretRef: {name: {{ .model.existingSecret | quote }}}
{{- end }}
{{- if and $values.backup.enabled $values.backup.watch.enabled }}
{{- with $values.backup.watch.existingSecret | default $values.backup.existingSecret }}
- secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end }}
{{- with $values.extraEnvFrom }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
The template of the server's pods. Both slots have the same, but for `image` and `model`; nothing in it depends on which
slot is active, or a switch would restart pods. Takes root, slot, image and model.
*/}}
{{- define "stoker.podTemplate" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "stoker.podLabels" . | nindent 4 }}
    {{- with $values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    checksum/config: {{ include "stoker.config" .root | sha256sum }}
    {{- with $values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  {{- include "stoker.podBasics" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ add $values.preStopSeconds $values.drainSeconds 15 }}
  {{- if $values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range $values.topologySpread.topologyKeys }}
    - maxSkew: 1
      topologyKey: {{ . | quote }}
      whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels: {{- include "stoker.podLabels" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  {{- with include "stoker.fetch" . | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: stoker
      {{- include "stoker.containerBasics" . | nindent 6 }}
      args: [serve]
      env:
        {{- include "stoker.env" . | nindent 8 }}
        {{- with $values.extraEnv }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- with include "stoker.envFrom" . | trim }}
      envFrom:
        {{- . | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: {{ include "stoker.port" .root }}, protocol: TCP}
        - {name: metrics, containerPort: {{ include "stoker.metricsPort" .root }}, protocol: TCP}
      startupProbe:
        httpGet: {path: /health/startup, port: http}
        timeoutSeconds: 3
        periodSeconds: {{ int $values.probes.startup.periodSeconds }}
        failureThreshold: {{ int $values.probes.startup.failureThreshold }}
      livenessProbe:
        httpGet: {path: /health/live, port: http}
        {{- toYaml $values.probes.liveness | nindent 8 }}
      readinessProbe:
        httpGet: {path: /health/ready, port: http}
        {{- toYaml $values.probes.readiness | nindent 8 }}
      {{- if gt (int $values.preStopSeconds) 0 }}
      lifecycle:
        preStop:
          {{- if semverCompare ">=1.30-0" .root.Capabilities.KubeVersion.Version }}
          sleep: {seconds: {{ int $values.preStopSeconds }}}
          {{- else }}
          exec: {command: [sleep, {{ int $values.preStopSeconds | quote }}]}
          {{- end }}
      {{- end }}
      resources: {{- toYaml $values.resources | nindent 8 }}
      volumeMounts: {{- include "stoker.mounts" . | nindent 8 }}
  volumes: {{- include "stoker.volumes" . | nindent 4 }}
{{- end }}
