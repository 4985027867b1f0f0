"""What a group does when it is aborted, joined anew, or loses a follower."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from runtime_group import RUNTIMES, SOON_S, Group
from runtime_models import VOCAB, reference, write_model
from runtime_sequences import Sequences

from rufus_serve.errors import CollectiveAborted, RuntimeStepError

PROMPT = np.random.default_rng(5).integers(3, VOCAB, 21).tolist()
SETTINGS = {"dtype": "float32", "block_size": 8, "max_num_seqs": 2, "buckets": {"prefill": [32]}}
COLLECTIVES = {
    "cpu": [{"cpu": {"collective": "shared_memory"}}, {"cpu": {"collective": "sockets"}}],
}
CASES = [
    pytest.param((kind, changes), id=f"{kind}-{index}")
    for kind in RUNTIMES
    for index, changes in enumerate(COLLECTIVES.get(kind, [{}]))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(params=CASES)
def start(request, folder):
    """Starts groups of the case."""
    kind, changes = request.param
    groups = []

    def start(nodes, *, in_processes=False, **more):
        settings = SETTINGS | changes | {"model": str(folder), "nodes": nodes} | more
        groups.append(Group(RUNTIMES[kind], settings, in_processes=in_processes))
        return groups[-1].start()

    yield start
    for group in groups:
        group.close()


def assert_right(group, folder, epoch):
    sequences = Sequences(group, epoch=epoch, seed=epoch)
    sequences.add("a", PROMPT)
    assert sequences.generate(["a"], 5)["a"] == reference(folder).greedy(PROMPT, 5)


def outcome(future, within_s=SOON_S):
    """The error that a call ended with, and how long it took to."""
    started = time.monotonic()
    error = future.exception(within_s)
    return error, time.monotonic() - started


def a_prefill(group):
    sequences = Sequences(group)
    sequences.add("a", PROMPT)
    return sequences.prefill_request("a", len(PROMPT))


def test_an_abort_ends_a_collective_that_waits_for_a_peer(start, folder):
    group = start(3)
    waiting = [worker.submit("prefill", a_prefill(group)) for worker in group.workers[:2]]
    time.sleep(0.2)
    assert not any(future.done() for future in waiting)
    group.all("abort")
    for future in waiting:
        error, took_s = outcome(future)
        assert isinstance(error, CollectiveAborted)
        assert took_s < 2.0
    group.join(2)
    assert_right(group, folder, 2)


def test_one_follower_that_aborts_frees_its_peers(start):
    group = start(3)
    waiting = [worker.submit("prefill", a_prefill(group)) for worker in group.workers[:2]]
    time.sleep(0.1)
    group.workers[1].submit("abort")
    for future in waiting:
        assert isinstance(outcome(future, 5.0)[0], CollectiveAborted)


def test_after_an_abort_every_step_fails_until_the_next_join(start, folder):
    group = start(2)
    group.all("abort")
    for _ in range(2):
        for worker in group.workers:
            error, _ = outcome(worker.submit("prefill", a_prefill(group)))
            assert isinstance(error, CollectiveAborted)
    group.join(2)
    assert_right(group, folder, 2)


def test_joining_anew_keeps_the_weights_and_empties_the_cache(start, folder):
    group = start(2)
    for epoch in range(1, 4):
        if epoch > 1:
            group.join(epoch)
        sequences = Sequences(group, epoch=epoch)
        sequences.add("a", PROMPT)
        first = sequences.prefill("a")
        sequences.tokens["a"].append(7)
        sequences.decode("a")
    # A cache that has been voided shows zero keys where this prefix was.
    blocks = sequences.blocks["a"]
    group.join(4)
    after = Sequences(group, epoch=4)
    after.add("a", PROMPT)
    after.blocks["a"], after.computed["a"] = blocks, 16
    assert np.abs(after.prefill("a") - first).max() > 1e-3


def test_an_abort_ends_a_join_whose_peers_stay_away(start):
    group = start(2)
    joining = group.workers[0].submit("join", group.specs(2)[0])
    time.sleep(0.2)
    assert not joining.done()
    group.workers[0].submit("abort")
    assert isinstance(outcome(joining, 5.0)[0], CollectiveAborted)


def test_a_join_whose_peers_stay_away_ends_at_its_deadline(start):
    group = start(2, timeouts={"warm_up_s": 5.0})
    for worker, spec in zip(group.workers, group.specs(2), strict=True):
        if spec.node_rank == 1:
            error, _ = outcome(worker.submit("join", spec))
            assert isinstance(error, CollectiveAborted)
            assert "follower 0 did not come" in str(error)


def test_a_group_of_another_size_than_loaded_is_refused(start):
    group = start(2)
    spec = group.specs(2)[0]
    for wrong in (
        {"num_nodes": 3},
        {"node_rank": 1},
        {"num_blocks": group.num_blocks + 1},
        {"num_blocks": 1},
    ):
        fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
        error, _ = outcome(group.workers[0].submit("join", type(spec)(**(fields | wrong))))
        assert isinstance(error, RuntimeStepError)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_follower_frees_its_peers_and_leaves_nothing_behind(start, victim):
    group = start(3, in_processes=True)
    others = [worker for rank, worker in enumerate(group.workers) if rank != victim]
    before = shared_memory_files()
    waiting = [worker.submit("prefill", a_prefill(group)) for worker in others]
    time.sleep(0.3)
    os.kill(group.workers[victim].process.pid, signal.SIGKILL)
    for future in waiting:
        error, took_s = outcome(future, 20.0)
        assert isinstance(error, CollectiveAborted)
        assert took_s < 10.0
    assert shared_memory_files() == before == set()


def test_a_stopped_follower_holds_nobody_past_the_abort(start):
    group = start(2, in_processes=True)
    stopped = group.workers[1].process.pid
    waiting = group.workers[0].submit("prefill", a_prefill(group))
    os.kill(stopped, signal.SIGSTOP)
    try:
        time.sleep(0.3)
        group.workers[0].submit("abort")
        assert isinstance(outcome(waiting, 10.0)[0], CollectiveAborted)
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_followers_in_processes_of_their_own_give_the_reference_tokens(start, folder):
    group = start(4, in_processes=True)
    assert_right(group, folder, 1)
    group.all("abort")
    group.join(2)
    assert_right(group, folder, 2)


def test_followers_meet_over_tcp(folder):
    group = Group(RUNTIMES["cpu"], SETTINGS | TCP | {"model": str(folder), "nodes": 3})
    try:
        group.start(rendezvous=f"tcp://127.0.0.1:{free_port()}")
        assert_right(group, folder, 1)
        group.join(2, rendezvous=f"tcp://127.0.0.1:{free_port()}")
        assert_right(group, folder, 2)
    finally:
        group.close()


TCP = {"cpu": {"collective": "sockets"}}


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shared_memory_files():
    return {path.name for path in Path("/dev/shm").iterdir() if "rufus" in path.name}
