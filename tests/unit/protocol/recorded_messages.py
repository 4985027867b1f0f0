"""One sample of each message, and the frames it had when it was first recorded.

A later version must decode these frames to the same sample. After adding a message, run

    python tests/unit/protocol/recorded_messages.py

which records what is missing and never changes what is there.
"""

import json
from pathlib import Path
from typing import get_args

import numpy as np

from rufus_serve.protocol import messages as m
from rufus_serve.protocol.codec import encode

RECORD = Path(__file__).with_name("recorded_frames.json")
TYPES = {kind.__name__: kind for kind in get_args(m.AnyMessage)}

INFO = m.RuntimeInfo(
    model_type="llama",
    num_layers=30,
    num_kv_heads=3,
    head_size=64,
    vocab_size=49152,
    dtype="bfloat16",
    block_size=32,
    num_blocks=65,
    max_model_len=2048,
    prefill_buckets=(64, 128),
    decode_batch_buckets=(1, 2, 4, 8),
    context_buckets=(128, 2048),
    segmented_prefill=False,
    weights_bytes=1 << 33,
    load_s=2.5,
)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


_SAMPLES: list[m.AnyMessage] = [
    m.StepHello(protocol_version=2, config_hash="c0ffee", epoch=3, leader_id="l1"),
    m.StepWelcome(
        protocol_version=2,
        config_hash="c0ffee",
        epoch=3,
        node_rank=1,
        refused="another configuration",
    ),
    m.StepRequest(
        step_id=7,
        epoch=3,
        phase=m.Phase.PREFILL,
        token_ids=_ints(1, 2, 3, 49151),
        num_computed_tokens=_ints(1),
        context_lens=_ints(4),
        block_table=_ints(5, 6, 0).reshape(1, 3),
        slot_mapping=_ints(161, 162, 163),
        want_logits=False,
    ),
    m.LogitsRequest(step_id=8, epoch=3, of_step_id=7, rows=_ints(0, 5)),
    m.StepReply(
        step_id=7,
        epoch=3,
        node_rank=0,
        compute_s=0.25,
        logits=np.zeros((2, 8_200), np.float32),
        wait_s=0.125,
    ),
    m.MemoryOpened(epoch=3),
    m.StoredReply(epoch=3, sequence=2, place=4096, frame_sizes=(90, 400_000)),
    m.StepFailed(step_id=7, epoch=3, node_rank=1, error="no such bucket"),
    m.FollowerHello(
        protocol_version=2,
        package_version="0.1.0",
        config_hash="c0ffee",
        follower_id="f1",
        node_rank=-1,
        host="node1",
        address="10.0.0.2",
        pid=4242,
    ),
    m.Welcome(node_rank=1, num_followers_on_host=2),
    m.Refused(reason="another version"),
    m.FollowerProgress(done=3, total=30, detail="layer 3"),
    m.FollowerLoaded(info=INFO, load_count=2),
    m.FormGroup(
        epoch=3,
        node_rank=1,
        num_nodes=2,
        rendezvous="tcp://10.0.0.1:4000",
        same_host=False,
        num_blocks=65,
    ),
    m.FollowerForming(epoch=3),
    m.FollowerGaveUp(epoch=3, reason="a peer left"),
    m.FollowerReady(epoch=3, endpoint="tcp://10.0.0.2:5000"),
    m.FollowerFailed(phase="loading", error="bad checkpoint", exit_code=3),
    m.Heartbeat(),
    m.HeartbeatAck(),
    m.Stop(reason="shutdown"),
    m.LeaderHello(leader_id="l1", role="engine"),
    m.Serving(leader_id="l1"),
    m.GroupReady(
        epoch=3,
        endpoints=(
            m.StepEndpoint(node_rank=0, host="node0", endpoint="tcp://10.0.0.1:5000"),
            m.StepEndpoint(node_rank=1, host="node1", endpoint="tcp://10.0.0.2:5000"),
        ),
        info=INFO,
    ),
    m.EpochLost(epoch=3, reason="follower 1 is silent"),
    m.GroupFailed(reason="restart budget spent", exit_code=9),
    m.LeaderProgress(steps_done=100, steps_in_flight=2, num_running=4, follower_step_s=(0.25, 0.5)),
    m.StatusRequest(),
    m.TraceSteps(num_steps=100, path="/tmp/trace.json"),
    m.Status(
        state="ready",
        epoch=3,
        healthy=True,
        ready=True,
        detail="grüß dich",
        restarts=1,
        followers=(
            m.FollowerStatus(
                node_rank=0,
                host="node0",
                pid=4242,
                phase="ready",
                phase_s=12.5,
                load_count=1,
                restarts=2,
                step_s=0.25,
            ),
        ),
    ),
    m.RestartFollower(node_rank=1),
    m.RestartGroup(group=1),
    m.DrainGroup(group=1),
    m.GroupNews(group=1, state="lost", reason="follower 1/0: killed by signal 9"),
    m.GroupIdle(group=1),
    m.Scale(groups=3),
    m.Drain(grace_s=30.0),
    m.Ack(error="not while recovering"),
]
SAMPLES = {type(sample).__name__: sample for sample in _SAMPLES}


def read_record() -> dict[str, list[bytes]]:
    """Frames by message name."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return {
        name: [bytes(f) if isinstance(f, int) else bytes.fromhex(f) for f in frames]
        for name, frames in record.items()
    }


def _written(frame: bytes) -> str | int:
    """Hex; of a frame of zeros only the length."""
    return len(frame) if frame and not any(frame) else frame.hex()


def main() -> None:
    record = read_record()
    for name, sample in SAMPLES.items():
        record.setdefault(name, [bytes(frame) for frame in encode(sample)])
    written = {name: [_written(frame) for frame in frames] for name, frames in record.items()}
    RECORD.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
