#!/usr/bin/env bash
# Builds the images, scans them, pushes them to this account's ECR, and writes the values that name
# them by digest: deploy/eks/images.sh REGION TAG [--dry-run]
#
# SDK_DIGEST  digest of the reviewed Neuron SDK image, see docker/Dockerfile.follower-neuron
# OUT         values file to write  [deploy/eks/values-images.yaml]
#
# What has a critical vulnerability that a newer package mends is not pushed. --dry-run prints the
# commands, runs none, and writes nothing. Needs aws, docker and trivy.
set -euo pipefail
shopt -s inherit_errexit

usage="usage: images.sh REGION TAG [--dry-run]"
region=${1:?$usage}
tag=${2:?$usage}
dry=${3:-}
if [[ -n $dry && $dry != --dry-run ]]; then
  echo "$usage" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${OUT:-$root/deploy/eks/values-images.yaml}
if [[ ! ${SDK_DIGEST:-} =~ ^sha256:[0-9a-f]{64}$ ]]; then
  echo "SDK_DIGEST is '${SDK_DIGEST:-}': set it to the digest of the Neuron SDK image, as" \
    "'docker buildx imagetools inspect' shows it for the image in docker/Dockerfile.follower-neuron" >&2
  exit 2
fi
cd "$root"

run() {
  printf '+ %s\n' "$*" >&2
  [[ -n $dry ]] || "$@"
}

images=()
if [[ -n $dry ]]; then
  account=123456789012
else
  account=$(aws sts get-caller-identity --query Account --output text)
fi
registry=$account.dkr.ecr.$region.amazonaws.com

log_in() {
  echo "+ docker login $registry" >&2
  [[ -n $dry ]] || aws ecr get-login-password --region "$region" \
    | docker login --username AWS --password-stdin "$registry"
}

# Made once; its tags never move.
repository() { # NAME
  if [[ -z $dry ]] && aws ecr describe-repositories --region "$region" --repository-names "$1" \
    > /dev/null 2>&1; then
    return
  fi
  run aws ecr create-repository --region "$region" --repository-name "$1" \
    --image-tag-mutability IMMUTABLE --image-scanning-configuration scanOnPush=true
}

# What is pushed is what was scanned: one image, built once.
publish() { # NAME; prints REPOSITORY@DIGEST
  local reference=$registry/rufus-serve-$1:$tag options=() refuse=1
  if [[ $1 == follower-neuron ]]; then
    options=(--build-arg "SDK_DIGEST=$SDK_DIGEST")
    # What AWS's SDK image brings is AWS's to mend: listed, not refused.
    refuse=0
  fi
  repository "rufus-serve-$1"
  run docker build --platform linux/amd64 --file "docker/Dockerfile.$1" "${options[@]}" \
    --tag "$reference" .
  run trivy image --severity CRITICAL --ignore-unfixed --exit-code "$refuse" "$reference"
  run docker push "$reference"
  if [[ -n $dry ]]; then
    echo "${reference%:*}@sha256:$(printf '0%.0s' {1..64})"
  else
    docker image inspect --format '{{index .RepoDigests 0}}' "$reference"
  fi
}

in_values() { # REPOSITORY@DIGEST
  printf '{repository: %s, digest: "%s"}\n' "${1%@*}" "${1#*@}"
}

# The packages that we add, those added to the SDK's image included.
run trivy fs --scanners vuln --severity CRITICAL --ignore-unfixed --exit-code 1 \
  --file-patterns 'pip:requirements/.*\.txt' requirements >&2
log_in >&2
for name in leader follower-neuron router; do
  pushed=$(publish "$name" | tee /dev/stderr | tail -1)
  images[${#images[@]}]=$(in_values "$pushed")
done
values="image:
  leader: ${images[0]}
  follower: ${images[1]}
router:
  image: ${images[2]}"
if [[ -n $dry ]]; then
  printf 'would write %s:\n%s\n' "$out" "$values"
else
  echo "$values" > "$out"
  echo "wrote $out"
fi
