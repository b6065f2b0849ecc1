{{/* Flags by which every process proves that it belongs to the job. */}}
{{- define "obsdiff.credentialFlags" -}}
{{- if .Values.token.enabled }}
- --token-file=/token/token
{{- end }}
{{- if ne .Values.tls.mode "none" }}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
- --tls-ca=/tls/ca.crt
{{- end }}
{{- end }}

{{- define "obsdiff.credentialMounts" -}}
{{- if .Values.token.enabled }}
- name: token
  mountPath: /token
  readOnly: true
{{- end }}
{{- if ne .Values.tls.mode "none" }}
- name: tls
  mountPath: /tls
  readOnly: true
{{- end }}
{{- end }}

{{- define "obsdiff.credentialVolumes" -}}
{{- if .Values.token.enabled }}
- name: token
  secret:
    secretName: {{ include "obsdiff.tokenSecret" . }}
    defaultMode: 0440
    optional: false
{{- end }}
{{- if ne .Values.tls.mode "none" }}
- name: tls
  secret:
    secretName: {{ include "obsdiff.tlsSecret" . }}
    defaultMode: 0440
    optional: false
{{- end }}
{{- end }}

{{- define "obsdiff.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What the pods of both roles and of the test have in common. */}}
{{- define "obsdiff.podBase" -}}
restartPolicy: Never
automountServiceAccountToken: false
# A variable for each Service of the namespace, such as OBSDIFF_PORT, would be taken for a key of the job.
enableServiceLinks: false
serviceAccountName: {{ include "obsdiff.serviceAccount" . }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.security.runAsUser }}
  runAsGroup: {{ .Values.security.runAsGroup }}
  fsGroup: {{ .Values.security.runAsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "obsdiff.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Model and output, as every pod of the job mounts them. */}}
{{- define "obsdiff.dataMounts" -}}
- name: model
  mountPath: {{ .Values.model.mountPath }}
  readOnly: true
  {{- with .Values.model.subPath }}
  subPath: {{ . }}
  {{- end }}
- name: output
  mountPath: {{ .Values.output.mountPath }}
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "obsdiff.dataVolumes" -}}
- name: model
  {{- if .Values.model.volume }}
  {{- toYaml .Values.model.volume | nindent 2 }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ required "model.existingClaim: is empty: name a PersistentVolumeClaim with the pipeline, or give model.volume" .Values.model.existingClaim }}
    readOnly: true
  {{- end }}
- name: output
  {{- if .Values.output.volume }}
  {{- toYaml .Values.output.volume | nindent 2 }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ .Values.output.existingClaim | default (printf "%s-output" (include "obsdiff.name" .)) }}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- end }}

{{/* A health check of the coordinator's port by the path that is given. With certificates the kubelet, which has none, can only see that the port is open. */}}
{{- define "obsdiff.probe" -}}
{{- if eq .Values.tls.mode "none" -}}
httpGet:
  path: {{ .path }}
  port: {{ .Values.coordinator.port }}
{{- else -}}
tcpSocket:
  port: {{ .Values.coordinator.port }}
{{- end }}
{{- end }}

{{/* What happens when a pod ends: exit code 2 means that the input has to be changed; 130 and 143 that a signal stopped the process, which goes on in another pod. */}}
{{- define "obsdiff.podFailurePolicy" -}}
podFailurePolicy:
  rules:
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    - action: FailJob
      onExitCodes:
        containerName: obsdiff
        operator: In
        values: [2]
    - action: Ignore
      onExitCodes:
        containerName: obsdiff
        operator: In
        values: [130, 143]
{{- end }}
