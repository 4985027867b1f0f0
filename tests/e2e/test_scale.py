"""Groups that come and go under running requests."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rufus_serve.errors import ClusterError
from rufus_serve.supervisor import orders
from tests.e2e.losses import Probe, api_process_of, engines_of, serving, status_of
from tests.e2e.moves import Groups

pytestmark = pytest.mark.timeout(300)
COMMAND = Path(sys.executable).parent / "rufus-serve"


@pytest.fixture(scope="module", params=["local", "ray"])
def groups(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Groups]:
    flags = (*Groups.FLAGS, f"--cluster.kind={request.param}")
    with serving(*flags, model=tiny_model) as server:
        yield Groups(server)


def scale(groups: Groups, wanted: int) -> None:
    words = [COMMAND, "scale", f"--groups={wanted}", f"--port={groups.server.port}"]
    subprocess.run(words, check=True, timeout=60)


def labels(metrics: str, engine: str) -> set[str]:
    """Names and other labels of vLLM's samples of one engine, of those that all have at once."""
    found = re.findall(rf'^(vllm:\w+{{.*engine="{engine}".*}}) ', metrics, re.M)
    later = ("vllm:cache_config_info", "vllm:prompt_tokens_cached_by_source")
    return {name.replace(f'engine="{engine}"', "") for name in found if not name.startswith(later)}


def test_a_second_group_comes_under_running_streams_and_takes_requests(groups: Groups) -> None:
    with Probe(groups.server) as probe:
        streams = groups.start_and_wait()
        scale(groups, 2)
        groups.assert_undisturbed(streams)
        groups.assert_undisturbed(groups.start())
    assert (probe.health, probe.ready) == ({200}, {200})
    metrics = groups.server.get("/metrics")[1]
    assert groups.tokens_of(metrics, "1") > 0
    assert labels(metrics, "1") == labels(metrics, "0")


def test_what_the_first_group_loses_goes_on_in_the_one_that_came(groups: Groups) -> None:
    scale(groups, 2)
    streams = groups.start_and_wait()
    groups.kill_follower(0)
    groups.assert_undisturbed(streams)
    groups.wait_all_ready()


def test_a_group_goes_under_running_streams_and_leaves_no_process(groups: Groups) -> None:
    scale(groups, 2)
    with Probe(groups.server) as probe:
        streams = groups.start_and_wait()
        follower, _ = groups.follower(1)
        engine = engines_of(groups.server)[1].pid
        scale(groups, 1)
        groups.assert_undisturbed(streams)
        groups.assert_undisturbed(groups.start())
    assert (probe.health, probe.ready) == ({200}, {200})
    assert [group.group for group in status_of(groups.server).groups] == [0]
    for pid in (follower, engine):
        if psutil.pid_exists(pid):
            psutil.Process(pid).wait(10)


def test_the_next_api_process_knows_the_groups_that_came(groups: Groups) -> None:
    scale(groups, 2)
    api_process_of(groups.server).kill()
    groups.server.wait_ready()
    groups.wait_all_ready()
    groups.assert_undisturbed(groups.start())
    metrics = groups.server.get("/metrics")[1]
    assert groups.tokens_of(metrics, "1") > 0


def test_what_is_refused_changes_nothing(groups: Groups) -> None:
    before = groups.pids()
    for wanted, said in ((0, "0 groups are refused"), (65, "65 groups are refused")):
        with pytest.raises(ClusterError, match=said):
            orders.scale(port=groups.server.port, folder="", groups=wanted, deadline_s=5.0)
    assert groups.pids() == before
