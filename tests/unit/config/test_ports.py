import pytest

from rufus_serve.config import ServeConfig
from rufus_serve.config.checks import conflicts
from rufus_serve.config.ports import clashes


def messages(port: int = 8000, **cluster) -> list[str]:
    config = ServeConfig(model="m", port=port, cluster={"token_file": "/t", **cluster})
    return [each.message for each in conflicts(config)]


def test_the_defaults_do_not_clash():
    assert messages() == []


@pytest.mark.parametrize(
    ("port", "cluster", "message"),
    [
        (6379, {}, "port 6379 and cluster.ray_port 6379 share port 6379"),
        (8000, {"step_port": 6400}, "cluster.control_port 6400 and cluster.step_port 6400 share"),
        (6410, {}, "port 6410 and cluster.rendezvous_port 6402 to 6417 share port 6410"),
        (8000, {"ray_port": 6819}, "cluster.ray_port 6819 and Ray's 6500 to 6819 share port 6819"),
        (8000, {"rendezvous_port": 6490}, "cluster.rendezvous_port 6490 to 6505 and Ray's"),
    ],
)
def test_ports_that_several_hosts_need_differ(port, cluster, message):
    (found,) = messages(port, **cluster)
    assert found.startswith(message)


def test_one_host_takes_free_ports_and_may_serve_on_any():
    assert conflicts(ServeConfig(model="m", port=6379)) == []


def test_a_clash_names_the_settings_alone():
    config = ServeConfig(model="m", cluster={"control_port": 6500})
    assert [keys for _, keys in clashes(config)] == [("cluster.control_port",)]
