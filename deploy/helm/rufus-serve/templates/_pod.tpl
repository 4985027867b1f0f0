{{- /* What leader and worker pods share. (dict "root" $ "shape" $shape), and "alone" true for a pod
that is of no group. */}}
{{- define "rufus-serve.podSpec" -}}
{{- $v := .root.Values -}}
serviceAccountName: {{ include "rufus-serve.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $v.placement.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
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
{{- if not .alone }}
{{- with include "rufus-serve.affinity" . | fromYaml }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with $v.placement.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.accelerator.resourceClaims }}
resourceClaims: {{- toYaml . | nindent 2 }}
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
  {{- with merge (deepCopy .Values.podLabels) .Values.commonLabels }}
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
  {{- with merge (deepCopy .Values.podAnnotations) .Values.commonAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* Closeness among the pods of one group, and what placement.affinity adds to it; matchLabelKeys
narrows the former to the pod's own group. */}}
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
{{- $given := deepCopy $placement.affinity -}}
{{- $theirs := default dict $given.podAffinity -}}
{{- $preferred = concat $preferred (default list $theirs.preferredDuringSchedulingIgnoredDuringExecution) -}}
{{- $required = concat $required (default list $theirs.requiredDuringSchedulingIgnoredDuringExecution) -}}
{{- $pod := dict -}}
{{- if $preferred -}}{{- $_ := set $pod "preferredDuringSchedulingIgnoredDuringExecution" $preferred -}}{{- end -}}
{{- if $required -}}{{- $_ := set $pod "requiredDuringSchedulingIgnoredDuringExecution" $required -}}{{- end -}}
{{- if $pod -}}{{- $_ := set $given "podAffinity" $pod -}}{{- end -}}
{{- $given | toYaml -}}
{{- end }}
