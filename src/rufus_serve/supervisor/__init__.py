"""The owner of the group and of the leader process; imports no vllm and no torch."""

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from rufus_serve import __version__

if TYPE_CHECKING:
    from rufus_serve.config import ServeConfig

_log = logging.getLogger(__name__)


def serve(config: "ServeConfig") -> int:
    """Serve until stopped; the exit code.

    Raises:
        RufusError: the group cannot be served, or failed for good.
    """
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: early.append(number))
    followers = f"{config.groups} x {config.nodes}" if config.groups > 1 else f"{config.nodes}"
    _log.info("rufus-serve %s: %s, followers: %s", __version__, config.model, followers)
    from rufus_serve.supervisor.service import Supervisor

    return asyncio.run(Supervisor(config, early_signals=early).run())
