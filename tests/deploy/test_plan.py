"""What is shipped agrees with the planner: nothing that it advises against, and enough memory."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rufus_serve.config.sources import resolve
from rufus_serve.model.shape import read_model_shape
from rufus_serve.plan.advice import advice
from rufus_serve.plan.hardware import instance_named
from rufus_serve.plan.plan import Plan, make_plan
from rufus_serve.plan.request import PlanRequest
from tests.deploy.chart import PROFILES, ROOT, job, one, render

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "head_dim": 128,
}  # fmt: skip
SIZES = {
    "8b": (4096, 14336, 32, 32),
    "70b": (8192, 28672, 80, 64),
    "405b": (16384, 53248, 126, 128),
}
"""Hidden and intermediate size, layers and heads of Llama 3.1."""
VALUES = sorted((ROOT / "deploy" / "eks").glob("values-*b.yaml"))
CONFIGS = [
    each
    for each in sorted((ROOT / "configs").glob("*trn1*.yaml"))
    # It shows a shape of parallelism, and says itself that two groups of one node are faster.
    if "hybrid" not in each.name
]
ELSEWHERE = "Run `rufus-serve compile` on a larger host"
UNMEASURED = "the network terms here were never measured"
GIB = 1 << 30
NODE_GIB = {"r7i.24xlarge": 768, "r7i.48xlarge": 1536}
USABLE = 0.9


def planned(settings: Any, name: str, folder: Path) -> Plan:
    (size,) = [each for each in SIZES if f"-{each}" in name]
    hidden, intermediate, layers, heads = SIZES[size]
    shape = {"hidden_size": hidden, "intermediate_size": intermediate}
    shape |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    (folder / "config.json").write_text(json.dumps(LLAMA | shape))
    return make_plan(
        PlanRequest(
            shape=read_model_shape(folder),
            instance=instance_named("trn1.32xlarge"),
            num_nodes=settings.nodes,
            cores_per_node=settings.neuron.cores_per_node,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            cp_degree=settings.neuron.cp_degree,
            attention_dp_degree=settings.neuron.attention_dp_degree,
        )
    )


def settings_of(documents, folder: Path) -> Any:
    maps = [each["data"] for each in documents if each["kind"] == "ConfigMap"]
    (text,) = [data["config.yaml"] for data in maps if "config.yaml" in data]
    (folder / "serve.yaml").write_text(text)
    return resolve(file=folder / "serve.yaml", environ={}, flags={}).config


def assert_advised(plan: Plan) -> None:
    assert plan.fits
    remarks = advice(plan)
    bad = [each.text for each in remarks if each.level == "warning"]
    assert [text for text in bad if ELSEWHERE not in text and UNMEASURED not in text] == []
    assert [each.text for each in remarks if "not one group of" in each.text] == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_shipped_configuration_is_one_that_the_planner_advises(file, tmp_path):
    config = resolve(file=file, environ={}, flags={}).config
    assert_advised(planned(config, file.stem, tmp_path))


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_shipped_values_are_ones_that_the_planner_advises(helm, file, tmp_path):
    documents = render(values=[PROFILES["trn1.32xlarge"], file])
    plan = planned(settings_of(documents, tmp_path), file.stem, tmp_path)
    assert_advised(plan)
    token_s = yaml.safe_load(file.read_text())["drain"]["tokenSeconds"]
    assert plan.decode[-1].max_ms / 1000 <= token_s < 1.5 * plan.decode[-1].max_ms / 1000


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_the_compile_job_has_the_memory_that_the_planner_asks_for(helm, file, tmp_path):
    documents = render(values=[PROFILES["trn1.32xlarge"], file])
    plan = planned(settings_of(documents, tmp_path), file.stem, tmp_path)
    (container,) = job(documents, "compile")["spec"]["template"]["spec"]["containers"]
    limit = gib(container["resources"]["limits"]["memory"])
    assert plan.start_up.compile_host_bytes / GIB <= limit
    for said in re.findall(r"(\d+) GiB by `plan`", file.read_text()):
        assert int(said) == round(plan.start_up.compile_host_bytes / GIB)
    # On the node that cluster.yaml starts, or the larger one that the values name.
    (cluster,) = yaml.safe_load_all((ROOT / "deploy/eks/cluster.yaml").read_text())
    groups = {each["name"]: each["instanceType"] for each in cluster["managedNodeGroups"]}
    named = re.findall(r"r7i\.\d+xlarge", file.read_text())
    assert limit <= USABLE * NODE_GIB[(named or [groups["compile"]])[0]]


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_a_follower_has_room_for_its_shards(helm, file, tmp_path):
    documents = render(values=[PROFILES["trn1.32xlarge"], file])
    plan = planned(settings_of(documents, tmp_path), file.stem, tmp_path)
    values = yaml.safe_load(file.read_text())
    shards = plan.memory.weights * plan.request.cores_per_node / GIB
    assert shards <= gib(values["storage"]["cache"]["size"])
    lws = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    assert shards <= gib(values["storage"]["model"]["size"])
    assert lws["size"] == plan.request.num_nodes


def gib(quantity: str) -> int:
    return int(quantity.removesuffix("Gi"))
