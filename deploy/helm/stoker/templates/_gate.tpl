{{/* Whether an upgrade would switch: what the Service says now is another slot. Without a cluster to ask: perhaps, so yes. */}}
{{- define "stoker.switching" -}}
{{- $now := dig "spec" "selector" "stoker.dev/slot" "" (lookup "v1" "Service" .Release.Namespace (include "stoker.fullname" .)) -}}
{{- if ne $now .Values.active }}true{{ end -}}
{{- end }}

{{/* The Job of the gate: the set is put to both versions, each by its Service. Takes root, image, model (of the new
     version) and against (the model of the one that serves). */}}
{{- define "stoker.gateJob" -}}
{{- $values := .root.Values -}}
{{- $gate := $values.gate -}}
{{- $fullname := include "stoker.fullname" .root -}}
{{- $port := int $values.service.port -}}
backoffLimit: 0
activeDeadlineSeconds: {{ int $gate.timeoutSeconds }}
template:
  metadata:
    labels: {{- include "stoker.podLabels" (dict "root" .root "component" "gate") | nindent 6 }}
  spec:
    {{- include "stoker.podBasics" . | nindent 4 }}
    restartPolicy: Never
    containers:
      - name: evaluate
        {{- include "stoker.containerBasics" . | nindent 8 }}
        args:
          - evaluate
          - {{ eq $gate.set "smoke" | ternary "smoke" "/etc/stoker/set/set.yaml" }}
          - --url=http://{{ $fullname }}-preview:{{ $port }}
          - --against=http://{{ $fullname }}:{{ $port }}
          {{- if not $values.config.models }}
          - {{ printf "--model=%s" .model.name | quote }}
          - {{ printf "--against-model=%s" .against.name | quote }}
          {{- end }}
        {{- if $gate.keySecret.name }}
        env:
          - name: STOKER_API_KEY
            valueFrom: {secretKeyRef: {name: {{ $gate.keySecret.name | quote }}, key: {{ $gate.keySecret.key | quote }}}}
          # The address that serves is another one, which gets a key only if it is named for it.
          - name: STOKER_AGAINST_KEY
            valueFrom: {secretKeyRef: {name: {{ $gate.keySecret.name | quote }}, key: {{ $gate.keySecret.key | quote }}}}
        {{- end }}
        resources: {{- toYaml $gate.resources | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          - {name: data, mountPath: /data}
          {{- if ne $gate.set "smoke" }}
          - {name: set, mountPath: /etc/stoker/set, readOnly: true}
          {{- end }}
          {{- with $values.extraVolumeMounts }}{{ toYaml . | nindent 10 }}{{ end }}
    volumes:
      - {name: tmp, emptyDir: {sizeLimit: 64Mi}}
      - {name: data, emptyDir: {sizeLimit: 64Mi}}
      {{- if ne $gate.set "smoke" }}
      - name: set
        configMap: {name: {{ $fullname }}-gate}
      {{- end }}
      {{- with $values.extraVolumes }}{{ toYaml . | nindent 6 }}{{ end }}
{{- end }}
