import json
from pathlib import Path
from typing import Any

import pytest
from recorded_hosts import SPREAD, RecordedSystem, cpu_context, neuron_context, trn1_32xlarge

from rufus_serve import __version__
from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.examination import CHECKS, examine
from rufus_serve.doctor.network import address, ports
from rufus_serve.doctor.system import Interface
from rufus_serve.doctor.topology import api_keys, settings
from rufus_serve.doctor.versions import leader_versions, pinned, versions

LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.fixture
def llama_8b(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({}, 0, "tensor parallel degree 64 on 2 x trn1.32xlarge"),
        ({"neuron": {"cores_per_node": 6}}, 2, "12 % 8 = 4"),
        ({"neuron": {"cores_per_node": 64}}, 2, "trn1.32xlarge has 32 cores, 64 were asked"),
        ({"max_model_len": 200000, "buckets": {"prefill": (200000,)}}, 3, "exceeds the model's"),
        ({"max_num_seqs": 4096}, 3, "short for 4096 sequences of 512 tokens"),
        ({"neuron": {"mode": "nxdi-cpu", "cores_per_node": 1}}, 0, "degree 2, on the CPU"),
        ({"nodes": 3, "neuron": {"mode": "nxdi-cpu", "cores_per_node": 1}}, 2, "3 % 8 = 3"),
    ],
)
def test_neuron_settings_are_planned(llama_8b: str, fields: dict[str, Any], code: int, said: str):
    (found,) = settings(neuron_context(trn1_32xlarge(), model=llama_8b, **fields))
    assert said in found.what
    assert (found.level, found.exit_code) == ("error" if code else "ok", code)


def test_several_nodes_of_a_type_without_efa_are_refused(llama_8b: str):
    system = trn1_32xlarge()
    system.files["/sys/devices/virtual/dmi/id/product_name"] = "trn1.2xlarge"
    small = {"cores_per_node": 2}
    (found,) = settings(neuron_context(system, model=llama_8b, neuron=small))
    assert "trn1.2xlarge has no EFA" in found.what


def test_more_cpu_followers_than_heads_are_refused(llama_8b: str):
    assert next(settings(cpu_context(model=llama_8b, nodes=32))).level == "ok"
    (found,) = settings(cpu_context(model=llama_8b, nodes=33))
    assert "followers <= query heads must hold, but 33 > 32" in found.what
    assert found.exit_code == 3


def test_settings_are_not_judged_without_a_model():
    assert next(settings(cpu_context())).level == "skipped"


def test_an_api_key_file_must_hold_something():
    system = RecordedSystem()
    system.files |= {"/keys": "secret", "/empty": ""}
    assert next(api_keys(cpu_context(system))).level == "skipped"
    assert next(api_keys(cpu_context(system, api_key_file="/keys"))).level == "ok"
    for path in ("/empty", "/nowhere"):
        (found,) = api_keys(cpu_context(system, api_key_file=path))
        assert (found.level, found.exit_code) == ("error", 2)
        assert path in found.what


def test_the_chosen_address_is_shown_among_all():
    system = trn1_32xlarge()
    (found,) = address(neuron_context(system))
    assert found.what == "10.0.1.10 on ens32, MTU 9001, chosen among 2 (others: ens64 10.0.1.11)"
    system.nics = (Interface("ens32", "10.0.1.10", 1500),)
    assert [each.level for each in address(neuron_context(system))] == ["ok", "note"]
    assert [each.level for each in address(cpu_context(system, placement=SPREAD))] == ["ok"]


def test_an_address_that_others_cannot_reach_is_an_error():
    loopback = HostPart(spread=True, address="127.0.0.1")
    (found,) = address(neuron_context(trn1_32xlarge(), placement=loopback))
    assert (found.level, found.exit_code) == ("error", 5)
    assert "ens32 10.0.1.10, ens64 10.0.1.11" in found.fix


def test_a_taken_port_is_named_with_its_setting():
    system = trn1_32xlarge()
    assert next(ports(neuron_context(system))).what == (
        "8000, 6400, 6379, 6401, 6402, 6417 can be listened on"
    )
    system.taken = {("10.0.1.10", 6401): "Address already in use"}
    (found,) = ports(neuron_context(system))
    assert (found.level, found.exit_code) == ("error", 4)
    assert found.what == "cluster.step_port 10.0.1.10:6401: Address already in use"
    serving = HostPart(spread=True, address="10.0.1.10", served_by=99)
    assert next(ports(neuron_context(system, placement=serving))).level == "ok"


def test_followers_of_one_host_take_free_ports():
    shared = HostPart(is_leader=False, spread=True, followers=2, address="10.0.1.10")
    assert next(ports(neuron_context(trn1_32xlarge(), placement=shared))).what == "none is fixed"


def test_versions_are_those_that_our_package_pins():
    system = RecordedSystem()
    assert [each.level for each in versions(cpu_context(system))] == ["ok"]
    assert pinned("ray") == "2.60.0"
    system.packages["ray"] = "2.9.1"
    system.python_version = "3.9.18"
    found = list(versions(cpu_context(system)))
    assert [(each.level, each.exit_code) for each in found] == [
        ("error", 7),
        ("error", 5),
        ("ok", 0),
    ]
    assert found[1].what == "Ray 2.9.1 is installed, 2.60.0 is needed"
    del system.packages["ray"]
    local = cpu_context(system, cluster={"kind": "local"})
    assert [each.level for each in versions(local)] == ["error", "ok"]


def test_a_host_without_vllm_can_still_follow():
    system = RecordedSystem()
    assert next(leader_versions(system)).level == "ok"
    system.packages["vllm"] = "0.32.0"
    assert next(leader_versions(system)).exit_code == 10
    del system.packages["vllm"]
    assert next(leader_versions(system)).level == "note"


def test_a_healthy_node_has_no_trouble_at_all(tmp_path: Path, llama_8b: str):
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    for name in ("model.pt", "neuron_config.json"):
        (compiled / name).touch()
    context = neuron_context(
        trn1_32xlarge(),
        model=llama_8b,
        artifacts={"location": str(compiled)},
        placement=HostPart(is_leader=False, spread=True, address="10.0.1.10"),
    )
    report = examine(context, "node-1")
    assert {each.level for each in report.findings if each.check != "model"} <= {
        "ok", "note", "skipped",
    }  # fmt: skip
    assert report.facts["driver neuron"] == "2.26.5.0"
    assert report.facts["instance type"] == "trn1.32xlarge"
    assert report.facts["rufus-serve"] == __version__
    assert report.mtu == 9001
    assert report.model


def test_every_error_and_warning_says_why_and_what_to_do(llama_8b: str):
    system = RecordedSystem()
    system.limits = dict.fromkeys(("memlock", "nofile", "nproc"), (1, 1))
    context = neuron_context(system, model=llama_8b)
    bad = [
        finding
        for check in CHECKS
        for finding in check(context)
        if finding.level in ("error", "warning")
    ]
    assert len(bad) >= 8
    for finding in bad:
        assert finding.why
        assert finding.fix
        assert (finding.level == "error") == (finding.exit_code > 0), finding
