"""Candidates that graphs find, their output layer staying sharded, are those of whole rows."""

import msgspec
import numpy as np
import pytest
from nxdi_group import Reference, write_model
from nxdi_schedules import check_schedules
from test_nxdi_hybrid import CP, DP
from test_nxdi_hybrid import settings as hybrid_settings
from test_nxdi_runtime import over_layouts, settings_of
from test_start_guards import saved_differences
from tests.contract.step_sequences import Sequences

from rufus_serve.leader.engine.step_builder import IN_FULL, Want, row_wants
from rufus_serve.runtime.candidates import pick
from rufus_serve.runtime.neuron.device_logits import DeviceLogits

pytestmark = pytest.mark.timeout(300)

COUNT = 64
GREEDY, RANDOM, LOGPROBS = Want(1), Want(COUNT, (0.7, 0.0)), Want(20, (0.0, 1.0))
NAMED = Want(5, (1.0, 0.0), np.array([7, 300], np.int32))
TOLD = (GREEDY, RANDOM, LOGPROBS, IN_FULL)
NOT_TOLD = (Want(COUNT + 1), Want(3, (0.7, 1.0)), NAMED)


def with_candidates(settings):
    return settings | {"neuron": settings["neuron"] | {"device_candidates": COUNT}}


@over_layouts
def group(request, model, start_group):
    group = start_group(with_candidates(settings_of(model, *request.param)))
    group.layout, _ = request.param
    return group


def sampled(runtime, request):
    """Candidates, whether rows were fetched in full for them, and all rows in full."""
    kept = getattr(runtime, request.phase.value)(request)
    if kept is None or not isinstance(kept, DeviceLogits):
        return None
    candidates = kept.candidates(request.wants)
    return candidates, bool(kept._fetched), kept.rows(np.arange(request.num_rows))


class Asking:
    """Steps whose rows want all kinds of things in turn; compared with what whole rows tell."""

    def __init__(self, group, kinds, *, are_told):
        self.info = group.info
        self._group, self._kinds, self._are_told = group, kinds, are_told
        self._turn = 0

    def step(self, step):
        wants = [self._kinds[(self._turn + row) % len(self._kinds)] for row in range(step.num_rows)]
        self._turn += 1
        step = msgspec.structs.replace(step, wants=row_wants(wants) or row_wants([GREEDY]))
        if not step.want_logits:
            return self._group.step(step)
        found, fetched, rows = self._group.all("probe", sampled, step)[0]
        assert fetched is not self._are_told
        expected = pick(rows, step.wants)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.logits.tolist() == expected.logits.tolist()
        assert found.token_logits.tolist() == expected.token_logits.tolist()
        np.testing.assert_allclose(found.log_totals, expected.log_totals, atol=2e-6, rtol=1e-6)
        return rows


def test_artifacts_made_for_other_candidates_are_told_apart(group):
    assert group.probe(saved_differences, {}) == []
    other = {"on_device_sampling_config": {"global_topk": COUNT + 1}}
    (difference,) = group.probe(saved_differences, other)
    assert difference.startswith("on_device_sampling_config is")


def two_outputs(_):
    from rufus_serve.runtime.neuron import runtime

    runtime.hide_logits = lambda _: None


def test_a_second_output_is_taken_for_a_kv_cache(model, reference, start_group):
    settings = with_candidates(settings_of(model, "contiguous", 1))
    group = start_group(settings, unguarded=two_outputs)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_schedules(group, reference, "contiguous")


def test_rows_fetched_in_full_are_the_references(group, reference):
    check_schedules(group, reference, group.layout)


def test_what_graphs_tell_is_what_whole_rows_tell_and_none_is_fetched(group, reference):
    check_schedules(Asking(group, TOLD, are_told=True), reference, group.layout)


@pytest.mark.parametrize("want", NOT_TOLD, ids=["too-many", "two-totals", "named"])
def test_what_graphs_do_not_tell_is_found_in_rows_fetched_for_it(group, prompt, want):
    sequences = Sequences(Asking(group, (want,), are_told=False).step, group.info)
    for name, length in (("a", 5), ("b", 30), ("c", 17)):
        sequences.add(name, prompt(length))
    sequences.decode(*"bca")
    sequences.decode(*"ab")
    sequences.decode(*"cab")


@pytest.mark.parametrize("degrees", [CP, DP], ids=["cp2", "dp2"])
def test_candidates_go_with_hybrid_parallelism(tmp_path_factory, start_group, degrees):
    model = write_model(tmp_path_factory.mktemp("even"), "Llama", heads=8, kv_heads=2)
    group = start_group(with_candidates(hybrid_settings(model, degrees)))
    check_schedules(Asking(group, TOLD, are_told=True), Reference(model), "contiguous")
    group.close()
