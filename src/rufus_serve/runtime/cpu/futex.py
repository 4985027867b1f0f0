"""Linux futexes: sleep until a word of shared memory changes, at no cost to whoever computes.

Naps and `sched_yield` were tried instead: on a host whose cores are all busy they make a step
take up to three times as long, because a thread that never sleeps gets no precedence when what
it waits for has come.
"""

import ctypes
import functools
from collections.abc import Callable

# x86-64's number, the only architecture on which memory is shared here.
_SYS_FUTEX = 202
_FUTEX_WAIT = 0
_FUTEX_WAKE = 1
_EVERYONE = 2**31 - 1
_WORD = 2**32


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def wait_while(address: int, value: int, *, timeout_s: float) -> None:
    """Sleep while the 4-byte word at `address` is `value` modulo 2**32, `timeout_s` at most.

    May return early for no reason.
    """
    timeout = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
    _call()(_SYS_FUTEX, address, _FUTEX_WAIT, value % _WORD, ctypes.byref(timeout), None, 0)


def wake_all(address: int) -> None:
    """Wake all who wait for the word at `address`, in any process."""
    _call()(_SYS_FUTEX, address, _FUTEX_WAKE, _EVERYONE, None, None, 0)


@functools.cache
def _call() -> Callable[..., int]:
    function = ctypes.CDLL(None).syscall
    function.argtypes = (
        ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32,
        ctypes.POINTER(_Timespec), ctypes.c_void_p, ctypes.c_uint32,
    )  # fmt: skip
    function.restype = ctypes.c_long
    return function
