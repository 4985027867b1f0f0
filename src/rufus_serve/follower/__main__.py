"""`python -m rufus_serve.follower`: reads a `FollowerSpec` from standard input, then serves.

Whoever started it may end: the follower lives by its control connection to the supervisor.
"""

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from rufus_serve.errors import FollowerError, RufusError
from rufus_serve.imports import imports_that_stay
from rufus_serve.log import configure_logging
from rufus_serve.protocol.specs import FollowerSpec

_log = logging.getLogger("rufus_serve.follower")
_SPINS = "2000"


def main() -> int:
    """The process's exit code."""
    let_threads_sleep()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=FollowerSpec)
    configure_logging(
        f"follower {spec.follower_id}", level=str(spec.config.get("log_level", "INFO"))
    )
    with imports_that_stay():
        from rufus_serve.follower.node import FollowerNode

    try:
        FollowerNode(spec).run()
    except RufusError as error:
        _log.error("%s", error)
        _leave_word(spec, str(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the edge of the process
        _log.exception("the follower failed unexpectedly")
        _leave_word(spec, f"{type(error).__name__}: {error}")
        return FollowerError.exit_code
    return 0


def let_threads_sleep() -> None:
    """Have torch's OpenMP threads spin for each other for microseconds, then sleep.

    Read when torch is imported. Threads that share a core, as others take theirs, would spin
    through whole time slices: steps of 2 ms took 100. On free cores sleeping costs a few percent.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _leave_word(spec: FollowerSpec, cause: str) -> None:
    """Write down why this process ends, for whoever started it to tell."""
    if spec.cause_file:
        with contextlib.suppress(OSError):
            Path(spec.cause_file).write_text(cause)


if __name__ == "__main__":
    # Threads of a collective that never ended must not keep a stopped follower alive.
    code = main()
    logging.shutdown()
    os._exit(code)
