#!/usr/bin/env bash
# Makes VENV, a follower's environment that imports NxD Inference from its sources.
#   prepare.sh SOURCES VENV
# SOURCES holds git repositories named neuronx-distributed-inference and neuronx-distributed.
set -euo pipefail
sources=${1:?folder with the git repositories} venv=${2:?environment to make}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
declare -A revision=(
  [neuronx-distributed-inference]=cd3abf30558fe1a14dadfb1397c2118e3fcfcc11 # release 0.8, SDK 2.28
  [neuronx-distributed]=22cadad34418fb8b5939bd8cdfc7a376eede9981          # tag v2.28.0
)

[ -x "$venv/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$venv"
made=$venv/.made-$(cat "$here/requirements.txt" "$here/prepare.sh" | sha256sum | cut -c1-16)
if [ ! -e "$made" ]; then
  "$venv/bin/python" -m pip install -q -r "$here/requirements.txt"
  "$venv/bin/python" -m pip install -q --no-deps -e "$here/../.."
fi

paths=()
for name in "${!revision[@]}"; do
  into=$venv/sources/$name-${revision[$name]}
  if [ ! -d "$into" ]; then
    mkdir -p "$into.part"
    git -C "$sources/$name" archive "${revision[$name]}" src | tar -x -C "$into.part"
    mv "$into.part" "$into"
  fi
  paths+=("$(cd "$into/src" && pwd)")
done
# Read at every start of the interpreter, so by followers too.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "${paths[@]}" "$here/stand_ins" 'import neuron_stand_ins' >"$site/nxdi_sources.pth"
touch "$made"
