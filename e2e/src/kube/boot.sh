#!/bin/sh
# Makes a Kubernetes node of a node of the lab, at each boot. Words in @s are filled in by the host.
set -eu
say() { read -r up _ </proc/uptime; echo "$up $*"; }
say begin
export PATH=@containerd_dir@:$PATH
mkdir -p /kube
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro kube /kube
# Neither may lie on an overlay, and both survive a reboot as a node's disk would.
for d in containerd kubelet cni; do
    mkdir -p /state/$d /var/lib/$d
    mount --bind /state/$d /var/lib/$d
done
mkdir -p /etc/cni/net.d /etc/containerd
if [ ! -e /state/images ]; then
    tar -xf @images@ -C /var/lib/containerd
    touch /state/images
fi
say images
sysctl -qw net.ipv4.ip_forward=1 vm.overcommit_memory=1 kernel.panic=10 kernel.panic_on_oops=1
modprobe -aq br_netfilter overlay nf_conntrack nft_masq nft_chain_nat || true
# Pods of other nodes are behind these; what leaves for the host goes out under the node's address.
@routes@
nft -f - <<'X'
table ip lab {
    chain out {
        type nat hook postrouting priority 101;
        ip saddr 10.244.0.0/16 oifname "eth0" masquerade
    }
}
X
cat >/etc/cni/net.d/10-lab.conflist <<'X'
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.@number@.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
X
cat >/etc/containerd/config.toml <<'X'
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
# Once a second it would ask every shim what its containers use: a quarter of an emulated processor for five containers.
[plugins.'io.containerd.cri.v1.runtime']
  stats_collect_period = "1m"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "@sandbox@"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    BinaryName = "@runc@"
    SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["@cni_dir@"]
  conf_dir = "/etc/cni/net.d"
X
cat >/etc/containerd/kubelet.yaml <<'X'
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /host/kube/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: ""
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
# Nothing is evicted, and nobody is asked every ten seconds whether anything should be.
evictionHard: {memory.available: 0%, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%, imagefs.inodesFree: 0%}
localStorageCapacityIsolation: false
volumeStatsAggPeriod: -1s
nodeStatusUpdateFrequency: 5s
nodeStatusReportFrequency: 60s
nodeLeaseDurationSeconds: 12
# Fifty pods at once take the runtime longer than the usual two minutes here, and what was given up is begun again.
runtimeRequestTimeout: 15m
X
say files
# One share of the processor for all that runs the node, as systemd gives it. In the root group each thread would weigh more than all
# pods together.
mkdir -p /sys/fs/cgroup/system.slice
echo $$ >/sys/fs/cgroup/system.slice/cgroup.procs
# There is memory enough, and hardly a processor.
export GOGC=400
containerd --config /etc/containerd/config.toml >>/host/log/containerd.log 2>&1 &
tries=0
until ctr version >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then say "containerd does not answer"; exit 1; fi
    sleep 0.3
done
say containerd
@kubelet@ --config=/etc/containerd/kubelet.yaml --kubeconfig=/host/kube/kubelet.kubeconfig \
    --hostname-override=n@number@ --node-ip=@node_ip@ --root-dir=/var/lib/kubelet --housekeeping-interval=60s --v=2 >>/host/log/kubelet.log 2>&1 &
@proxy@ --kubeconfig=/host/kube/proxy.kubeconfig --hostname-override=n@number@ --proxy-mode=nftables \
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 \
    >>/host/log/kube-proxy.log 2>&1 &
say kubelet
wait
