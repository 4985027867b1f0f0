"""Addresses, tokens and cluster of a group, worked out from the configuration."""

import logging
import secrets
import shutil
import tempfile
from pathlib import Path

import msgspec

from rufus_serve.channel.keys import new_token, read_token
from rufus_serve.cluster.base import Cluster
from rufus_serve.cluster.local import LocalCluster
from rufus_serve.cluster.ray_keeper import RayKeeper
from rufus_serve.cluster.ray_orders import RaySettings
from rufus_serve.config import ServeConfig
from rufus_serve.config.ports import control_port, rendezvous_ports
from rufus_serve.errors import ConfigError, EndpointError
from rufus_serve.protocol.messages import FormGroup
from rufus_serve.supervisor.group_events import Form, GroupSettings
from rufus_serve.supervisor.group_file import GroupFile, load, path_for

_log = logging.getLogger(__name__)
_MOST_HERE = 64
"""Followers that this host takes where all run on it: groups may come while it serves."""


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where the group is, by the configuration alone; making one leaves nothing behind."""

    token: str
    """The group's secret; empty if there is no token file."""
    address: str
    """This host's address, by which followers reach the supervisor."""
    control_port: int
    spread: bool
    """Whether followers join by themselves, from other hosts; else all run on this one."""


class GroupRun(GroupPlan, frozen=True, kw_only=True):
    """A plan that is carried out: with a secret in any case, and a folder."""

    run_dir: Path
    """Private folder of this run: link socket, leader's spec, logs."""

    @property
    def link_endpoint(self) -> str:
        """Where leader processes connect."""
        return f"ipc://{self.run_dir / 'link'}"

    @property
    def log_dir(self) -> Path:
        """Where followers' logs go."""
        return self.run_dir / "logs"

    def remove(self, *, keep_logs: bool = False) -> None:
        """Delete the run's folder, or say where the logs are that it keeps."""
        if keep_logs:
            _log.info("the logs of followers and of Ray are in %s", self.run_dir)
        else:
            shutil.rmtree(self.run_dir, ignore_errors=True)


def plan_group(config: ServeConfig, kept: GroupFile | None) -> GroupPlan:
    """The plan for `config`; where followers of `kept` wait, they are to find us again.

    Raises:
        ConfigError: followers join from other hosts and there is no token file, or it is no good.
    """
    from rufus_serve.cluster.addresses import choose_address

    cluster = config.cluster
    spread = bool(cluster.token_file or cluster.ray_address) and cluster.kind == "ray"
    spread = spread and (config.num_ranked > 1 or not cluster.follower_on_leader_host)
    if spread and cluster.token_file is None:
        raise ConfigError("cluster.token_file is needed when followers run on other hosts")
    address = choose_address(interface=cluster.interface) if spread else "127.0.0.1"
    port = control_port(config) if spread else cluster.control_port
    if kept and not port:
        port = int(kept.control_endpoint.rpartition(":")[2])
    token = read_token(cluster.token_file) if cluster.token_file else ""
    return GroupPlan(token=token, address=address, control_port=port, spread=spread)


def begin_run(config: ServeConfig, kept: GroupFile | None) -> GroupRun:
    """Make what the group of `config` needs on this host, or take what `kept` left of it.

    Raises:
        ConfigError: as `plan_group`.
    """
    plan = plan_group(config, kept)
    token = plan.token or (kept.token if kept else new_token())
    run_dir = Path(kept.run_dir) if kept else Path(tempfile.mkdtemp(prefix="rufus-serve-"))
    run = GroupRun(run_dir=run_dir, **(msgspec.structs.asdict(plan) | {"token": token}))
    run.log_dir.mkdir(exist_ok=True, parents=True)
    if plan.spread and not config.cluster.ray_address:
        _log.info("%s", invitation(config, plan.address))
    return run


