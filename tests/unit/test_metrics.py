from prometheus_client import CollectorRegistry, generate_latest

from rufus_serve.metrics import GroupMetrics


def test_the_group_is_exported_under_its_documented_names() -> None:
    registry = CollectorRegistry()
    metrics = GroupMetrics(registry)
    metrics.set_group(1, state="recovering", epoch=3, restarts=2)
    metrics.set_cluster(up=False, restarts=5)
    metrics.set_followers(1, [(0, "a", 0.25, 1), (1, "b", 0.75, 4)])
    text = generate_latest(registry).decode()
    for line in (
        'rufus_group_epoch{group="1"} 3.0',
        'rufus_group_state{group="1",state="recovering"} 1.0',
        'rufus_group_state{group="1",state="ready"} 0.0',
        'rufus_follower_restarts_total{group="1"} 2.0',
        "rufus_cluster_up 0.0",
        "rufus_cluster_restarts_total 5.0",
        'rufus_follower_step_seconds{group="1",host="b",node_rank="1"} 0.75',
        'rufus_follower_weight_loads{group="1",host="b",node_rank="1"} 4.0',
        'rufus_follower_skew_seconds{group="1"} 0.5',
    ):
        assert line in text.splitlines()
