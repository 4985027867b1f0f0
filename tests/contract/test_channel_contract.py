"""One suite over every implementation of `LeaderChannel` and `FollowerChannel`."""

import threading
import time

import msgspec
import numpy as np
import pytest
from channel_group import (
    LONG_S,
    OTHER_KEYS,
    SOON_S,
    Group,
    endpoints,
    reply_to,
    silence,
    step,
)

from rufus_serve.channel import ledger
from rufus_serve.channel.base import FollowerLost, HelloInfo
from rufus_serve.channel.faults import Fault, FaultPlan, FaultyFollowerChannel
from rufus_serve.errors import HandshakeRefused
from rufus_serve.protocol.messages import (
    LogitsRequest,
    StepEndpoint,
    StepFailed,
    StepReply,
    StepRequest,
)


def test_replies_come_back_by_node_rank(group: Group) -> None:
    leader, _ = group.connected(reply_to, reply_to, reply_to)
    leader.broadcast(step(1))
    replies = leader.gather(1, deadline_s=LONG_S)
    assert [reply.node_rank for reply in replies] == [0, 1, 2]


def test_steps_sent_ahead_arrive_in_order_and_whole(group: Group) -> None:
    leader, serving = group.connected(reply_to, reply_to)
    for step_id in range(20):
        leader.broadcast(step(step_id))
    for step_id in range(20):
        leader.gather(step_id, deadline_s=LONG_S)
    for one in serving:
        assert [request.step_id for request in one.seen] == list(range(20))
        assert one.seen[7].token_ids.tolist() == [7, 8, 9, 10]
        assert one.seen[7].block_table.shape == (4, 2)


def test_arrays_may_be_reused_once_a_step_is_sent(group: Group) -> None:
    leader, (one,) = group.connected(reply_to)
    request = step(1, tokens=100_000)
    leader.broadcast(request)
    request.token_ids[:] = -1
    leader.gather(1, deadline_s=LONG_S)
    assert one.seen[0].token_ids[-1] == 100_000


def test_large_logits_arrive_intact(group: Group) -> None:
    logits = np.random.default_rng(0).standard_normal((8, 49152), dtype=np.float32)

    def answer(request: StepRequest, node_rank: int) -> StepReply:
        return StepReply(
            step_id=request.step_id, epoch=1, node_rank=node_rank, compute_s=0.5, logits=logits
        )

    leader, _ = group.connected(answer)
    leader.broadcast(step(1))
    (reply,) = leader.gather(1, deadline_s=LONG_S)
    assert reply.logits is not None
    np.testing.assert_array_equal(reply.logits, logits)
    assert not reply.logits.flags.writeable


def test_large_replies_of_steps_sent_ahead_are_not_mixed_up(group: Group) -> None:
    def answer(request: StepRequest, node_rank: int) -> StepReply:
        logits = np.full((30, 49152), request.step_id, np.float32)
        return StepReply(
            step_id=request.step_id, epoch=1, node_rank=node_rank, compute_s=0.5, logits=logits
        )

    leader, _ = group.connected(answer)
    # Together more than fits into memory that is shared.
    for step_id in range(15):
        leader.broadcast(step(step_id))
    replies = [leader.gather(step_id, deadline_s=LONG_S)[0] for step_id in range(15)]
    for step_id, reply in enumerate(replies):
        assert reply.logits is not None
        assert (reply.logits == step_id).all()


def test_rows_in_full_are_asked_for_between_steps(group: Group) -> None:
    leader, (one,) = group.connected(reply_to)
    leader.broadcast(step(1))
    rows = LogitsRequest(step_id=2, epoch=1, of_step_id=1, rows=np.array([0, 3], np.int32))
    leader.broadcast(rows)
    leader.broadcast(msgspec.structs.replace(rows, step_id=3, epoch=2))
    leader.gather(1, deadline_s=LONG_S)
    assert leader.gather(2, deadline_s=LONG_S)[0].step_id == 2
    asked = one.seen[1]
    assert isinstance(asked, LogitsRequest)
    assert (asked.of_step_id, asked.rows.tolist()) == (1, [0, 3])
    assert len(one.seen) == 2


def test_another_configuration_is_refused_with_both_values(group: Group) -> None:
    other = HelloInfo(config_hash="bbbb", sender_id="follower")
    serving = group.serve(group.follower(3, info=other))
    with pytest.raises(HandshakeRefused, match=r"follower 3 .*(bbbb.*aaaa|aaaa.*bbbb)"):
        group.leader().connect(1, endpoints(serving), deadline_s=LONG_S)


