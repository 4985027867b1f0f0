#!/usr/bin/env bash
# Installs a CPU follower into a new virtual environment. It holds no vLLM.
#
#   docker/install-follower.sh FOLDER
#
# PYTHON and TORCH_INDEX are as for install-leader.sh.
set -euo pipefail

folder=${1:?usage: install-follower.sh FOLDER}
source_root=$(cd "$(dirname "$0")/.." && pwd)
lock=$source_root/requirements/follower.txt
index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}

"${PYTHON:-python3}" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --no-cache-dir --quiet)
"${pip[@]}" ${index:+--index-url "$index"} --no-deps "$(grep '^torch==' "$lock")"
grep -v '^torch==' "$lock" | "${pip[@]}" --no-deps -r /dev/stdin
# What builds this package is pinned too; pip before 25.3 knows the first name alone.
PIP_CONSTRAINT=$source_root/requirements/build.txt PIP_BUILD_CONSTRAINT=$source_root/requirements/build.txt \
  "${pip[@]}" --no-deps "$source_root"
"$folder/bin/python" -c 'import ray, torch, rufus_serve.follower; print("torch", torch.__version__)'
"$folder/bin/rufus-serve" --version
