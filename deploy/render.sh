#!/usr/bin/env bash
# Renders deploy/weir.yaml from the chart with its default values; with --check says whether it is what stands there.
# HELM names the program where it is not in PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
render() {
    cat <<'HEAD'
# Rendered from charts/weir by deploy/render.sh: change that, not this. The image is one that is on the nodes: set yours.
apiVersion: v1
kind: Namespace
metadata:
  name: weir-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
HEAD
    "${HELM:-helm}" template weir charts/weir --namespace weir-system --kube-version 1.36.0 --include-crds --skip-tests --no-hooks
}
case "${1:-}" in
    --check) diff -u deploy/weir.yaml <(render) ;;
    '') render >deploy/weir.yaml.new && mv deploy/weir.yaml.new deploy/weir.yaml ;;
    *) echo "usage: deploy/render.sh [--check]" >&2 && exit 2 ;;
esac
