"""The owner of the group and of the leader process; imports no vllm and no torch."""

import asyncio

from rufus_serve.config import ServeConfig


def serve(config: ServeConfig) -> int:
    """Serve until stopped; the exit code.

    Raises:
        RufusError: the group cannot be served, or failed for good.
    """
    from rufus_serve.supervisor.service import Supervisor

    return asyncio.run(Supervisor(config).run())
