{{- /* One installation a cluster: names are fixed, and known to the controller and to the policies. */}}
{{- define "testudo.labels" -}}
app.kubernetes.io/name: testudo
app.kubernetes.io/part-of: testudo
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "testudo.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "testudo.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* A file that packaging puts in. */}}
{{- define "testudo.packaged" -}}
{{- $text := .root.Files.Get .file }}
{{- if not $text }}
{{- fail (printf "%s is not in this chart: package it with `cargo xtask chart`" .file) }}
{{- end }}
{{- $text }}
{{- end }}

{{- /* The environment of what speaks to the API server. */}}
{{- define "testudo.apiServer" -}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "testudo.verbosity" -}}
{{- range until (int .) }}
- --verbose
{{- end }}
{{- end }}
