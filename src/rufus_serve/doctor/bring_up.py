"""`bring_up`: compiles, serves and asks, stage by stage, and reports what came of it.

For a machine on which nothing has run yet. A stage that fails is told of with its error, and the
next one is tried all the same.
"""

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from rufus_serve import __version__, errors
from rufus_serve.config.schema import ArtifactConfig, ServeConfig
from rufus_serve.doctor.report import DoctorReport
from rufus_serve.doctor.stages import Stage
from rufus_serve.errors import ArtifactError, EndpointError, RufusError
from rufus_serve.verify.comparison import Limits, VerifyReport, compare
from rufus_serve.verify.endpoint import Endpoint
from rufus_serve.verify.reference import Reference
from rufus_serve.verify.served import served, write_settings

_TIMED_TOKENS = 16
_TIMED_RUNS = 3
_SHOWN_LINES = 30
_STEP_METRIC = re.compile(r"^rufus_follower_step_seconds\{[^}]*\} (\S+)$", re.MULTILINE)


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one stage."""

    name: str
    settings: dict[str, Any]
    """Those that differ from the defaults."""
    skipped: str = ""
    compile_s: float | None = None
    ready_s: float | None = None
    """From the start to the first request that would be taken."""
    first_token_ms: float | None = None
    """Of a short prompt, over HTTP, as are the others."""
    token_ms: float | None = None
    """Of one sequence, after the first."""
    follower_step_ms: tuple[float, ...] = ()
    """Mean time that each follower computes a step for, without waiting for its peers."""
    answers: VerifyReport | None = None
    error: str = ""
    exit_code: int = 0


class BringUpReport(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to know of a first start; meant to be attached to an issue."""

    version: str
    hosts: DoctorReport
    stages: tuple[StageReport, ...]

    @property
    def exit_code(self) -> int:
        """Of the first stage that failed; 0 if none did."""
        return next((stage.exit_code for stage in self.stages if stage.exit_code), 0)


def bring_up(
    stages: Sequence[Stage],
    reference: Reference,
    *,
    hosts: DoctorReport,
    limits: Limits,
    tell: Callable[[str], None],
) -> BringUpReport:
    """Try every stage. `tell` is told of each before it begins and after it has ended."""
    reports = []
    for stage in stages:
        tell(f"{stage.name} …")
        reports.append(_tried(stage, reference, limits))
        tell(f"{stage.name}: {_outcome(reports[-1])}")
    return BringUpReport(version=__version__, hosts=hosts, stages=tuple(reports))


def _outcome(report: StageReport) -> str:
    if report.skipped:
        return f"skipped, {report.skipped}"
    return report.error or f"good, {report.token_ms:.1f} ms a token"


def _tried(stage: Stage, reference: Reference, limits: Limits) -> StageReport:
    settings = stage.config.model_dump(mode="json", exclude_defaults=True)
    report = StageReport(name=stage.name, settings=settings, skipped=stage.skipped)
    if stage.skipped:
        return report
    with tempfile.TemporaryDirectory(prefix="rufus-bring-up-") as name:
        try:
            config, compile_s = _compiled(stage.config, Path(name))
            report = msgspec.structs.replace(report, compile_s=compile_s)
            return _served(config, report, reference, limits)
        except RufusError as error:
            return msgspec.structs.replace(report, error=str(error), exit_code=error.exit_code)


def _compiled(config: ServeConfig, folder: Path) -> tuple[ServeConfig, float | None]:
    """`config` with its artifacts; a device compiles, unless they are there already."""
    is_device = config.runtime == "neuron" and config.neuron.mode == "device"
    if not is_device or config.artifacts.location:
        return config, None
    settings = write_settings(config, folder)
    began = time.monotonic()
    command = [
        config.cluster.python or sys.executable, "-m", "rufus_serve.cli.main", "compile",
        f"--config={settings}", f"--out={folder / 'artifacts'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        text = "\n".join(done.stderr.splitlines()[-_SHOWN_LINES:])
        raise errors.of(done.returncode, f"compile ended:\n{text}", otherwise=ArtifactError)
    artifacts = ArtifactConfig(location=str(folder / "artifacts"))
    return config.model_copy(update={"artifacts": artifacts}), time.monotonic() - began


def _served(
    config: ServeConfig, report: StageReport, reference: Reference, limits: Limits
) -> StageReport:
    began = time.monotonic()
    with served(config) as url:
        ready_s = time.monotonic() - began
        endpoint = Endpoint(url=url).named()
        answers = compare(reference, endpoint.greedy, limits=limits, same_checkpoint=True)
        first_ms, token_ms = _timed(endpoint, reference)
        return msgspec.structs.replace(
            report,
            ready_s=ready_s,
            first_token_ms=first_ms,
            token_ms=token_ms,
            follower_step_ms=_follower_step_ms(url),
            answers=answers,
            error="; ".join(answers.faults),
            exit_code=errors.VerifyFailed.exit_code if answers.faults else 0,
        )


def _timed(endpoint: Endpoint, reference: Reference) -> tuple[float, float]:
    """Milliseconds of a first token, and of each later one."""
    tokens = reference.prompts[0].tokens

    def spent_ms(count: int) -> float:
        began = time.perf_counter()
        endpoint.greedy(tokens, count)
        return 1e3 * (time.perf_counter() - began)

    first = median(spent_ms(1) for _ in range(_TIMED_RUNS))
    whole = median(spent_ms(1 + _TIMED_TOKENS) for _ in range(_TIMED_RUNS))
    return first, (whole - first) / _TIMED_TOKENS


def _follower_step_ms(url: str) -> tuple[float, ...]:
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
            text = answer.read().decode()
    except OSError as error:
        raise EndpointError(f"{url}/metrics: {error}") from error
    return tuple(1e3 * float(value) for value in _STEP_METRIC.findall(text))
