import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.unit.kernels.conftest import LIBRARIES

from rufus_serve.kernels.candidate_search import CandidateSearch
from rufus_serve.protocol.messages import RowWants
from rufus_serve.runtime.candidates import pick_by_numpy

TEMPERATURES = st.sampled_from([0.0, 0.1, 0.7, 1.0, 4.0])


@pytest.fixture
def search(kernels):
    return CandidateSearch(kernels)


@st.composite
def _logits(draw):
    """[R, V] with many equals, zeros of both signs, and infinities."""
    values = st.integers(-8, 8).map(lambda value: value / 2)
    others = st.sampled_from([-np.inf, -0.0, 1e30, -1e30])
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 2500)))
    return draw(hnp.arrays(np.float32, shape, elements=values | others, fill=values))


def wants_of(rows) -> RowWants:
    """Of each row's K, temperatures and named tokens."""
    return RowWants(
        num_candidates=np.array([count for count, _, _ in rows], np.int32),
        temperatures=np.array([temperatures for _, temperatures, _ in rows], np.float32),
        num_token_ids=np.array([len(named) for _, _, named in rows], np.int32),
        token_ids=np.array([token for _, _, named in rows for token in named], np.int32),
    )


@st.composite
def _cases(draw):
    logits, first_id = draw(_logits()), draw(st.sampled_from([0, 1000]))
    named = st.lists(st.integers(0, first_id + logits.shape[1] + 5), max_size=20)
    row = st.tuples(st.integers(-1, 600), st.tuples(TEMPERATURES, TEMPERATURES), named)
    rows = draw(st.lists(row, min_size=len(logits), max_size=len(logits)))
    return logits, wants_of(rows), first_id


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.name)
@settings(max_examples=150, deadline=None)
@given(case=_cases())
def test_are_those_that_numpy_finds(library, case):
    logits, wants, first_id = case
    before = logits.copy()
    found, held = CandidateSearch(library).pick(logits, wants, first_id=first_id)
    assert (logits.view(np.int32) == before.view(np.int32)).all()
    expected = pick_by_numpy(logits, wants, first_id=first_id)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.logits.tolist() == expected.logits.tolist()
    assert found.token_logits.tolist() == expected.token_logits.tolist()
    np.testing.assert_allclose(found.log_totals, expected.log_totals, rtol=1e-6, atol=1e-6)
    stop = 0
    for row, (count, temperature) in enumerate(
        zip(wants.num_candidates.clip(0).tolist(), wants.temperatures[:, 0], strict=True)
    ):
        best = expected.logits[stop : (stop := stop + count)].astype(float)
        others = logits[row].astype(float)
        named = wants.token_ids[wants.num_token_ids[:row].sum() :][: wants.num_token_ids[row]]
        places = named - first_id
        others[places[(places >= 0) & (places < len(others))]] = -np.inf
        peak = others.max()
        has_total = temperature and np.isfinite(peak)
        weigh = lambda some: np.exp((some - peak) / temperature).sum()  # noqa: B023, E731
        known = weigh(best) / weigh(others) if has_total else 0.0
        assert held[row] == pytest.approx(known, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 256, 1024, 128_256])
def test_of_a_large_row_are_those_that_torch_sorts_to_the_front(search, count):
    torch.manual_seed(0)
    # Halves round to equals, so that the order of ids decides.
    logits = (torch.randn(2, 128_256) * 3).half().float()
    wants = wants_of([(count, (0.8, 1.0), [])] * 2)
    found, _ = search.pick(logits.numpy(), wants, first_id=0)
    best, ids = logits.sort(dim=1, descending=True, stable=True)
    assert found.ids.tolist() == ids[:, :count].reshape(-1).tolist()
    assert found.logits.tolist() == best[:, :count].reshape(-1).tolist()
    for column, temperature in enumerate(wants.temperatures[0].tolist()):
        totals = (logits.double() / temperature).logsumexp(dim=1)
        np.testing.assert_allclose(found.log_totals[:, column], totals, atol=2e-6)


