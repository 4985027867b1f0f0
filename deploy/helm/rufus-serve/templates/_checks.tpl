{{- /* Refuses values that contradict each other; each message holds the equation. */}}
{{- define "rufus-serve.checks" -}}
{{- $v := .Values -}}
{{- $shape := include "rufus-serve.shape" . | fromJson -}}
{{- $config := $shape.config -}}
{{- $perPod := int $v.group.followersPerPod -}}
{{- $followers := int $shape.followers -}}
{{- $all := printf "config.groups %d x config.nodes %d + config.recovery.standby_nodes %d" (int $config.groups) (int $config.nodes) (int $config.recovery.standby_nodes) -}}
{{- if mod $followers $perPod -}}
{{- fail (printf "(%s) %% group.followersPerPod %d = %d, must be 0: every pod holds as many followers" $all $perPod (mod $followers $perPod)) -}}
{{- end -}}
{{- $size := int $shape.size -}}
{{- if and $v.group.size (ne (int $v.group.size) $size) -}}
{{- fail (printf "group.size %d != (%s) / group.followersPerPod %d = %d: the leader's pod holds follower 0; leave group.size at 0" (int $v.group.size) $all $perPod $size) -}}
{{- end -}}
{{- if $shape.neuron -}}
{{- include "rufus-serve.checkCores" (list $v $shape) -}}
{{- else if $v.group.tensorParallelSize -}}
{{- if ne (int $v.group.tensorParallelSize) (int $config.nodes) -}}
{{- fail (printf "group.tensorParallelSize %d != config.nodes %d: on runtime cpu each follower is one rank" (int $v.group.tensorParallelSize) (int $config.nodes)) -}}
{{- end -}}
{{- end -}}
{{- if le (int $shape.grace) (int $shape.drain) -}}
{{- fail (printf "drain.terminationGracePeriodSeconds %d <= drain.preStopSeconds %d + config.timeouts.shutdown_grace_s %v = %d: requests would be cut off; raise it or leave it at 0" (int $shape.grace) (int $v.drain.preStopSeconds) $config.timeouts.shutdown_grace_s (int $shape.drain)) -}}
{{- end -}}
{{- include "rufus-serve.checkPorts" $config -}}
{{- include "rufus-serve.checkSecrets" $v -}}
{{- include "rufus-serve.checkStorage" (list $v $config) -}}
{{- include "rufus-serve.checkArtifacts" (list $v $shape) -}}
{{- include "rufus-serve.checkScaling" $v -}}
{{- include "rufus-serve.checkRecovery" (list $v $shape) -}}
{{- include "rufus-serve.checkAccess" . -}}
{{- end }}

