"""`python -m rufus_serve.follower`: reads a `FollowerSpec` from standard input, then serves.

Standard input stays open as long as the process that started us lives; when it closes, the
follower ends as well, unless it was told to wait for another leader.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from rufus_serve.errors import FollowerError, LeaderLost, RufusError
from rufus_serve.log import configure_logging
from rufus_serve.protocol.specs import FollowerSpec

_log = logging.getLogger("rufus_serve.follower")


def main() -> int:
    """The process's exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=FollowerSpec)
    configure_logging(
        f"follower {spec.follower_id}", level=str(spec.config.get("log_level", "INFO"))
    )
    waits = spec.config.get("recovery", {}).get("on_leader_loss") == "wait"
    if not waits:
        threading.Thread(target=_watch_parent, name="parent", daemon=True).start()
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


def _leave_word(spec: FollowerSpec, cause: str) -> None:
    """Write down why this process ends, for whoever started it to tell."""
    if spec.cause_file:
        with contextlib.suppress(OSError):
            Path(spec.cause_file).write_text(cause)


def _watch_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    _log.warning("the process that started this follower is gone")
    os._exit(LeaderLost.exit_code)


if __name__ == "__main__":
    # Threads of a collective that never ended must not keep a stopped follower alive.
    code = main()
    logging.shutdown()
    os._exit(code)
