"""What the runtime asks of its host: environment variables and network interfaces."""

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from rufus_serve.runtime.neuron.environment import choose_interface, rendezvous_address

_log = logging.getLogger(__name__)

_OPERATORS_CHOICE = {
    "CCOM_SOCKET_IFNAME", "FI_EFA_FORK_SAFE", "FI_EFA_USE_DEVICE_RDMA", "FI_PROVIDER",
    "NEURON_COMPILE_CACHE_URL", "NEURON_RT_EXEC_TIMEOUT",
}  # fmt: skip


def apply_environment(values: Mapping[str, str]) -> None:
    """Set `values` in this process; tunables that the operator set already stay."""
    for name, value in values.items():
        if name in _OPERATORS_CHOICE and name in os.environ:
            _log.info("%s=%s is kept from the environment", name, os.environ[name])
            continue
        os.environ[name] = value


def product_name() -> str:
    """EC2's name of this host, such as trn1.32xlarge; something else or empty elsewhere."""
    try:
        return Path("/sys/devices/virtual/dmi/id/product_name").read_text()
    except OSError:
        return ""


def neuron_devices() -> list[str]:
    """Names of this host's Neuron devices."""
    return sorted(path.name for path in Path("/dev").glob("neuron[0-9]*"))


def interface_towards(rendezvous: str, configured: str) -> str:
    """The network interface by which this host reaches node 0."""
    if not rendezvous.startswith("tcp://"):
        return ""
    interfaces = {
        name: [(item.address, item.netmask or "") for item in items if item.family in _IP]
        for name, items in psutil.net_if_addrs().items()
    }
    peer = rendezvous_address(rendezvous)[0].strip("[]")
    return choose_interface(interfaces, peer=peer, configured=configured)


_IP = (socket.AF_INET, socket.AF_INET6)
