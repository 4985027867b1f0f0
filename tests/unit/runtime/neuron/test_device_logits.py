"""Candidates that graphs found, and rows that are fetched once something else is asked."""

import numpy as np
import pytest

from rufus_serve.leader.engine.step_builder import IN_FULL, Want, row_wants
from rufus_serve.runtime.candidates import pick
from rufus_serve.runtime.neuron.device_logits import DeviceLogits, Packed, temperatures_of

VOCAB, COUNT = 40, 6
WHOLE = np.random.default_rng(3).integers(-8, 8, (5, VOCAB)).astype(np.float32)
"""Of a graph of five rows; whole numbers, so that many are equal."""


class Graph:
    """Finds what a graph would, equals in any order, and counts what is fetched."""

    def __init__(self):
        self.fetched = 0

    def call(self, rows, graph_rows, temperatures):
        """The graph's answer to a call, of `graph_rows` of `WHOLE`, for `rows` of the step."""
        told = np.where(temperatures[list(rows)] > 0, temperatures[list(rows)], 1.0)
        found = [self._found(*each) for each in zip(graph_rows, told, strict=True)]
        return Packed(rows, np.stack(found), told, self._fetch)

    def _found(self, row, temperature):
        logits = WHOLE[row]
        ids = np.lexsort((-np.arange(VOCAB), -logits))[:COUNT]
        total = np.log(np.exp(logits / temperature).sum())
        return np.concatenate((logits[ids], ids, [total, row])).astype(np.float32)

    def _fetch(self):
        self.fetched += 1
        return WHOLE.copy()


@pytest.fixture
def graph():
    return Graph()


@pytest.fixture
def step(graph):
    """A step of three rows, which two calls answered."""

    def step(*wants):
        temperatures = temperatures_of(row_wants(wants), 3)
        calls = ((1,), [4]), ((2, 0), [3, 0])
        return DeviceLogits([graph.call(*each, temperatures) for each in calls])

    return step


def assert_as_of_whole_rows(found, wants):
    expected = pick(WHOLE[[0, 4, 3]].copy(), row_wants(wants))
    assert found.logits.tolist() == expected.logits.tolist()
    assert found.token_logits.tolist() == expected.token_logits.tolist()
    np.testing.assert_allclose(found.log_totals, expected.log_totals, rtol=1e-6)
    return expected


def test_what_the_graphs_found_is_told_without_a_row_in_full(step, graph):
    wants = (Want(1), Want(4, (0.5, 0.0)), IN_FULL)
    assert_as_of_whole_rows(step(*wants).candidates(row_wants(wants)), wants)
    assert graph.fetched == 0


def test_equals_come_in_the_order_of_their_ids(step):
    logits, ids = WHOLE[0], step(Want(1), Want(1), Want(1)).candidates(
        row_wants([Want(1)] * 3)
    ).ids  # fmt: skip
    best = np.sort(np.lexsort((-np.arange(VOCAB), -logits))[:COUNT])
    assert ids[0] == min(each for each in best if logits[each] == logits.max())


@pytest.mark.parametrize(
    "want",
    [Want(COUNT + 1), Want(2, (0.5, 1.0)), Want(2, (1.0, 0.0), np.array([5], np.int32))],
    ids=["more candidates", "two totals", "named tokens"],
)
def test_what_they_did_not_find_is_found_in_rows_fetched_once(step, graph, want):
    wants = (want, Want(1), want)
    kept = step(*wants)
    found = kept.candidates(row_wants(wants))
    assert found.ids.tolist() == assert_as_of_whole_rows(found, wants).ids.tolist()
    kept.rows(np.array([0]))
    assert graph.fetched == 1


def test_rows_in_full_are_those_of_their_calls(step, graph):
    kept = step(IN_FULL, IN_FULL, IN_FULL)
    assert kept.rows(np.array([2, 0, 1])).tolist() == WHOLE[[3, 0, 4]].tolist()
    assert graph.fetched == 2


def test_a_row_is_asked_at_the_one_temperature_that_it_wants():
    wants = row_wants([Want(1), Want(1, (0.5, 1.0)), Want(1, (0.0, 1.0)), Want(1, (0.25, 0.0))])
    assert temperatures_of(wants, 4).tolist() == [0.0, 0.5, 1.0, 0.25]
    assert temperatures_of(None, 2).tolist() == [0.0, 0.0]