{{- define "rufus-serve.checkCores" -}}
{{- $v := index . 0 -}}
{{- $shape := index . 1 -}}
{{- $config := $shape.config -}}
{{- $nodes := int $config.nodes -}}
{{- $cores := int $config.neuron.cores_per_node -}}
{{- if and $v.group.tensorParallelSize (ne (int $v.group.tensorParallelSize) (int $shape.ranks)) -}}
{{- fail (printf "group.tensorParallelSize %d != config.nodes %d x config.neuron.cores_per_node %d = %d" (int $v.group.tensorParallelSize) $nodes $cores (int $shape.ranks)) -}}
{{- end -}}
{{- if ne (int $shape.podCores) (int $shape.deviceCores) -}}
{{- fail (printf "config.neuron.cores_per_node %d x group.followersPerPod %d = %d != accelerator.neuronDevices %d x accelerator.coresPerDevice %d = %d: a pod asks for exactly the devices its followers drive" $cores (int $v.group.followersPerPod) (int $shape.podCores) (int $v.accelerator.neuronDevices) (int $v.accelerator.coresPerDevice) (int $shape.deviceCores)) -}}
{{- end -}}
{{- if and $shape.spans (not $v.accelerator.efaInterfaces) -}}
{{- fail (printf "accelerator.efaInterfaces 0, but %d nodes compute together: collectives between Trainium nodes need EFA (8 on trn1.32xlarge, 16 on trn1n.32xlarge)" $nodes) -}}
{{- end -}}
{{- if $config.cluster.interface | empty -}}
{{- fail "config.cluster.interface is empty: name the pod's interface, eth0 unless your CNI differs" -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.checkPorts" -}}
{{- $seen := dict -}}
{{- $cluster := .cluster -}}
{{- range $name, $port := dict "config.port" .port "config.cluster.ray_port" $cluster.ray_port "config.cluster.control_port" $cluster.control_port "config.cluster.step_port" $cluster.step_port "config.cluster.rendezvous_port" $cluster.rendezvous_port -}}
{{- $key := toString $port -}}
{{- if hasKey $seen $key -}}
{{- fail (printf "%s and %s are both %s: give each its own port" (get $seen $key) $name $key) -}}
{{- end -}}
{{- $_ := set $seen $key $name -}}
{{- end -}}
{{- $last := add $cluster.rendezvous_port 15 | int -}}
{{- range $key, $name := $seen -}}
{{- $port := int $key -}}
{{- if and (gt $port (int $cluster.rendezvous_port)) (le $port $last) -}}
{{- fail (printf "%s %d is among config.cluster.rendezvous_port %d to %d, which epochs use in turn: choose another" $name $port (int $cluster.rendezvous_port) $last) -}}
{{- end -}}
{{- if and (ge $port 6500) (le $port 6819) -}}
{{- fail (printf "%s %d is among 6500 to 6819, which Ray's processes use: choose another" $name $port) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.checkSecrets" -}}
{{- if not (or .groupToken.existingSecret .groupToken.generate) -}}
{{- fail "groupToken.existingSecret is empty and groupToken.generate is false: followers need the group's token" -}}
{{- end -}}
{{- if and .apiKeys.enabled (not (or .apiKeys.existingSecret .apiKeys.generate)) -}}
{{- fail "apiKeys.existingSecret is empty and apiKeys.generate is false: name a Secret, or set apiKeys.enabled to false for an endpoint that anyone who reaches it may use" -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.checkStorage" -}}
{{- $v := index . 0 -}}
{{- $config := index . 1 -}}
{{- range $name := list "model" "artifacts" -}}
{{- $volume := get $v.storage $name -}}
{{- $needs := get (dict "existingClaim" (list "claimName") "fsx" (list "fileSystemId" "dnsName" "mountName") "efs" (list "fileSystemId") "s3" (list "url") "mountpoint" (list "bucket" "region")) $volume.kind | default list -}}
{{- range $key := $needs -}}
{{- if not (get $volume $key) -}}
{{- fail (printf "storage.%s.kind is %s, but storage.%s.%s is empty" $name $volume.kind $name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (has $v.storage.model.kind (list "fsx" "efs")) (eq $v.storage.model.kind $v.storage.artifacts.kind) (eq $v.storage.model.fileSystemId $v.storage.artifacts.fileSystemId) -}}
{{- fail (printf "storage.model and storage.artifacts are both file system %s, and a pod cannot mount one volume handle by two volumes: set storage.artifacts.kind to model, with a subPath each" $v.storage.model.fileSystemId) -}}
{{- end -}}
{{- if and (eq $v.storage.artifacts.kind "model") (not (has $v.storage.model.kind (list "existingClaim" "claim" "fsx" "efs"))) -}}
{{- fail (printf "storage.artifacts.kind is model, but storage.model.kind %s is no volume that artifacts could be written to" $v.storage.model.kind) -}}
{{- end -}}
{{- if and (ne $v.storage.model.kind "image") (not (hasPrefix "/models" $config.model)) -}}
{{- fail (printf "config.model %s is not below /models, where storage.model (%s) is mounted" $config.model $v.storage.model.kind) -}}
{{- end -}}
{{- if and $v.storage.model.url (has $v.storage.model.kind (list "image" "mountpoint")) -}}
{{- fail (printf "storage.model.url %s, but storage.model.kind %s is not copied to: use s3 for a node's disk, or a claim, fsx or efs" $v.storage.model.url $v.storage.model.kind) -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.checkArtifacts" -}}
{{- $v := index . 0 -}}
{{- $shape := index . 1 -}}
{{- $location := $shape.config.artifacts.location -}}
{{- if and (ne $v.storage.artifacts.kind "none") (not (hasPrefix "/artifacts" $location)) -}}
{{- fail (printf "config.artifacts.location %q is not below /artifacts, where storage.artifacts (%s) is mounted" $location $v.storage.artifacts.kind) -}}
{{- end -}}
{{- if and (eq $v.storage.artifacts.kind "none") (hasPrefix "/artifacts" $location) -}}
{{- fail (printf "config.artifacts.location %s, but storage.artifacts.kind is none: nothing is mounted there" $location) -}}
{{- end -}}
{{- if and $shape.neuron (hasPrefix "s3:" $location) -}}
{{- fail (printf "config.artifacts.location %s with runtime neuron: the Neuron SDK's image has no s3fs; mount the bucket (storage.artifacts.kind mountpoint) or use fsx" $location) -}}
{{- end -}}
{{- if $v.compile.enabled -}}
{{- if not $location -}}
{{- fail "compile.enabled, but config.artifacts.location is empty: name where artifacts go" -}}
{{- end -}}
{{- if eq $v.storage.artifacts.kind "mountpoint" -}}
{{- fail "compile.enabled, but storage.artifacts.kind mountpoint is read-only: compile to another kind, copy it to the bucket, then serve from there" -}}
{{- end -}}
{{- if and $shape.neuron $v.replicas (ne $v.autoscaling.kind "keda") (eq (toJson $v.compile.nodeSelector) (toJson $v.placement.nodeSelector)) -}}
{{- fail (printf "compile.nodeSelector is placement.nodeSelector %s: groups that wait for artifacts would hold the nodes that the compile job waits for. Give it nodes of its own (it needs memory, no device), or compile with replicas 0 first" (toJson $v.placement.nodeSelector)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.checkRecovery" -}}
{{- $v := index . 0 -}}
{{- $shape := index . 1 -}}
{{- $config := $shape.config -}}
{{- $timeouts := $config.timeouts -}}
{{- if and (gt (int $config.recovery.standby_nodes) 0) (ne $v.group.restartPolicy "None") -}}
{{- fail (printf "config.recovery.standby_nodes %d with group.restartPolicy %s: the whole group is recreated when a pod is lost, so a stand-by would never take its place; set group.restartPolicy to None" (int $config.recovery.standby_nodes) $v.group.restartPolicy) -}}
{{- end -}}
{{- $reload := addf $timeouts.load_s $timeouts.warm_up_s -}}
{{- /* 0 is derived by the program. */ -}}
{{- if and $shape.neuron $config.recovery.deadline_s (lt (float64 $config.recovery.deadline_s) (float64 $reload)) -}}
{{- fail (printf "config.recovery.deadline_s %v < config.timeouts.load_s %v + warm_up_s %v = %v: on runtime neuron all followers load anew after a loss, and the liveness probe would end the leader before they can be ready" $config.recovery.deadline_s $timeouts.load_s $timeouts.warm_up_s $reload) -}}
{{- end -}}
{{- end }}

{{- /* What the NetworkPolicy would drop without a word. */}}
{{- define "rufus-serve.checkAccess" -}}
{{- $v := .Values -}}
{{- $n := $v.networkPolicy -}}
{{- $way := ternary "ingress.enabled" (ternary "httpRoute.enabled" "" $v.httpRoute.enabled) $v.ingress.enabled -}}
{{- if and $way $n.enabled (not $n.loadBalancers) -}}
{{- fail (printf "%s, but networkPolicy.loadBalancers is empty: the policy would drop what the load balancer sends. Name its peers, such as [{ipBlock: {cidr: 10.42.0.0/16}}] for an ALB in that VPC" $way) -}}
{{- end -}}
{{- if and (ne $v.metrics.monitor "none") $n.enabled (not $n.scrapers) -}}
{{- fail (printf "metrics.monitor is %s, but networkPolicy.scrapers is empty: the policy would drop what Prometheus asks. Name its peers, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" $v.metrics.monitor) -}}
{{- end -}}
{{- if and $v.router.enabled $v.tls.existingSecret -}}
{{- fail "router.enabled with tls.existingSecret: vllm-router speaks to the groups that it discovers in clear; end TLS at the ingress, or use no router" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled, but httpRoute.parentRefs is empty: name the Gateway" -}}
{{- end -}}
{{- $longest := include "rufus-serve.longestAnswer" . | int -}}
{{- if and $v.ingress.enabled (eq $v.ingress.kind "alb") (gt $longest 4000) -}}
{{- fail (printf "config.limits.request_timeout_s + 60 = %d > 4000, the longest idle time-out of an ALB: answers would be cut off; lower request_timeout_s" $longest) -}}
{{- end -}}
{{- if and $v.ingress.enabled (eq $v.ingress.kind "alb") (eq $v.ingress.scheme "internet-facing") (not $v.ingress.certificateArn) -}}
{{- fail "ingress.scheme is internet-facing, but ingress.certificateArn is empty: API keys would cross the internet in clear" -}}
{{- end -}}
{{- end }}

{{- define "rufus-serve.checkScaling" -}}
{{- $a := .autoscaling -}}
{{- if and (ne $a.kind "off") (gt (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas %d > autoscaling.maxReplicas %d" (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $a.kind "keda") (not $a.prometheusUrl) -}}
{{- fail "autoscaling.kind is keda, but autoscaling.prometheusUrl is empty" -}}
{{- end -}}
{{- if and .inferencePool.enabled (not .inferencePool.endpointPicker.name) -}}
{{- fail "inferencePool.enabled, but inferencePool.endpointPicker.name is empty: name the Service of the endpoint picker" -}}
{{- end -}}
{{- if and .inferencePool.enabled .apiKeys.enabled -}}
{{- fail "inferencePool.enabled with apiKeys.enabled: the endpoint picker asks /metrics without a key and would get 401; have the gateway check keys, and set apiKeys.enabled to false" -}}
{{- end -}}
{{- if and .placement.kueue.preferredTopology .placement.kueue.requiredTopology -}}
{{- fail "placement.kueue.preferredTopology and requiredTopology are both set: choose one" -}}
{{- end -}}
{{- if and (not .group.maxSurge) (not .group.maxUnavailable) -}}
{{- fail "group.maxUnavailable and group.maxSurge are both 0: no group could ever be updated" -}}
{{- end -}}
{{- end }}
