{{- /* All settings: defaults of this version, then values. As JSON. */}}
{{- define "rufus-serve.settings" -}}
{{- $defaults := .Files.Get "files/config-defaults.json" | fromJson -}}
{{- mergeOverwrite $defaults (deepCopy .Values.config) | toJson -}}
{{- end }}

{{- /* The file that `rufus-serve serve --config` reads: values, and what the chart itself knows. */}}
{{- define "rufus-serve.configFile" -}}
{{- $cluster := dict "kind" "ray" "token_file" "/etc/rufus-serve/token/token" "follower_on_leader_host" false -}}
{{- $owned := dict "host" "0.0.0.0" "cluster" $cluster -}}
{{- if gt (int .Values.group.followersPerPod) 1 -}}
{{- /* Followers of one pod share its address. */ -}}
{{- $_ := set $cluster "step_port" 0 -}}
{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- $http := dict "tls_certificate" "/etc/rufus-serve/tls/tls.crt" "tls_key" "/etc/rufus-serve/tls/tls.key" -}}
{{- $_ := set $owned "http" $http -}}
{{- end -}}
{{- if .Values.storage.cache.size -}}
{{- $_ := set $owned "artifacts" (dict "cache" "/cache") -}}
{{- end -}}
{{- if .Values.apiKeys.enabled -}}
{{- $_ := set $owned "api_key_file" "/etc/rufus-serve/api-keys/keys" -}}
{{- else -}}
{{- $_ := set $owned "allow_anonymous" true -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .Values.config) $owned | toYaml -}}
{{- end }}

{{- /* Numbers that several templates need, derived and checked. As JSON. */}}
{{- define "rufus-serve.shape" -}}
{{- $config := include "rufus-serve.settings" . | fromJson -}}
{{- $v := .Values -}}
{{- $neuron := eq $config.runtime "neuron" -}}
{{- $followers := add (mul $config.groups $config.nodes) $config.recovery.standby_nodes | int -}}
{{- $perPod := int $v.group.followersPerPod -}}
{{- $size := div $followers $perPod | int -}}
{{- $timeouts := $config.timeouts -}}
{{- $drain := addf $v.drain.preStopSeconds $timeouts.shutdown_grace_s | ceil | int -}}
{{- $startup := addf $timeouts.join_s $timeouts.load_s $timeouts.warm_up_s $timeouts.leader_start_s | ceil | int -}}
{{- dict
  "neuron" $neuron
  "followers" $followers
  "size" $size
  "perPod" $perPod
  "ranks" (mul $config.nodes $config.neuron.cores_per_node | int)
  "podCores" (mul $config.neuron.cores_per_node $perPod | int)
  "deviceCores" (mul $v.accelerator.neuronDevices $v.accelerator.coresPerDevice | int)
  "spans" (gt (int $config.nodes) $perPod)
  "efa" (ternary (int $v.accelerator.efaInterfaces) 0 (and $neuron (gt (int $config.nodes) $perPod)))
  "drain" $drain
  "grace" (int (default (add $drain 30) $v.drain.terminationGracePeriodSeconds))
  "startup" (int (default $startup $v.probes.startupSeconds))
  "port" (int $config.port)
  "config" $config
  | toJson -}}
{{- end }}
