from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from rufus_serve.leader.api.status_metrics import StatusMetrics, skew
from rufus_serve.metrics import Family
from rufus_serve.protocol.messages import FollowerStatus, GroupStatus, Status
from rufus_serve.protocol.runtime_info import ArtifactUse

FOLLOWERS = tuple(
    FollowerStatus(
        node_rank=rank, host=host, pid=1, phase="ready", phase_s=1.0, group=1, load_count=loads,
        step_s=step_s, silent_s=0.5, load_s=4.0, warm_up_s=1.5, stale_steps=6,
        artifacts=ArtifactUse(kept_files=1, kept_bytes=10, fetched_bytes=20, compile_s=3.0),
    )
    for rank, host, step_s, loads in ((0, "a", 0.25, 1), (1, "b", 0.75, 4))
)  # fmt: skip


def status(*, recoveries: int = 0, recovery_s: float = 0.0, state: str = "recovering") -> Status:
    group = GroupStatus(
        group=1, state="recovering", epoch=3, healthy=True, ready=False, restarts=2,
        recoveries=recoveries, recovery_s=recovery_s, start_s=12.0,
    )  # fmt: skip
    return Status(
        state=state, epoch=3, healthy=True, ready=False, groups=(group,), followers=FOLLOWERS,
        cluster_up=False, cluster_restarts=5,
    )  # fmt: skip


def exposed(metrics: StatusMetrics) -> list[str]:
    class Exposed(Collector):
        def collect(self) -> Iterator[Family]:
            return metrics.families()

    registry = CollectorRegistry()
    registry.register(Exposed())
    return generate_latest(registry).decode().splitlines()


def test_groups_and_followers_are_exported_under_their_documented_names() -> None:
    metrics = StatusMetrics()
    metrics.take(status())
    lines = exposed(metrics)
    for line in (
        'rufus_group_epoch{group="1"} 3.0',
        'rufus_group_state{group="1",state="recovering"} 1.0',
        'rufus_group_state{group="1",state="ready"} 0.0',
        'rufus_group_start_seconds{group="1"} 12.0',
        'rufus_follower_restarts_total{group="1"} 2.0',
        "rufus_cluster_up 0.0",
        "rufus_cluster_restarts_total 5.0",
        'rufus_follower_step_seconds{group="1",host="b",node_rank="1"} 0.75',
        'rufus_follower_heartbeat_age_seconds{group="1",host="b",node_rank="1"} 0.5',
        'rufus_follower_weight_loads{group="1",host="b",node_rank="1"} 4.0',
        'rufus_follower_load_seconds{group="1",host="b",node_rank="1"} 4.0',
        'rufus_follower_compile_seconds{group="1",host="b",node_rank="1"} 3.0',
        'rufus_follower_warm_up_seconds{group="1",host="b",node_rank="1"} 1.5',
        'rufus_follower_stale_steps_total{group="1",host="b",node_rank="1"} 6.0',
        'rufus_follower_artifact_files{group="1",host="b",how="kept",node_rank="1"} 1.0',
        'rufus_follower_artifact_bytes{group="1",host="b",how="kept",node_rank="1"} 10.0',
        'rufus_follower_artifact_bytes{group="1",host="b",how="fetched",node_rank="1"} 20.0',
        'rufus_follower_skew_seconds{group="1"} 0.5',
        'rufus_recovery_seconds_count{group="1"} 0.0',
    ):
        assert line in lines


def test_each_recovery_is_counted_once_with_its_length() -> None:
    metrics = StatusMetrics()
    for seen in (
        status(), status(recoveries=1, recovery_s=2.5), status(recoveries=1, recovery_s=2.5),
        status(recoveries=3, recovery_s=700.0),
    ):  # fmt: skip
        metrics.take(seen)
    lines = exposed(metrics)
    for line in (
        'rufus_recovery_seconds_bucket{group="1",le="2"} 0.0',
        'rufus_recovery_seconds_bucket{group="1",le="3"} 1.0',
        'rufus_recovery_seconds_bucket{group="1",le="+Inf"} 3.0',
        'rufus_recovery_seconds_sum{group="1"} 1402.5',
    ):
        assert line in lines


def test_groups_of_a_server_that_drains_drain() -> None:
    metrics = StatusMetrics()
    metrics.take(status(state="draining"))
    assert 'rufus_group_state{group="1",state="draining"} 1.0' in exposed(metrics)


def test_nothing_is_claimed_before_the_supervisor_spoke() -> None:
    lines = exposed(StatusMetrics())
    assert lines
    assert all(line.startswith("#") for line in lines)


def test_skew_is_among_those_that_are_known() -> None:
    assert skew([0.0, 0.02, 0.03]) == pytest.approx(0.01)
    assert skew([0.0]) == 0.0
