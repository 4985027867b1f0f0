"""EFA: the devices that collectives between Trainium nodes go through.

Written to the documented contract, never run on a device. Sources: the Neuron SDK's page on
preparing trn1.32xlarge for several nodes, and EC2's guide to EFA.
"""

from collections.abc import Iterator

from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.errors import FollowerError

_CODE = FollowerError.exit_code
_CLASS = "/sys/class/infiniband"
_AMAZON = "0x1d0f"
_DEVICES = {"trn1.32xlarge": 8, "trn1n.32xlarge": 16, "trn2.48xlarge": 16}
"""EFA devices of an instance with one per network card."""
_ATTACH = (
    "launch the instance with InterfaceType=efa on every network card and load the driver "
    "(sudo modprobe efa); in Kubernetes set the limit vpc.amazonaws.com/efa"
)
_INSTALL = (
    "curl -O https://efa-installer.amazonaws.com/aws-efa-installer-latest.tar.gz; "
    "tar -xf aws-efa-installer-latest.tar.gz; cd aws-efa-installer; "
    "sudo ./efa_installer.sh -y (in a container add --skip-kmod)"
)


def _why_skipped(context: HostContext) -> str:
    if not context.on_device:
        return context.not_on_device
    return "" if context.placement.spread else "all followers are on this host"


def efa_devices(context: HostContext) -> Iterator[Finding]:
    """Whether there are EFA devices, and as many as the instance type has."""
    say = Findings("efa devices")
    if reason := _why_skipped(context):
        yield say.skipped(reason)
        return
    devices = _names(context)
    expected = _DEVICES.get(context.instance_type, 0)
    if not devices:
        yield say.error(
            f"no EFA device in {_CLASS}",
            why="collectives between Trainium nodes go over EFA",
            fix=_ATTACH,
            code=_CODE,
        )
    elif len(devices) < expected:
        yield say.warning(
            f"{len(devices)} EFA devices; {context.instance_type} has {expected}",
            why="each carries an equal part of the bandwidth between nodes",
            fix=_ATTACH,
        )
    else:
        of = f" of {expected}" if expected else ""
        yield say.ok(
            f"{len(devices)}{of} devices: {', '.join(devices[:4])}{' …' * (len(devices) > 4)}"
        )


def _names(context: HostContext) -> list[str]:
    """Devices of Amazon's; other makers' adapters are listed in the same folder."""
    system = context.system
    vendors = {name: system.read(f"{_CLASS}/{name}/device/vendor") for name in system.list(_CLASS)}
    return [name for name, vendor in vendors.items() if vendor in (_AMAZON, None)]


def efa_provider(context: HostContext) -> Iterator[Finding]:
    """Whether libfabric finds the devices."""
    say = Findings("efa provider")
    if reason := _why_skipped(context):
        yield say.skipped(reason)
        return
    yield from _chosen_provider(context, say)
    command = ("-p", "efa", "-t", "FI_EP_RDM")
    answer = context.system.run("fi_info", *command)
    if answer is None:
        answer = context.system.run("/opt/amazon/efa/bin/fi_info", *command)
    why = "the Neuron runtime reaches EFA through libfabric's provider efa"
    if answer is None:
        yield say.error("fi_info is not installed", why=why, fix=_INSTALL, code=_CODE)
        return
    domains = _domains(answer.out)
    if answer.code or not domains:
        yield say.error(
            f"fi_info -p efa finds nothing ({answer.code}): {answer.words}",
            why=why,
            fix=f"{_ATTACH}; or reinstall: {_INSTALL}",
            code=_CODE,
        )
    elif len(domains) < len(_names(context)):
        yield say.warning(
            f"provider efa has {len(domains)} domains for {len(_names(context))} devices",
            why="the missing ones add no bandwidth",
            fix="ls -l /dev/infiniband; every uverbs device must be readable and writable",
        )
    else:
        yield say.ok(f"provider efa with {len(domains)} domains")


def _domains(out: str) -> set[str]:
    """Domains of provider efa; newer libfabric lists each twice, for efa and efa-direct."""
    lines = (line.strip().partition(":") for line in out.splitlines())
    return {value.strip() for key, _, value in lines if key == "domain"}


def _chosen_provider(context: HostContext, say: Findings) -> Iterator[Finding]:
    chosen = context.system.variable("FI_PROVIDER")
    if chosen and chosen != "efa":
        yield say.error(
            f"FI_PROVIDER={chosen} is set, and the follower keeps it",
            why="collectives would not use EFA, or not start at all",
            fix="unset FI_PROVIDER",
            code=_CODE,
        )


def rdma(context: HostContext) -> Iterator[Finding]:
    """Whether this process may use the devices, and their remote memory access."""
    say = Findings("rdma")
    if reason := _why_skipped(context):
        yield say.skipped(reason)
        return
    devices = _names(context)
    verbs = [n for n in context.system.list("/dev/infiniband") if n.startswith("uverbs")]
    usable = [name for name in verbs if context.system.is_usable(f"/dev/infiniband/{name}")]
    if len(usable) < max(1, len(devices)):
        yield say.error(
            f"{len(usable)} usable /dev/infiniband/uverbs* for {len(devices)} EFA devices",
            why="libfabric opens them to reach the network card without the kernel",
            fix="sudo modprobe ib_uverbs; docker run --device=/dev/infiniband …",
            code=_CODE,
        )
        return
    if context.system.variable("FI_EFA_USE_DEVICE_RDMA") == "0":
        yield say.warning(
            "FI_EFA_USE_DEVICE_RDMA=0 is set, and the follower keeps it",
            why="collectives would copy through host memory",
            fix="unset FI_EFA_USE_DEVICE_RDMA",
        )
        return
    yield from _reads(context, say, devices, len(usable))


def _reads(
    context: HostContext, say: Findings, devices: list[str], usable: int
) -> Iterator[Finding]:
    """A driver that knows RDMA reads counts them."""
    for name in devices:
        counters = context.system.list(f"{_CLASS}/{name}/ports/1/hw_counters")
        if counters and "rdma_read_bytes" not in counters:
            yield say.warning(
                f"driver efa has no RDMA read on {name}",
                why="collectives would copy through host memory",
                fix=_INSTALL,
            )
            return
    yield say.ok(f"{usable} verbs devices")
