"""Context-parallel prefill cuts the prompt, data-parallel decode cuts the batch."""

from contextlib import nullcontext

import pytest
from nxdi_group import Failed, Group, Reference, write_model
from nxdi_schedules import check_schedules
from tests.contract.step_sequences import CONTIGUOUS

pytestmark = pytest.mark.timeout(300)

CP, DP = {"cp_degree": 2}, {"attention_dp_degree": 2}


@pytest.fixture(scope="module")
def even_model(tmp_path_factory):
    """8 query and 2 KV heads: four ranks, and groups of two, divide both."""
    return write_model(tmp_path_factory.mktemp("even"), "Llama", heads=8, kv_heads=2)


def settings(model, degrees):
    neuron = CONTIGUOUS["neuron"] | {"mode": "nxdi-cpu", "cores_per_node": 1} | degrees
    return CONTIGUOUS | {
        "model": str(model), "runtime": "neuron", "nodes": 4, "max_num_seqs": 4,
        "dtype": "float32", "neuron": neuron,
    }  # fmt: skip


@pytest.mark.parametrize("degrees", [CP, DP, CP | DP], ids=["cp2", "dp2", "cp2-dp2"])
def test_every_schedule_gives_the_reference_logits(even_model, start_group, degrees):
    group = start_group(settings(even_model, degrees))
    check_schedules(group, Reference(even_model), "contiguous")
    group.close()


def first_row_of_a_mesh_only(_):
    from rufus_serve.runtime.neuron import cpu_mode

    cpu_mode.whole_meshes = nullcontext


def heads_in_one_order_for_both_phases(_):
    from rufus_serve.runtime.neuron import cpu_mode

    cpu_mode.kept_rank_ordering = nullcontext


def test_gloo_alone_makes_a_meshs_first_row_and_the_rank_outside_it_says_so(even_model):
    group = Group(settings(even_model, CP), unguarded=first_row_of_a_mesh_only)
    with pytest.raises(Failed, match="AttributeError: 'int' object has no attribute 'size'"):
        group.start()
    for rank in range(4):
        group.kill(rank)
    group.close()


@pytest.mark.parametrize("degrees", [CP, DP], ids=["cp2", "dp2"])
def test_without_its_rank_ordering_decode_is_wrong(even_model, degrees):
    group = Group(
        settings(even_model, degrees), unguarded=heads_in_one_order_for_both_phases
    ).start()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_schedules(group, Reference(even_model), "contiguous")
    group.close()
