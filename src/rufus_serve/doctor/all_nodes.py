"""The doctor over all nodes: every host by itself, then every pair."""

import logging
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from rufus_serve.cluster.process import interpreter_of
from rufus_serve.cluster.ray_join import JoinSettings, open_probes
from rufus_serve.config.schema import ServeConfig
from rufus_serve.doctor.comparison import (
    compare_models,
    compare_versions,
    judge_clocks,
    judge_links,
    judge_mtu,
)
from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.doctor.messages import (
    Examine,
    Failed,
    Link,
    Listen,
    Listening,
    NodeReport,
    Order,
    Reach,
    Reached,
    Reply,
    Target,
    decode_reply,
    encode,
)
from rufus_serve.doctor.network import (
    CONTROL,
    FREE,
    LAST_RENDEZVOUS,
    RAY,
    RENDEZVOUS,
    STEP,
    spread_ports,
)
from rufus_serve.doctor.one_host import PROBE, examine_host, own_placement
from rufus_serve.doctor.report import DoctorReport, on_node
from rufus_serve.doctor.system import HostSystem
from rufus_serve.doctor.versions import common_facts, leader_versions
from rufus_serve.errors import ClusterError, FollowerError
from rufus_serve.model.folder import check_folder
from rufus_serve.supervisor.group_plan import GroupPlan, plan_group

_log = logging.getLogger(__name__)
_LISTEN_S = 10.0
_CONNECT_S = 3.0
_REACH_S = 60.0


class Node(Protocol):
    """What is known of a host with a probe on it."""

    @property
    def name(self) -> str:
        """Unique among all."""

    @property
    def address(self) -> str:
        """By which the others reach it."""

    @property
    def is_here(self) -> bool:
        """Whether it is the leader's host, on which the doctor runs."""

    @property
    def followers(self) -> int:
        """Followers that it may run."""

    @property
    def ray_ports(self) -> tuple[int, ...]:
        """Ports that its raylet listens on."""


class Probes(Protocol):
    """Probes on several hosts."""

    @property
    def nodes(self) -> Sequence[Node]:
        """The hosts, the leader's first."""

    def ask_all(self, lines: Mapping[str, bytes], *, timeout_s: float) -> dict[str, bytes | str]:
        """Ask hosts by name, all at once: each one's answer, or as text why there is none."""


def examine_nodes(config: ServeConfig, *, quick: bool) -> DoctorReport:
    """Examine every host of the group, joining or starting its Ray cluster.

    Raises:
        RufusError: the settings cannot be used at all, or Ray cannot be started or joined.
    """
    plan = plan_group(config, None)
    if not plan.spread:
        report = examine_host(config, quick=quick)
        note = Findings("nodes").note(
            f"all {config.num_ranked} followers run on this host, as neither cluster.token_file "
            "nor cluster.ray_address is set",
            why="there are no other hosts to examine",
        )
        return DoctorReport.of(report.nodes, [*report.findings, *on_node(report.nodes[0], [note])])
    check_folder(Path(config.model))
    if config.cluster.python and config.cluster.follower_on_leader_host:
        interpreter_of(config.cluster.python)
    here = own_placement(config, plan)
    return _examine_spread(config, plan, here, quick=quick)


def _examine_spread(
    config: ServeConfig, plan: GroupPlan, here: HostPart, *, quick: bool
) -> DoctorReport:
    expected = config.num_followers + (not config.cluster.follower_on_leader_host)
    existing = _existing(config, plan)
    settings = JoinSettings(
        address=plan.address,
        existing=existing,
        port=config.cluster.ray_port,
        local_slots=int(config.cluster.follower_on_leader_host),
        join_s=config.timeouts.join_s,
        announce=not existing,
        tls=not config.cluster.ray_address,
    )
    _log.info("waiting for %d nodes, at most %g s", expected, config.timeouts.join_s)
    with open_probes(
        plan.token, settings, module=PROBE, python=config.cluster.python, nodes=expected
    ) as probes:
        came = [*(node.name for node in probes.nodes), *probes.absent]
        absent = [*_absent(config, plan, expected, came)]
        failed = [_no_probe(name, reason) for name, reason in probes.absent.items()]
        report = examine_probes(config, probes, here, quick=quick)
    return DoctorReport.of(came, [*absent, *failed, *report.findings])


def _existing(config: ServeConfig, plan: GroupPlan) -> str:
    """Address of the Ray that runs already; empty if there is none."""
    if config.cluster.ray_address:
        return config.cluster.ray_address
    try:
        socket.create_connection((plan.address, config.cluster.ray_port), _CONNECT_S).close()
    except OSError:
        return ""
    return f"{plan.address}:{config.cluster.ray_port}"


def _absent(
    config: ServeConfig, plan: GroupPlan, expected: int, names: Sequence[str]
) -> Iterator[Finding]:
    if len(names) >= expected:
        return
    yield Findings("nodes").error(
        f"{len(names)} of {expected} nodes came within {config.timeouts.join_s:g} s: "
        f"{', '.join(names)}",
        why="every follower needs a node",
        fix=f"on the others: rufus-serve follower --leader {plan.address}:"
        f"{config.cluster.ray_port} --token-file FILE",
        code=ClusterError.exit_code,
    )


