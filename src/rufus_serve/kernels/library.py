"""`Library`: the kernels built for this CPU, or why there are none."""

import ctypes
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from rufus_serve.kernels.structs import (
    ABI_VERSION,
    Cache,
    Candidates,
    Draws,
    Layer,
    Model,
    Step,
    Weight,
)

_X86_64_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_X86_64_V4 = _X86_64_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NEEDED_FLAGS = {
    "avx512_bf16": _X86_64_V4 | {"avx512_bf16"},
    "avx512": _X86_64_V4,
    "avx2": _X86_64_V3,
}
"""What Linux calls the instructions that each library uses, the fastest library first."""


@dataclass(frozen=True)
class Library:
    """A loaded library."""

    name: str
    """The instruction set it was built for."""
    functions: ctypes.CDLL


class KernelsUnavailable(Exception):
    """No library runs here; the message says why."""


def load_library() -> Library:
    """The fastest library that was built and that this CPU runs.

    Raises:
        KernelsUnavailable: there is none.
    """
    names = supported_names(cpu_flags())
    if not names:
        raise KernelsUnavailable(f"no kernels for this CPU ({platform.machine()}, no AVX2)")
    for name in names:
        path = built_library(name)
        if path is not None:
            return open_library(name, path)
    raise KernelsUnavailable("kernels were not built; a C++ compiler was missing at installation")


def supported_names(cpu_flags: set[str]) -> list[str]:
    """The libraries that a CPU with these flags of /proc/cpuinfo runs, the fastest first."""
    return [name for name, needed in _NEEDED_FLAGS.items() if needed <= cpu_flags]


def open_library(name: str, path: Path) -> Library:
    """Load the library at `path`.

    Raises:
        KernelsUnavailable: it cannot be loaded, or was built from other sources.
    """
    try:
        functions = ctypes.CDLL(str(path))
        found = functions.abi_version()
    except (OSError, AttributeError) as error:
        raise KernelsUnavailable(f"{path} cannot be loaded: {error}") from error
    if found != ABI_VERSION:
        raise KernelsUnavailable(
            f"{path} was built from version {found} of its sources, but version {ABI_VERSION} is "
            "installed; install the package again"
        )
    _declare(functions)
    return Library(name, functions)


def built_library(name: str) -> Path | None:
    """Where a library lies, if it was built."""
    # setuptools puts Python's own tag between name and suffix.
    return next(Path(__file__).parent.glob(f"_{name}.*so"), None)


def cpu_flags() -> set[str]:
    """What the kernel reads from CPUID and lets processes use; empty elsewhere than on Linux."""
    if sys.platform != "linux":
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _declare(functions: ctypes.CDLL) -> None:
    """Argument and result types, which ctypes would take for ints."""
    context, address, number = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
    model, layer, cache, step, weight = map(ctypes.POINTER, (Model, Layer, Cache, Step, Weight))
    functions.create_context.argtypes = (ctypes.c_int,)
    functions.create_context.restype = context
    functions.destroy_context.argtypes = (context,)
    functions.destroy_context.restype = None
    functions.check_step.argtypes = (model, cache, step)
    functions.attn_half.argtypes = (context, model, layer, cache, step)
    functions.attn_half.restype = None
    functions.mlp_half.argtypes = (context, model, layer, step)
    functions.mlp_half.restype = None
    functions.logits.argtypes = (
        context, model, address, weight, step, address, number, address, number,
    )  # fmt: skip
    functions.logits.restype = None
    functions.find_candidates.argtypes = (context, ctypes.POINTER(Candidates))
    functions.find_candidates.restype = None
    functions.draw_tokens.argtypes = (ctypes.POINTER(Draws),)
    functions.draw_tokens.restype = None
