"""Prometheus metrics of the groups, beside vLLM's own at `/metrics`; names are a contract."""

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

STATES = ("starting", "ready", "recovering", "draining", "drained", "failed", "stopped")


class GroupMetrics:
    """Gauges of all groups; set from the supervisor's status, on one thread."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._epoch = Gauge(
            "rufus_group_epoch", "Epochs formed so far.", ["group"], registry=registry
        )
        self._state = Gauge(
            "rufus_group_state",
            "1 for the state the group is in.",
            ["group", "state"],
            registry=registry,
        )
        self._step = Gauge(
            "rufus_follower_step_seconds",
            "Mean time per step that a follower computes, without waiting for its peers.",
            ["group", "node_rank", "host"],
            registry=registry,
        )
        self._loads = Gauge(
            "rufus_follower_weight_loads",
            "How often the follower's process has loaded weights.",
            ["group", "node_rank", "host"],
            registry=registry,
        )
        self._skew = Gauge(
            "rufus_follower_skew_seconds",
            "Step time of the slowest follower less that of the fastest.",
            ["group"],
            registry=registry,
        )
        self._restarts = _Total(
            "rufus_follower_restarts", "Followers replaced after a loss.", ["group"]
        )
        self._cluster_up = Gauge(
            "rufus_cluster_up",
            "1 while Ray is there, so that followers can be started; those that run need it not.",
            registry=registry,
        )
        self._cluster_restarts = _Total("rufus_cluster_restarts", "Times Ray was started again.")
        for total in (self._restarts, self._cluster_restarts):
            registry.register(total)

    def set_group(self, group: int, *, state: str, epoch: int, restarts: int) -> None:
        """A group as a whole."""
        self._epoch.labels(group=group).set(epoch)
        self._restarts.values[str(group),] = restarts
        for name in STATES:
            self._state.labels(group=group, state=name).set(float(name == state))

    def set_cluster(self, *, up: bool, restarts: int) -> None:
        """What starts followers."""
        self._cluster_up.set(float(up))
        self._cluster_restarts.values[()] = restarts

    def set_followers(self, group: int, followers: Sequence[tuple[int, str, float, int]]) -> None:
        """Each follower of a group: (node rank, host, seconds per step, weight loads)."""
        for node_rank, host, step_s, loads in followers:
            where = {"group": group, "node_rank": node_rank, "host": host}
            self._step.labels(**where).set(step_s)
            self._loads.labels(**where).set(loads)
        steps = [step_s for _, _, step_s, _ in followers if step_s > 0]
        self._skew.labels(group=group).set(max(steps) - min(steps) if steps else 0.0)


class _Total(Collector):
    """A counter whose values are kept elsewhere."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.values: dict[tuple[str, ...], float] = {}
        """By the labels' values."""

    def collect(self) -> list[CounterMetricFamily]:
        """A sample for each."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return [family]
