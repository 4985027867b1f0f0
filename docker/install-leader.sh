#!/usr/bin/env bash
# Installs the leader, with vLLM built without compiled kernels, into a new virtual environment.
#
#   docker/install-leader.sh FOLDER
#
# PYTHON       interpreter to build on                 [python3]
# TORCH_INDEX  package index of CPU builds of torch; empty: pip's own
#              [https://download.pytorch.org/whl/cpu]
set -euo pipefail

folder=${1:?usage: install-leader.sh FOLDER}
source_root=$(cd "$(dirname "$0")/.." && pwd)
locks=$source_root/requirements
index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
torch=$(grep '^torch==' "$locks/leader.txt")
vllm=$(grep '^vllm==' "$locks/leader.txt")

"${PYTHON:-python3}" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --no-cache-dir --quiet)
"${pip[@]}" -r "$locks/build.txt"
"${pip[@]}" ${index:+--index-url "$index"} --no-deps "$torch"
grep -v -e '^vllm==' -e '^torch==' "$locks/leader.txt" | "${pip[@]}" --no-deps -r /dev/stdin
# Without the override the version becomes X+empty, and pip discards what does not match the pin.
VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=${vllm#*==} PATH="$folder/bin:$PATH" \
  "${pip[@]}" --no-build-isolation --no-deps --no-binary vllm "$vllm"
# What builds this package is pinned too; pip before 25.3 knows the first name alone.
PIP_CONSTRAINT=$locks/build.txt PIP_BUILD_CONSTRAINT=$locks/build.txt \
  "${pip[@]}" --no-deps "$source_root"
"$folder/bin/python" -c 'import ray, rufus_serve, torch, vllm; print("vllm", vllm.__version__)'
"$folder/bin/rufus-serve" --version
