{{- define "rufus-serve.volumes" -}}
{{- $v := .Values -}}
- name: config
  configMap:
    name: {{ include "rufus-serve.fullname" . }}
# Readable by the group alone: rufus-serve refuses a token that everyone may read.
- name: token
  secret:
    secretName: {{ include "rufus-serve.tokenSecret" . }}
    defaultMode: 0440
    items: [{key: {{ $v.groupToken.key | quote }}, path: token}]
{{- if $v.apiKeys.enabled }}
- name: api-keys
  secret:
    secretName: {{ include "rufus-serve.apiKeySecret" . }}
    defaultMode: 0440
    items: [{key: {{ $v.apiKeys.key | quote }}, path: keys}]
{{- end }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $v.sharedMemory }}}
- name: scratch
  emptyDir: {sizeLimit: {{ $v.scratch }}}
{{- if eq $v.storage.model.kind "s3" }}
- name: model
  emptyDir: {sizeLimit: {{ $v.storage.model.size }}}
{{- else if ne $v.storage.model.kind "image" }}
- name: model
  persistentVolumeClaim: {claimName: {{ include "rufus-serve.claim" (list . "model") }}}
{{- end }}
{{- if ne $v.storage.artifacts.kind "none" }}
- name: artifacts
  persistentVolumeClaim: {claimName: {{ include "rufus-serve.claim" (list . "artifacts") }}}
{{- end }}
{{- end }}

{{- /* (list $ "model") */}}
{{- define "rufus-serve.claim" -}}
{{- $root := index . 0 -}}
{{- $volume := get $root.Values.storage (index . 1) -}}
{{- ternary $volume.claimName (printf "%s-%s" (include "rufus-serve.fullname" $root) (index . 1)) (eq $volume.kind "existingClaim") -}}
{{- end }}

{{- /* Mounts of every container that runs rufus-serve. (list $ "follower"): Ray's sockets are kept
apart, as two of its nodes share the leader's pod. */}}
{{- define "rufus-serve.mounts" -}}
{{- $v := (index . 0).Values -}}
- {name: config, mountPath: /etc/rufus-serve/config, readOnly: true}
- {name: token, mountPath: /etc/rufus-serve/token, readOnly: true}
- {name: shm, mountPath: /dev/shm}
- {name: scratch, mountPath: /tmp, subPath: {{ index . 1 }}}
{{- if ne $v.storage.model.kind "image" }}
- {name: model, mountPath: /models, readOnly: true{{ with $v.storage.model.subPath }}, subPath: {{ . | quote }}{{ end }}}
{{- end }}
{{- end }}

{{- /* (list $ true) for a read-only mount */}}
{{- define "rufus-serve.artifactsMount" -}}
{{- $v := (index . 0).Values -}}
{{- if ne $v.storage.artifacts.kind "none" -}}
- {name: artifacts, mountPath: /artifacts, readOnly: {{ index . 1 }}{{ with $v.storage.artifacts.subPath }}, subPath: {{ . | quote }}{{ end }}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.compileMark" -}}
/artifacts/.compiled-{{ include "rufus-serve.configFile" . | sha256sum | trunc 12 }}
{{- end }}

{{- define "rufus-serve.copyModel" -}}
{{- $v := .Values -}}
- name: copy-model
  image: {{ include "rufus-serve.image" (dict "root" . "image" $v.image.s3) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  args: [s3, sync, --only-show-errors, {{ $v.storage.model.url | quote }}, {{ $v.config.model | quote }}]
  env: [{name: HOME, value: /tmp}]
  securityContext: {{- toYaml $v.securityContext | nindent 4 }}
  resources:
    requests: {cpu: "1", memory: 1Gi}
    limits: {memory: 2Gi}
  volumeMounts:
    - {name: model, mountPath: /models}
    - {name: scratch, mountPath: /tmp, subPath: copy-model}
{{- end }}

{{- define "rufus-serve.initContainers" -}}
{{- $v := .Values -}}
{{- if eq $v.storage.model.kind "s3" }}
{{ include "rufus-serve.copyModel" . }}
{{- end }}
{{- if and $v.compile.enabled (ne $v.storage.artifacts.kind "none") }}
- name: await-artifacts
  image: {{ include "rufus-serve.image" (dict "root" . "image" $v.image.leader) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [sh, -c, 'until [ -e "$0" ]; do echo "waiting for the compile job to write $0"; sleep 15; done']
  args: [{{ include "rufus-serve.compileMark" . | quote }}]
  securityContext: {{- toYaml $v.securityContext | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts: [{{ include "rufus-serve.artifactsMount" (list . true) | trimPrefix "- " }}]
{{- end }}
{{- end }}
