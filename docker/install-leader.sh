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
vllm=$(sed -n 's/^vllm==\([^ ]*\).*/\1/p' "$locks/vllm.txt")

"${PYTHON:-python3}" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --no-cache-dir --quiet --no-deps)
locked=("${pip[@]}" --require-hashes)
"${locked[@]}" -r "$locks/build.txt"
"${locked[@]}" -r "$locks/leader.txt"
"${pip[@]}" ${index:+--index-url "$index"} -r "$locks/torch.txt"
# Without the override the version becomes X+empty, and pip discards what does not match the pin.
VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$vllm PATH="$folder/bin:$PATH" \
  "${locked[@]}" --no-build-isolation --no-binary vllm -r "$locks/vllm.txt"
"${pip[@]}" --no-build-isolation "$source_root"
"$folder/bin/python" -c 'import ray, rufus_serve, torch, vllm; print("vllm", vllm.__version__)'
"$folder/bin/rufus-serve" --version
