"""Prints exact pins of what the running environment has for some extras of this package.

Usage: python requirements/lock.py EXTRA... > requirements/NAME.txt   (`make lock` does it)
"""

import sys
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PACKAGE = "rufus-serve"
PYTHONS = ("3.11", "3.12")
"""Minors that the pins are for: tests run on the first, images on the second."""


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


def main() -> None:
    """Print the pins, sorted by name."""
    extras = set(sys.argv[1:])
    print(f"# Made by 'make lock': {PACKAGE}[{','.join(sorted(extras))}] and all it needs.")
    for name, version in sorted(closure(extras).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
