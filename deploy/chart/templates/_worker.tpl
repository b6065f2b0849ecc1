{{/* The workers' Job, as an API object's spec. */}}
{{- define "obsdiff.workerJob" -}}
{{- $elastic := eq .Values.kind "Job" -}}
{{- $memory := include "obsdiff.mebibytes" .Values.worker.memory | int64 -}}
{{- with .Values.worker.sharedMemory }}{{ $memory = add $memory (include "obsdiff.mebibytes" . | int64) }}{{ end -}}
parallelism: {{ .Values.worker.replicas }}
{{- if $elastic }}
# No number of completions: the first worker that exits with 0 says that the job is done. So parallelism may change.
backoffLimit: {{ mul .Values.worker.backoffLimit .Values.worker.replicas }}
{{- else }}
completions: {{ .Values.worker.replicas }}
completionMode: Indexed
# Without limit, ten minutes apart at most: the coordinator alone decides that the job fails. An index that was given up would make the
# whole Job fail once the others have ended with 0, and JobSet would start the finished job again.
backoffLimitPerIndex: 1000000
{{- end }}
podReplacementPolicy: Failed
{{- with .Values.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ . }}
{{- end }}
{{ include "obsdiff.podFailurePolicy" (dict "role" "worker") }}
template:
  metadata:
    labels:
      {{- include "obsdiff.labels" . | trim | nindent 6 }}
      app.kubernetes.io/component: worker
      {{- with .Values.worker.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- if or .Values.worker.podAnnotations .Values.kueue.topology }}
    annotations:
      {{- with .Values.kueue.topology }}
      kueue.x-k8s.io/podset-{{ $.Values.kueue.topologyMode }}-topology: {{ . }}
      {{- end }}
      {{- with .Values.worker.podAnnotations }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- end }}
  spec:
    {{- include "obsdiff.podBase" . | nindent 4 }}
    terminationGracePeriodSeconds: {{ .Values.worker.terminationGracePeriodSeconds }}
    {{- with .Values.runtimeClassName }}
    runtimeClassName: {{ . }}
    {{- end }}
    {{- with include "obsdiff.placement" .Values.worker }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- if and (eq .Values.worker.device "cuda") (eq .Values.gpu.mode "claim") }}
    resourceClaims:
      - name: gpu
        resourceClaimTemplateName: {{ include "obsdiff.name" . }}-gpu
    {{- end }}
    containers:
      - name: obsdiff
        image: {{ include "obsdiff.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args:
          - worker
          - --coordinator={{ include "obsdiff.coordinatorUrl" . }}
          - --patience={{ include "obsdiff.patience" . }}
          {{- if ne .Values.worker.saveSums "stop" }}
          - --save-sums={{ .Values.worker.saveSums }}
          {{- end }}
          - --threads={{ ceil .Values.worker.cpu }}
          {{- if eq .Values.worker.device "cuda" }}
          - --device=cuda
          - --collective=nccl
          {{- end }}
          {{- if or (eq .Values.tls.mode "none") .Values.tls.plainCollectives }}
          - --insecure
          {{- end }}
          {{- with include "obsdiff.credentialFlags" . }}
          {{- . | trim | nindent 10 }}
          {{- end }}
          {{- with include "obsdiff.cacheFlag" . }}
          {{- . | trim | nindent 10 }}
          {{- end }}
          {{- if eq .Values.logFormat "json" }}
          - --log-format=json
          {{- end }}
        env:
          - name: OBSDIFF_LOG
            value: {{ .Values.log }}
          {{- if eq .Values.worker.device "cuda" }}
          # The root is read-only, and the driver keeps what it compiled.
          - name: CUDA_CACHE_PATH
            value: /tmp/cuda
          {{- end }}
          {{- with .Values.worker.env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        {{- with .Values.worker.envFrom }}
        envFrom: {{- toYaml . | nindent 10 }}
        {{- end }}
        resources:
          requests:
            cpu: {{ .Values.worker.cpu | quote }}
            memory: {{ $memory }}Mi
          limits:
            memory: {{ $memory }}Mi
            {{- if and (eq .Values.worker.device "cuda") (eq .Values.gpu.mode "plugin") }}
            {{ .Values.gpu.resource }}: 1
            {{- end }}
            {{- with .Values.worker.extraResources }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- if and (eq .Values.worker.device "cuda") (eq .Values.gpu.mode "claim") }}
          claims:
            - name: gpu
          {{- end }}
        securityContext:
          {{- include "obsdiff.containerSecurity" . | nindent 10 }}
            {{- with .Values.worker.addCapabilities }}
            add: {{- toYaml . | nindent 14 }}
            {{- end }}
        volumeMounts:
          {{- include "obsdiff.dataMounts" . | nindent 10 }}
          {{- if .Values.worker.sharedMemory }}
          - name: shm
            mountPath: /dev/shm
          {{- end }}
          {{- with include "obsdiff.credentialMounts" . }}
          {{- . | trim | nindent 10 }}
          {{- end }}
          {{- with .Values.worker.volumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      {{- include "obsdiff.dataVolumes" . | nindent 6 }}
      {{- with .Values.worker.sharedMemory }}
      - name: shm
        emptyDir:
          medium: Memory
          sizeLimit: {{ . }}
      {{- end }}
      {{- with include "obsdiff.credentialVolumes" . }}
      {{- . | trim | nindent 6 }}
      {{- end }}
      {{- with .Values.worker.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
