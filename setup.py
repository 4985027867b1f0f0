"""The CPU runtime's kernels: one library for each instruction set, chosen when a follower starts.

Settings that need no code are in pyproject.toml. Without a C++ compiler the package installs all
the same, and the CPU runtime computes with torch.
"""

import platform
import sys

from setuptools import Extension, setup

# No -march=native: a wheel is built on one machine and runs on others.
_FLAGS = {
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
    "avx512": ["-march=x86-64-v4"],
    "avx2": ["-march=x86-64-v3"],
}
_COMMON_FLAGS = [
    "-std=c++20", "-O3", "-g0", "-pthread", "-fvisibility=hidden", "-ffp-contract=fast",
    "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized",
]  # fmt: skip
_FOLDER = "src/rufus_serve/kernels/csrc"
_HEADERS = [
    "abi.h", "attn_half.h", "candidates.h", "check.h", "decode_attention.h", "draws.h", "linear.h",
    "logits.h", "mlp_half.h", "norm.h", "prefill_attention.h", "rope_store.h", "simd.h", "team.h",
    "workspace.h",
]  # fmt: skip


def _libraries() -> list[Extension]:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    return [
        Extension(
            f"rufus_serve.kernels._{name}",
            sources=[f"{_FOLDER}/library.cpp"],
            depends=[f"{_FOLDER}/{header}" for header in _HEADERS],
            extra_compile_args=[*_COMMON_FLAGS, *flags],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for name, flags in _FLAGS.items()
    ]


setup(ext_modules=_libraries())
