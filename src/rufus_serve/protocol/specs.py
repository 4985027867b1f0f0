"""What the supervisor hands to a process it starts, and what one that fails leaves for it."""

from pathlib import Path
from typing import Any

import msgspec

STANDBY = -1
"""Node rank of a follower that is held in reserve."""
SPEC_VARIABLE = "RUFUS_LEADER_SPEC"
"""Environment variable with the path of the `LeaderSpec` file (JSON)."""


def last_word_file(spec_file: Path) -> Path:
    """Where the leader of `spec_file` writes, in one paragraph, why it ends."""
    return spec_file.with_suffix(".error")


class LeaderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All a leader process needs; written to a file of mode 0600 that `SPEC_VARIABLE` names."""

    config: dict[str, Any]
    """`ServeConfig.model_dump(mode="json")`."""
    leader_id: str
    link_endpoint: str
    """Where the supervisor awaits the leader's link."""
    token: str
    """The group's secret, of which all channel keys are derived."""


class FollowerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All a follower process needs."""

    config: dict[str, Any]
    """`ServeConfig.for_followers()`."""
    node_rank: int
    """STANDBY: to be given by the supervisor when it is needed."""
    follower_id: str
    control_endpoint: str
    """Where the supervisor awaits followers."""
    token: str
    """The group's secret, of which all channel keys are derived."""
    address: str = "127.0.0.1"
    """IP address to listen on, by which the leader and the other nodes reach this one."""
    step_port: int = 0
    """Port for step inputs; 0 takes a free one."""
    cause_file: str = ""
    """Where the follower writes, in one paragraph, why it ends; empty for nowhere."""
    group: int = 0
    """Number of its group."""

    @property
    def place(self) -> int:
        """Which seat it prefers, counted from the leader's; a group's ranks sit side by side."""
        if self.node_rank == STANDBY:
            return STANDBY
        return self.group * int(self.config["nodes"]) + self.node_rank
