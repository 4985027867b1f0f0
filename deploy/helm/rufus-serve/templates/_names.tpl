{{- define "rufus-serve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rufus-serve.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "rufus-serve.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* What every object's metadata holds. (dict "root" $ "name" NAME), and, if there are more of
them, "labels" and "annotations" as dicts. */}}
{{- define "rufus-serve.metadata" -}}
{{- $labels := merge (default dict .labels | deepCopy) (include "rufus-serve.labels" .root | fromYaml) -}}
{{- $annotations := merge (default dict .annotations | deepCopy) .root.Values.commonAnnotations -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels: {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Leaders alone: the pods that answer HTTP. */}}
{{- define "rufus-serve.leaderSelector" -}}
leaderworkerset.sigs.k8s.io/name: {{ include "rufus-serve.fullname" . }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- end }}

{{- define "rufus-serve.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "rufus-serve.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.tokenSecret" -}}
{{- default (printf "%s-token" (include "rufus-serve.fullname" .)) .Values.groupToken.existingSecret -}}
{{- end }}

{{- define "rufus-serve.apiKeySecret" -}}
{{- default (printf "%s-api-keys" (include "rufus-serve.fullname" .)) .Values.apiKeys.existingSecret -}}
{{- end }}

{{- /* (dict "root" $ "image" .Values.image.leader) */}}
{{- define "rufus-serve.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end }}

{{- /* How leaders are spoken to. */}}
{{- define "rufus-serve.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end }}
