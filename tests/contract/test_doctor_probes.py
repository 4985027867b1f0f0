"""Probes as processes of their own on loopback addresses: examined, connected, and cut off."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.contract.runtime_models import write_model

from rufus_serve.cluster.line_child import LineChild
from rufus_serve.cluster.ray_probes import ProbedNode
from rufus_serve.config import ServeConfig
from rufus_serve.doctor.all_nodes import examine_probes
from rufus_serve.doctor.comparison import judge_links
from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.finding import Finding
from rufus_serve.doctor.links import BULK_BYTES, reach
from rufus_serve.doctor.messages import (
    Failed,
    Link,
    Listen,
    Listening,
    Reach,
    Reached,
    Target,
    decode_reply,
    encode,
)
from rufus_serve.errors import ConfigError, FollowerError

PROBE = "rufus_serve.doctor"
NONCE = "0123"


@pytest.fixture
def probe() -> Iterator[LineChild]:
    child = LineChild(PROBE)
    yield child
    child.close()


class ChildProbes:
    """`Probes` of two processes; each has a loopback address of its own."""

    def __init__(self, *, in_one_pod: bool = False) -> None:
        second = "127.0.0.1" if in_one_pod else "127.0.0.2"
        self.nodes = (
            ProbedNode(name="a", address="127.0.0.1", is_here=True, followers=1 - in_one_pod),
            ProbedNode(name="b", address=second, is_here=False, followers=1),
        )
        self._children = {node.name: LineChild(PROBE) for node in self.nodes}

    def ask_all(self, lines: Mapping[str, bytes], *, timeout_s: float) -> dict[str, bytes | str]:
        return {name: self._ask(name, line, timeout_s) for name, line in lines.items()}

    def _ask(self, name: str, line: bytes, timeout_s: float) -> bytes | str:
        try:
            return self._children[name].ask(line, timeout_s=timeout_s)
        except FollowerError as error:
            return str(error)

    def kill(self, name: str) -> None:
        os.kill(self._children[name].pid, signal.SIGKILL)

    def close(self) -> None:
        for child in self._children.values():
            child.close()


@pytest.fixture
def two_probes() -> Iterator[ChildProbes]:
    probes = ChildProbes()
    yield probes
    probes.close()


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    model = write_model(tmp_path / "model", "llama")
    (model / "tokenizer.json").write_text("{}")
    ports = {"control_port": free_port(), "step_port": free_port(), "rendezvous_port": free_port()}
    return ServeConfig(
        model=str(model),
        nodes=2,
        port=free_port(),
        cluster={**ports, "kind": "local"},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def of(findings: tuple[Finding, ...], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_two_hosts_that_are_well_reach_each_other_on_every_port(
    two_probes: ChildProbes, config: ServeConfig
) -> None:
    report = examine_probes(config, two_probes, HostPart(spread=True), quick=False)
    assert report.nodes == ("a", "b")
    (reached,) = of(report.findings, "reachability")
    # Each way: two ports of the rendezvous; the step port of b, and the control port of a.
    assert (reached.level, reached.what.split(",")[0]) == ("ok", "6 connections")
    (clock,) = of(report.findings, "clock")
    assert clock.level == "ok"
    assert float(clock.what.split()[2]) < 50
    assert [each.level for each in of(report.findings, "models agree")] == ["ok"]
    assert [each.level for each in of(report.findings, "versions agree")] == ["ok"]
    assert {each.node for each in of(report.findings, "model")} == {"a", "b"}


def test_a_leader_without_a_follower_may_share_an_address_with_one(config: ServeConfig) -> None:
    probes = ChildProbes(in_one_pod=True)
    try:
        report = examine_probes(config, probes, HostPart(spread=True), quick=False)
    finally:
        probes.close()
    (reached,) = of(report.findings, "reachability")
    # The step port of b from a, the control port of a from b.
    assert (reached.level, reached.what.split(",")[0]) == ("ok", "2 connections")
    ports = [finding.what for finding in of(report.findings, "ports")]
    own = config.cluster
    assert ports == [
        f"{config.port}, {own.control_port} can be listened on",
        f"{own.step_port}, {own.rendezvous_port}, {own.rendezvous_port + 15} can be listened on",
    ]


def test_a_running_group_is_connected_to_and_a_closed_port_is_told(
    two_probes: ChildProbes, config: ServeConfig
) -> None:
    serving = HostPart(spread=True, served_by=4711)
    with socket.create_server(("127.0.0.1", config.cluster.control_port)):
        report = examine_probes(config, two_probes, serving, quick=False)
    (closed,) = of(report.findings, "reachability")
    port = config.cluster.step_port
    assert closed.level == "error"
    assert closed.what == (
        f"a cannot reach b at 127.0.0.2:{port} (cluster.step_port): Connection refused"
    )
    assert report.exit_code(strict=False) == 5


def test_a_port_that_another_program_holds_is_told_once(
    two_probes: ChildProbes, config: ServeConfig
) -> None:
    with socket.create_server(("127.0.0.2", config.cluster.step_port)):
        report = examine_probes(config, two_probes, HostPart(spread=True), quick=False)
    errors = [finding for finding in report.findings if finding.level == "error"]
    # On CI's machines other checks may have something to say too, such as of little memory.
    (taken,) = [each for each in errors if each.check in ("ports", "reachability")]
    assert (taken.node, taken.exit_code) == ("b", 4)
    assert f"cluster.step_port 127.0.0.2:{config.cluster.step_port}: Address" in taken.what


def test_a_host_whose_probe_is_gone_is_an_error_and_the_others_are_examined(
    two_probes: ChildProbes, config: ServeConfig
) -> None:
    two_probes.kill("b")
    report = examine_probes(config, two_probes, HostPart(spread=True), quick=False)
    (gone,) = of(report.findings, "nodes")
    assert (gone.node, gone.level, gone.exit_code) == ("b", "error", 7)
    assert "ended with -9" in gone.what
    assert [each.node for each in of(report.findings, "model")] == ["a"]


def listen(probe: LineChild, node: str = "b") -> Target:
    order = Listen(node=node, address="127.0.0.1", nonce=NONCE, ports={"a free port": 0})
    state = decode_reply(probe.ask(encode(order), timeout_s=20))
    assert isinstance(state, Listening)
    return Target(
        node=node, address="127.0.0.1", port=state.ports["a free port"], purpose="a free port"
    )


def reached(target: Target, *, nonce: str = NONCE) -> Link:
    (link,) = reach(Reach(node="a", nonce=nonce, targets=(target,), timeout_s=1.0))
    return link


def test_a_link_is_measured_from_one_process_to_another(probe: LineChild) -> None:
    link = reached(listen(probe))
    assert (link.fault, link.bulk_fault, link.answered_by) == ("", "", "b")
    assert 0 < link.round_trip_s < 0.5
    assert abs(link.offset_s) < 0.05
    assert link.path_mtu >= 1280


def test_a_new_order_to_listen_closes_the_ports_of_the_last(probe: LineChild) -> None:
    target = listen(probe)
    listen(probe)
    assert reached(target).fault == "Connection refused"


def test_another_examinations_nonce_is_not_answered(probe: LineChild) -> None:
    assert "no answer came" in reached(listen(probe), nonce="other").fault


def test_an_address_that_leads_to_another_host_is_noticed(probe: LineChild) -> None:
    target = msgspec.structs.replace(listen(probe, node="b"), node="c")
    (found,) = judge_links([reached(target)])
    assert "another host answers there: b" in found.what


@pytest.fixture
def small_only() -> Iterator[Target]:
    """A listener behind a path that swallows large messages."""
    server = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        peer, _ = server.accept()
        with peer, peer.makefile("rb") as lines:
            while "bulk" not in json.loads(line := lines.readline()):
                assert line
                answer = {"node": "b", "came": 1e9, "left": 1e9}
                peer.sendall(json.dumps(answer).encode() + b"\n")
            done.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    yield Target(node="b", address="127.0.0.1", port=server.getsockname()[1], purpose="a free port")
    done.set()
    thread.join()
    server.close()


def test_a_path_that_swallows_large_messages_is_noticed(small_only: Target) -> None:
    link = reached(small_only)
    assert (link.fault, link.bulk_fault) == ("", "timed out")
    assert link.offset_s < -3600 * 24
    assert BULK_BYTES > 9001 * 8


def test_an_order_that_fails_is_answered_and_the_next_one_obeyed(probe: LineChild) -> None:
    reply = decode_reply(probe.ask(b'{"type": "Dance"}', timeout_s=20))
    assert isinstance(reply, Failed)
    assert "Dance" in reply.reason
    nothing = Reach(node="a", nonce=NONCE, targets=(), timeout_s=1)
    assert decode_reply(probe.ask(encode(nothing), timeout_s=20)) == Reached(links=())


def test_a_module_that_does_not_start_is_told_in_its_own_words() -> None:
    child = LineChild("rufus_serve.nowhere")
    try:
        with pytest.raises(FollowerError, match=r"ended with 1: .*No module named rufus_serve\."):
            child.ask(b"{}", timeout_s=20)
    finally:
        child.close()


def test_an_interpreter_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.python '/nowhere/python'"):
        LineChild(PROBE, python="/nowhere/python")


def test_a_probe_ends_with_its_input() -> None:
    child = LineChild(PROBE, python=sys.executable)
    listen(child)
    child.close()
    assert not psutil.pid_exists(child.pid)
