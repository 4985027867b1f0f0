"""Versions on one host, and what must agree between hosts."""

import importlib.metadata
import re
from collections.abc import Iterator

from rufus_serve import __version__
from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.doctor.neuron import driver_version, library_versions, numbers
from rufus_serve.doctor.system import System
from rufus_serve.errors import ClusterError, FollowerError, LeaderError

_OLDEST, _NEWEST = (3, 10), (3, 12)


def versions(context: HostContext) -> Iterator[Finding]:
    """Python and Ray of the followers' environment."""
    say = Findings("versions")
    python = context.system.python()
    if not _OLDEST <= numbers(python)[:2] <= _NEWEST:
        yield say.error(
            f"Python {python}; 3.10, 3.11 or 3.12 is needed",
            why="the package, and the Neuron SDK, are made for these",
            fix="python3.11 -m venv VENV; then set cluster.python to VENV/bin/python",
            code=FollowerError.exit_code,
        )
    yield from _ray(context, say)
    yield say.ok(f"rufus-serve {__version__}, Python {python}, kernel {context.system.kernel()}")


def _ray(context: HostContext, say: Findings) -> Iterator[Finding]:
    if context.config.cluster.kind != "ray" and not context.placement.spread:
        return
    found, wanted = context.system.package("ray"), pinned("ray")
    if found == wanted:
        return
    have = f"Ray {found} is installed" if found else "Ray is not installed"
    yield say.error(
        f"{have}, {wanted} is needed",
        why="Ray places followers, and refuses peers of another version",
        fix=f"pip install ray=={wanted}",
        code=ClusterError.exit_code,
    )


def leader_versions(system: System) -> Iterator[Finding]:
    """vLLM in the environment that `rufus-serve serve` would run in: this process's own."""
    say = Findings("leader")
    found, wanted = system.package("vllm"), pinned("vllm")
    why = "the leader runs vLLM, and follows the internals of one version"
    fix = "make install; or use the leader image"
    if not found:
        yield say.note(
            "vLLM is not installed: this host can hold a follower, not the leader",
            why=why,
            fix=fix,
        )
    elif found.partition("+")[0] != wanted:
        yield say.error(
            f"vLLM {found} is installed, {wanted} is needed",
            why=why,
            fix=fix,
            code=LeaderError.exit_code,
        )
    else:
        yield say.ok(f"vLLM {found}, Python {system.python()}, Ray {system.package('ray')}")


def pinned(package: str) -> str:
    """The version of `package` that our own metadata pins; empty if it pins none."""
    for line in importlib.metadata.requires("rufus-serve") or ():
        found = re.match(rf"{package}==([\w.]+)", line)
        if found:
            return found[1]
    return ""


def common_facts(system: System) -> dict[str, str]:
    """Versions in which leader and followers must agree."""
    return {
        "rufus-serve": __version__,
        "Python": ".".join(map(str, numbers(system.python())[:2])),
        "Ray": system.package("ray"),
    }


def facts(context: HostContext) -> dict[str, str]:
    """Versions to be compared between hosts; empty where there is none."""
    found = common_facts(context.system)
    if context.on_device:
        for name in ("neuronx-distributed-inference", "torch-neuronx"):
            found[name] = context.system.package(name)
        found["driver neuron"] = driver_version(context)
        found["instance type"] = context.instance_type
        found |= library_versions(context)
    return found
