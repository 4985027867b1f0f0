#!/usr/bin/env bash
# Installs a CPU follower into a new virtual environment. It holds no vLLM.
#
#   docker/install-follower.sh FOLDER
#
# PYTHON and TORCH_INDEX are as for install-leader.sh.
set -euo pipefail

folder=${1:?usage: install-follower.sh FOLDER}
source_root=$(cd "$(dirname "$0")/.." && pwd)
locks=$source_root/requirements
index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}

"${PYTHON:-python3}" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --no-cache-dir --quiet --no-deps)
"${pip[@]}" --require-hashes -r "$locks/follower.txt"
"${pip[@]}" ${index:+--index-url "$index"} -r "$locks/torch.txt"
"${pip[@]}" --no-build-isolation "$source_root"
"$folder/bin/python" -c 'import ray, torch, rufus_serve.follower; print("torch", torch.__version__)'
"$folder/bin/rufus-serve" --version