def invitation(config: ServeConfig, address: str) -> str:
    """What to run on the other hosts."""
    cluster = config.cluster
    others = config.num_followers - int(cluster.follower_on_leader_host)
    asked = "as told" if cluster.interface else "chosen; cluster.interface decides otherwise"
    return (
        f"this host is {address} ({asked}); on {others} other{'s' if others > 1 else ''} run: "
        f"rufus-serve follower --leader {address}:{cluster.ray_port} "
        f"--token-file {cluster.token_file}"
    )


def kept_group(config: ServeConfig) -> GroupFile | None:
    """The group that an earlier supervisor of this endpoint left waiting, if it did.

    Raises:
        EndpointError: that supervisor still runs.
    """
    group = load(path_for(config))
    if group is None:
        return None
    if group.alive:
        raise EndpointError(
            f"process {group.supervisor_pid} serves on port {config.port} already; choose another "
            "port, or end it by `rufus-serve drain`"
        )
    if not group.followers or config.recovery.on_leader_loss != "wait":
        shutil.rmtree(group.run_dir, ignore_errors=True)
        return None
    return group


def group_settings(config: ServeConfig, number: int) -> GroupSettings:
    """What the state machine of group `number` needs of `config`.

    Stand-bys are the first group's, which lends them.
    """
    timeouts, recovery = config.timeouts, config.recovery
    return GroupSettings(
        nodes=config.nodes,
        standby_nodes=0 if number else recovery.standby_nodes,
        # The only one of a server has none, and keeps that when others come.
        name=str(number) if config.groups > 1 or number else "",
        join_s=timeouts.join_s,
        load_s=timeouts.load_s,
        warm_up_s=timeouts.warm_up_s,
        heartbeat_lost_s=timeouts.heartbeat_lost_s,
        max_restarts=recovery.max_restarts,
        window_s=recovery.window_s,
        backoff_s=recovery.backoff_s,
        max_backoff_s=recovery.max_backoff_s,
        deadline_s=config.recovery_deadline_s,
        deadline_follows_start=not recovery.deadline_s,
    )


def form_orders(
    config: ServeConfig, plan: GroupRun, number: int, action: Form
) -> tuple[tuple[str, FormGroup], ...]:
    """What each member of group `number`, by its id, is told of an epoch."""
    same_host = len(set(action.addresses)) == 1
    if same_host:
        rendezvous = f"{plan.run_dir.name}-{number}-{action.epoch}"
    else:
        ports = rendezvous_ports(config)
        port = ports[action.epoch % len(ports)]
        # What nobody can guess keeps strangers from meeting the followers in a peer's place.
        rendezvous = f"tcp://{action.addresses[0]}:{port}/{secrets.token_hex(16)}"
    return tuple(
        (
            follower_id,
            FormGroup(
                epoch=action.epoch,
                node_rank=node_rank,
                num_nodes=len(action.members),
                rendezvous=rendezvous,
                same_host=same_host,
                num_blocks=action.num_blocks,
                warm_up=action.warm_up,
            ),
        )
        for follower_id, node_rank in action.members
    )


def make_cluster(config: ServeConfig, plan: GroupRun) -> Cluster:
    """The cluster that `config.cluster.kind` names."""
    followers = config.num_followers
    if config.cluster.kind == "local":
        return LocalCluster(slots=followers, python=config.cluster.python, log_dir=plan.log_dir)
    return RayKeeper(
        RaySettings(
            followers=followers,
            spread=plan.spread,
            address=plan.address,
            port=config.cluster.ray_port if plan.spread else 0,
            existing=config.cluster.ray_address,
            join_s=config.timeouts.join_s,
            python=config.cluster.python,
            log_dir=str(plan.log_dir),
            local_slots=_local_slots(config, plan),
            keep_logs=config.keep_logs,
            log_level=config.log_level,
        ),
        group_token=plan.token,
        run_dir=plan.run_dir,
    )


def _local_slots(config: ServeConfig, plan: GroupPlan) -> int:
    """Followers that this host holds."""
    if plan.spread:
        return int(config.cluster.follower_on_leader_host)
    return max(config.num_followers, _MOST_HERE)
