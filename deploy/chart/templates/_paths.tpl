{{/* Refuses paths at which the pods would find no model, or could not write the output. */}}
{{- define "obsdiff.checkPaths" -}}
{{- $taken := list "/tmp" "/job" "/token" "/tls" "/cache" "/dev/shm" -}}
{{- if not .Values.model.url -}}
{{- if has .Values.model.mountPath $taken -}}
{{- fail (printf "model.mountPath: is %s, at which the pods have another volume: give another path" .Values.model.mountPath) -}}
{{- end -}}
{{- $taken = append $taken .Values.model.mountPath -}}
{{- include "obsdiff.checkPath" (dict "section" "model" "root" .) -}}
{{- end -}}
{{- if not .Values.output.url -}}
{{- if has .Values.output.mountPath $taken -}}
{{- fail (printf "output.mountPath: is %s, at which the pods have another volume: give another path" .Values.output.mountPath) -}}
{{- end -}}
{{- include "obsdiff.checkPath" (dict "section" "output" "root" .) -}}
{{- end -}}
{{- end }}

{{/* Refuses a job whose model or output lies in none of the volumes. What job.file says is found line by line; a path that is given in another
way, such as by a variable, is not looked for. */}}
{{- define "obsdiff.checkPath" -}}
{{- $values := .root.Values -}}
{{- $places := list (index $values .section).mountPath -}}
{{- range $values.coordinator.volumeMounts }}{{ $places = append $places .mountPath }}{{ end -}}
{{- $path := "" -}}
{{- if not $values.job.existingConfigMap -}}
{{- $header := printf "^\\[%s\\]" .section -}}
{{- $given := "^path\\s*=\\s*[\"']([^\"']+)[\"'].*$" -}}
{{- $inside := false -}}
{{- range splitList "\n" $values.job.file -}}
{{- $line := trim . -}}
{{- if hasPrefix "[" $line }}{{ $inside = regexMatch $header $line }}{{ end -}}
{{- if and $inside (regexMatch $given $line) -}}
{{- $path = regexReplaceAll $given $line "${1}" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $section := .section -}}
{{- range $values.coordinator.env }}{{ if eq .name (printf "OBSDIFF_%s__PATH" (upper $section)) }}{{ $path = "" }}{{ end }}{{ end -}}
{{- range $values.job.set -}}
{{- $key := printf "%s.path=" $section -}}
{{- if hasPrefix $key . }}{{ $path = trimPrefix $key . | trimAll "\"" }}{{ end -}}
{{- end -}}
{{- if and $path (not (contains "://" $path)) -}}
{{- $found := false -}}
{{- range $places }}{{ if or (eq $path .) (hasPrefix (printf "%s/" .) $path) }}{{ $found = true }}{{ end }}{{ end -}}
{{- if not $found -}}
{{- fail (printf "job: %s.path is %s, which lies in no volume: give a path below %s (%s.mountPath), or a volume of coordinator.volumes" .section $path (first $places) .section) -}}
{{- end -}}
{{- end -}}
{{- end }}
