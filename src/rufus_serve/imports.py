"""Imports of large packages, whose objects stay as long as the process."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def imports_that_stay() -> Iterator[None]:
    """Keep the garbage collector away from what is imported inside, now and later.

    Looking through what stays takes 30 % of the time that importing vLLM takes, as much again of
    a collection in the running process, and copies pages that forked processes share.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
