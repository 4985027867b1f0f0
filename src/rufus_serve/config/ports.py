"""TCP ports by which the hosts of a group find each other; deploy/README.md has the table."""

from collections.abc import Iterator
from itertools import combinations

from rufus_serve.config.schema import ServeConfig

CONTROL_PORT, STEP_PORT, RENDEZVOUS_PORT = 6400, 6401, 6402
"""Taken where the configuration leaves a port open but hosts must find each other."""
NUM_RENDEZVOUS_PORTS = 16
"""Epochs take turns: a port may be held for a while after its epoch is over."""
RAY_PORTS = range(6500, 6820)
"""Of Ray's node managers, object managers, agents and workers."""


def ports(config: ServeConfig) -> dict[str, range]:
    """Ports of a group over several hosts, by what decides on them."""
    cluster = config.cluster
    rendezvous = cluster.rendezvous_port or RENDEZVOUS_PORT
    found = {
        name: range(port, port + 1)
        for name, port in (
            ("port", config.port),
            ("cluster.ray_port", cluster.ray_port),
            ("cluster.control_port", cluster.control_port or CONTROL_PORT),
            ("cluster.step_port", cluster.step_port or STEP_PORT),
        )
    }
    found["cluster.rendezvous_port"] = range(rendezvous, rendezvous + NUM_RENDEZVOUS_PORTS)
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
