"""`examine`: all checks of one host, in the order in which they matter."""

from collections.abc import Callable, Iterator
from pathlib import Path

from rufus_serve.artifacts.identity import identify_model
from rufus_serve.doctor.artifacts import artifacts
from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.efa import efa_devices, efa_provider, rdma
from rufus_serve.doctor.finding import Finding
from rufus_serve.doctor.limits import huge_pages, memlock, open_files, processes
from rufus_serve.doctor.memory import disk, host_memory, shared_memory
from rufus_serve.doctor.messages import NodeReport
from rufus_serve.doctor.model import model
from rufus_serve.doctor.network import address, ports
from rufus_serve.doctor.neuron import neuron_devices, neuron_driver, neuron_runtime
from rufus_serve.doctor.topology import api_keys, settings
from rufus_serve.doctor.versions import facts, versions
from rufus_serve.errors import ModelError

Check = Callable[[HostContext], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    settings, model, artifacts, api_keys, versions,
    neuron_devices, neuron_driver, neuron_runtime, efa_devices, efa_provider, rdma,
    host_memory, disk, shared_memory, memlock, open_files, processes, huge_pages,
    address, ports,
)  # fmt: skip


def examine(context: HostContext, node: str) -> NodeReport:
    """Everything there is to say of the host of `context`, called `node`."""
    own = context.placement.address
    return NodeReport(
        node=node,
        address=own,
        findings=tuple(finding for check in CHECKS for finding in check(context)),
        facts=facts(context),
        model=_model_key(context),
        mtu=next((i.mtu for i in context.system.interfaces() if i.address == own), 0),
    )


def _model_key(context: HostContext) -> str:
    """A text that differs between checkpoints; empty if there is none to be read."""
    try:
        identity = identify_model(Path(context.config.model))
    except (ModelError, OSError):
        return ""
    weights = ",".join(f"{file.name}:{file.fingerprint[:12]}" for file in identity.weights)
    return f"{identity.config_sha256[:12]} {weights}"
