from pathlib import Path

import numpy as np
import pytest
from neuron_sized import prefill

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.leader.engine.step_deadline import StepDeadline
from rufus_serve.runtime.neuron import host
from rufus_serve.runtime.neuron.environment import (
    check_device,
    choose_interface,
    device_environment,
    group_environment,
)
from rufus_serve.runtime.neuron.topology import Topology


def environment(topology, **settings):
    config = ServeConfig(model="m", runtime="neuron", **settings)
    return device_environment(config, topology, Path("/work"))


def test_a_node_of_its_own_uses_all_its_cores_and_efa(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    values = environment(Topology(2, 32, 1))
    assert values == {
        "BASE_COMPILE_WORK_DIR": "/work/compile/",
        "NEURON_COMPILE_CACHE_URL": "/cache/rufus-serve/neuron-compile-cache",
        "NEURON_LOGICAL_NC_CONFIG": "1", "NEURON_PLATFORM_TARGET_OVERRIDE": "trn1",
        "NEURON_RT_EXEC_TIMEOUT": "30", "NEURON_RT_NUM_CORES": "32", "FI_PROVIDER": "efa",
        "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_FORK_SAFE": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, "30"),
        ({"timeouts": {"step_floor_s": 20}}, "60"),
        ({"buckets": {"prefill": [512, 8192]}}, "160"),
        ({"max_model_len": 32768}, "600"),
        ({"buckets": {"prefill": [32768]}}, "640"),
    ],
)
def test_the_runtime_gives_a_step_no_less_time_than_the_leader(settings, seconds):
    values = environment(Topology(1, 32, 0), **settings)
    assert values["NEURON_RT_EXEC_TIMEOUT"] == seconds
    config = ServeConfig(model="m", **settings)
    deadline = StepDeadline(config.timeouts.step_floor_s)
    prompt = np.zeros(config.buckets.prefill[-1], np.int32)
    assert float(seconds) >= deadline.seconds_for(prefill(prompt, [0] * 1024))


def test_graphs_are_for_the_device_that_is_named():
    values = environment(Topology(1, 64, 0), neuron={"target": "trn2"})
    assert values["NEURON_PLATFORM_TARGET_OVERRIDE"] == "trn2"
    assert values["NEURON_LOGICAL_NC_CONFIG"] == "2"


@pytest.mark.parametrize("name", ["trn1.32xlarge", "trn1n.32xlarge\n", "Standard PC (Q35)", ""])
def test_the_devices_own_host_is_taken_and_one_that_says_nothing_of_itself(name):
    check_device(ServeConfig(model="m", runtime="neuron"), name, devices=["neuron0"])


@pytest.mark.parametrize(("name", "told"), [("m7i.48xlarge\n", "m7i.48xlarge"), ("", "of unknown")])
def test_a_host_without_devices_is_refused_before_anything_is_compiled(name, told):
    with pytest.raises(ConfigError, match=rf"this host \({told}.*has no /dev/neuron"):
        check_device(ServeConfig(model="m", runtime="neuron"), name, devices=[])


def test_a_host_with_other_devices_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"this host is a trn2.48xlarge, but neuron.target is"):
        check_device(
            ServeConfig(model="m", runtime="neuron"), "trn2.48xlarge\n", devices=["neuron0"]
        )


def test_two_followers_on_one_host_see_half_the_cores_and_no_efa():
    values = environment(Topology(2, 16, 1, 2))
    assert values["NEURON_RT_VISIBLE_CORES"] == "16-31"
    assert "NEURON_RT_NUM_CORES" not in values
    assert "FI_PROVIDER" not in values


def test_the_root_is_an_address_and_a_port():
    values = group_environment("tcp://10.0.0.7:6402", epoch=1, port=0, interface="eth0")
    assert values == {"NEURON_RT_ROOT_COMM_ID": "10.0.0.7:6402", "CCOM_SOCKET_IFNAME": "eth0"}


@pytest.mark.parametrize(
    ("port", "epoch", "taken"), [(0, 1, 63424), (7000, 2, 7002), (7000, 17, 7001)]
)
def test_followers_of_one_host_meet_on_loopback_on_ports_in_turn(port, epoch, taken):
    values = group_environment("rufus-abc-1", epoch=epoch, port=port, interface="")
    assert values == {"NEURON_RT_ROOT_COMM_ID": f"127.0.0.1:{taken}"}


@pytest.mark.parametrize("rendezvous", ["tcp://node-0:6402", "tcp://10.0.0.7"])
def test_a_root_that_the_runtime_cannot_read_is_refused(rendezvous):
    with pytest.raises(ConfigError, match="rendezvous"):
        group_environment(rendezvous, epoch=1, port=0, interface="")


NICS = {
    "lo": [("127.0.0.1", "255.0.0.0")],
    "docker0": [("172.17.0.1", "255.255.0.0")],
    "eth1": [("10.1.0.5", "255.255.255.0")],
    "eth0": [("10.0.0.5", "255.255.255.0"), ("fe80::1", "ffff::")],
}


@pytest.mark.parametrize(
    ("peer", "configured", "chosen"),
    [
        ("10.1.0.9", "", "eth1"),
        ("10.0.0.5", "", "eth0"),
        ("192.168.3.3", "", "eth0"),
        ("10.1.0.9", "eth0", "eth0"),
        ("10.1.0.9", "10.0.0.5", "eth0"),
    ],
)
def test_the_interface_towards_the_root_is_found_among_many(peer, configured, chosen):
    assert choose_interface(NICS, peer=peer, configured=configured) == chosen


def test_a_host_without_interfaces_leaves_the_choice_to_the_runtime():
    assert choose_interface({"lo": NICS["lo"]}, peer="10.0.0.1") == ""


def test_what_the_operator_set_is_kept_but_not_the_topology(monkeypatch):
    monkeypatch.setenv("FI_PROVIDER", "tcp")
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "2")
    host.apply_environment({"FI_PROVIDER": "efa", "NEURON_RT_NUM_CORES": "32"})
    assert host.os.environ["FI_PROVIDER"] == "tcp"
    assert host.os.environ["NEURON_RT_NUM_CORES"] == "32"
