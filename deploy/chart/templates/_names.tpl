{{/* The name of the objects. Pods get at most 22 characters more, such as "-coordinator-0-0-abcde", and names of pods end at 63. */}}
{{- define "obsdiff.name" -}}
{{- $name := .Values.name | default .Release.Name -}}
{{- if gt (len $name) 41 -}}
{{- fail (printf "the name %s has %d characters: set name to one of at most 41, as Kubernetes allows 63 for a pod's" $name (len $name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the name %s is no DNS label: set name to lower-case letters, digits and dashes, with a letter first" $name) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{- define "obsdiff.selectorLabels" -}}
app.kubernetes.io/name: obsdiff
app.kubernetes.io/instance: {{ include "obsdiff.name" . }}
{{- end }}

{{- define "obsdiff.labels" -}}
{{ include "obsdiff.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels that Kueue reads. */}}
{{- define "obsdiff.queueLabels" -}}
{{- with .Values.kueue.queue }}
kueue.x-k8s.io/queue-name: {{ . }}
{{- end }}
{{- with .Values.kueue.priorityClass }}
kueue.x-k8s.io/priority-class: {{ . }}
{{- end }}
{{- end }}

{{/* The name under which workers find the coordinator: JobSet's own, or that of a Service. */}}
{{- define "obsdiff.coordinatorHost" -}}
{{- $name := include "obsdiff.name" . -}}
{{- if eq .Values.kind "JobSet" -}}
{{ $name }}-coordinator-0-0.{{ $name }}
{{- else -}}
{{ $name }}-coordinator
{{- end -}}
{{- end }}

{{- define "obsdiff.coordinatorUrl" -}}
{{ ternary "http" "https" (eq .Values.tls.mode "none") }}://{{ include "obsdiff.coordinatorHost" . }}:{{ .Values.coordinator.port }}
{{- end }}

{{- define "obsdiff.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "obsdiff.tokenSecret" -}}
{{ .Values.token.existingSecret | default (printf "%s-token" (include "obsdiff.name" .)) }}
{{- end }}

{{- define "obsdiff.tlsSecret" -}}
{{- if eq .Values.tls.mode "secret" -}}
{{ required "tls.existingSecret: is empty, but tls.mode is secret: name a secret with tls.crt, tls.key and ca.crt" .Values.tls.existingSecret }}
{{- else -}}
{{ include "obsdiff.name" . }}-tls
{{- end -}}
{{- end }}

{{- define "obsdiff.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "obsdiff.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{/* How long a worker waits for the coordinator, which answers once it has checked the job: at least as long as that may take. */}}
{{- define "obsdiff.patience" -}}
{{- $startup := int64 .Values.coordinator.startupSeconds -}}
{{- $given := .Values.worker.patience -}}
{{- if not $given -}}
{{ max 600 $startup }}s
{{- else -}}
{{- $seconds := dict "s" 1 "min" 60 "h" 3600 "d" 86400 -}}
{{- if lt (mul (regexFind "^[0-9]+" $given) (get $seconds (regexFind "[a-z]+$" $given))) $startup -}}
{{- fail (printf "worker.patience: is %s, less than the %d s of coordinator.startupSeconds: workers would give up while the coordinator checks the job. Give at least that, or leave it empty" $given $startup) -}}
{{- end -}}
{{ $given }}
{{- end -}}
{{- end }}

{{/* An amount of memory such as 16Gi, in Mi. */}}
{{- define "obsdiff.mebibytes" -}}
{{- if hasSuffix "Ti" . -}}
{{ mul 1048576 (trimSuffix "Ti" . | int64) }}
{{- else if hasSuffix "Gi" . -}}
{{ mul 1024 (trimSuffix "Gi" . | int64) }}
{{- else -}}
{{ trimSuffix "Mi" . }}
{{- end -}}
{{- end }}
