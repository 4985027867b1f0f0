{{- /* A Job named after all that its template holds: what Kubernetes would refuse to change in place
is another Job, and the same template is the same Job, left alone once it is done.
(dict "root" $ "stem" WORD "template" TEXT "backoffLimit" N "deadline" SECONDS) */}}
{{- define "rufus-serve.job" -}}
apiVersion: batch/v1
kind: Job
metadata: {{- include "rufus-serve.metadata" (dict "root" .root "name" (include "rufus-serve.jobName" .)) | nindent 2 }}
spec:
  backoffLimit: {{ .backoffLimit }}
  activeDeadlineSeconds: {{ .deadline }}
  template:
    {{- .template | nindent 4 }}
{{- end }}

{{- define "rufus-serve.jobName" -}}
{{- printf "%s-%s-%s" (include "rufus-serve.fullname" .root) .stem (.template | sha256sum | trunc 8) -}}
{{- end }}

{{- /* The head of a Job's pod template. (dict "root" $ "component" WORD "on" VALUES), where VALUES
hold nodeSelector and tolerations. */}}
{{- define "rufus-serve.jobPod" -}}
metadata:
  labels:
    {{- include "rufus-serve.selector" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with .root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (deepCopy .root.Values.podAnnotations) .root.Values.commonAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  restartPolicy: OnFailure
  serviceAccountName: {{ include "rufus-serve.serviceAccount" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .on.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .on.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* An init container that waits for what a Job does, and gives up in the end: a pod that waits for
ever holds its node and says nothing. (dict "root" $ "name" NAME "test" "-e PATH" "seconds" N
"mount" YAML) */}}
{{- define "rufus-serve.await" -}}
{{- $v := .root.Values -}}
- name: {{ .name }}
  image: {{ include "rufus-serve.image" (dict "root" .root "image" $v.image.leader) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command:
    - sh
    - -c
    - 'end=$(($(date +%s) + $2)); until [ "$0" "$1" ]; do if [ "$(date +%s)" -ge "$end" ]; then echo "no [ $0 $1 ] within $2 s; see the jobs of this release" >&2; exit 1; fi; sleep 5; done'
  args: {{ concat (splitList " " .test) (list (toString .seconds)) | toJson }}
  securityContext: {{- toYaml $v.securityContext | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts: [{{ .mount | trimPrefix "- " }}]
{{- end }}
