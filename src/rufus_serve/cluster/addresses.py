"""Which of this host's addresses other nodes reach it by, and whether it reaches theirs."""

import ipaddress
import socket
import time

import psutil

from rufus_serve.errors import ClusterError, ConfigError, EndpointError

_CONNECT_S = 2.0
_POLL_S = 0.2
_ELSEWHERE = "198.51.100.1"
_NEEDS = "hosts of a group reach each other by IPv4, so give one interface an IPv4 address"


def own_addresses() -> dict[str, list[str]]:
    """IPv4 addresses of this host by the name of their interface, if that is up."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = {
        name: [entry.address for entry in entries if entry.family is socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
        if name in up
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def choose_address(*, interface: str = "", towards: str = "") -> str:
    """The address to be reached by: of `interface` (name or address), or the one used `towards`.

    Raises:
        ClusterError: there is no such interface or address here, with a list of those there
            are; or no IPv4 address at all.
    """
    of_interface = own_addresses()
    addresses = [address for each in of_interface.values() for address in each]
    routed = [each for each in addresses if not ipaddress.ip_address(each).is_loopback]
    if interface:
        if interface in of_interface:
            return of_interface[interface][0]
        if interface in addresses:
            return interface
        raise ClusterError(_not_usable(interface, of_interface))
    if towards:
        return _source_address(towards)
    try:
        # That of the default route: of many interfaces, the one that is not for devices or
        # containers alone. The address is of a block that is never routed.
        return _source_address(_ELSEWHERE)
    except ClusterError:
        if not routed:
            raise ClusterError(f"this host has no IPv4 address but loopback's; {_NEEDS}") from None
        return routed[0]


def _not_usable(interface: str, of_interface: dict[str, list[str]]) -> str:
    entries = psutil.net_if_addrs().get(interface)
    if ":" in interface or (entries and not any(e.family is socket.AF_INET for e in entries)):
        return f"cluster.interface {interface!r} has no IPv4 address here; {_NEEDS}"
    listed = sorted((name, ", ".join(found)) for name, found in of_interface.items())
    known = ", ".join(f"{name} ({found})" for name, found in listed)
    return (
        f"cluster.interface {interface!r} is not on this host; it has {known or 'no IPv4 address'}"
    )


def _source_address(towards: str) -> str:
    """The source address of a packet to `towards`; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError as error:
            raise ClusterError(f"there is no route to {towards}: {error.strerror}") from error
        return str(probe.getsockname()[0])


def free_port(address: str) -> int:
    """A TCP port of `address` that is free at the moment.

    Raises:
        EndpointError: `address` is not this host's.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise EndpointError(f"cannot listen on {address}: {error.strerror}") from error
        return int(probe.getsockname()[1])


def await_listener(endpoint: str, *, timeout_s: float) -> None:
    """Return once something listens at `endpoint` (HOST:PORT).

    Ray itself would wait for minutes, and say so in no exception.

    Raises:
        ConfigError: `endpoint` is not HOST:PORT.
        ClusterError: nothing listens within `timeout_s`.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"cluster.ray_address must be HOST:PORT, got {endpoint!r}")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"no Ray cluster answers at cluster.ray_address {endpoint} after "
                    f"{timeout_s:g} s: {error}; start it, or raise timeouts.join_s"
                ) from error
        else:
            return
        time.sleep(_POLL_S)
