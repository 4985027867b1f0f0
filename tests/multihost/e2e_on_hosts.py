"""A pytest plug-in that runs tests/e2e over several hosts.

    python -m pytest -p tests.multihost.e2e_on_hosts tests/e2e/test_chat.py

The tests run on the first host. Each server of more than one node gets a follower beside its
leader and one on each further host, under Ray even where the test asks for plain processes.
"""

import contextlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e import server as e2e
from tests.multihost import hosts
from tests.multihost.hosts import Network
from tests.multihost.spread import SpreadServer, write_token

MAX_NODES = 4
_numbers = itertools.count()
_network: Network | None = None
_plain_server = e2e.Server


class _HostsServer(SpreadServer):
    """A `Server` that is spread if it can be."""

    def __init__(
        self,
        model: Path,
        *flags: str,
        environ: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        assert _network is not None
        nodes = _nodes_of(flags)
        self._secrets = Path(tempfile.mkdtemp(prefix="e2e-hosts-"))
        if nodes == 1:
            self.offers = {}
            _plain_server.__init__(self, model, *flags, environ=environ, cwd=cwd)
            return
        flags = tuple(flag for flag in flags if flag != "--cluster.kind=local")
        token = write_token(self._secrets / "token")
        # A test may start a server beside one that all tests share.
        ports = 20000 + 100 * next(_numbers)
        own = [
            f"--cluster.{name}-port={ports + number}"
            for name, number in (("control", 1), ("step", 2), ("rendezvous", 3))
        ]
        super().__init__(
            _network, model, *own, *flags, token=token, ray_port=ports, environ=environ, cwd=cwd
        )
        for host in _network.hosts[1:nodes]:
            self.offer(host, environ=environ or {})

    def processes(self) -> list[psutil.Process]:
        """With those of the other hosts."""
        found = super().processes()
        for offered in self.offers.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(offered.pid)
                found += [root, *root.children(recursive=True)]
        return found

    def stop(self, *args: Any, **fields: Any) -> int:
        code = super().stop(*args, **fields)
        self.end_offers()
        return code

    def remains(self) -> list[str]:
        """Hosts go on offering themselves to the next server, so they are told to end first."""
        self.end_offers()
        return super().remains()

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self._secrets, ignore_errors=True)


def _nodes_of(flags: tuple[str, ...]) -> int:
    """Followers that a server starts, stand-bys included."""
    text = " ".join(flags)
    nodes = re.search(r"--nodes=(\d+)", text)
    standby = re.search(r"--recovery\.standby-nodes=(\d+)", text)
    return int(nodes[1] if nodes else 1) + int(standby[1] if standby else 0)


@pytest.fixture(scope="session", autouse=True)
def _on_the_first_host() -> Iterator[None]:
    global _network  # noqa: PLW0603 - a plug-in has no other place
    if hosts.missing():
        pytest.skip(hosts.missing())
    with ExitStack() as stack:
        _network = stack.enter_context(Network(MAX_NODES))
        stack.enter_context(_network.hosts[0].entered())
        yield


# Now, before any test module imports the class.
e2e.Server = _HostsServer  # type: ignore[misc]
