import socket
from types import SimpleNamespace

import pytest

from rufus_serve.cluster import addresses
from rufus_serve.cluster.addresses import await_listener, choose_address, free_port
from rufus_serve.errors import ClusterError, ConfigError, EndpointError

HOST = {"docker0": "172.17.0.1", "ens32": "10.0.0.7", "ens33": "10.0.0.8", "lo": "127.0.0.1"}


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """A host with several interfaces, of which ens32 has the default route."""
    entries = {
        name: [SimpleNamespace(family=socket.AF_INET, address=address)]
        for name, address in HOST.items()
    }
    entries["docker0"].append(SimpleNamespace(family=socket.AF_INET, address="172.18.0.1"))
    up = {name: SimpleNamespace(isup=name != "ens33") for name in HOST}
    monkeypatch.setattr(addresses.psutil, "net_if_addrs", lambda: entries)
    monkeypatch.setattr(addresses.psutil, "net_if_stats", lambda: up)
    monkeypatch.setattr(addresses, "_source_address", lambda _: "10.0.0.7")


def test_the_interface_of_the_default_route_is_chosen_among_many():
    assert choose_address() == "10.0.0.7"


def test_without_a_default_route_any_but_loopback_is_chosen(monkeypatch):
    def none(towards):
        raise ClusterError("no route")

    monkeypatch.setattr(addresses, "_source_address", none)
    assert choose_address() == "172.17.0.1"


@pytest.mark.parametrize("named", ["docker0", "172.17.0.1"])
def test_an_interface_is_named_by_its_name_or_address(named):
    assert choose_address(interface=named) == "172.17.0.1"


@pytest.mark.parametrize("named", ["ens33", "eth0", "10.9.9.9"])
def test_an_interface_that_is_down_or_absent_is_refused_with_those_there_are(named):
    with pytest.raises(
        ClusterError, match=r"cluster\.interface .* it has docker0 \(172\.17\.0\.1, 172\.18\.0\.1\)"
    ):
        choose_address(interface=named)


@pytest.mark.parametrize("named", ["six", "fd00::1"])
def test_an_interface_of_ipv6_alone_is_told_what_it_lacks(named):
    addresses.psutil.net_if_addrs()["six"] = [
        SimpleNamespace(family=socket.AF_INET6, address="fd00::1")
    ]
    with pytest.raises(ClusterError, match="has no IPv4 address here; hosts of a group"):
        choose_address(interface=named)


def test_every_address_of_an_interface_may_be_named():
    assert choose_address(interface="172.18.0.1") == "172.18.0.1"


def test_a_host_without_ipv4_is_told_what_it_lacks(monkeypatch):
    def none(towards):
        raise ClusterError("no route")

    only_ipv6 = {"lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")]}
    monkeypatch.setattr(addresses.psutil, "net_if_addrs", lambda: only_ipv6)
    monkeypatch.setattr(addresses, "_source_address", none)
    with pytest.raises(ClusterError, match="no IPv4 address"):
        choose_address()


def test_a_listener_is_awaited_and_its_absence_told():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        await_listener(f"127.0.0.1:{listening.getsockname()[1]}", timeout_s=1.0)
    with pytest.raises(ClusterError, match=r"timeouts\.join_s"):
        await_listener(f"127.0.0.1:{free_port('127.0.0.1')}", timeout_s=0.01)


@pytest.mark.parametrize("endpoint", ["", "host", "host:", ":1", "host:port"])
def test_an_endpoint_without_host_or_port_is_refused(endpoint):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        await_listener(endpoint, timeout_s=0.01)


def test_a_foreign_address_has_no_free_port():
    with pytest.raises(EndpointError, match=r"cannot listen on 198\.51\.100\.1"):
        free_port("198.51.100.1")
