"""Writes the locks in this folder: exact pins, each with the checksums of its release's files.

    python requirements/lock.py UV            pins of what the running environment has
    python requirements/lock.py UV --hashes   the pins that the files have now

UV is Astral's `uv`, which asks the index for checksums; `make lock` installs and runs it.
"""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).parent
PACKAGE = "rufus-serve"
PYTHONS = ("3.11", "3.12")
"""Minors that the pins are for: tests run on the first, images on the second."""
ENVIRONMENTS = {
    "leader": ("leader", "cpu", "demo", "s3"),
    "follower": ("cpu",),
    "dev": ("leader", "cpu", "demo", "dev"),
    "unit": ("unit",),
    "check": ("check",),
}
"""Extras of this package, by the file that pins all they need."""
BY_HAND = ("build", "clients", "evals", "hostile", "release", "router", "site", "ui")
"""Files whose pins are chosen by hand."""
APART = ("torch", "vllm")
"""Pinned in files of their own: torch's checksum depends on the index that it comes from, and vLLM
is built from its source, beside the others."""


def closure(extras: set[str]) -> dict[str, str]:
    """Name and version of every distribution that the package with `extras` needs here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(PACKAGE, extra) for extra in ("", *sorted(extras))]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        package = distribution(name)
        # A local label such as +cpu names one index's build; the pin must fit every index.
        found[name] = Version(package.version).public
        for text in package.requires or ():
            needed = Requirement(text)
            if is_needed(needed, extra):
                target = str(canonicalize_name(needed.name))
                queue += [(target, each) for each in ("", *needed.extras)]
    del found[PACKAGE]
    return found


def is_needed(needed: Requirement, extra: str) -> bool:
    """Whether any of our Pythons needs it."""
    if needed.marker is None:
        return True
    environments = [
        {"python_version": each, "python_full_version": f"{each}.0"} for each in PYTHONS
    ]
    return any(needed.marker.evaluate({"extra": extra, **each}) for each in environments)


def pinned(path: Path) -> dict[str, str]:
    """Name and version of every pin in a file."""
    lines = [line.split()[0] for line in path.read_text().splitlines() if "==" in line]
    return dict(line.split("==", 1) for line in lines if not line.startswith(("#", "--")))


def write(name: str, pins: dict[str, str], *, uv: str, about: str) -> None:
    """Write one lock, sorted by name, with checksums."""
    lines = [f"{each}=={version}" for each, version in sorted(pins.items())]
    command = [
        uv, "pip", "compile", "-", "--python-version", PYTHONS[-1], "--no-deps",
        "--generate-hashes", "--no-header", "--no-annotate", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(
        command, input="\n".join(lines), text=True, stdout=subprocess.PIPE, check=True
    )
    (FOLDER / f"{name}.txt").write_text(f"{about}\n{done.stdout}")


def main() -> None:
    """Write all of them."""
    uv, keep = sys.argv[1], "--hashes" in sys.argv[2:]
    vllm = pinned(FOLDER / "vllm.txt")
    for name, extras in ENVIRONMENTS.items():
        pins = pinned(FOLDER / f"{name}.txt") if keep else closure(set(extras))
        if name == "leader" and not keep:
            vllm = {"vllm": pins["vllm"]}
            (FOLDER / "torch.txt").write_text(f"torch=={pins['torch']}\n")
        others = {each: version for each, version in pins.items() if each not in APART}
        about = f"# Made by 'make lock': {PACKAGE}[{','.join(extras)}] and all it needs but"
        write(name, others, uv=uv, about=f"{about} {' and '.join(APART)}.")
    for name in BY_HAND:
        path = FOLDER / f"{name}.txt"
        about = path.read_text().splitlines()[0]
        write(name, pinned(path), uv=uv, about=about)
    write("vllm", vllm, uv=uv, about="# What is built is the source; see docker/install-leader.sh.")


if __name__ == "__main__":
    main()
