import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rufus_serve.cluster.local import LocalCluster
from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.supervisor.group_events import Form
from rufus_serve.supervisor.group_plan import (
    begin_run,
    form_orders,
    group_settings,
    make_cluster,
    plan_group,
)


def config(**fields) -> ServeConfig:
    return ServeConfig.model_validate({"model": "m", "nodes": 2} | fields)


def token_file(folder: Path) -> str:
    path = folder / "token"
    path.write_text("a-token-of-thirty-two-characters-or-more")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def plan():
    plan = begin_run(config(), None)
    yield plan
    plan.remove()


def test_one_host_needs_no_token_and_listens_on_loopback(plan):
    assert (plan.address, plan.spread) == ("127.0.0.1", False)
    assert len(plan.token) >= 32


def test_the_runs_folder_is_the_owners_alone_and_goes_away(plan):
    assert stat.S_IMODE(plan.run_dir.stat().st_mode) == 0o700
    assert plan.log_dir.is_dir()
    assert plan.link_endpoint.startswith(f"ipc://{plan.run_dir}")
    plan.remove()
    assert not plan.run_dir.exists()


def test_a_plan_alone_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plan = plan_group(config(), None)
    assert (plan.address, plan.spread, plan.token) == ("127.0.0.1", False, "")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_have_tokens_of_their_own(plan):
    other = begin_run(config(), None)
    other.remove()
    assert other.token != plan.token


def test_several_hosts_need_a_shared_token():
    with pytest.raises(ConfigError, match=r"cluster\.token_file"):
        begin_run(config(cluster={"ray_address": "10.0.0.1:6379"}), None)


def test_several_hosts_share_the_token_of_the_file(tmp_path):
    shared = {"token_file": token_file(tmp_path), "control_port": 6400, "ray_port": 6401}
    plan = begin_run(config(cluster=shared), None)
    plan.remove()
    assert plan.token == "a-token-of-thirty-two-characters-or-more"
    assert plan.spread


def test_settings_reach_the_state_machine():
    settings = group_settings(
        config(
            timeouts={"join_s": 1, "load_s": 2, "warm_up_s": 3, "heartbeat_lost_s": 4},
            recovery={
                "max_restarts": 5, "window_s": 6, "backoff_s": 7, "max_backoff_s": 8,
                "deadline_s": 9, "standby_nodes": 1,
            },
        ),
        0,
    )  # fmt: skip
    limits = (settings.join_s, settings.load_s, settings.warm_up_s, settings.heartbeat_lost_s)
    budget = (settings.max_restarts, settings.window_s, settings.backoff_s, settings.max_backoff_s)
    assert limits == (1, 2, 3, 4)
    assert budget == (5, 6, 7, 8)
    assert (settings.nodes, settings.standby_nodes, settings.deadline_s) == (2, 1, 9)


def test_each_of_several_groups_has_a_name_and_the_first_has_the_stand_bys():
    several = config(groups=2, recovery={"standby_nodes": 1})
    first, second = (group_settings(several, number) for number in range(2))
    assert (first.name, first.standby_nodes) == ("0", 1)
    assert (second.name, second.standby_nodes) == ("1", 0)
    assert group_settings(config(), 0).name == ""


def test_groups_of_one_host_meet_by_different_names(plan):
    action = Form(
        epoch=3, members=(("0.1", 0),), addresses=("10.0.0.1",), num_blocks=5, warm_up=True
    )
    names = {
        order.rendezvous
        for number in range(3)
        for _, order in form_orders(config(), plan, number, action)
    }
    assert len(names) == 3


def test_the_local_cluster_needs_no_ray(plan):
    assert isinstance(make_cluster(config(cluster={"kind": "local"}), plan), LocalCluster)


def test_one_node_may_join_by_itself_beside_a_leader_without_a_follower(tmp_path):
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("t" * 32)
    cluster = {"token_file": token, "follower_on_leader_host": False}
    plan = begin_run(ServeConfig(model="m", nodes=1, cluster=cluster), None)
    try:
        assert plan.spread
        assert plan.control_port == 6400
    finally:
        plan.remove()


@pytest.mark.parametrize(
    ("addresses", "same_host", "rendezvous"),
    [
        (("10.0.0.1", "10.0.0.1"), True, "{run}-1-17"),
        (("10.0.0.1", "10.0.0.2"), False, "tcp://10.0.0.1:7001"),
    ],
)
def test_members_of_an_epoch_are_told_where_to_meet(plan, addresses, same_host, rendezvous):
    form = Form(
        epoch=17, members=(("0.1", 0), ("1.4", 1)), num_blocks=9, addresses=addresses,
        warm_up=False,
    )  # fmt: skip
    orders = form_orders(config(cluster={"rendezvous_port": 7000}), plan, 1, form)
    assert [name for name, _ in orders] == ["0.1", "1.4"]
    for rank, (_, order) in enumerate(orders):
        assert (order.epoch, order.node_rank, order.num_nodes) == (17, rank, 2)
        assert (order.same_host, order.num_blocks, order.warm_up) == (same_host, 9, False)
        assert order.rendezvous.startswith(rendezvous.format(run=plan.run_dir.name))


def orders(plan, epoch: int, *addresses: str):
    members = tuple((f"{rank}.1", rank) for rank in range(len(addresses)))
    action = Form(
        epoch=epoch,
        members=members,
        addresses=addresses,
        num_blocks=5,
        warm_up=True,
    )
    return [order for _, order in form_orders(config(), plan, 0, action)]


def test_followers_of_several_hosts_meet_by_what_nobody_can_guess(plan):
    one, other = orders(plan, 3, "10.0.0.1", "10.0.0.2")
    assert one.rendezvous == other.rendezvous
    parts = urlsplit(one.rendezvous)
    assert (parts.hostname, parts.port) == ("10.0.0.1", 6402 + 3)
    assert len(parts.path) > 32
    assert orders(plan, 3, "10.0.0.1", "10.0.0.2")[0].rendezvous != one.rendezvous


def test_followers_of_one_host_meet_by_a_name(plan):
    assert "://" not in orders(plan, 1, "10.0.0.1", "10.0.0.1")[0].rendezvous
