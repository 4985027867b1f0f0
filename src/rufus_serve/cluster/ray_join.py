"""`JoinedRay`: how this project gets into a Ray cluster, for followers and for the doctor alike.

Ray reads its settings, the token among them, when it is imported: what imports it is imported
here, late, once they are exported.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rufus_serve.channel.keys import read_token
from rufus_serve.cluster.addresses import await_listener
from rufus_serve.cluster.ray_head import RayHead
from rufus_serve.cluster.ray_session import RaySession
from rufus_serve.cluster.ray_tls import GroupTls
from rufus_serve.cluster.ray_token import ray_environment
from rufus_serve.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from rufus_serve.cluster.ray_probes import RayProbes

RESOURCE = "rufus_follower"
"""Ray resource that a node has once per follower it may run."""


class JoinSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which Ray to join."""

    address: str
    """This host's address."""
    existing: str
    """Address of a running Ray cluster; empty to start one here."""
    port: int
    """Port of the head that is started; 0 for a free one."""
    local_slots: int
    """Followers that this host may run."""
    join_s: float
    announce: bool
    """Leave word there, for hosts that come, of what they must agree with."""
    tls: bool = False
    """That Ray is, or will be, a leader's of ours; not a cluster that others run."""


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    """Be in `folder` meanwhile: Ray's workers import from where it finds its driver to be."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


class JoinedRay:
    """This process's place in a Ray cluster: in a running one, or with a head of our own."""

    def __init__(self, settings: JoinSettings, session: RaySession) -> None:
        """Join.

        Raises:
            ClusterError: Ray cannot be started or joined.
            HandshakeRefused: the running one holds another token.
            EndpointError: its ports cannot be listened on.
        """
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.head: RayHead | None = None
        address = settings.existing
        if address:
            await_listener(address, timeout_s=settings.join_s)
        else:
            resources = f'{{"{RESOURCE}": {settings.local_slots}}}'
            self.head = RayHead(
                address=settings.address,
                port=settings.port,
                resources=resources,
                session=session,
            )
            self.head.wait_ready()
            address = self.head.address
        try:
            with _within(session.folder):
                self._connect(address, announces=settings.announce)
        except BaseException:
            self.leave()
            raise

    @staticmethod
    def _connect(address: str, *, announces: bool) -> None:
        import ray
        from ray.exceptions import RayError

        from rufus_serve.cluster.ray_greeting import announce, greet

        # Ray warns that it cannot handle SIGTERM on a thread other than the main one.
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            # Either says at once, and by name, what Ray would repeat for minutes: another token.
            if announces:
                announce(address)
            else:
                greet(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.WARNING,
                configure_logging=False,
                namespace="rufus-serve",
            )
        except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ClusterError(f"Ray at {address} cannot be joined: {error}") from error

    def leave(self) -> None:
        """Leave Ray; a head of ours ends with that. May be called twice."""
        import ray

        if ray.is_initialized():
            ray.shutdown()
        if self.head is not None:
            self.head.stop()


def open_probes(
    group_token: str, settings: JoinSettings, *, module: str, python: str, nodes: int
) -> "RayProbes":
    """A child process `python -m MODULE` on every node of that Ray; a context manager.

    Args:
        module: what each node's interpreter runs.
        python: that interpreter; empty for the node's own.
        nodes: how many to wait for, this one included.
    """
    session = RaySession.in_new_folder()
    os.environ.update(ray_environment(group_token))
    if settings.tls:
        tls = GroupTls(group_token, session.folder / "tls", address=settings.address)
        os.environ.update(tls.environ)
    from rufus_serve.cluster.ray_probes import RayProbes

    return RayProbes(settings, session, module=module, python=python, nodes=nodes)


def offer_host(*, leader: str, token_file: Path | None, address: str) -> int:
    """Join the leader's cluster, again whenever it comes back, until told to stop; the exit code.

    Args:
        leader: HOST:PORT of the leader's Ray head.
        token_file: the token shared by all hosts.
        address: own IP address or interface; empty to choose one that reaches the leader.

    Raises:
        ConfigError: there is no token file.
        HandshakeRefused: the leader does not take this host.
    """
    if token_file is None:
        raise ConfigError("a follower on its own host needs --token-file, the leader's token")
    group_token = read_token(token_file)
    with tempfile.TemporaryDirectory(prefix="rufus-serve-tls-") as folder:
        tls = GroupTls(group_token, Path(folder))
        os.environ.update(ray_environment(group_token) | tls.environ)
        from rufus_serve.cluster.ray_node import RayNode

        return RayNode(leader=leader, token_file=token_file, interface=address, tls=tls).run()
