{{/* What all pods have. Takes a dict of root, part, values (of that part). */}}
{{- define "stoker.pod" -}}
automountServiceAccountToken: false
# A Service called stoker would set STOKER_PORT, which is a setting, to tcp://...
enableServiceLinks: false
{{- with .root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "stoker.security" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What every process gets from the Secret, and from values. */}}
{{- define "stoker.environment" -}}
envFrom:
  - secretRef:
      name: {{ .root.Values.secretName }}
  {{- if eq .part "migrations" }}
  {{- with .root.Values.migrations.secretName }}
  # The last one wins.
  - secretRef:
      name: {{ . }}
  {{- end }}
  {{- end }}
env:
  - name: STOKER_DATA
    value: /data
  - name: STOKER_DRAIN_TIMEOUT
    value: {{ include "stoker.text" .root.Values.drainTimeout | quote }}
  {{- with .root.Values.files.storageUrl }}
  - name: STOKER_STORAGE_URL
    value: {{ . | quote }}
  {{- end }}
  {{- if ne .part "engine" }}
  # Without it a process that has no engine would take vLLM's demo model for the usual one.
  - name: STOKER_ENGINE
    value: upstream
  {{- with include "stoker.defaultModel" .root }}
  - name: STOKER_MODEL_NAME
    value: {{ . | quote }}
  {{- end }}
  {{- end }}
  {{- range $name, $value := .root.Values.settings }}
  - name: {{ $name }}
    value: {{ include "stoker.text" $value | quote }}
  {{- end }}
  {{- with .root.Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "stoker.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: data
  mountPath: /data
{{- if and .files .root.Values.files.claim }}
- name: files
  mountPath: /data/files
{{- end }}
{{- end -}}

{{- define "stoker.volumes" -}}
- name: tmp
  emptyDir: {}
- name: data
  emptyDir: {}
{{- if and .files .root.Values.files.claim }}
- name: files
  persistentVolumeClaim:
    claimName: {{ .root.Values.files.claim }}
{{- end }}
{{- end -}}

{{/* The pod's metadata. */}}
{{- define "stoker.podMetadata" -}}
labels:
  {{- include "stoker.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .part }}
  {{- with .engine }}
  stoker/engine: {{ . }}
  {{- end }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.podAnnotations }}
annotations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "stoker.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "stoker.selector" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .part }}
{{- end -}}