def test_another_protocol_version_is_refused_with_both_values(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = group.serve(group.follower())
    monkeypatch.setattr(ledger, "PROTOCOL_VERSION", 99)
    with pytest.raises(HandshakeRefused, match=r"protocol 99, .* protocol 2"):
        group.leader().connect(1, endpoints(serving), deadline_s=LONG_S)


def test_another_token_is_refused_by_name_and_reaches_nobody(group: Group) -> None:
    serving = group.serve(group.follower())
    leader = group.leader(keys=OTHER_KEYS)
    with pytest.raises(HandshakeRefused, match=r"follower 0 .*another token"):
        leader.connect(1, endpoints(serving), deadline_s=LONG_S)
    leader.broadcast(step(1))
    time.sleep(0.1)
    assert serving.seen == []


def test_a_follower_of_another_rank_is_refused(group: Group) -> None:
    serving = group.serve(group.follower(1))
    wrong = StepEndpoint(node_rank=0, host="node", endpoint=serving.channel.endpoint.endpoint)
    with pytest.raises(HandshakeRefused, match=r"follower 0 .*node rank 1"):
        group.leader().connect(1, [wrong], deadline_s=LONG_S)


def test_a_handshake_without_answer_ends_at_its_deadline(group: Group) -> None:
    answering, mute = group.serve(group.follower(0)), group.follower(1)
    started = time.monotonic()
    with pytest.raises(FollowerLost, match=r"follower 1: no answer .* within 0.3 s") as gone:
        group.leader().connect(1, [*endpoints(answering), mute.endpoint], deadline_s=0.3)
    assert gone.value.node_rank == 1
    assert 0.3 <= time.monotonic() - started < 0.3 + SOON_S


def test_a_leader_may_knock_before_its_follower_begins_the_epoch(group: Group) -> None:
    serving = group.serve(group.follower(epoch=None))
    leader = group.leader()
    late = threading.Timer(0.1, serving.begin, args=(1,))
    late.start()
    leader.connect(1, endpoints(serving), deadline_s=LONG_S)
    late.join()
    leader.broadcast(step(1))
    assert leader.gather(1, deadline_s=LONG_S)


def test_a_silent_follower_is_named_at_the_deadline_and_stays_lost(group: Group) -> None:
    leader, _ = group.connected(reply_to, silence)
    leader.broadcast(step(1))
    started = time.monotonic()
    with pytest.raises(FollowerLost, match=r"follower 1: silent on step 1") as gone:
        leader.gather(1, deadline_s=0.2)
    assert gone.value.node_rank == 1
    assert 0.2 <= time.monotonic() - started < 0.2 + SOON_S
    leader.broadcast(step(2))
    with pytest.raises(FollowerLost):
        leader.gather(2, deadline_s=LONG_S)


def test_a_closed_follower_is_noticed_within_a_second_by_a_waiting_gather(group: Group) -> None:
    leader, serving = group.connected(silence, silence)
    leader.broadcast(step(1))
    serving[1].stop()
    closing = threading.Timer(0.2, serving[1].channel.close)
    started = time.monotonic()
    closing.start()
    with pytest.raises(FollowerLost, match="follower 1: connection closed"):
        leader.gather(1, deadline_s=LONG_S)
    assert time.monotonic() - started < 0.2 + SOON_S
    closing.join()
    leader.broadcast(step(2))
    with pytest.raises(FollowerLost, match="follower 1"):
        leader.gather(2, deadline_s=LONG_S)


def test_the_last_reply_counts_though_its_follower_hung_up(group: Group) -> None:
    leader, serving = group.connected(reply_to)
    leader.broadcast(step(1))
    while not serving[0].seen:
        time.sleep(0.01)
    serving[0].stop()
    serving[0].channel.close()
    time.sleep(0.1)
    assert leader.gather(1, deadline_s=LONG_S)[0].step_id == 1
    leader.broadcast(step(2))
    with pytest.raises(FollowerLost):
        leader.gather(2, deadline_s=LONG_S)


def test_a_failed_step_ends_its_gather_at_once_with_the_error(group: Group) -> None:
    def fail(request: StepRequest, node_rank: int) -> StepFailed:
        return StepFailed(
            step_id=request.step_id, epoch=1, node_rank=node_rank, error="no such bucket"
        )

    leader, _ = group.connected(silence, fail)
    leader.broadcast(step(5))
    with pytest.raises(FollowerLost, match="follower 1: step 5 failed: no such bucket"):
        leader.gather(5, deadline_s=LONG_S)
    with pytest.raises(FollowerLost, match="no such bucket"):
        leader.gather(6, deadline_s=LONG_S)


def test_the_follower_that_refused_a_step_is_named_though_its_peer_failed_first(
    group: Group,
) -> None:
    def abort(request: StepRequest, node_rank: int) -> StepFailed:
        return StepFailed(step_id=request.step_id, epoch=1, node_rank=node_rank, error="peer left")

    def refuse(request: StepRequest, node_rank: int) -> StepFailed:
        time.sleep(0.1)
        return StepFailed(
            step_id=request.step_id, epoch=1, node_rank=node_rank, error="no bucket", refused=True
        )

    leader, _ = group.connected(abort, refuse)
    leader.broadcast(step(5))
    with pytest.raises(FollowerLost, match="follower 1: step 5 failed: no bucket") as gone:
        leader.gather(5, deadline_s=LONG_S)
    assert gone.value.refused_step == 5


def test_a_step_of_another_epoch_reaches_nobody(group: Group) -> None:
    leader, (one,) = group.connected(reply_to)
    leader.broadcast(step(1, epoch=0))
    leader.broadcast(step(2, epoch=2))
    leader.broadcast(step(3))
    leader.gather(3, deadline_s=LONG_S)
    assert [request.step_id for request in one.seen] == [3]


def test_a_follower_in_a_later_epoch_ignores_its_old_leader(group: Group) -> None:
    leader, (one,) = group.connected(reply_to)
    one.begin(2)
    leader.broadcast(step(1))
    with pytest.raises(FollowerLost, match="silent"):
        leader.gather(1, deadline_s=0.2)
    deadline = time.monotonic() + LONG_S
    while not one.channel.num_stale:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert one.channel.num_stale == 1
    assert one.seen == []


def test_a_leader_behind_the_followers_epoch_is_told_so(group: Group) -> None:
    serving = group.serve(group.follower(epoch=7))
    with pytest.raises(FollowerLost, match="epoch 6 is over, it is at 7"):
        group.leader().connect(6, endpoints(serving), deadline_s=LONG_S)


def test_replies_of_a_past_epoch_do_not_reach_the_next(group: Group) -> None:
    leader, (one,) = group.connected(silence)
    leader.broadcast(step(1))
    while not one.seen:
        time.sleep(0.01)
    one.stop()
    one.channel.begin(2)
    again = group.serve(one.channel, silence)
    leader.connect(2, endpoints(again), deadline_s=LONG_S)
    leader.broadcast(step(1, epoch=2))
    one.channel.reply(reply_to(step(1, epoch=1), 0))
    with pytest.raises(FollowerLost, match="silent"):
        leader.gather(1, deadline_s=0.2)


def test_the_same_leader_connects_again_for_each_epoch(group: Group) -> None:
    leader, serving = group.connected(reply_to, reply_to)
    for epoch in (2, 3, 10):
        for one in serving:
            one.begin(epoch)
        leader.connect(epoch, endpoints(*serving), deadline_s=LONG_S)
        leader.broadcast(step(0, epoch=epoch))
        replies = leader.gather(0, deadline_s=LONG_S)
        assert [reply.epoch for reply in replies] == [epoch, epoch]


def test_a_second_leader_adopts_the_followers(group: Group) -> None:
    first, serving = group.connected(reply_to, reply_to)
    for one in serving:
        one.begin(2)
    second = group.leader(info=HelloInfo(config_hash="aaaa", sender_id="leader-2"))
    second.connect(2, endpoints(*serving), deadline_s=LONG_S)
    first.broadcast(step(1))
    second.broadcast(step(1, epoch=2))
    assert len(second.gather(1, deadline_s=LONG_S)) == 2
    with pytest.raises(FollowerLost):
        first.gather(1, deadline_s=0.1)


def test_of_two_leaders_of_one_epoch_the_later_wins(group: Group) -> None:
    first, serving = group.connected(reply_to)
    second = group.leader()
    second.connect(1, endpoints(*serving), deadline_s=LONG_S)
    first.broadcast(step(1))
    second.broadcast(step(2))
    assert second.gather(2, deadline_s=LONG_S)
    assert [request.step_id for request in serving[0].seen] == [2]


def test_a_broken_connection_can_be_made_again_for_a_new_epoch(group: Group) -> None:
    leader, (one,) = group.connected(silence)
    leader.broadcast(step(1))
    one.stop()
    one.channel.disconnect()
    with pytest.raises(FollowerLost, match="connection closed"):
        leader.gather(1, deadline_s=SOON_S)
    one.channel.begin(2)
    again = group.serve(one.channel)
    leader.connect(2, endpoints(again), deadline_s=LONG_S)
    leader.broadcast(step(1, epoch=2))
    assert leader.gather(1, deadline_s=LONG_S)


def test_duplicated_frames_do_no_harm(group: Group) -> None:
    plan = FaultPlan(
        faults=tuple(
            Fault(kind="duplicate", at=at, probability=1.0, max_count=0)
            for at in ("request", "reply")
        )
    )
    serving = group.serve(FaultyFollowerChannel(group.follower(), plan))
    leader = group.leader()
    leader.connect(1, endpoints(serving), deadline_s=LONG_S)
    for step_id in range(5):
        leader.broadcast(step(step_id))
        assert leader.gather(step_id, deadline_s=LONG_S)[0].step_id == step_id


def test_closing_ends_a_waiting_gather(group: Group) -> None:
    leader, _ = group.connected(silence)
    leader.broadcast(step(1))
    closing = threading.Timer(0.1, leader.close)
    closing.start()
    with pytest.raises(FollowerLost, match="closed"):
        leader.gather(1, deadline_s=LONG_S)
    closing.join()


def test_channels_may_be_closed_twice(group: Group) -> None:
    leader, (one,) = group.connected(reply_to)
    one.stop()
    for channel in (leader, one.channel):
        channel.close()
        channel.close()
    started = time.monotonic()
    assert one.channel.receive(timeout_s=0.1) is None
    assert time.monotonic() - started >= 0.1
    one.channel.reply(reply_to(step(1), 0))
