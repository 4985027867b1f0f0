"""This host's own side of the network: the address it is reached by, and its ports."""

from collections.abc import Iterator

from rufus_serve.config.ports import (
    NUM_RENDEZVOUS_PORTS,
    control_port,
    rendezvous_ports,
    step_port,
)
from rufus_serve.config.schema import ServeConfig
from rufus_serve.doctor.context import HostContext, HostPart
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.errors import ClusterError, EndpointError

CONTROL, STEP = "cluster.control_port", "cluster.step_port"
RENDEZVOUS, LAST_RENDEZVOUS = (
    "cluster.rendezvous_port",
    f"cluster.rendezvous_port + {NUM_RENDEZVOUS_PORTS - 1}",
)
"""Settings that name a port which other hosts connect to."""
RAY, FREE = "Ray", "a free port"
"""Other purposes of such ports."""

_EC2_MTU = 9001
"""Jumbo frames, as EC2 has them within a VPC."""


def address(context: HostContext) -> Iterator[Finding]:
    """The interface chosen among all, and its MTU."""
    say = Findings("address")
    own = context.placement.address
    if not context.placement.spread:
        yield say.skipped("all followers are on this host")
        return
    interfaces = context.system.interfaces()
    chosen = next((each for each in interfaces if each.address == own), None)
    others = [f"{i.name} {i.address}" for i in interfaces if i.address != own and i.name != "lo"]
    if chosen is None or chosen.name == "lo":
        yield say.error(
            f"other hosts cannot reach this one by {own}",
            why="followers on other hosts connect to the leader and to one another",
            fix=f"set cluster.interface to one of: {', '.join(others) or 'none is up'}",
            code=ClusterError.exit_code,
        )
        return
    among = f", chosen among {len(others) + 1} (others: {', '.join(others)})" if others else ""
    yield say.ok(f"{own} on {chosen.name}, MTU {chosen.mtu}{among}")
    if context.on_device and chosen.mtu < _EC2_MTU:
        yield say.note(
            f"MTU of {chosen.name} is {chosen.mtu}; within a VPC EC2 carries {_EC2_MTU}",
            why="larger frames take less of the CPU for step inputs and logits",
            fix=f"sudo ip link set dev {chosen.name} mtu {_EC2_MTU}",
        )


def ports(context: HostContext) -> Iterator[Finding]:
    """Ports that will be listened on here, free or held by our own running server."""
    say = Findings("ports")
    if context.placement.served_by:
        yield say.ok(f"held by the running server, process {context.placement.served_by}")
        return
    wanted = own_ports(context)
    taken = [
        (setting, host, port, reason)
        for setting, (host, port) in wanted.items()
        if port and (reason := context.system.why_not_listen(host, port))
    ]
    for setting, host, port, reason in taken:
        yield say.error(
            f"{setting} {host}:{port}: {reason}",
            why="the server listens there",
            fix=f"ss -ltnp 'sport = :{port}' shows who does; end that, or set {setting}",
            code=EndpointError.exit_code,
        )
    if not taken:
        shown = ", ".join(str(port) for _, port in wanted.values() if port)
        yield say.ok(f"{shown or 'none is fixed'}{' can be listened on' if shown else ''}")


def own_ports(context: HostContext) -> dict[str, tuple[str, int]]:
    """Setting to host and port, for what this host listens on; port 0 is any free one."""
    config, placement = context.config, context.placement
    own = placement.address
    wanted: dict[str, tuple[str, int]] = {}
    if placement.is_leader:
        wanted["port"] = (config.host, config.port)
    if placement.spread:
        wanted |= spread_ports(config, placement)
    elif placement.is_leader:
        wanted[CONTROL] = (own, config.cluster.control_port)
    return wanted


def spread_ports(config: ServeConfig, placement: HostPart) -> dict[str, tuple[str, int]]:
    """The ports that other hosts connect to; no fixed ones of followers that share a host."""
    cluster, own = config.cluster, placement.address
    wanted: dict[str, tuple[str, int]] = {}
    if placement.is_leader:
        wanted[CONTROL] = (own, control_port(config))
        if not placement.ray_is_up and not cluster.ray_address:
            wanted["cluster.ray_port"] = (own, cluster.ray_port)
    if placement.followers == 1:
        wanted[STEP] = (own, step_port(config))
        turns = rendezvous_ports(config)
        wanted[RENDEZVOUS] = (own, turns[0])
        wanted[LAST_RENDEZVOUS] = (own, turns[-1])
    return wanted
