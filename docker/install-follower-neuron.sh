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
# Pins for what it did not bring; torch would be another build.
grep '==' "$lock" | grep -v '^torch==' | while read -r pin; do
  grep -qx "$(tr '[:upper:]_.' '[:lower:]--' <<< "${pin%%==*}")" "$work/present" || echo "$pin"
done > "$work/missing.txt"

pip=("$python" -m pip --disable-pip-version-check install --no-cache-dir --quiet)
if [[ -s $work/missing.txt ]]; then
  "${pip[@]}" --no-deps -r "$work/missing.txt"
fi
# What builds this package is pinned too; pip before 25.3 knows the first name alone.
PIP_CONSTRAINT=$source_root/requirements/build.txt PIP_BUILD_CONSTRAINT=$source_root/requirements/build.txt \
  "${pip[@]}" --no-deps "$source_root"

"$python" -m pip list --format=freeze | grep -v '^rufus.serve==' > "$work/after.txt"
if changed=$(grep -vxFf "$work/after.txt" "$work/constraints.txt"); then
  echo "packages of the SDK were changed: $changed" >&2
  exit 1
fi
"$python" -c 'import ray, rufus_serve.follower; print("ray", ray.__version__)'
