{{/* The coordinator's Job, as an API object's spec. */}}
{{- define "obsdiff.coordinatorJob" -}}
completions: 1
parallelism: 1
completionMode: Indexed
backoffLimit: {{ .Values.coordinator.backoffLimit }}
podReplacementPolicy: Failed
{{- with .Values.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ . }}
{{- end }}
{{ include "obsdiff.podFailurePolicy" (dict "role" "coordinator") }}
template:
  metadata:
    labels:
      {{- include "obsdiff.labels" . | trim | nindent 6 }}
      app.kubernetes.io/component: coordinator
      {{- with .Values.coordinator.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .Values.coordinator.podAnnotations }}
    annotations: {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    {{- include "obsdiff.podBase" . | nindent 4 }}
    terminationGracePeriodSeconds: 120
    {{- with include "obsdiff.placement" .Values.coordinator }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    containers:
      - name: obsdiff
        image: {{ include "obsdiff.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args:
          - coordinator
          - /job/job.toml
          - --listen=0.0.0.0:{{ .Values.coordinator.port }}
          {{- if eq .Values.tls.mode "none" }}
          - --insecure
          {{- end }}
          {{- with include "obsdiff.credentialFlags" . }}
          {{- . | trim | nindent 10 }}
          {{- end }}
          {{- if eq .Values.logFormat "json" }}
          - --log-format=json
          {{- end }}
          {{- with include "obsdiff.cacheFlag" . }}
          {{- . | trim | nindent 10 }}
          {{- end }}
          {{- with .Values.model.url }}
          - {{ printf "--set=model.path=%s" . | quote }}
          {{- end }}
          {{- with .Values.output.url }}
          - {{ printf "--set=output.path=%s" . | quote }}
          {{- end }}
          {{- range .Values.job.set }}
          - {{ printf "--set=%s" . | quote }}
          {{- end }}
        env:
          - name: OBSDIFF_LOG
            value: {{ .Values.log }}
          {{- with .Values.coordinator.env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        {{- with .Values.coordinator.envFrom }}
        envFrom: {{- toYaml . | nindent 10 }}
        {{- end }}
        ports:
          - name: grpc
            containerPort: {{ .Values.coordinator.port }}
        # The port answers once the job is checked, which reads the pipeline's headers and digests its files; of a model in an object store, once they are downloaded. coordinator.startupSeconds are left for that.
        startupProbe:
          {{- include "obsdiff.probe" (merge (dict "path" "/healthz") .) | nindent 10 }}
          periodSeconds: 5
          timeoutSeconds: 10
          failureThreshold: {{ div (add .Values.coordinator.startupSeconds 4) 5 }}
        readinessProbe:
          {{- include "obsdiff.probe" (merge (dict "path" "/readyz") .) | nindent 10 }}
          periodSeconds: 5
          timeoutSeconds: 10
        # After its last package the coordinator takes a while to clear up, and answers no more.
        livenessProbe:
          {{- include "obsdiff.probe" (merge (dict "path" "/healthz") .) | nindent 10 }}
          periodSeconds: 30
          timeoutSeconds: 10
          failureThreshold: 20
        resources:
          requests:
            cpu: {{ .Values.coordinator.cpu | quote }}
            memory: {{ .Values.coordinator.memory }}
          limits:
            memory: {{ .Values.coordinator.memory }}
        securityContext:
          {{- include "obsdiff.containerSecurity" . | nindent 10 }}
        volumeMounts:
          - name: job
            mountPath: /job
            readOnly: true
          {{- include "obsdiff.dataMounts" . | nindent 10 }}
          {{- with include "obsdiff.credentialMounts" . }}
          {{- . | trim | nindent 10 }}
          {{- end }}
          {{- with .Values.coordinator.volumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      - name: job
        configMap:
          name: {{ .Values.job.existingConfigMap | default (printf "%s-job" (include "obsdiff.name" .)) }}
      {{- include "obsdiff.dataVolumes" . | nindent 6 }}
      {{- with include "obsdiff.credentialVolumes" . }}
      {{- . | trim | nindent 6 }}
      {{- end }}
      {{- with .Values.coordinator.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
