import numpy as np
import pytest

from rufus_serve.channel.base import FollowerLost, HelloInfo
from rufus_serve.channel.ledger import StepLedger
from rufus_serve.errors import HandshakeRefused
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    Ack,
    Phase,
    StepEndpoint,
    StepFailed,
    StepReply,
    StepRequest,
    StepWelcome,
)

EMPTY = np.zeros(0, np.int32)


def request(step_id: int, epoch: int = 1) -> StepRequest:
    return StepRequest(
        step_id=step_id,
        epoch=epoch,
        phase=Phase.DECODE,
        token_ids=EMPTY,
        num_computed_tokens=EMPTY,
        context_lens=EMPTY,
        block_table=EMPTY,
        slot_mapping=EMPTY,
    )


def reply(step_id: int, node_rank: int, *, epoch: int = 1, compute_s: float = 0.0) -> StepReply:
    return StepReply(step_id=step_id, epoch=epoch, node_rank=node_rank, compute_s=compute_s)


def welcome(rank: int, **changes: object) -> StepWelcome:
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "config_hash": "aaaa",
        "epoch": 1,
        "node_rank": rank,
    }
    return StepWelcome(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def ledger() -> StepLedger:
    """Two followers, epoch 1, nothing heard yet."""
    ledger = StepLedger(HelloInfo(config_hash="aaaa", sender_id="me"))
    ledger.begin(
        1, [StepEndpoint(node_rank=rank, host=f"node{rank}", endpoint="e") for rank in (0, 1)]
    )
    return ledger


def test_all_are_welcome_once_each_follower_said_so(ledger: StepLedger) -> None:
    ledger.take(0, welcome(0))
    ledger.take(0, welcome(0))
    assert not ledger.all_welcome()
    assert ledger.unheard(2.0).node_rank == 1
    ledger.begin(1, [StepEndpoint(node_rank=0, host="h", endpoint="e")])
    ledger.take(0, welcome(0))
    assert ledger.all_welcome()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol_version": 7}, "follower 1 on node1 .*protocol 7"),
        ({"config_hash": "bbbb"}, "configuration aaaa, the follower bbbb"),
        ({"refused": "not today"}, "not today"),
        ({"node_rank": 0}, "answers as node rank 0"),
    ],
)
def test_a_follower_that_does_not_match_is_refused(
    ledger: StepLedger, changes: dict[str, object], reason: str
) -> None:
    ledger.take(0, welcome(0))
    ledger.take(1, welcome(1, **changes))
    with pytest.raises(HandshakeRefused, match=reason):
        ledger.all_welcome()


def test_a_welcome_of_a_past_epoch_does_not_count(ledger: StepLedger) -> None:
    ledger.take(0, welcome(0, epoch=0))
    assert not ledger.all_welcome()


def test_a_follower_in_a_later_epoch_is_lost_to_this_leader(ledger: StepLedger) -> None:
    ledger.take(0, welcome(0, epoch=2))
    with pytest.raises(FollowerLost, match="epoch 1 is over, it is at 2"):
        ledger.all_welcome()


def test_a_step_is_complete_once_and_only_with_all_replies(ledger: StepLedger) -> None:
    assert ledger.expect(request(4))
    ledger.take(1, reply(4, 1))
    assert ledger.complete(4) is None
    ledger.take(0, reply(4, 0))
    replies = ledger.complete(4)
    assert replies is not None
    assert [one.node_rank for one in replies] == [0, 1]
    assert ledger.complete(4) is None


def test_a_repeated_reply_does_not_stand_in_for_a_missing_one(ledger: StepLedger) -> None:
    ledger.expect(request(4))
    ledger.take(1, reply(4, 1, compute_s=1.0))
    ledger.take(1, reply(4, 1, compute_s=2.0))
    assert ledger.complete(4) is None
    ledger.take(0, reply(4, 0))
    assert [one.compute_s for one in ledger.complete(4) or ()] == [0.0, 1.0]


def test_what_nobody_asked_for_is_ignored(ledger: StepLedger) -> None:
    ledger.expect(request(4))
    for message in (reply(4, 0, epoch=0), reply(5, 0), Ack()):
        ledger.take(0, message)
        ledger.take(1, message)
    assert ledger.complete(4) is None
    assert ledger.complete(5) is None


def test_a_step_of_another_epoch_is_not_expected(ledger: StepLedger) -> None:
    assert not ledger.expect(request(1, epoch=0))
    assert not ledger.expect(request(1, epoch=2))


def test_the_first_loss_counts_and_lasts_for_the_epoch(ledger: StepLedger) -> None:
    ledger.expect(request(1))
    ledger.expect(request(2))
    for rank in (0, 1):
        ledger.take(rank, reply(1, rank))
    ledger.take(1, StepFailed(step_id=2, epoch=1, node_rank=1, error="boom"))
    ledger.lose(0, "connection closed")
    assert ledger.complete(1) is not None
    for _ in range(2):
        with pytest.raises(FollowerLost, match="follower 1: step 2 failed: boom"):
            ledger.complete(2)
    assert not ledger.expect(request(3))
    ledger.begin(2, [])
    assert ledger.expect(request(3, epoch=2))


def test_a_failure_of_a_past_epoch_is_ignored(ledger: StepLedger) -> None:
    ledger.take(1, StepFailed(step_id=2, epoch=0, node_rank=1, error="boom"))
    assert ledger.expect(request(1))


def test_the_silent_follower_is_the_one_whose_reply_is_missing(ledger: StepLedger) -> None:
    ledger.expect(request(1))
    ledger.take(0, reply(1, 0))
    assert ledger.silent(1, 0.5).node_rank == 1


def failed(rank: int, error: str, *, refused: bool = False) -> StepFailed:
    return StepFailed(step_id=1, epoch=1, node_rank=rank, error=error, refused=refused)


def test_a_refused_step_outweighs_the_peers_that_failed_of_it(ledger: StepLedger) -> None:
    ledger.expect(request(1))
    ledger.take(0, failed(0, "a peer left"))
    assert not ledger.is_explained()
    ledger.take(1, failed(1, "no such bucket", refused=True))
    assert ledger.is_explained()
    gone = ledger.gone
    assert (gone.node_rank, gone.refused_step) == (1, 1)
    assert "no such bucket" in gone.reason


def test_a_peer_that_failed_of_a_lost_follower_is_explained_by_its_end(ledger: StepLedger) -> None:
    ledger.expect(request(1))
    ledger.take(0, failed(0, "a peer left"))
    ledger.lose(1, "connection closed")
    assert ledger.is_explained()
    assert ledger.gone.refused_step is None


def test_a_lost_follower_needs_no_explanation(ledger: StepLedger) -> None:
    ledger.lose(1, "connection closed")
    assert ledger.is_explained()
    ledger.take(0, failed(0, "late", refused=True))
    assert ledger.gone.refused_step is None


def test_answers_that_come_too_late_are_counted(ledger: StepLedger) -> None:
    for rank in (0, 1):
        ledger.take(rank, welcome(rank))
    ledger.expect(request(7))
    for late in (reply(7, 0, epoch=0), reply(3, 0)):
        ledger.take(0, late)
    assert ledger.num_stale == 2
    for rank in (0, 1):
        ledger.take(rank, reply(7, rank))
    assert len(ledger.complete(7) or ()) == 2
    assert ledger.num_stale == 2
    ledger.take(1, reply(7, 1))
    assert ledger.num_stale == 3