def test_a_team_finds_what_one_thread_finds(kernels):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 40_000)).astype(np.float32) * 3
    rows = [(row % 3 * 100 - 1, (0.8, row % 2), [row, 50, 39_999 - row]) for row in range(40)]
    wants = wants_of(rows)
    expected, alone = CandidateSearch(kernels).pick(logits, wants, first_id=0)
    team = CandidateSearch(kernels, num_threads=3)
    # Two at a time: one has the team's help.
    with ThreadPoolExecutor(2) as pool:
        works = [pool.submit(team.pick, logits.copy(), wants, first_id=0) for _ in range(20)]
        results = [work.result(60) for work in works]
    for found, held in results:
        assert (held == alone).all()
        for name in ("logits", "ids", "log_totals", "token_logits"):
            assert (getattr(found, name) == getattr(expected, name)).all()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU alone")
def test_a_thread_that_slept_may_run_anywhere_once_it_woke(kernels):
    tasks = Path("/proc/self/task")
    others = set(tasks.iterdir())
    team = CandidateSearch(kernels, num_threads=2)
    (worker,) = set(tasks.iterdir()) - others
    logits = np.zeros((40, 40_000), np.float32)
    wants = wants_of([(1, (0.0, 0.0), [])] * 40)
    for _ in range(3):
        # Long enough for it to be asleep, so that it is sent to another CPU than this one.
        time.sleep(0.02)
        team.pick(logits, wants, first_id=0)
    deadline = time.monotonic() + 10
    while os.sched_getaffinity(int(worker.name)) != os.sched_getaffinity(0):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_no_number_comes_last_and_leaves_no_total(search):
    logits = np.array([[np.nan, 1, -np.inf, np.nan, 2]], np.float32)
    found, _ = search.pick(logits, wants_of([(5, (1.0, 0.0), [])]), first_id=0)
    assert found.ids.tolist() == [4, 1, 2, 0, 3]
    assert np.isnan(found.log_totals[0, 0])


@pytest.mark.parametrize(
    ("row", "best"),
    [
        ([np.nan, 1, np.nan, 1, 0], 1),
        ([-1, -0.0, 0.0, -2], 1),
        ([-np.inf, -np.inf, 3, np.inf, np.inf], 3),
        ([*[0] * 3000, 2, *[1] * 4000, 2], 3000),
    ],
)
def test_the_best_one_is_the_first_of_equals(search, row, best):
    found, _ = search.pick(np.array([row], np.float32), wants_of([(1, (0.0, 0.0), [])]), first_id=0)
    assert found.ids.tolist() == [best]
    assert found.logits.tolist() == [row[best]]


def test_a_row_of_nothing_has_no_total(search):
    found, _ = search.pick(
        np.full((1, 20), -np.inf, np.float32), wants_of([(2, (0.5, 0.0), [])]), first_id=0
    )
    assert found.ids.tolist() == [0, 1]
    assert found.log_totals.tolist() == [[-np.inf, 0.0]]


def test_wants_that_do_not_fit_the_rows_are_refused(search):
    logits = np.zeros((2, 20), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        search.pick(logits, wants_of([(1, (0.0, 0.0), [])]), first_id=0)
    torn = wants_of([(1, (0.0, 0.0), [3]), (1, (0.0, 0.0), [])])
    torn.num_token_ids[1] = 2
    with pytest.raises(ValueError, match="do not fit"):
        search.pick(logits, torn, first_id=0)


def test_an_empty_share_of_the_vocabulary_has_nothing(search):
    wants = wants_of([(2, (1.0, 0.0), [3])])
    found, _ = search.pick(np.empty((1, 0), np.float32), wants, first_id=9)
    assert found.logits.tolist() == [-np.inf] * 2
    assert found.token_logits.tolist() == [-np.inf]
    assert found.log_totals.tolist() == [[-np.inf, 0.0]]
