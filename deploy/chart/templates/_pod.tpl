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
# Nothing here reads the variables that Kubernetes sets for each Service of the namespace, such as OBSDIFF_PORT.
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

{{/* Where a model of an object store is copied to. */}}
{{- define "obsdiff.cacheFlag" -}}
{{- if .Values.model.url }}
- --cache=/cache
{{- end }}
{{- end }}

{{/* Model and output, as every pod of the job mounts them: volumes, where they are in no object store. */}}
{{- define "obsdiff.dataMounts" -}}
{{- if .Values.model.url }}
- name: cache
  mountPath: /cache
{{- else }}
- name: model
  mountPath: {{ .Values.model.mountPath }}
  readOnly: true
  {{- with .Values.model.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- if not .Values.output.url }}
- name: output
  mountPath: {{ .Values.output.mountPath }}
{{- end }}
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "obsdiff.dataVolumes" -}}
{{- if .Values.model.url }}
{{- if or .Values.model.existingClaim .Values.model.volume }}
{{- fail "model.url: is set, and so is a volume for the model: leave model.existingClaim and model.volume empty" }}
{{- end }}
- name: cache
  {{- if .Values.cache.storageClassName }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ .Values.cache.storageClassName }}
        resources:
          requests:
            storage: {{ .Values.cache.size }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.size }}
  {{- end }}
{{- else }}
- name: model
  {{- if .Values.model.volume }}
  {{- toYaml .Values.model.volume | nindent 2 }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ required "model.existingClaim: is empty: name a PersistentVolumeClaim with the pipeline, or give model.volume or model.url" .Values.model.existingClaim }}
    readOnly: true
  {{- end }}
{{- end }}
{{- if .Values.output.url }}
{{- if or .Values.output.existingClaim .Values.output.volume }}
{{- fail "output.url: is set, and so is a volume for the output: leave output.existingClaim and output.volume empty" }}
{{- end }}
{{- else }}
- name: output
  {{- if .Values.output.volume }}
  {{- toYaml .Values.output.volume | nindent 2 }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ .Values.output.existingClaim | default (printf "%s-output" (include "obsdiff.name" .)) }}
  {{- end }}
{{- end }}
# The transformer of an output in an object store is read back to here, to be compared with its source.
- name: tmp
  emptyDir:
    sizeLimit: {{ ternary .Values.cache.size "1Gi" (ne .Values.output.url "") }}
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

{{/* What happens when a pod of this role ends. 130 and 143: a signal stopped the process, which goes on in another pod. 2 of the coordinator:
the input has to be changed. 2 of a worker may come from its node alone: it counts as a failure, and another pod takes its place. */}}
{{- define "obsdiff.podFailurePolicy" -}}
podFailurePolicy:
  rules:
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    {{- if eq .role "coordinator" }}
    - action: FailJob
      onExitCodes:
        containerName: obsdiff
        operator: In
        values: [2]
    {{- end }}
    - action: Ignore
      onExitCodes:
        containerName: obsdiff
        operator: In
        values: [130, 143]
{{- end }}
