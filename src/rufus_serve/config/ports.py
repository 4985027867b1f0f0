"""TCP ports by which the hosts of a group find each other; deploy/README.md has the table."""

from collections.abc import Iterator
from itertools import combinations

from rufus_serve.config.schema import ServeConfig

_CONTROL_PORT, _STEP_PORT, _RENDEZVOUS_PORT = 6400, 6401, 6402
"""Taken where the configuration leaves a port open but hosts must find each other."""
NUM_RENDEZVOUS_PORTS = 16
"""Epochs take turns: a port may be held for a while after its epoch is over."""
RAY_PORTS = range(6500, 6820)
"""Of Ray's node managers, object managers, agents and workers."""


def control_port(config: ServeConfig) -> int:
    """On which the supervisor awaits followers of other hosts."""
    return config.cluster.control_port or _CONTROL_PORT


def step_port(config: ServeConfig) -> int:
    """On which a follower that has its host for itself awaits steps."""
    return config.cluster.step_port or _STEP_PORT


def rendezvous_ports(config: ServeConfig) -> range:
    """On which followers of several hosts set up their collectives, epochs in turn."""
    first = config.cluster.rendezvous_port or _RENDEZVOUS_PORT
    return range(first, first + NUM_RENDEZVOUS_PORTS)


def ports(config: ServeConfig) -> dict[str, range]:
    """Ports of a group over several hosts, by what decides on them."""
    cluster = config.cluster
    found = {
        name: range(port, port + 1)
        for name, port in (
            ("port", config.port),
            ("cluster.ray_port", cluster.ray_port),
            ("cluster.control_port", control_port(config)),
            ("cluster.step_port", step_port(config)),
        )
    }
    found["cluster.rendezvous_port"] = rendezvous_ports(config)
    return found | {"Ray's": RAY_PORTS}


def clashes(config: ServeConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ports that are given twice: a message, and the settings it is about."""
    for (one, ours), (other, theirs) in combinations(ports(config).items(), 2):
        shared = range(max(ours.start, theirs.start), min(ours.stop, theirs.stop))
        if shared:
            yield (
                f"{one} {_text(ours)} and {other} {_text(theirs)} share port {shared.start}: "
                "choose another",
                tuple(name for name in (one, other) if name != "Ray's"),
            )


def _text(span: range) -> str:
    return str(span.start) if len(span) == 1 else f"{span.start} to {span.stop - 1}"
