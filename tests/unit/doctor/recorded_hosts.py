"""Answers of healthy and broken hosts, for the checks to be fed with.

None of this was recorded by us on a device. Where each shape comes from:
- `neuron-ls --json-output`: the Neuron SDK's guide to the tool for its options; the fields as a
  public test suite (lablup/backend.ai) holds them from a trn1.2xlarge with tools 2.28.23. The 16
  devices of a trn1.32xlarge are that one device, repeated.
- `fi_info -p efa -t FI_EP_RDM`: EC2's guide to EFA, and public READMEs with libfabric 1.19 to 2.x.
- driver, runtime and collectives versions: the release content page of Neuron SDK 2.28.0.
- EFA devices per instance: the Neuron SDK's page on preparing trn1.32xlarge for several nodes.
- `/proc/meminfo`, cgroup files, sysfs vendor ids and counters: the Linux kernel's documentation.
"""

import json
from collections.abc import Mapping
from typing import Any

from rufus_serve.config.schema import ServeConfig
from rufus_serve.doctor.context import HostContext, HostPart
from rufus_serve.doctor.system import UNLIMITED, CommandResult, Interface, Space
from rufus_serve.units import GIB

NEURON_LS = ("neuron-ls", "--json-output")
FI_INFO = ("fi_info", "-p", "efa", "-t", "FI_EP_RDM")
NO_DEVICES = (
    'time="2026-09-12T02:42:06Z" level=fatal msg="Failed to load MLA system information" '
    'error="failed to discover Neuron devices"\n'
)
NO_EFA = "fi_getinfo: -61 (No data available)\n"


def neuron_ls(devices: int, *, processes: tuple[dict[str, Any], ...] = ()) -> CommandResult:
    """What neuron-ls lists for Trainium chips of two cores; `processes` on the first."""
    listed = [
        {
            "neuron_device": number,
            "bdf": f"0000:{0x10 + number:02x}:1e.0",
            "cpu_affinity": "0-7",
            "numa_node": "-1",
            "connected_to": None,
            "nc_count": 2,
            "memory_size": 32 * GIB,
            "neuroncore_ids": [2 * number, 2 * number + 1],
            "neuron_processes": list(processes) if number == 0 else [],
        }
        for number in range(devices)
    ]
    return CommandResult(0, json.dumps(listed), "")


def fi_info(names: list[str], *, fabrics: tuple[str, ...] = ("efa",)) -> CommandResult:
    """What fi_info prints; newer libfabric has each domain in two fabrics."""
    entry = (
        "provider: efa\n    fabric: {fabric}\n    domain: {name}-rdm\n    version: 122.0\n"
        "    type: FI_EP_RDM\n    protocol: FI_PROTO_EFA\n"
    )
    out = "".join(entry.format(fabric=fabric, name=name) for fabric in fabrics for name in names)
    return CommandResult(0, out, "")


def meminfo(*, total_gib: float, available_gib: float, huge_pages: int = 0) -> str:
    """/proc/meminfo, the lines that are read."""
    return (
        f"MemTotal:       {int(total_gib * GIB) >> 10} kB\n"
        f"MemAvailable:   {int(available_gib * GIB) >> 10} kB\n"
        f"HugePages_Total:    {huge_pages}\n"
        f"HugePages_Free:     {huge_pages}\n"
        "Hugepagesize:       2048 kB\n"
    )


