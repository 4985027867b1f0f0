"""`rufus-serve follower`: offers this host to a leader's Ray cluster and waits."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO

from rufus_serve.cluster.addresses import choose_address
from rufus_serve.cluster.process import end, kill_marked, last_words
from rufus_serve.cluster.ray_agent import ADDRESS_VARIABLE, FOLDER_VARIABLE, TOKEN_VARIABLE
from rufus_serve.cluster.ray_greeting import greet
from rufus_serve.cluster.ray_head import ray_command
from rufus_serve.cluster.ray_join import RESOURCE
from rufus_serve.cluster.ray_ports import RayPorts
from rufus_serve.cluster.ray_session import RaySession
from rufus_serve.cluster.ray_tls import GroupTls
from rufus_serve.errors import ClusterError, LeaderLost
from rufus_serve.parent import die_with_parent

_log = logging.getLogger(__name__)
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 15.0
_WATCH_S = 1.0
_REFUSALS = 2
_STOP_S = 5.0
_SETTLED_S = 10.0
_MAX_FALSE_STARTS = 3


class RayNode:
    """One raylet, restarted with backoff whenever its leader or this host's address changes.

    Followers are not its children and go on meanwhile; they end when this process is told to.
    """

    def __init__(self, *, leader: str, token_file: Path, interface: str, tls: GroupTls) -> None:
        self._leader, self._tls = leader, tls
        host, _, port = leader.rpartition(":")
        self._host, self._port = host, int(port)
        self._token_file, self._interface = token_file, interface
        self._folder = Path(tempfile.mkdtemp(prefix="rufus-serve-"))
        """Of followers' logs and of Ray's sessions; its name marks the followers as this host's."""
        self._stopping = threading.Event()
        self._false_starts = 0
        self._head = self._head_id = ""

    def run(self) -> int:
        """Blocks until SIGTERM or SIGINT; the exit code.

        Raises:
            HandshakeRefused: the leader does not take this host.
            ClusterError: Ray cannot be started here, tried a few times.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self._offer()
        finally:
            kill_marked(FOLDER_VARIABLE, str(self._folder))
            shutil.rmtree(self._folder, ignore_errors=True)
        return 0

    def _offer(self) -> None:
        """Join again and again until told to stop."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping.is_set():
            address = self._own_address()
            if address and self._find_head():
                backoff_s = _FIRST_BACKOFF_S
                self._join(address)
                continue
            _log.info("waiting for the leader at %s", self._leader)
            self._stopping.wait(backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    def _own_address(self) -> str:
        """What the leader reaches this host by at the moment; empty without a way there."""
        try:
            return choose_address(interface=self._interface, towards=self._host)
        except ClusterError as error:
            _log.warning("%s", error)
            return ""

    def _find_head(self) -> bool:
        """Whether the leader's Ray head is there; notes its address and identity."""
        with contextlib.suppress(OSError):
            self._head = self._prove()
            self._head_id = greet(self._head)
            return bool(self._head_id)
        return False

    def _prove(self) -> str:
        """HOST:PORT of the head, which proved to be the leader's; it is told the token only then.

        Raises:
            OSError: nothing answers.
            HandshakeRefused: it is not.
        """
        return f"{self._tls.leader_address(self._host, self._port)}:{self._port}"

    def _is_gone(self) -> bool:
        """Whether the leader's host says that this head runs no more; a cut link says nothing."""
        try:
            return greet(self._prove()) not in (self._head_id, "")
        except ConnectionRefusedError:
            return True
        except OSError:
            return False

    def _join(self, address: str) -> None:
        """Run a raylet until it ends or has to."""
        _log.info("joining %s as %s", self._leader, address)
        started = time.monotonic()
        ports, session = RayPorts(address), RaySession.in_new_folder(self._folder)
        with tempfile.TemporaryFile() as output:
            raylet = self._start_raylet(address, ports, session, output)
            try:
                over = self._watch(raylet, session, address)
            finally:
                end(raylet, deadline_s=_STOP_S)
                session.clear()
                ports.release()
            if over:
                _log.warning("%s", over)
            if self._stopping.is_set() or over:
                return
            self._false_starts += time.monotonic() - started < _SETTLED_S
            self._tell_end(raylet.returncode, last_words(output))
        self._stopping.wait(_FIRST_BACKOFF_S)

    def _start_raylet(
        self, address: str, ports: RayPorts, session: RaySession, output: IO[bytes]
    ) -> "subprocess.Popen[bytes]":
        return session.start(
            ray_command(
                f"--address={self._head}",
                *ports.arguments(head=False),
                address=address,
                resources=f'{{"{RESOURCE}": 1}}',
                session=session,
            ),
            env=os.environ
            | self._tls.of_host(session.folder / "tls", address).environ
            | {
                TOKEN_VARIABLE: str(self._token_file.resolve()),
                ADDRESS_VARIABLE: address,
                FOLDER_VARIABLE: str(self._folder),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )

    def _watch(self, raylet: "subprocess.Popen[bytes]", session: RaySession, address: str) -> str:
        """Return when it ended or we are to stop, or why it has to end.

        By itself Ray would wait for a minute for a head that is gone.
        """
        started, refusals, is_there = time.monotonic(), 0, False
        while raylet.poll() is None and not self._stopping.wait(_WATCH_S):
            was_there, is_there = is_there, session.has_raylet()
            if was_there and not is_there:
                return "this host's raylet is gone"
            now = self._own_address()
            if now and now != address:
                return f"this host's address changed from {address} to {now}"
            refusals = refusals + 1 if self._is_gone() else 0
            if refusals >= _REFUSALS:
                return f"the leader's Ray head at {self._leader} is gone, or another one"
            if self._false_starts and time.monotonic() - started > _SETTLED_S:
                self._false_starts = 0
        return ""

    def _tell_end(self, code: int, words: str) -> None:
        if self._false_starts >= _MAX_FALSE_STARTS:
            raise ClusterError(
                f"Ray failed {_MAX_FALSE_STARTS} times to join {self._leader}, with exit code "
                f"{code}: {words}"
            )
        if self._false_starts:
            _log.warning("Ray did not join %s (exit code %d): %s", self._leader, code, words)
            return
        _log.warning("%s", LeaderLost(f"the leader's Ray head ended (raylet exit code {code})"))

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping.set()
