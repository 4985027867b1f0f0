"""`RayChild`: one life of the process that drives Ray, as its supervisor sees it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rufus_serve.cluster.ray_orders import AnyNews, Join, Order, RaySettings, Wire
from rufus_serve.cluster.ray_session import RaySession

_END_S = 5.0


class RayChild:
    """Starts it, with a folder of its own, and leaves nothing of it or of its Ray behind."""

    def __init__(
        self, settings: RaySettings, *, environ: Mapping[str, str], folder: Path, again: bool
    ) -> None:
        """Start it; `environ` holds Ray's token, `folder` is for its session."""
        self._settings = settings
        self._session = RaySession.in_new_folder(folder)
        ours, theirs = socket.socketpair()
        self._wire = Wire(ours)
        with theirs:
            self._process = self._session.start(
                [sys.executable, "-m", "rufus_serve.cluster.ray_driver", str(theirs.fileno())],
                env=os.environ | environ,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.send(Join(settings=settings, folder=str(self._session.folder), again=again))

    def send(self, order: Order) -> None:
        """Give an order; any thread."""
        self._wire.send(order)

    def news(self) -> Iterator[AnyNews]:
        """All that it tells until it ends."""
        while (news := self._wire.next_news()) is not None:
            yield news

    def hang_up(self) -> None:
        """Have it leave Ray and end; any thread."""
        self._wire.hang_up()

    def kill(self) -> None:
        """End it at once; any thread."""
        self._process.kill()

    def bury(self) -> int:
        """See that it and its Ray are gone; its exit code."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._session.clear(keep_files=self._settings.keep_logs)
        self._wire.close()
        return code
