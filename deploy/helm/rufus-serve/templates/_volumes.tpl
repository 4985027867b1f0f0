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
{{- with $v.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $v.sharedMemory }}}
- name: scratch
  emptyDir: {sizeLimit: {{ $v.scratch }}}
{{- with $v.storage.cache.size }}
- name: cache
  emptyDir: {sizeLimit: {{ . }}}
{{- end }}
{{- with include "rufus-serve.dataVolumes" . | trim }}
{{ . }}
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rufus-serve.dataVolumes" -}}
{{- $storage := .Values.storage -}}
{{- if eq $storage.model.kind "s3" }}
- name: model
  emptyDir: {sizeLimit: {{ $storage.model.size }}}
{{- else if ne $storage.model.kind "image" }}
- name: model
  persistentVolumeClaim: {claimName: {{ include "rufus-serve.claim" (list . "model") }}}
{{- end }}
{{- if eq (include "rufus-serve.volumeName" (list . "artifacts")) "artifacts" }}
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

{{- /* The pod's volume that a storage is a folder of; nothing if it is none. Kubelet never mounts one
claim as two volumes of a pod, so storages that share a claim share the volume. (list $ "artifacts") */}}
{{- define "rufus-serve.volumeName" -}}
{{- $root := index . 0 -}}
{{- $storage := $root.Values.storage -}}
{{- $kind := (get $storage (index . 1)).kind -}}
{{- if has $kind (list "image" "none") -}}
{{- else if eq $kind "model" -}}
model
{{- else if and (eq $kind "existingClaim") (not (has $storage.model.kind (list "image" "s3"))) (eq (include "rufus-serve.claim" .) (include "rufus-serve.claim" (list $root "model"))) -}}
model
{{- else -}}
{{ index . 1 }}
{{- end -}}
{{- end }}

{{- /* Mounts of every container that runs rufus-serve. (list $ "follower"): Ray's sockets are kept
apart, as two of its nodes share the leader's pod. */}}
{{- define "rufus-serve.mounts" -}}
{{- $v := (index . 0).Values -}}
- {name: config, mountPath: /etc/rufus-serve/config, readOnly: true}
- {name: token, mountPath: /etc/rufus-serve/token, readOnly: true}
- {name: shm, mountPath: /dev/shm}
- {name: scratch, mountPath: /tmp, subPath: {{ index . 1 }}}
{{- if $v.storage.cache.size }}
- {name: cache, mountPath: /cache}
{{- end }}
{{- with include "rufus-serve.dataMount" (list (index . 0) "model" true) }}
{{ . }}
{{- end }}
{{- with $v.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Where a storage is mounted; nothing if it is none. (list $ "artifacts" READ_ONLY) */}}
{{- define "rufus-serve.dataMount" -}}
{{- $volume := get (index . 0).Values.storage (index . 1) -}}
{{- with include "rufus-serve.volumeName" . -}}
- {name: {{ . }}, mountPath: {{ include "rufus-serve.dataFolder" (index $ 1) }}, readOnly: {{ index $ 2 }}{{ with $volume.subPath }}, subPath: {{ . | quote }}{{ end }}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.dataFolder" -}}
/{{ ternary "models" "artifacts" (eq . "model") }}
{{- end }}

{{- /* Written by the Job that copies the model, once it is whole. */}}
{{- define "rufus-serve.modelMark" -}}
{{- $v := .Values -}}
/models/.loaded-{{ list $v.storage.model.url $v.config.model | toJson | sha256sum | trunc 12 }}
{{- end }}

{{- define "rufus-serve.loadsModel" -}}
{{- $model := .Values.storage.model -}}
{{- ternary "true" "" (and (has $model.kind (list "existingClaim" "claim" "fsx" "efs")) (ne $model.url "")) -}}
{{- end }}

{{- define "rufus-serve.copyModel" -}}
{{- $v := .Values -}}
- name: copy-model
  image: {{ include "rufus-serve.image" (dict "root" . "image" $v.image.s3) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [sh, -c, 'aws s3 sync --only-show-errors "$0" "$1" && touch "$2"']
  args: [{{ $v.storage.model.url | quote }}, {{ $v.config.model | quote }}, {{ include "rufus-serve.modelMark" . | quote }}]
  env: [{name: HOME, value: /tmp}]
  {{- with $v.storage.envFrom }}
  envFrom: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext: {{- toYaml $v.securityContext | nindent 4 }}
  resources:
    requests: {cpu: "1", memory: 1Gi}
    limits: {memory: 2Gi}
  volumeMounts:
    {{- include "rufus-serve.dataMount" (list . "model" false) | nindent 4 }}
    - {name: scratch, mountPath: /tmp, subPath: copy-model}
{{- end }}

{{- /* Of leader and worker pods. */}}
{{- define "rufus-serve.initContainers" -}}
{{- $v := .Values -}}
{{- $slack := 3600 -}}
{{- if eq $v.storage.model.kind "s3" }}
{{ include "rufus-serve.copyModel" . }}
{{- end }}
{{- if include "rufus-serve.loadsModel" . }}
{{ include "rufus-serve.await" (dict "root" . "name" "await-model" "test" (printf "-e %s" (include "rufus-serve.modelMark" .)) "seconds" (int $v.storage.activeDeadlineSeconds) "mount" (include "rufus-serve.dataMount" (list . "model" true))) }}
{{- end }}
{{- if and $v.compile.enabled (ne $v.storage.artifacts.kind "none") }}
{{ include "rufus-serve.await" (dict "root" . "name" "await-artifacts" "test" (printf "-e %s" (include "rufus-serve.compileMark" .)) "seconds" (add $v.compile.activeDeadlineSeconds $slack | int) "mount" (include "rufus-serve.dataMount" (list . "artifacts" true))) }}
{{- end }}
{{- with $v.initContainers }}
{{ toYaml . }}
{{- end }}
{{- end }}
