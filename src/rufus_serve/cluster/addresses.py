"""Which of this host's addresses other nodes reach it by."""

import ipaddress
import socket

import psutil

from rufus_serve.errors import ClusterError, EndpointError


def own_addresses() -> dict[str, str]:
    """IPv4 addresses of this host by interface name, those that are up."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family is socket.AF_INET
    }


def choose_address(*, interface: str = "", towards: str = "") -> str:
    """The address to be reached by: of `interface` (name or address), or the one used `towards`.

    Raises:
        ClusterError: there is no such interface or address here; lists those there are.
    """
    addresses = own_addresses()
    if interface:
        if interface in addresses:
            return addresses[interface]
        if interface in addresses.values():
            return interface
        known = ", ".join(f"{name} ({address})" for name, address in sorted(addresses.items()))
        raise ClusterError(f"cluster.interface {interface!r} is not on this host; it has {known}")
    if towards:
        return _source_address(towards)
    routed = [a for a in addresses.values() if not ipaddress.ip_address(a).is_loopback]
    return routed[0] if routed else "127.0.0.1"


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
