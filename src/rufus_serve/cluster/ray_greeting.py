"""What a leader leaves in its Ray head for hosts that come, so that misfits are told by name.

`ray start` tries a wrong token twenty times, prints pages, and knows no versions but its own.
"""

import logging
import platform
import secrets

import msgspec
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined, unused-ignore]
from ray.exceptions import AuthenticationError, RayError

from rufus_serve import __version__
from rufus_serve.errors import ClusterError, HandshakeRefused
from rufus_serve.protocol.messages import PROTOCOL_VERSION

_log = logging.getLogger(__name__)
_NAMESPACE, _KEY = b"rufus-serve", b"leader"
_CALL_S = 5.0


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """What must agree between the hosts of a group."""

    protocol: int
    package: str
    python: str
    ray: str
    head_id: str = ""
    """Of the Ray head; another one has another. Hosts of the old one must join anew."""


def own_versions() -> Versions:
    """This process's."""
    return Versions(
        protocol=PROTOCOL_VERSION,
        package=__version__,
        python=platform.python_version(),
        ray=str(ray.__version__),
    )


def difference(ours: Versions, leaders: Versions) -> str:
    """Why a host with `ours` cannot follow that leader; empty if it can.

    Of the package the protocol counts, so that a leader can be upgraded by itself; of Python the
    minor: Ray's processes exchange pickled byte code.
    """
    if ours.protocol != leaders.protocol:
        return (
            f"this host speaks protocol {ours.protocol} (rufus-serve {ours.package}), the leader "
            f"{leaders.protocol} ({leaders.package}); install the leader's version here"
        )
    for name, here, there in (
        ("Python", _minor(ours.python), _minor(leaders.python)),
        ("Ray", ours.ray, leaders.ray),
    ):
        if here != there:
            return f"this host has {name} {here}, the leader {there}; install the leader's here"
    return ""


def announce(address: str) -> None:
    """Leave our versions in the Ray head at `address` (HOST:PORT), by this process's Ray token.

    Raises:
        HandshakeRefused: it was started with another token.
        ClusterError: it does not take them.
    """
    value = msgspec.json.encode(
        msgspec.structs.replace(own_versions(), head_id=secrets.token_hex(8))
    )
    try:
        GcsClient(address=address).internal_kv_put(_KEY, value, True, _NAMESPACE, timeout=_CALL_S)
    except AuthenticationError as error:
        raise _other_token(address) from error
    except RayError as error:
        raise ClusterError(f"the Ray head at {address} takes no greeting: {error}") from error


def greet(address: str) -> str:
    """Identity of the Ray head at `address` (HOST:PORT), if it is there and takes this host.

    Empty if it is not there, or its leader is not yet.

    Raises:
        HandshakeRefused: it holds another token, or runs other versions.
    """
    try:
        found = GcsClient(address=address).internal_kv_get(_KEY, _NAMESPACE, timeout=_CALL_S)
    except AuthenticationError as error:
        raise _other_token(address) from error
    except RayError:
        return ""
    if found is None:
        return ""
    ours, leaders = own_versions(), msgspec.json.decode(found, type=Versions)
    unlike = difference(ours, leaders)
    if unlike:
        raise HandshakeRefused(f"the leader at {address} cannot take this host: {unlike}")
    if ours.package != leaders.package:
        _log.warning(
            "this host has rufus-serve %s, the leader at %s has %s; they speak the same protocol",
            ours.package, address, leaders.package,
        )  # fmt: skip
    return leaders.head_id or leaders.package


def _other_token(address: str) -> HandshakeRefused:
    return HandshakeRefused(
        f"the leader at {address} refuses this host's token: it was started with another one; "
        "give every host the same token file"
    )


def _minor(python_version: str) -> str:
    return ".".join(python_version.split(".")[:2])
