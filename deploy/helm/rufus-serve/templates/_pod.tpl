{{- /* What leader and worker pods share. (dict "root" $ "shape" $shape) */}}
{{- define "rufus-serve.podSpec" -}}
{{- $v := .root.Values -}}
serviceAccountName: {{ include "rufus-serve.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int .shape.grace }}
{{- with $v.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml $v.podSecurityContext | nindent 2 }}
{{- with $v.placement.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.placement.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with $v.placement.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.placement.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "rufus-serve.affinity" . | fromYaml }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.placement.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
volumes: {{- include "rufus-serve.volumes" .root | nindent 2 }}
{{- with include "rufus-serve.initContainers" .root | fromYamlArray }}
initContainers: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "rufus-serve.podMetadata" -}}
# No version among the labels: a new chart alone must not restart groups.
labels:
  {{- include "rufus-serve.selector" . | nindent 2 }}
  app.kubernetes.io/component: group
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # Settings are read at start alone.
  checksum/config: {{ include "rufus-serve.configFile" . | sha256sum }}
  {{- with .Values.placement.kueue.preferredTopology }}
  kueue.x-k8s.io/podset-preferred-topology: {{ . }}
  {{- end }}
  {{- with .Values.placement.kueue.requiredTopology }}
  kueue.x-k8s.io/podset-required-topology: {{ . }}
  {{- end }}
  {{- with .Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* Closeness among the pods of one group; matchLabelKeys narrows it to the pod's own group. */}}
{{- define "rufus-serve.affinity" -}}
{{- $placement := .root.Values.placement -}}
{{- $term := dict "labelSelector" (dict "matchLabels" (dict "leaderworkerset.sigs.k8s.io/name" (include "rufus-serve.fullname" .root))) "matchLabelKeys" (list "leaderworkerset.sigs.k8s.io/group-key") -}}
{{- $preferred := list -}}
{{- $required := list -}}
{{- if gt (int .shape.size) 1 -}}
{{- if $placement.networkNodeLayers -}}
{{- range $layer, $weight := dict "3" 100 "2" 60 "1" 30 -}}
{{- $preferred = append $preferred (dict "weight" $weight "podAffinityTerm" (merge (dict "topologyKey" (printf "topology.k8s.aws/network-node-layer-%s" $layer)) $term)) -}}
{{- end -}}
{{- end -}}
{{- $zone := merge (dict "topologyKey" "topology.kubernetes.io/zone") $term -}}
{{- if eq $placement.sameZone "preferred" -}}
{{- $preferred = append $preferred (dict "weight" 20 "podAffinityTerm" $zone) -}}
{{- else if eq $placement.sameZone "required" -}}
{{- $required = append $required $zone -}}
{{- end -}}
{{- end -}}
{{- $pod := dict -}}
{{- if $preferred -}}{{- $_ := set $pod "preferredDuringSchedulingIgnoredDuringExecution" $preferred -}}{{- end -}}
{{- if $required -}}{{- $_ := set $pod "requiredDuringSchedulingIgnoredDuringExecution" $required -}}{{- end -}}
{{- $affinity := dict -}}
{{- if $pod -}}{{- $_ := set $affinity "podAffinity" $pod -}}{{- end -}}
{{- mergeOverwrite $affinity (deepCopy $placement.affinity) | toYaml -}}
{{- end }}
