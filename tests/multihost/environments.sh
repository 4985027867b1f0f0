#!/usr/bin/env bash
# Makes the environments that tests/multihost wants beside .venv; tests of those it cannot make
# are skipped.
#
#   tests/multihost/environments.sh [PYTHON] [OTHER_PYTHON]
#
# .venv-follower      a follower without vLLM, by the images' install script, with other
#                     transformers than the leader's
# .venv-other-python  the package under another minor of Python
# .venv-other-ray     the package with another version of Ray
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

python=${1:-python3.11}
other_python=${2:-python3.12}
ray=$(sed -n 's/^ray==\([^ ]*\).*/\1/p' requirements/follower.txt)
missing=()

follower() {
  [ -e .venv-follower/bin/rufus-serve ] \
    || PYTHON=$python TORCH_INDEX=${TORCH_INDEX-} docker/install-follower.sh .venv-follower \
    || return 1
  .venv-follower/bin/python -m pip install --quiet --no-deps transformers==4.57.6
}

misfit() { # FOLDER PYTHON RAY
  "$2" -m venv "$1" \
    && "$1/bin/python" -m pip install --quiet "ray==$3" . \
    && "$1/bin/rufus-serve" --version
}

follower || missing+=(.venv-follower)
[ -e .venv-other-python/bin/rufus-serve ] \
  || misfit .venv-other-python "$other_python" "$ray" || missing+=(.venv-other-python)
[ -e .venv-other-ray/bin/rufus-serve ] \
  || misfit .venv-other-ray "$python" 2.52.1 || missing+=(.venv-other-ray)

# The package itself may have changed since.
for folder in .venv-follower .venv-other-python .venv-other-ray; do
  [ ! -e "$folder/bin/rufus-serve" ] \
    || "$folder/bin/python" -m pip install --quiet --no-deps --force-reinstall . \
    || missing+=("$folder")
done

if ((${#missing[@]})); then
  printf 'not available here: %s\n' "${missing[@]}" >&2
fi
