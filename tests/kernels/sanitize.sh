#!/usr/bin/env bash
# The kernels' tests under AddressSanitizer and UBSan, and their threads under ThreadSanitizer.
#
#   tests/kernels/sanitize.sh PYTHON
#
# PYTHON has the package and its test tools. CXX is the compiler: [g++]
set -euo pipefail

python=${1:?usage: sanitize.sh PYTHON}
root=$(cd "$(dirname "$0")/../.." && pwd)
cxx=${CXX:-g++}
sources=$root/src/rufus_serve/kernels/csrc
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
flags=(-std=c++20 -g -O1 -pthread -ffp-contract=fast -Wno-psabi -I"$sources")

"$cxx" "${flags[@]}" -fsanitize=thread "$root/tests/kernels/team_stress.cpp" -o "$folder/stress"
TSAN_OPTIONS=halt_on_error=1 "$folder/stress"

# What this machine runs of the three instruction sets.
for isa in avx2:-march=x86-64-v3 avx512:-march=x86-64-v4 \
  "avx512_bf16:-march=x86-64-v4 -mavx512bf16"; do
  name=${isa%%:*}
  "$python" -c "from rufus_serve.kernels.library import cpu_flags, supported_names
raise SystemExit('$name' not in supported_names(cpu_flags()))" || continue
  # shellcheck disable=SC2086 # flags are words
  "$cxx" "${flags[@]}" ${isa#*:} -shared -fPIC -fvisibility=hidden -fno-sanitize-recover=all \
    -fsanitize=address,undefined "$sources/library.cpp" -o "$folder/_$name.so"
  # Python and torch free little at their end.
  LD_PRELOAD=$("$cxx" -print-file-name=libasan.so):$("$cxx" -print-file-name=libubsan.so) \
    ASAN_OPTIONS=detect_leaks=0 KERNELS_UNDER_TEST=$name=$folder/_$name.so \
    "$python" -m pytest "$root/tests/unit/kernels" -q -p no:cacheprovider -k "not library"
done
