{{/* At most 24 letters: with -engine-NAME it must leave room for the hash that a StatefulSet appends, 63 in all. */}}
{{- define "stoker.name" -}}
{{- if contains "stoker" .Release.Name -}}{{ .Release.Name | trunc 24 | trimSuffix "-" }}{{- else -}}{{ printf "%s-stoker" (.Release.Name | trunc 17 | trimSuffix "-") }}{{- end -}}
{{- end -}}

{{- define "stoker.selector" -}}
app.kubernetes.io/name: stoker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "stoker.labels" -}}
{{ include "stoker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The engine of a list entry: "stoker.name"-engine-NAME. Takes a dict of root and engine. */}}
{{- define "stoker.engine" -}}
{{ include "stoker.name" .root }}-engine-{{ .engine.name }}
{{- end -}}

{{/* The name that clients ask for, as stoker.settings derives it. */}}
{{- define "stoker.servedName" -}}
{{- if .modelName -}}{{ .modelName }}{{- else if or (hasPrefix "/" (.model | default "")) (hasPrefix "." (.model | default "")) -}}{{ base .model }}{{- else if and (eq (.kind | default "vllm") "fake") (not .model) -}}fake{{- else -}}{{ .model }}{{- end -}}
{{- end -}}

{{/* The model of requests that name none: as told, or the only one. */}}
{{- define "stoker.defaultModel" -}}
{{- if .Values.defaultModel -}}{{ .Values.defaultModel }}{{- else if eq (len .Values.engines) 1 -}}{{ include "stoker.servedName" (first .Values.engines) }}{{- end -}}
{{- end -}}

{{/* A value as text. Numbers of values.yaml are floats, which would be written as 2e+06. */}}
{{- define "stoker.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- define "stoker.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "stoker.check" -}}
{{- if not (or .Values.files.storageUrl .Values.files.claim) -}}
{{- fail "files.storageUrl or files.claim is needed: web and bulk must see the same files (a bucket, or a claim with ReadWriteMany)" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.engines -}}
{{- if has .name $names -}}{{- fail (printf "two engines are called %s" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- if and (eq (.kind | default "vllm") "vllm") (not .model) -}}{{- fail (printf "engine %s: model is needed" .name) -}}{{- end -}}
{{- if and (eq (.kind | default "vllm") "upstream") (not .upstreams) -}}{{- fail (printf "engine %s: upstreams is needed" .name) -}}{{- end -}}
{{- if and .keda $.Values.keda.enabled (not (include "stoker.servedName" .)) -}}{{- fail (printf "engine %s: keda needs modelName, whose queue it watches" .name) -}}{{- end -}}
{{- if and .keda $.Values.keda.enabled (lt (int .keda.max) (int .keda.min)) -}}{{- fail (printf "engine %s: keda.max is below keda.min" .name) -}}{{- end -}}
{{- if gt (int (.tensorParallelSize | default 1)) (max 1 (int (.gpus | default 0))) -}}{{- fail (printf "engine %s: tensorParallelSize is more than gpus" .name) -}}{{- end -}}
{{- end -}}
{{- end -}}