def _no_probe(node: str, reason: str) -> Finding:
    (finding,) = on_node(node, [
        Findings("nodes").error(
            f"the followers' environment does not start: {reason}",
            why="followers run in it as the probe would",
            fix="set cluster.python to an interpreter with rufus-serve on every host",
            code=FollowerError.exit_code,
        )
    ])  # fmt: skip
    return finding


def examine_probes(
    config: ServeConfig, probes: Probes, here: HostPart, *, quick: bool
) -> DoctorReport:
    """Examine the hosts of `probes`, each by itself and each pair; `here` is the leader's part."""
    nodes = probes.nodes
    placements = {node.name: _placement(node, nodes, here) for node in nodes}
    dump = config.for_followers()
    _log.info("examining %s", ", ".join(placements))
    orders: dict[str, Order] = {
        name: Examine(node=name, config=dump, placement=placement, quick=quick)
        for name, placement in placements.items()
    }
    replies, failed = _ask(probes, orders, config.timeouts.load_s)
    reports = [reply for reply in replies.values() if isinstance(reply, NodeReport)]
    links = _links(config, probes, placements)
    leader = next((node.name for node in nodes if node.is_here), socket.gethostname())
    system = HostSystem()
    findings = [*failed, *on_node(leader, leader_versions(system))]
    for report in reports:
        findings += on_node(report.node, report.findings)
    if reports:
        findings += compare_versions(reports, common_facts(system))
        findings += compare_models(reports)
    findings += [*judge_links(links), *judge_mtu(reports, links), *judge_clocks(links, leader)]
    return DoctorReport.of(placements, findings)


def _placement(node: Node, nodes: Sequence[Node], here: HostPart) -> HostPart:
    """`node`'s part; followers of one address share a host, and what it has."""
    beside = sum(each.followers for each in nodes if each.address == node.address)
    return msgspec.structs.replace(
        here,
        is_leader=node.is_here,
        spread=True,
        followers=beside if node.followers else 0,
        address=node.address,
        ray_is_up=True,
    )


def _ask(
    probes: Probes, orders: Mapping[str, Order], timeout_s: float
) -> tuple[dict[str, Reply], list[Finding]]:
    """Replies by host, and a finding for each host without one."""
    lines = {name: encode(order) for name, order in orders.items()}
    replies: dict[str, Reply] = {}
    failed: list[Finding] = []
    for name, answer in probes.ask_all(lines, timeout_s=timeout_s).items():
        reply = (
            Failed(reason=answer, exit_code=0) if isinstance(answer, str) else decode_reply(answer)
        )
        if isinstance(reply, Failed):
            failed.append(_no_probe(name, reply.reason))
        else:
            replies[name] = reply
    return replies, failed


def _links(
    config: ServeConfig, probes: Probes, placements: Mapping[str, HostPart]
) -> tuple[Link, ...]:
    """How every host reaches every other."""
    nonce = secrets.token_hex(16)
    listens: dict[str, Order] = {
        name: Listen(
            node=name, address=placement.address, nonce=nonce, ports=_awaited(config, placement)
        )
        for name, placement in placements.items()
    }
    replies, _ = _ask(probes, listens, _LISTEN_S)
    listening = {name: r for name, r in replies.items() if isinstance(r, Listening)}
    targets = {
        node.name: list(_targets(config, node, listening[node.name], placements[node.name]))
        for node in probes.nodes
        if node.name in listening
    }
    reaches: dict[str, Order] = {
        source: Reach(
            node=source,
            nonce=nonce,
            timeout_s=_CONNECT_S,
            targets=tuple(
                target
                for name in listening
                if name != source
                for target in targets[name]
                if _needs(target.purpose, placements[source])
            ),
        )
        for source in listening
    }
    replies, _ = _ask(probes, reaches, _REACH_S)
    return tuple(link for r in replies.values() if isinstance(r, Reached) for link in r.links)


def _awaited(config: ServeConfig, placement: HostPart) -> dict[str, int]:
    """Purpose to port of what a probe listens on, beside the running group's if there is one."""
    ports = {name: port for name, (_, port) in spread_ports(config, placement).items()}
    if placement.served_by:
        ports = {name: port for name, port in ports.items() if name == LAST_RENDEZVOUS}
    # Only the Neuron runtime takes any free port; followers that share a host have no other.
    if config.runtime == "neuron" or placement.followers > 1:
        ports[FREE] = 0
    return ports


def _targets(
    config: ServeConfig, node: Node, state: Listening, placement: HostPart
) -> Iterator[Target]:
    """What the others may try to reach of `node`."""

    def target(purpose: str, port: int, *, talks: bool) -> Target:
        return Target(node=node.name, address=node.address, port=port, purpose=purpose, talks=talks)

    for purpose, port in state.ports.items():
        yield target(purpose, port, talks=True)
    for port in node.ray_ports:
        yield target(RAY, port, talks=False)
    if placement.served_by:
        for purpose, (_, port) in spread_ports(config, placement).items():
            if purpose in (CONTROL, STEP):
                yield target(purpose, port, talks=False)


def _needs(purpose: str, source: HostPart) -> bool:
    """Whether a host of this part ever connects to a port of that purpose."""
    if purpose == STEP:
        return source.is_leader
    if purpose in (CONTROL, RENDEZVOUS, LAST_RENDEZVOUS):
        return source.followers > 0
    return True
