"""The doctor on one host."""

import socket
from pathlib import Path

from rufus_serve.cluster.line_child import LineChild
from rufus_serve.config.schema import ServeConfig
from rufus_serve.doctor.comparison import compare_versions
from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.messages import Examine, Failed, NodeReport, decode_reply, encode
from rufus_serve.doctor.probe import Probe
from rufus_serve.doctor.report import DoctorReport, on_node
from rufus_serve.doctor.system import HostSystem
from rufus_serve.doctor.versions import common_facts, leader_versions
from rufus_serve.errors import FollowerError
from rufus_serve.model.folder import check_folder
from rufus_serve.supervisor.group_file import load, path_for
from rufus_serve.supervisor.group_plan import GroupPlan, plan_group

PROBE = "rufus_serve.doctor"
"""Module that a probe process runs."""


def examine_host(config: ServeConfig, *, quick: bool) -> DoctorReport:
    """Examine this host for `config`, as the leader's.

    Raises:
        RufusError: the settings cannot be used at all; the same as `serve` raises.
    """
    check_folder(Path(config.model))
    placement = own_placement(config, plan_group(config, None))
    order = Examine(
        node=socket.gethostname(),
        config=config.for_followers(),
        placement=placement,
        quick=quick,
    )
    report = _examine(config, order)
    system = HostSystem()
    found = [*report.findings, *leader_versions(system)]
    if config.cluster.python:
        found += compare_versions([report], common_facts(system))
    return DoctorReport.of([report.node], on_node(report.node, found))


def own_placement(config: ServeConfig, plan: GroupPlan) -> HostPart:
    """This host's part in the group, as the leader's host."""
    running = load(path_for(config))
    every = config.num_followers
    return HostPart(
        spread=plan.spread,
        followers=int(config.cluster.follower_on_leader_host) if plan.spread else every,
        address=plan.address,
        served_by=running.supervisor_pid if running is not None and running.alive else 0,
    )


def _examine(config: ServeConfig, order: Examine) -> NodeReport:
    """In this process, or in the followers' environment if that is another."""
    if not config.cluster.python:
        reply = Probe().obey(order)
    else:
        child = LineChild(PROBE, python=config.cluster.python)
        try:
            reply = decode_reply(child.ask(encode(order), timeout_s=config.timeouts.load_s))
        except FollowerError as error:
            raise FollowerError(
                f"the followers' environment cannot be examined: {error}; install rufus-serve "
                "in it, or set cluster.python to one that has it"
            ) from error
        finally:
            child.close()
    if isinstance(reply, Failed):
        raise FollowerError(reply.reason)
    assert isinstance(reply, NodeReport)
    return reply
