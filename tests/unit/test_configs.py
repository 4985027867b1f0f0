import re
from pathlib import Path

import pytest

from rufus_serve.config import resolve
from rufus_serve.plan.advice import advice
from rufus_serve.plan.hardware import instance_named
from rufus_serve.plan.plan import make_plan
from rufus_serve.plan.published import LLAMA3_8B, LLAMA3_70B, LLAMA31_405B
from rufus_serve.plan.request import PlanRequest
from rufus_serve.units import GIB

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
LLAMA_KV_HEADS = 8


def load(file: Path):
    return resolve(file=file, environ={}, flags={}).config


def test_there_are_examples():
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in FILES} != set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_example_resolves(file: Path):
    config = load(file)
    assert config.model
    assert config.max_model_len > 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_neuron_example_has_a_degree_that_kv_heads_divide(file: Path):
    config = load(file)
    if config.runtime == "neuron":
        assert config.nodes * config.neuron.cores_per_node % LLAMA_KV_HEADS == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_example_over_several_hosts_has_a_token_and_fixed_ports(file: Path):
    config = load(file)
    if config.runtime == "neuron" and config.nodes > 1:
        cluster = config.cluster
        assert cluster.token_file is not None
        assert all((cluster.control_port, cluster.step_port, cluster.rendezvous_port))


SHAPES = {
    "llama-3.1-8b": LLAMA3_8B, "llama-3.1-70b": LLAMA3_70B, "llama-3.1-405b": LLAMA31_405B,
}  # fmt: skip


def planned(config):
    neuron = config.neuron
    return make_plan(
        PlanRequest(
            shape=SHAPES[config.served_model_name],
            instance=instance_named("trn1.32xlarge"),
            num_nodes=config.nodes,
            cores_per_node=neuron.cores_per_node,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            cp_degree=neuron.cp_degree,
            attention_dp_degree=neuron.attention_dp_degree,
        )
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_an_example_says_of_memory_is_what_plan_says(file: Path):
    """Weights in GB, host memory to compile in GiB, and cores over all nodes."""
    config = load(file)
    if config.runtime != "neuron":
        return
    plan, said = planned(config), re.sub(r"\n# ", " ", file.read_text())
    figures = {
        r"(\d+) GiB of host memory": plan.start_up.compile_host_bytes / GIB,
        r"weights (?:are |\()(\d+) GB": plan.shape.num_params * 2 / 1e9,
        r"tensor parallel degree (\d+)": plan.request.degree,
    }
    for pattern, meant in figures.items():
        for found in re.findall(pattern, said):
            assert int(found) == round(meant), pattern


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_neuron_example_heeds_what_plan_warns_of(file: Path):
    config = load(file)
    if config.runtime != "neuron":
        return
    plan = planned(config)
    assert plan.fits
    warnings = [each.text for each in advice(plan) if each.level == "warning"]
    assert not [text for text in warnings if "not to compile" in text or "cores per node" in text]
    if any("host memory" in text for text in warnings):
        assert config.artifacts.required
        assert "host memory" in file.read_text()
