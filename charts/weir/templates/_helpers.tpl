{{- define "weir.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "weir.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "weir.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "weir.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "weir.controller" -}}{{ include "weir.fullname" . }}-controller{{- end }}
{{- define "weir.node" -}}{{ include "weir.fullname" . }}-node{{- end }}

{{- define "weir.selector" -}}
app.kubernetes.io/name: {{ include "weir.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "weir.labels" -}}
{{ include "weir.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "weir.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "weir.controllerAccount" -}}
{{ .Values.serviceAccounts.controller.name | default (include "weir.controller" .) }}
{{- end }}
{{- define "weir.nodeAccount" -}}
{{ .Values.serviceAccounts.node.name | default (include "weir.node" .) }}
{{- end }}

{{- /* The name that the controller's certificate is for, whatever address it is dialled at. */}}
{{- define "weir.serverName" -}}
{{ include "weir.controller" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* Where a pod of ours that is neither controller nor node goes, and how its image is got. */}}
{{- define "weir.errand" -}}
restartPolicy: {{ .restartPolicy }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .like.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .like.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Where the reigning controller serves `weir`. The loopback of a node is every process's there, a pod's only that pod's. */}}
{{- define "weir.operatorSocket" -}}/run/weir/operator.sock{{- end }}
{{- define "weir.operatorPort" -}}127.0.0.1:9503{{- end }}

{{- /*
Who makes certificates. `auto` stays with what is there: another CA would cut nodes off from controllers until all have read
it. Our own CA is told by its ConfigMap, cert-manager's certificate by what it notes on the Secret. Without a cluster to look
into (helm template) nothing is there.
*/}}
{{- define "weir.tlsSource" -}}
{{- if ne .Values.tls.source "auto" -}}
{{ .Values.tls.source }}
{{- else -}}
{{- $there := .Capabilities.APIVersions.Has "cert-manager.io/v1" }}
{{- $secret := lookup "v1" "Secret" .Release.Namespace (printf "%s-tls" (include "weir.fullname" .)) | default dict }}
{{- if lookup "v1" "ConfigMap" .Release.Namespace (include "weir.caBundle" .) -}}
controller
{{- else if dig "metadata" "annotations" "cert-manager.io/certificate-name" "" $secret -}}
{{- if not $there }}
{{- fail (printf "tls.source auto: Secret %s is cert-manager's, and cert-manager is not there: bring it back, or say tls.source and delete the Secret" $secret.metadata.name) }}
{{- end -}}
certManager
{{- else if $there -}}
certManager
{{- else -}}
controller
{{- end }}
{{- end }}
{{- end }}

{{- /* Objects of TLS. */}}
{{- define "weir.tlsSecret" -}}
{{- if eq (include "weir.tlsSource" .) "secret" -}}
{{ required "tls.secretName: with tls.source secret, the Secret's name is needed" .Values.tls.secretName }}
{{- else -}}
{{ include "weir.fullname" . }}-tls
{{- end }}
{{- end }}
{{- define "weir.caSecret" -}}{{ include "weir.fullname" . }}-ca-key{{- end }}
{{- define "weir.caBundle" -}}{{ include "weir.fullname" . }}-ca{{- end }}

{{- define "weir.endpoints" -}}
{{- $own := list (printf "https://%s:%v" (include "weir.serverName" .) .Values.controller.ports.session) }}
{{- toYaml (.Values.node.controllerEndpoints | default $own) }}
{{- end }}

{{- define "weir.hostPort" -}}
{{- if contains ":" (index . 0) }}{{ printf "[%s]:%v" (index . 0) (index . 1) }}{{ else }}{{ printf "%s:%v" (index . 0) (index . 1) }}{{ end }}
{{- end }}

{{- define "weir.controllerConfig" -}}
driverName: {{ .Values.driverName }}
listen:
  csi: unix:///run/weir/csi.sock
  nodes: {{ include "weir.hostPort" (list .Values.controller.listenAddress .Values.controller.ports.session) | quote }}
  http: {{ include "weir.hostPort" (list .Values.controller.listenAddress .Values.controller.ports.http) | quote }}
  {{- if and .Values.controller.operator.enabled .Values.controller.hostNetwork }}
  # For `weir` in this container: on the loopback of the node any process could ask.
  operator: {at: "unix://{{ include "weir.operatorSocket" . }}"}
  {{- else if .Values.controller.operator.enabled }}
  # Where `weir` looks for it, by a port that is forwarded into the reigning pod.
  operator: {at: "tcp://{{ include "weir.operatorPort" . }}", plain: true}
  {{- end }}
store:
  kubernetes:
    namespace: {{ .Release.Namespace }}
    lease: {{ include "weir.controller" . }}
    leaseSeconds: {{ .Values.controller.leaderLeaseSeconds }}
nodeTokens:
  audience: weir
  serviceAccount: {{ .Release.Namespace }}:{{ include "weir.nodeAccount" . }}
lease: {{- toYaml .Values.controller.lease | nindent 2 }}
lendByForecast: {{ .Values.controller.lendByForecast }}
{{- with .Values.controller.moves }}
moves: {{- toYaml . | nindent 2 }}
{{- end }}
tls:
{{- if eq (include "weir.tlsSource" .) "controller" }}
  kubernetes:
    namespace: {{ .Release.Namespace }}
    secret: {{ include "weir.tlsSecret" . }}
    caSecret: {{ include "weir.caSecret" . }}
    bundle: {{ include "weir.caBundle" . }}
    names: {{- concat (list (include "weir.serverName" .)) .Values.tls.extraNames | toYaml | nindent 4 }}
{{- else }}
  cert: /etc/weir/tls/tls.crt
  key: /etc/weir/tls/tls.key
{{- end }}
{{- end }}

{{- define "weir.nodeConfig" -}}
driverName: {{ .Values.driverName }}
controller:
  endpoints: {{- include "weir.endpoints" . | nindent 2 }}
  token: /etc/weir/identity/token
  tls:
    ca: /etc/weir/ca/ca.crt
    serverName: {{ include "weir.serverName" . }}
csi:
  endpoint: unix://{{ .Values.node.kubeletDir }}/plugins/{{ .Values.driverName }}/csi.sock
kubelet:
  registry: {{ .Values.node.kubeletDir }}/plugins_registry
stateDir: {{ .Values.node.stateDir }}
maxVolumes: {{ .Values.node.maxVolumes }}
{{- with .Values.node.devices }}
devices: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.node.topology }}
topology: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $net := .Values.node.storageNetwork }}
{{- if and $net.interface $net.cidr }}{{ fail "node.storageNetwork: at most one of interface and cidr" }}{{ end }}
storage:
  port: {{ $net.port }}
  {{- with $net.interface }}
  interface: {{ . }}
  {{- end }}
  {{- with $net.cidr }}
  cidr: {{ . }}
  {{- end }}
http:
  listen: {{ include "weir.hostPort" (list .Values.node.http.address .Values.node.http.port) | quote }}
logging:
  level: {{ .Values.log.level }}
  format: {{ .Values.log.format }}
{{- end }}

{{- /* What Weir offers to CDI, the best first: live migration needs ReadWriteMany on a raw block volume. */}}
{{- define "weir.storageProfile" -}}
{{- $sets := list
  (dict "accessModes" (list "ReadWriteMany") "volumeMode" "Block")
  (dict "accessModes" (list "ReadWriteOnce") "volumeMode" "Block")
  (dict "accessModes" (list "ReadWriteOnce") "volumeMode" "Filesystem") }}
{{- dict "spec" (dict "claimPropertySets" $sets "cloneStrategy" "copy") | toJson }}
{{- end }}
