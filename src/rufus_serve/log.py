"""Logging set-up for the processes we own; libraries never call it."""

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)-7s %(role)s %(name)s: %(message)s"


class _RoleFilter(logging.Filter):
    """Adds `role` (leader, supervisor, follower 1 …) to each record."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def filter(self, record: logging.LogRecord) -> bool:
        record.role = self._role
        return True


def configure_logging(role: str, *, level: str = "INFO") -> None:
    """Send this process's log to standard error, each line marked with `role`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(_RoleFilter(role))
    logger = logging.getLogger("rufus_serve")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
