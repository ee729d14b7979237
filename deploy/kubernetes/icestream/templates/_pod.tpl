{{- define "icestream.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "icestream.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "icestream.name" .) }}
{{- end }}

{{- define "icestream.selector" -}}
app.kubernetes.io/name: icestream
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "icestream.labels" -}}
{{ include "icestream.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The folders of a project that have files: what a config map's name ends in, and where it is mounted. */}}
{{- define "icestream.folders" -}}
catalog: catalog
transforms: transforms
gold: sql/gold
audits: sql/audits
{{- end }}

{{/* A pod that runs one verb: `.root`, `.arguments`, `.resources`, `.component`, `.restartPolicy`. */}}
{{- define "icestream.pod" -}}
{{- $root := .root -}}
{{- $name := include "icestream.name" $root -}}
{{- $metrics := $root.Values.metrics -}}
{{- $isWatched := and $metrics.enabled (eq .component "run") -}}
metadata:
  labels:
    {{- include "icestream.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  annotations:
    # A changed project is a new pod.
    checksum/project: {{ toJson $root.Values.project | sha256sum }}
    {{- if and $isWatched $metrics.annotations (not $metrics.podMonitor.enabled) }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ $metrics.port | quote }}
    prometheus.io/path: /metrics
    {{- end }}
    {{- with $root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "icestream.serviceAccount" $root }}
  # AWS takes a token of its own; nothing asks Kubernetes.
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: {{ .restartPolicy }}
  terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: icestream
      image: "{{ $root.Values.image.repository }}:{{ $root.Values.image.tag }}"
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        {{- toYaml .arguments | nindent 8 }}
      {{- if or $isWatched $root.Values.environment }}
      env:
        {{- range $key, $value := $root.Values.environment }}
        - name: {{ $key }}
          value: {{ $value | quote }}
        {{- end }}
        {{- if $isWatched }}
        - name: ICESTREAM_METRICS__LISTEN
          value: {{ printf "%s:%v" $metrics.address $metrics.port | quote }}
        {{- end }}
      {{- end }}
      {{- with $root.Values.secrets }}
      envFrom:
        {{- range . }}
        - secretRef:
            name: {{ . }}
        {{- end }}
      {{- end }}
      {{- if $isWatched }}
      ports:
        - name: metrics
          containerPort: {{ $metrics.port }}
      # None of them asks brokers, catalog or storage: a restart would not mend those.
      startupProbe:
        httpGet: { path: /livez, port: metrics }
        {{- toYaml $root.Values.probes.startup | nindent 8 }}
      livenessProbe:
        httpGet: { path: /livez, port: metrics }
        {{- toYaml $root.Values.probes.liveness | nindent 8 }}
      readinessProbe:
        httpGet: { path: /readyz, port: metrics }
        {{- toYaml $root.Values.probes.readiness | nindent 8 }}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if not $root.Values.project.inImage }}
        - name: project
          mountPath: /project/icestream.yaml
          subPath: icestream.yaml
          readOnly: true
        {{- range $suffix, $folder := fromYaml (include "icestream.folders" $root) }}
        - name: {{ $suffix }}
          mountPath: /project/{{ $folder }}
          readOnly: true
        {{- end }}
        {{- end }}
        {{- with $root.Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: {{ $root.Values.tmpSizeLimit }}
    {{- if not $root.Values.project.inImage }}
    - name: project
      configMap:
        name: {{ $name }}-project
    {{- range $suffix, $folder := fromYaml (include "icestream.folders" $root) }}
    - name: {{ $suffix }}
      configMap:
        name: {{ $name }}-project-{{ $suffix }}
        optional: true
    {{- end }}
    {{- end }}
    {{- with $root.Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
