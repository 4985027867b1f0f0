"""The leader as a child process of the supervisor."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from pathlib import Path

import msgspec

from rufus_serve.config import ServeConfig
from rufus_serve.protocol.specs import SPEC_VARIABLE, LeaderSpec, last_word_file
from rufus_serve.supervisor.group_plan import GroupRun


class LeaderProcess:
    """Starts `python -m rufus_serve.leader` in a process group of its own."""

    def __init__(self, config: ServeConfig, plan: GroupRun) -> None:
        self._config, self._plan = config, plan
        self._process: asyncio.subprocess.Process | None = None
        self._spec_path = Path()
        self.leader_id = ""

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, *, groups: int) -> None:
        """Start a leader for so many groups, with an id of its own."""
        self.leader_id = uuid.uuid4().hex[:8]
        spec = LeaderSpec(
            config=self._config.model_dump(mode="json") | {"groups": groups},
            leader_id=self.leader_id,
            link_endpoint=self._plan.link_endpoint,
            token=self._plan.token,
        )
        path = self._spec_path = self._plan.run_dir / f"leader-{self.leader_id}.json"
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(spec))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rufus_serve.leader",
            # What libraries leave in their temporary folders goes with the run's own.
            env=os.environ | {SPEC_VARIABLE: str(path), "TMPDIR": str(self._plan.run_dir)},
            start_new_session=True,
        )

    async def wait(self) -> int:
        """Its exit code, once it ends; whatever it started is killed then."""
        assert self._process is not None
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return code

    def last_word(self) -> str:
        """The error that the process wrote down before it ended; empty if it did not."""
        try:
            return last_word_file(self._spec_path).read_text()
        except OSError:
            return ""

    async def stop(self, *, deadline_s: float) -> None:
        """Ask it to end, and kill it if it does not within `deadline_s`."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._process.wait(), deadline_s)
        self._signal_group(signal.SIGKILL)
        await self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
