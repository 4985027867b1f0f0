from pathlib import Path

import pytest

from rufus_serve.config import resolve

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
