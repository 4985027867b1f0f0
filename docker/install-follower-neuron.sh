#!/usr/bin/env bash
# Adds the follower to a Python that holds AWS's Neuron SDK, and changes no package that is there.
#
#   docker/install-follower-neuron.sh
#
# PYTHON  the SDK's interpreter  [python3]
set -euo pipefail

source_root=$(cd "$(dirname "$0")/.." && pwd)
lock=$source_root/requirements/follower.txt
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the SDK brought stays as it is: torch, numpy, transformers, neuronx-*.
"$python" -m pip list --format=freeze | grep -v '^rufus.serve==' | grep '==' > "$work/constraints.txt"
sed 's/==.*//' "$work/constraints.txt" | tr '[:upper:]_.' '[:lower:]--' | sort > "$work/present"
# Pins, with their checksums, for what it did not bring.
awk 'NR == FNR {present[$0]; next}
  /^[^ #]/ {name = tolower(substr($0, 1, index($0, "==") - 1)); gsub(/[_.]/, "-", name)}
  !/^#/ && !(name in present)' "$work/present" "$lock" > "$work/missing.txt"

pip=("$python" -m pip --disable-pip-version-check install --no-cache-dir --quiet)
if [[ -s $work/missing.txt ]]; then
  "${pip[@]}" --no-deps --require-hashes -r "$work/missing.txt"
fi
# What builds this package is pinned too; pip before 25.3 knows the first name alone.
sed -n 's/^\([^ #]*==[^ ]*\).*/\1/p' "$source_root/requirements/build.txt" > "$work/build.txt"
PIP_CONSTRAINT=$work/build.txt PIP_BUILD_CONSTRAINT=$work/build.txt \
  "${pip[@]}" --no-deps "$source_root"

"$python" -m pip list --format=freeze | grep -v '^rufus.serve==' > "$work/after.txt"
if changed=$(grep -vxFf "$work/after.txt" "$work/constraints.txt"); then
  echo "packages of the SDK were changed: $changed" >&2
  exit 1
fi
"$python" -c 'import ray, rufus_serve.follower; print("ray", ray.__version__)'
