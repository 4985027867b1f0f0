import socket

import pytest
from tests.deploy.chart import ROOT

from rufus_serve.cluster.ray_ports import RayPorts
from rufus_serve.config.ports import RAY_PORTS
from rufus_serve.errors import EndpointError

FIRST_PORT, LAST_PORT = RAY_PORTS[0], RAY_PORTS[-1]

# Each test has an address of its own; all of 127/8 is this host's.


def ports_of(arguments: list[str]) -> list[int]:
    return [int(argument.partition("=")[2]) for argument in arguments]


def test_raylets_of_one_address_take_different_blocks():
    one, other = RayPorts("127.0.61.1"), RayPorts("127.0.61.1")
    try:
        assert one.first == FIRST_PORT
        assert other.first > max(ports_of(one.arguments(head=True)))
    finally:
        one.release()
        other.release()


def test_a_released_block_is_taken_again():
    for _ in range(2):
        ports = RayPorts("127.0.61.2")
        assert ports.first == FIRST_PORT
        ports.release()
        ports.release()


def test_ports_are_within_the_documented_range_and_used_once():
    ports = RayPorts("127.0.61.3")
    ports.release()
    used = ports_of(ports.arguments(head=True))
    assert len(set(used)) == len(used)
    assert min(used) == ports.first
    assert max(used) < ports.first + 40
    assert ports_of(ports.arguments(head=False)) == [p for p in used if p != ports.first + 6]


def test_the_last_block_ends_the_range_and_one_more_is_refused():
    taken = [RayPorts("127.0.61.4") for _ in range(8)]
    try:
        assert max(ports_of(taken[-1].arguments(head=False))) == LAST_PORT
        with pytest.raises(EndpointError, match=f"{FIRST_PORT} to {LAST_PORT} of 127.0.61.4"):
            RayPorts("127.0.61.4")
    finally:
        for ports in taken:
            ports.release()


def test_a_port_of_another_program_is_stepped_over():
    with socket.socket() as other:
        other.bind(("127.0.61.5", FIRST_PORT))
        other.listen()
        ports = RayPorts("127.0.61.5")
        ports.release()
    assert ports.first == FIRST_PORT + 40


def test_a_foreign_address_is_refused():
    with pytest.raises(EndpointError, match=r"cannot listen on 198\.51\.100\.1"):
        RayPorts("198.51.100.1")


def test_the_range_is_the_firewall_tables():
    assert f"{FIRST_PORT}\N{EN DASH}{LAST_PORT}/tcp" in (ROOT / "deploy" / "README.md").read_text()
