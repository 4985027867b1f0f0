import numpy as np
import pytest

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.inbox import StepInbox
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    Ack,
    Phase,
    StepHello,
    StepReply,
    StepRequest,
)

EMPTY = np.zeros(0, np.int32)
LEADER, RIVAL = b"leader", b"rival"


def hello(epoch: int = 1, *, version: int = PROTOCOL_VERSION, config: str = "aaaa") -> StepHello:
    return StepHello(
        protocol_version=version,
        config_hash=config,
        epoch=epoch,
        leader_id="me",
    )


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


def reply(epoch: int = 1) -> StepReply:
    return StepReply(step_id=0, epoch=epoch, node_rank=3, compute_s=0.0)


@pytest.fixture
def inbox() -> StepInbox:
    """Node rank 3 in epoch 1, without a leader."""
    inbox = StepInbox(HelloInfo(config_hash="aaaa", sender_id="f"), 3)
    inbox.begin(1)
    return inbox


def step_ids(inbox: StepInbox) -> list[int]:
    ids = []
    while (step := inbox.next_step()) is not None:
        ids.append(step.step_id)
    return ids


def test_steps_need_a_handshake_first(inbox: StepInbox) -> None:
    inbox.take(LEADER, request(1))
    welcome = inbox.take(LEADER, hello())
    inbox.take(LEADER, request(2))
    inbox.take(LEADER, request(3))
    assert welcome is not None
    assert (welcome.epoch, welcome.node_rank, welcome.refused) == (1, 3, "")
    assert step_ids(inbox) == [2, 3]
    assert inbox.num_stale == 1


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (hello(version=7), f"protocol {PROTOCOL_VERSION}, the leader protocol 7"),
        (hello(config="bbbb"), "configuration aaaa, the leader bbbb"),
    ],
)
def test_a_leader_that_does_not_match_is_refused(
    inbox: StepInbox, refused: StepHello, reason: str
) -> None:
    welcome = inbox.take(LEADER, refused)
    inbox.take(LEADER, request(1))
    assert welcome is not None
    assert reason in welcome.refused
    assert step_ids(inbox) == []


def test_only_the_leader_of_the_last_handshake_is_obeyed(inbox: StepInbox) -> None:
    inbox.take(LEADER, hello())
    inbox.take(LEADER, request(1))
    inbox.take(RIVAL, request(2))
    inbox.take(RIVAL, hello())
    inbox.take(LEADER, request(3))
    inbox.take(RIVAL, request(4))
    assert step_ids(inbox) == [4]
    assert inbox.recipient(reply()) == RIVAL


def test_a_hello_of_a_past_epoch_is_told_the_current_one_and_takes_nothing(
    inbox: StepInbox,
) -> None:
    inbox.take(LEADER, hello())
    inbox.begin(2)
    inbox.take(LEADER, hello(2))
    stale = inbox.take(RIVAL, hello(1))
    assert stale is not None
    assert (stale.epoch, stale.refused) == (2, "")
    assert inbox.recipient(reply(2)) == LEADER


def test_an_early_hello_is_answered_when_its_epoch_begins(inbox: StepInbox) -> None:
    assert inbox.take(LEADER, hello(2)) is None
    answer = inbox.begin(2)
    assert answer is not None
    assert answer[0] == LEADER
    assert answer[1].epoch == 2
    inbox.take(LEADER, request(1, epoch=2))
    assert step_ids(inbox) == [1]


def test_an_early_hello_waits_past_other_epochs_or_is_forgotten(inbox: StepInbox) -> None:
    inbox.take(LEADER, hello(5))
    assert inbox.begin(4) is None
    assert inbox.begin(5) is not None
    inbox.take(LEADER, hello(6))
    assert inbox.begin(7) is None
    assert inbox.recipient(reply(7)) is None


def test_a_new_epoch_forgets_leader_and_steps(inbox: StepInbox) -> None:
    inbox.take(LEADER, hello())
    inbox.take(LEADER, request(1))
    inbox.begin(2)
    inbox.take(LEADER, request(2, epoch=2))
    assert step_ids(inbox) == []
    assert inbox.recipient(reply(2)) is None


def test_replies_of_another_epoch_have_no_recipient(inbox: StepInbox) -> None:
    inbox.take(LEADER, hello())
    assert inbox.recipient(reply(1)) == LEADER
    assert inbox.recipient(reply(0)) is None


def test_a_lost_leader_gets_nothing_until_it_shakes_hands_again(inbox: StepInbox) -> None:
    inbox.take(LEADER, hello())
    inbox.take(LEADER, request(1))
    inbox.forget_leader()
    assert step_ids(inbox) == []
    assert inbox.recipient(reply()) is None
    inbox.take(LEADER, hello())
    assert inbox.recipient(reply()) == LEADER


def test_other_messages_are_ignored(inbox: StepInbox) -> None:
    inbox.take(LEADER, hello())
    assert inbox.take(LEADER, Ack()) is None
    inbox.take(LEADER, request(1, epoch=0))
    assert step_ids(inbox) == []
