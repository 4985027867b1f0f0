{{- define "rufus-serve.notes" -}}
{{- $name := include "rufus-serve.fullname" . }}
{{- $shape := include "rufus-serve.shape" . | fromJson }}
{{- $service := ternary (printf "%s-router" $name) (printf "%s-api" $name) .Values.router.enabled }}
{{ $shape.followers }} follower(s) in {{ $shape.size }} pod(s) per group. A group is ready when its leader is:

  kubectl -n {{ .Release.Namespace }} wait pod/{{ $name }}-0 --for=condition=Ready --timeout={{ $shape.startup }}s

The first request:

  kubectl -n {{ .Release.Namespace }} port-forward service/{{ $service }} {{ .Values.service.port }} &
{{- if .Values.apiKeys.enabled }}
{{- if .Values.apiKeys.existingSecret }}
  KEY=...  # a key that Secret {{ .Values.apiKeys.existingSecret }} lists
{{- else }}
  KEY=$(kubectl -n {{ .Release.Namespace }} get secret {{ include "rufus-serve.apiKeySecret" . }} -o jsonpath='{.data.{{ .Values.apiKeys.clientKey | replace "." "\\." }}}' | base64 -d)
{{- end }}
{{- end }}
  curl http://127.0.0.1:{{ .Values.service.port }}/v1/chat/completions -H 'Content-Type: application/json' \
{{- if .Values.apiKeys.enabled }}
    -H "Authorization: Bearer $KEY" \
{{- end }}
    -d '{"model": "{{ default (base $shape.config.model) $shape.config.served_model_name }}", "messages": [{"role": "user", "content": "Hello"}]}'

If it does not come up: kubectl -n {{ .Release.Namespace }} logs {{ $name }}-0 -c leader

{{- $longest := mulf $shape.config.max_model_len .Values.drain.tokenSeconds | ceil | int }}
{{- if gt $longest (int $shape.config.timeouts.shutdown_grace_s) }}

WARNING: an answer may take {{ int $shape.config.max_model_len }} tokens x {{ .Values.drain.tokenSeconds }} s = {{ $longest }} s, a drain ends after {{ $shape.config.timeouts.shutdown_grace_s }} s: longer
streams are cut off when a group is replaced. Raise config.timeouts.shutdown_grace_s.
{{- end }}
{{- if not (or .Values.ingress.enabled .Values.httpRoute.enabled (ne .Values.service.type "ClusterIP")) }}

From outside the cluster there is no way in yet: ingress.enabled or httpRoute.enabled makes one.
{{- end }}
{{- end }}
