"""What the doctor and its probes say to each other: JSON, one message a line.

The doctor asks each probe to `Examine` its host, then all to `Listen`, then each to `Reach` the
others; a probe ends when its standard input closes.
"""

from typing import Any

import msgspec

from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.finding import Finding


class Examine(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run all checks of this host."""

    node: str
    config: dict[str, Any]
    """`ServeConfig.for_followers()`."""
    placement: HostPart
    quick: bool = False


class Listen(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Await the other hosts' connections, until the next `Listen` or the end."""

    node: str
    address: str
    nonce: str
    """Proof that a connection is one of this examination's."""
    ports: dict[str, int]
    """Purpose to port; 0 takes a free one."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A port of another host."""

    node: str
    address: str
    port: int
    purpose: str
    talks: bool = True
    """Whether a probe listens there; else a running server does, and only connecting is tried."""


class Reach(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Connect to other hosts."""

    node: str
    nonce: str
    targets: tuple[Target, ...]
    timeout_s: float


class NodeReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Examine`."""

    node: str
    address: str
    findings: tuple[Finding, ...]
    facts: dict[str, str]
    """Versions by name, to be compared between hosts."""
    model: str
    """Differs between checkpoints; empty if it cannot be read."""
    mtu: int
    """Of the interface with `address`; 0 if there is none."""


class Listening(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Listen`."""

    ports: dict[str, int]
    """Purpose to the port that is listened on."""
    faults: dict[str, str]
    """Purpose to the reason that nothing can listen there."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """How one host reached a port of another."""

    source: str
    target: Target
    fault: str = ""
    """Why not; empty if all went well."""
    answered_by: str = ""
    """The host that answered, which should be the target."""
    round_trip_s: float = 0.0
    """Shortest of several."""
    offset_s: float = 0.0
    """The target's clock less the source's."""
    path_mtu: int = 0
    """As the source's kernel knows it; 0 if unknown."""
    bulk_fault: str = ""
    """Why a larger message did not come back, though small ones did."""


class Reached(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Reach`."""

    links: tuple[Link, ...]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to anything that could not be done."""

    reason: str
    exit_code: int


Order = Examine | Listen | Reach
Reply = NodeReport | Listening | Reached | Failed

encode = msgspec.json.encode
_orders: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def decode_order(line: bytes) -> Order:
    """The order in `line`."""
    return _orders.decode(line)


def decode_reply(line: bytes) -> Reply:
    """The reply in `line`."""
    return _replies.decode(line)
