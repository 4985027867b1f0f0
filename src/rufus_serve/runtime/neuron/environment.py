"""Environment variables of the Neuron runtime, EFA and NxD Inference; pure functions.

Written to the documented contract, never run on a device. Sources: the Neuron runtime's
configuration page, NxD Inference's multi-node example, AWS's multi-node blueprints for trn1.
"""

import ipaddress
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rufus_serve.artifacts.fetch import default_cache
from rufus_serve.config.schema import ServeConfig
from rufus_serve.config.step_floor import prefill_floor_s
from rufus_serve.errors import ConfigError
from rufus_serve.runtime.neuron.topology import Topology

DEFAULT_COMM_PORT = 63423
"""Port of the collectives' bootstrap if none is configured, as in AWS's examples."""

_LOCAL_PORTS = 16
_DEVICES = {"trn1": "trn1", "trn1n": "trn1", "inf2": "inf2", "trn2": "trn2", "trn2u": "trn2"}
"""EC2's instance families, and the device in them."""
_VIRTUAL = ("lo", "docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "vxlan", "dummy")


LOGICAL_CORES = {"trn1": 1, "inf2": 1, "trn2": 2}
"""Physical cores of one logical core, as NxD Inference 0.8 takes it by default (config.py)."""

_LONG_CONTEXT = 32768
_LONG_CONTEXT_EXEC_S = 600.0
"""What NxD Inference itself sets from there on, if nothing else is set (utils/runtime_env.py)."""


def device_environment(config: ServeConfig, topology: Topology, work: Path) -> dict[str, str]:
    """What must be set before NxD Inference is imported, whoever the peers are.

    `work` is a folder of this process; what compilers keep for the next one goes to the cache.
    """
    cores, target = topology.cores_per_node, config.neuron.target
    values = {
        "BASE_COMPILE_WORK_DIR": f"{work / 'compile'}/",
        "NEURON_COMPILE_CACHE_URL": str(default_cache().parent / "neuron-compile-cache"),
        "NEURON_LOGICAL_NC_CONFIG": str(LOGICAL_CORES[target]),
        "NEURON_PLATFORM_TARGET_OVERRIDE": target,
        "NEURON_RT_EXEC_TIMEOUT": str(math.ceil(exec_timeout_s(config))),
    }
    if topology.followers_on_host == 1:
        values["NEURON_RT_NUM_CORES"] = str(cores)
    else:
        first = topology.first_core
        values["NEURON_RT_VISIBLE_CORES"] = f"{first}-{first + cores - 1}"
    if topology.spans_hosts:
        values |= {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_FORK_SAFE": "1"}
    return values


def exec_timeout_s(config: ServeConfig) -> float:
    """Backstop for a collective whose peer died; the deadline of a step acts first."""
    floor_s, largest = config.timeouts.step_floor_s, config.buckets.prefill[-1]
    longest = max(config.max_model_len, largest)
    least = _LONG_CONTEXT_EXEC_S if longest >= _LONG_CONTEXT else 30.0
    return max(least, 3 * floor_s, prefill_floor_s(floor_s, largest))


def check_device(config: ServeConfig, product_name: str, *, devices: Sequence[str]) -> None:
    """Raise ConfigError if this host has no `devices`, or others than the target.

    `product_name` is EC2's name of the host. Graphs may be compiled anywhere, and for hours.
    """
    if not devices:
        raise ConfigError(
            f"this host ({product_name.strip() or 'of unknown type'}) has no /dev/neuron*, which "
            "followers with neuron.mode device drive; `rufus-serve doctor` says what is missing, "
            "and `rufus-serve compile` needs none"
        )
    family, _, size = product_name.strip().partition(".")
    device = _DEVICES.get(family)
    if size and device and device != config.neuron.target:
        raise ConfigError(
            f"this host is a {product_name.strip()}, but neuron.target is {config.neuron.target}: "
            f"graphs for {config.neuron.target} do not load here; set neuron.target to {device} "
            "and compile again"
        )


def group_environment(rendezvous: str, *, epoch: int, port: int, interface: str) -> dict[str, str]:
    """What names the peers of one epoch: where collectives bootstrap, and over which interface.

    `rendezvous` is tcp://IP:PORT, or a shared-memory stem if all followers share this host; then
    the ports after `port` take turns, since the last epoch's may not be free yet.
    """
    host, rendezvous_port = "127.0.0.1", (port or DEFAULT_COMM_PORT) + epoch % _LOCAL_PORTS
    if rendezvous.startswith("tcp://"):
        host, rendezvous_port = rendezvous_address(rendezvous)
    values = {"NEURON_RT_ROOT_COMM_ID": f"{host}:{rendezvous_port}"}
    if interface:
        values["CCOM_SOCKET_IFNAME"] = interface
    return values


def rendezvous_address(rendezvous: str) -> tuple[str, int]:
    """IP address and port of tcp://IP:PORT.

    Raises:
        ConfigError: it names a host, which the Neuron runtime does not resolve.
    """
    parts = urlsplit(rendezvous)
    try:
        address = ipaddress.ip_address(parts.hostname or "")
    except ValueError as error:
        raise ConfigError(
            f"rendezvous host {parts.hostname}: NEURON_RT_ROOT_COMM_ID takes an IP address; set "
            "cluster.interface to node 0's address or interface"
        ) from error
    if parts.port is None:
        raise ConfigError(f"rendezvous host {address} has no port")
    host = f"[{address}]" if address.version == 6 else str(address)
    return host, parts.port


def choose_interface(
    interfaces: Mapping[str, Sequence[tuple[str, str]]], *, peer: str, configured: str = ""
) -> str:
    """The interface to reach `peer` by, among many; empty if there is none.

    `interfaces` maps a name to its (address, netmask) pairs. First the configured name or
    address, then the one that has or sees `peer`, then the first real one by name.
    """
    for name, pairs in interfaces.items():
        if configured and (configured == name or any(configured == own for own, _ in pairs)):
            return name
    for name, pairs in interfaces.items():
        if any(peer == own for own, _ in pairs):
            return name
    for name, pairs in interfaces.items():
        if any(_same_network(peer, own, mask) for own, mask in pairs):
            return name
    real = sorted(name for name in interfaces if not name.startswith(_VIRTUAL))
    return real[0] if real else ""


def _same_network(peer: str, own: str, mask: str) -> bool:
    try:
        network = ipaddress.ip_network(f"{own}/{mask}", strict=False)
        return ipaddress.ip_address(peer) in network
    except ValueError:
        return False