class RecordedSystem:
    """A `System` of recorded answers; what was not recorded is absent."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {"/proc/meminfo": meminfo(total_gib=64, available_gib=60)}
        self.folders: dict[str, tuple[str, ...]] = {}
        self.commands: dict[tuple[str, ...], CommandResult] = {}
        self.forbidden: set[str] = set()
        self.spaces: dict[str, Space] = {}
        self.limits: dict[str, tuple[int, int]] = {}
        self.variables: dict[str, str] = {}
        self.packages: dict[str, str] = {"ray": "2.60.0", "vllm": "0.33.0"}
        self.nics: tuple[Interface, ...] = (Interface("lo", "127.0.0.1", 65536),)
        self.taken: dict[tuple[str, int], str] = {}
        self.python_version = "3.11.7"

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def list(self, path: str) -> tuple[str, ...]:
        return self.folders.get(path, ())

    def is_usable(self, path: str) -> bool:
        return path not in self.forbidden

    def run(self, *command: str) -> CommandResult | None:
        return self.commands.get(command)

    def space(self, path: str) -> Space:
        return self.spaces.get(path, Space(1000 * GIB, 800 * GIB))

    def limit(self, name: str) -> tuple[int, int]:
        return self.limits.get(name, (UNLIMITED, UNLIMITED))

    def variable(self, name: str) -> str:
        return self.variables.get(name, "")

    def package(self, name: str) -> str:
        return self.packages.get(name, "")

    def python(self) -> str:
        return self.python_version

    def kernel(self) -> str:
        return "6.8.0-1021-aws"

    def interfaces(self) -> tuple[Interface, ...]:
        return self.nics

    def why_not_listen(self, address: str, port: int) -> str:
        return self.taken.get((address, port), "")


EFA_NAMES = [f"rdmap{16 * number}s27" for number in range(8)]


def trn1_32xlarge() -> RecordedSystem:
    """A healthy node of a group, with Neuron SDK 2.28."""
    system = RecordedSystem()
    system.files |= {
        "/sys/devices/virtual/dmi/id/product_name": "trn1.32xlarge",
        "/sys/module/neuron/version": "2.26.5.0",
        "/proc/meminfo": meminfo(total_gib=496, available_gib=480, huge_pages=5128),
        **{f"/sys/class/infiniband/{name}/device/vendor": "0x1d0f" for name in EFA_NAMES},
    }
    system.folders |= {
        "/dev": ("kmsg", *(f"neuron{number}" for number in range(16)), "null"),
        "/dev/infiniband": tuple(f"uverbs{number}" for number in range(8)),
        "/sys/class/infiniband": tuple(EFA_NAMES),
        **{
            f"/sys/class/infiniband/{name}/ports/1/hw_counters": ("rdma_read_bytes", "rx_bytes")
            for name in EFA_NAMES
        },
    }
    system.commands |= {
        NEURON_LS: neuron_ls(16),
        FI_INFO: fi_info(EFA_NAMES),
        dpkg("aws-neuronx-runtime-lib"): CommandResult(0, "2.30.51.0-eae9ee8d1", ""),
        dpkg("aws-neuronx-collectives"): CommandResult(0, "2.30.59.0-838c7fc8b", ""),
    }
    system.packages |= {"neuronx-distributed-inference": "0.8.16251", "torch-neuronx": "2.9.0.2.12"}
    system.nics += (Interface("ens32", "10.0.1.10", 9001), Interface("ens64", "10.0.1.11", 9001))
    return system


def dpkg(package: str) -> tuple[str, ...]:
    return ("dpkg-query", "-W", "-f=${Version}", package)


SPREAD = HostPart(spread=True, address="10.0.1.10")


def neuron_context(
    system: RecordedSystem,
    *,
    placement: HostPart = SPREAD,
    model: str = "/nowhere",
    **settings: Any,
) -> HostContext:
    """A context of runtime neuron, on two nodes unless told otherwise."""
    fields: Mapping[str, Any] = {"runtime": "neuron", "nodes": 2} | settings
    return HostContext(system, ServeConfig(model=model, **fields), placement)


def cpu_context(
    system: RecordedSystem | None = None,
    *,
    placement: HostPart | None = None,
    model: str = "/nowhere",
    **settings: Any,
) -> HostContext:
    """A context of runtime cpu on one host."""
    config = ServeConfig(model=model, **settings)
    return HostContext(
        system or RecordedSystem(), config, placement or HostPart(followers=config.nodes)
    )
