{{/*
What one slot runs: image and model, merged from the common ones and its own, as JSON. Takes root and slot ("": Argo's,
which has only the common ones). A digest belongs to one image and a SHA-256 to one file: neither outlives what it was for.
*/}}
{{- define "stoker.slot" -}}
{{- $own := dict -}}
{{- if .slot }}{{ $own = index .root.Values.slots .slot }}{{ end -}}
{{- $image := deepCopy .root.Values.image -}}
{{- with $own.image -}}
{{- if or .repository .tag }}{{ $_ := set $image "digest" "" }}{{ end -}}
{{- range $key, $value := . }}{{ $_ := set $image $key $value }}{{ end -}}
{{- end -}}
{{- $model := deepCopy .root.Values.model -}}
{{- with $own.model -}}
{{- if or .source .delivery .file }}{{ $_ := set $model "sha256" "" }}{{ end -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value }}{{ $value = mergeOverwrite (deepCopy (index $model $key)) (deepCopy $value) }}{{ end -}}
{{- $_ := set $model $key $value -}}
{{- end -}}
{{- end -}}
{{- dict "image" $image "model" $model "enabled" ($own.enabled | default false) "replicas" $own.replicas | toJson -}}
{{- end }}

{{/* An image as the kubelet wants it. Takes root and image. */}}
{{- define "stoker.image" -}}
{{- $tag := .image.tag | default (.image.digest | empty | ternary .root.Chart.AppVersion "") -}}
{{ .image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* The name@version under which a claim keeps what was fetched: another file is another version. Takes a model. */}}
{{- define "stoker.modelVersion" -}}
{{ .sha256 | default (sha256sum .source) | trimPrefix "sha256:" | trunc 12 }}
{{- end }}

{{/* What `source` of a model is in the pod. Takes root and model. */}}
{{- define "stoker.modelSource" -}}
{{- $model := .model -}}
{{- $file := printf "%s.gguf" $model.name -}}
{{- if eq $model.delivery "image" -}}
{{ $model.file | default (printf "/models/%s" $file) }}
{{- else if eq $model.delivery "imageVolume" -}}
/models/{{ $model.imageVolume.path | default $file | trimPrefix "/" }}
{{- else if eq $model.delivery "none" -}}
{{ $model.source }}
{{- else if $model.source -}}
{{ $model.name }}@{{ include "stoker.modelVersion" $model }}
{{- else -}}
/models/{{ $model.file | default $file | trimPrefix "/" }}
{{- end -}}
{{- end }}

{{/* STOKER_MODELS of a slot: with the image in the pod's template, so that each ReplicaSet keeps its own. Nothing where
     the settings name the models. Takes root and model. */}}
{{- define "stoker.models" -}}
{{- $source := include "stoker.modelSource" . -}}
{{- if and $source (not .root.Values.config.models) -}}
{{- list (mergeOverwrite (dict "name" .model.name "source" $source) (deepCopy .model.settings)) | toJson -}}
{{- end -}}
{{- end }}

{{/* The claim of a model. Takes root and model. */}}
{{- define "stoker.claim" -}}
{{ .model.claim.existing | default (printf "%s-models" (include "stoker.fullname" .root)) }}
{{- end }}

{{/*
Replicas of a slot. One that is on keeps what it has: a number here would undo what the autoscaler did, and leaving the
field out at a switch would set it to 1. Takes root, kind, name, slot, on, replicas and active.
*/}}
{{- define "stoker.replicas" -}}
{{- $values := .root.Values -}}
{{- if not .on -}}
0
{{- else -}}
{{- $scaled := and .active $values.autoscaling.enabled -}}
{{- $version := eq .kind "Rollout" | ternary "argoproj.io/v1alpha1" "apps/v1" -}}
{{- $there := int (dig "spec" "replicas" 0 (lookup $version .kind .root.Release.Namespace .name)) -}}
{{- $wanted := int (kindIs "invalid" .replicas | ternary $values.replicas .replicas) -}}
{{- $keeps := and $values.autoscaling.enabled (gt $there 0) (or $scaled (kindIs "invalid" .replicas)) -}}
{{- $count := $keeps | ternary $there $wanted -}}
{{- if $scaled -}}
{{- $count = min (max $count (int $values.autoscaling.minReplicas)) (int $values.autoscaling.maxReplicas) -}}
{{- end -}}
{{ $count }}
{{- end -}}
{{- end }}
