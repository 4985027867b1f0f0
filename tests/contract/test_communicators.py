"""One suite over every implementation of `Communicator`."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
import torch
from runtime_group import SOON_S

from rufus_serve.errors import CollectiveAborted
from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.cpu.collectives import connect

_numbers = count()
KINDS = ["shared_memory", "sockets"]
LARGE = 3 * (1 << 20) // 4 + 5
"""Elements of float32 that take several slots of shared memory."""


@pytest.fixture(params=[(kind, nodes) for kind in KINDS for nodes in (2, 3, 4)], ids=str)
def run(request):
    """Runs a function on every follower of a group, given its communicator and node rank."""
    kind, num_nodes = request.param
    aborted = threading.Event()
    rendezvous = f"rufus-communicators-{next(_numbers)}"
    threads = ThreadPoolExecutor(num_nodes)

    def join(rank):
        group = GroupSpec(
            epoch=1, node_rank=rank, num_nodes=num_nodes, rendezvous=rendezvous,
            same_host=True, num_blocks=2,
        )  # fmt: skip
        return connect(kind, group, aborted=aborted, deadline_s=SOON_S)

    members = list(threads.map(join, range(num_nodes)))

    def run(function):
        return list(threads.map(function, members, range(num_nodes)))

    run.num_nodes, run.aborted = num_nodes, aborted
    yield run
    for member in members:
        member.close()
        member.close()
    threads.shutdown()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 577, LARGE])
def test_sums_are_right_and_the_same_bits_everywhere(run, dtype, size):
    parts = torch.randn(run.num_nodes, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = run(lambda member, rank: member.all_reduce(parts[rank].clone()))
    for result in results:
        assert torch.equal(result, results[0])
    spread = 1e-5 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(results[0].float(), parts.float().sum(0), atol=spread, rtol=0.02)


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("width", [5, LARGE // 2])
def test_uneven_parts_are_gathered_on_node_rank_0(run, num_rows, width):
    widths = [width + (rank < 1) for rank in range(run.num_nodes)]
    parts = [torch.randn(num_rows, size) for size in widths]
    first, *others = run(lambda member, rank: member.gather(parts[rank], widths))
    assert all(torch.equal(*pair) for pair in zip(first, parts, strict=True))
    assert others == [None] * len(others)


def test_operations_in_any_rhythm_do_not_mix(run):
    widths = [3] * run.num_nodes

    def play(member, rank):
        rhythm = random.Random(rank)
        order = random.Random(99)
        for turn in range(150):
            if rhythm.random() < 0.1:
                time.sleep(rhythm.random() * 2e-3)
            own = torch.full((1, 3), float(turn + rank))
            if order.random() < 0.5:
                gathered = member.gather(own, widths)
                if rank == 0:
                    assert [part[0, 0].item() for part in gathered] == [
                        float(turn + peer) for peer in range(run.num_nodes)
                    ]
            else:
                total = sum(turn + peer for peer in range(run.num_nodes))
                assert member.all_reduce(own)[0, 2].item() == total
        return True

    assert all(run(play))


def test_waiting_is_counted(run):
    def play(member, rank):
        before = member.wait_s
        if rank == 1:
            time.sleep(0.2)
        member.all_reduce(torch.zeros(1))
        return member.wait_s - before

    waited = run(play)
    assert waited[0] > 0.15
    assert waited[1] < 0.15


def test_all_raise_when_one_leaves(run):
    def play(member, rank):
        if rank == run.num_nodes - 1:
            member.close()
            return "left"
        try:
            member.all_reduce(torch.zeros(1))
        except CollectiveAborted as error:
            member.close()
            return str(error)
        return "summed"

    *stayed, _ = run(play)
    assert all("left the group" in outcome for outcome in stayed)


def test_an_abort_ends_the_wait_soon(run):
    def play(member, rank):
        if rank == 0:
            time.sleep(0.1)
            run.aborted.set()
            return 0.0
        started = time.monotonic()
        with pytest.raises(CollectiveAborted, match="aborted"):
            member.all_reduce(torch.zeros(1))
        return time.monotonic() - started

    assert max(run(play)) < 1.0
