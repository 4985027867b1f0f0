"""Decodes of several tokens a row: NxD Inference's own graphs for verifying drafts."""

import pytest
from nxdi_group import Failed, Reference, write_model
from nxdi_schedules import check_schedules
from test_nxdi_candidates import GREEDY, RANDOM, Asking
from test_nxdi_hybrid import CP, DP
from tests.contract.step_sequences import DRAFTED

pytestmark = pytest.mark.timeout(300)


def settings(model, ranks, *, candidates=0):
    neuron = DRAFTED["neuron"] | {"mode": "nxdi-cpu", "cores_per_node": 1}
    return DRAFTED | {
        "model": str(model), "runtime": "neuron", "nodes": ranks, "max_num_seqs": 4,
        "dtype": "float32", "neuron": neuron | {"device_candidates": candidates},
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 3])
def test_texts_are_those_without_drafts_and_logits_the_references(
    model, reference, start_group, ranks
):
    group = start_group(settings(model, ranks))
    assert group.info.multi_token_decode
    check_schedules(group, reference, "drafted")
    group.close()


@pytest.mark.parametrize("ranks", [1, 3])
def test_candidates_of_drafts_are_those_of_whole_rows(model, reference, start_group, ranks):
    group = start_group(settings(model, ranks, candidates=64))
    check_schedules(Asking(group, (RANDOM, GREEDY), are_told=True), reference, "drafted")
    group.close()


@pytest.mark.parametrize("degrees", [CP, DP], ids=["cp2", "dp2"])
def test_drafts_go_with_hybrid_parallelism(tmp_path_factory, start_group, degrees):
    model = write_model(tmp_path_factory.mktemp("even"), "Llama", heads=8, kv_heads=2)
    even = {"max_model_len": 132, "buckets": {"prefill": [16, 64, 132], "context": [32, 64, 132]}}
    hybrid = settings(model, 4) | even
    group = start_group(hybrid | {"neuron": hybrid["neuron"] | degrees})
    check_schedules(group, Reference(model), "drafted")
    group.close()


def without_its_model(_):
    from contextlib import nullcontext

    from rufus_serve.runtime.neuron import cpu_mode

    cpu_mode.decodes_with_drafts = nullcontext


def masked_as_nxd_inference_does(_):
    from rufus_serve.runtime.layouts.contiguous import ContiguousLayout

    decode = ContiguousLayout._decode

    def unmasked(layout, *arguments):
        call = decode(layout, *arguments)
        del call.arguments["attention_mask"]
        return call

    ContiguousLayout._decode = unmasked


def test_cpu_mode_refuses_drafts_of_itself(model, start_group):
    with pytest.raises(Failed, match="Speculation is not yet supported for CPU inference"):
        start_group(settings(model, 1), unguarded=without_its_model)


def test_nxd_inferences_own_mask_is_of_other_tokens(model, reference, start_group):
    group = start_group(settings(model, 1), unguarded=masked_as_nxd_inference_does)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_schedules(group, reference, "drafted")
