{{- /* (dict "root" $ "shape" $shape) */}}
{{- define "rufus-serve.environment" -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
# The root file system is read-only; everything that is written goes to the scratch volume.
- {name: HOME, value: /tmp}
{{- if .shape.neuron }}
- {name: NEURON_COMPILE_CACHE_URL, value: /tmp/neuron-compile-cache}
{{- end }}
{{- end }}

{{- define "rufus-serve.leaderContainer" -}}
{{- $v := .root.Values -}}
{{- $shape := .shape -}}
- name: leader
  image: {{ include "rufus-serve.image" (dict "root" .root "image" $v.image.leader) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [rufus-serve, serve, --config, /etc/rufus-serve/config/config.yaml]
  env:
    {{- include "rufus-serve.environment" . | nindent 4 }}
    {{- with $v.leader.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $v.leader.envFrom }}
  envFrom: {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  ports:
    - {name: http, containerPort: {{ $shape.port }}}
    - {name: ray, containerPort: {{ $shape.config.cluster.ray_port }}}
    - {name: control, containerPort: {{ $shape.config.cluster.control_port }}}
  startupProbe:
    httpGet: {path: /health, port: http, scheme: {{ include "rufus-serve.scheme" .root | upper }}}
    periodSeconds: 10
    timeoutSeconds: 5
    # {{ $shape.startup }} s: what config.timeouts allows for join, load, warm-up and leader start.
    failureThreshold: {{ divf $shape.startup 10 | ceil | int }}
  livenessProbe:
    httpGet: {path: /health, port: http, scheme: {{ include "rufus-serve.scheme" .root | upper }}}
    {{- toYaml $v.probes.liveness | nindent 4 }}
  readinessProbe:
    httpGet: {path: /ready, port: http, scheme: {{ include "rufus-serve.scheme" .root | upper }}}
    {{- toYaml $v.probes.readiness | nindent 4 }}
  lifecycle:
    preStop:
      exec: {command: [sleep, {{ $v.drain.preStopSeconds | quote }}]}
  securityContext: {{- toYaml $v.securityContext | nindent 4 }}
  resources: {{- toYaml $v.leader.resources | nindent 4 }}
  volumeMounts:
    {{- include "rufus-serve.mounts" (list .root "leader") | nindent 4 }}
    {{- with include "rufus-serve.dataMount" (list .root "artifacts" true) }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if $v.apiKeys.enabled }}
    - {name: api-keys, mountPath: /etc/rufus-serve/api-keys, readOnly: true}
    {{- end }}
    {{- if $v.tls.existingSecret }}
    - {name: tls, mountPath: /etc/rufus-serve/tls, readOnly: true}
    {{- end }}
{{- end }}

{{- /* (dict "root" $ "shape" $shape "leader" HOST) */}}
{{- define "rufus-serve.followerContainer" -}}
{{- $v := .root.Values -}}
{{- $shape := .shape -}}
{{- $join := printf "%s:%d" .leader (int $shape.config.cluster.ray_port) -}}
- name: follower
  image: {{ include "rufus-serve.image" (dict "root" .root "image" $v.image.follower) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  {{- if gt (int $v.group.followersPerPod) 1 }}
  command: [run-followers, {{ $v.group.followersPerPod | quote }}]
  {{- else }}
  command: [rufus-serve, follower]
  {{- end }}
  args: [--leader, {{ $join | quote }}, --address, $(POD_IP), --token-file, /etc/rufus-serve/token/token]
  env:
    {{- include "rufus-serve.environment" . | nindent 4 }}
    {{- with $v.follower.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $v.follower.envFrom }}
  envFrom: {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  ports:
    {{- if eq (int $v.group.followersPerPod) 1 }}
    - {name: step, containerPort: {{ $shape.config.cluster.step_port }}}
    {{- end }}
    - {name: rendezvous, containerPort: {{ $shape.config.cluster.rendezvous_port }}}
  lifecycle:
    preStop:
      # Serves on while the leader drains; ends earlier, a moment after the leader's Ray has gone.
      exec:
        command: [sh, -c, 'left=$0; while [ "$left" -gt 0 ] && grep -qsx raylet /proc/[0-9]*/comm; do sleep 1; left=$((left - 1)); done', {{ $shape.drain | quote }}]
  securityContext: {{- toYaml $v.securityContext | nindent 4 }}
  resources: {{- include "rufus-serve.followerResources" . | nindent 4 }}
  volumeMounts:
    {{- include "rufus-serve.mounts" (list .root "follower") | nindent 4 }}
    {{- with include "rufus-serve.dataMount" (list .root "artifacts" true) }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "rufus-serve.followerResources" -}}
{{- $v := .root.Values -}}
{{- $devices := dict -}}
{{- $claims := list -}}
{{- range $v.accelerator.resourceClaims -}}{{- $claims = append $claims (dict "name" .name) -}}{{- end -}}
{{- if and .shape.neuron (not $claims) -}}
{{- $_ := set $devices $v.accelerator.neuronResource (int $v.accelerator.neuronDevices) -}}
{{- end -}}
{{- if .shape.neuron -}}
{{- with $v.accelerator.hugepages2Mi -}}{{- $_ := set $devices "hugepages-2Mi" . -}}{{- end -}}
{{- end -}}
{{- if and .shape.efa (not $claims) -}}
{{- $_ := set $devices $v.accelerator.efaResource (int .shape.efa) -}}
{{- end -}}
{{- $both := dict "requests" $devices "limits" $devices -}}
{{- $resources := mergeOverwrite (deepCopy $v.follower.resources) (deepCopy $both) -}}
{{- with $claims -}}{{- $_ := set $resources "claims" . -}}{{- end -}}
{{- $resources | toYaml -}}
{{- end }}
