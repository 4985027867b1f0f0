import msgspec
import pytest

from rufus_serve.config.checks import conflicts
from rufus_serve.config.schema import ServeConfig
from rufus_serve.doctor.stages import bring_up_stages, smallest_degree
from rufus_serve.plan.published import LLAMA3_8B, LLAMA3_70B

DEVICE = {"runtime": "neuron"}
NXDI_CPU = {"runtime": "neuron", "neuron": {"mode": "nxdi-cpu", "cores_per_node": 1}}


def stages(**settings):
    return bring_up_stages(ServeConfig(model="m", **settings), LLAMA3_70B)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [(1, 1), (2, 1)]), (DEVICE, [(1, 2), (2, 1)]), (NXDI_CPU, [(1, 1), (2, 1)])],
    ids=["cpu", "device", "nxdi-cpu"],
)
def test_one_process_comes_before_several_with_as_many_ranks(settings, expected):
    found = stages(**settings)
    shapes = [(stage.config.nodes, stage.config.neuron.cores_per_node) for stage in found[:2]]
    assert shapes == expected
    assert found[1].name == "2 processes on this host"


def test_each_small_stage_has_one_graph_of_a_kind_and_settings_that_agree():
    configured = {
        "max_model_len": 8192, "max_num_seqs": 32, "num_blocks": 4096,
        "neuron": {"cp_degree": 2, "attention_dp_degree": 2},
        "buckets": {"prefill": [512, 8192], "context": [8192], "decode_batch": [32]},
        "artifacts": {"location": "/artifacts", "required": True},
    }  # fmt: skip
    for stage in stages(**DEVICE, **configured)[:2]:
        buckets = stage.config.buckets
        assert [len(sizes) for sizes in (buckets.prefill, buckets.decode_batch)] == [1, 1]
        assert conflicts(stage.config) == []
        assert stage.config.cluster.kind == "local"
        assert not stage.config.artifacts.location


def test_several_hosts_are_tried_once_they_are_configured(tmp_path):
    alone = stages()[-1]
    assert (alone.name, alone.skipped[:24]) == ("as configured", "neither cluster.token_fi")
    spread = ServeConfig(model="m", nodes=2, cluster={"token_file": tmp_path / "token"})
    last = bring_up_stages(spread, LLAMA3_8B)[-1]
    assert (last.config, last.skipped) == (spread, "")


def test_the_degree_is_one_that_kv_heads_allow():
    assert smallest_degree(LLAMA3_70B) == 2
    prime = msgspec.structs.replace(LLAMA3_8B, intermediate_size=50, num_q_heads=9, num_kv_heads=3)
    assert smallest_degree(prime) == 1
    neuron = ServeConfig(model="m", runtime="neuron")
    assert "no tensor parallel degree" in bring_up_stages(neuron, prime)[1].skipped
    assert bring_up_stages(ServeConfig(model="m"), prime)[1].config.nodes == 2
    odd = msgspec.structs.replace(
        LLAMA3_8B, num_q_heads=9, num_kv_heads=3, hidden_size=576, intermediate_size=1536
    )
    assert smallest_degree(odd) == 3
