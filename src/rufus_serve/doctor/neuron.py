"""Neuron devices, driver, runtime and packages.

Written to the documented contract, never run on a device. Versions: the release content page of
Neuron SDK 2.28.0, which is the last SDK with kernels for Trn1.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.errors import FollowerError

SDK = "2.28"
_DRIVER = (2, 26)
_SYSTEM_PACKAGES = {"aws-neuronx-runtime-lib": "2.30", "aws-neuronx-collectives": "2.30"}
_PYTHON_PACKAGES = {"neuronx-distributed-inference": "0.8", "torch-neuronx": "2.9"}
_TOOLS = "/opt/aws/neuron/bin"
_CODE = FollowerError.exit_code
_PIP = "pip install 'rufus-serve[neuron]' --extra-index-url https://pip.repos.neuron.amazonaws.com"
_DEVICE = re.compile(r"neuron\d+")


def neuron_devices(context: HostContext) -> Iterator[Finding]:
    """Device files, and the cores behind them."""
    say = Findings("neuron devices")
    if not context.on_device:
        yield say.skipped(context.not_on_device)
        return
    devices = [name for name in context.system.list("/dev") if _DEVICE.fullmatch(name)]
    if not devices:
        yield say.error(
            "there is no /dev/neuron* on this host",
            why="followers drive NeuronCores through these devices",
            fix=_device_fix(context),
            code=_CODE,
        )
        return
    closed = [name for name in devices if not context.system.is_usable(f"/dev/{name}")]
    if closed:
        yield say.error(
            f"this user may not open /dev/{closed[0]} ({len(closed)} of {len(devices)} devices)",
            why="followers drive NeuronCores through these devices",
            fix="sudo chmod a+rw /dev/neuron*",
            code=_CODE,
        )
    yield from _cores(context, say, devices)


def _device_fix(context: HostContext) -> str:
    if context.system.read("/sys/module/neuron/version"):
        return (
            "the driver is loaded, so give the container its devices: docker run "
            "--device=/dev/neuron0 …, or the limit aws.amazon.com/neuron in Kubernetes"
        )
    return "sudo apt-get install -y aws-neuronx-dkms=2.26.*; sudo modprobe neuron"


def _cores(context: HostContext, say: Findings, devices: list[str]) -> Iterator[Finding]:
    answer = context.system.run("neuron-ls", "--json-output")
    if answer is None:
        answer = context.system.run(f"{_TOOLS}/neuron-ls", "--json-output")
    if answer is None:
        yield say.warning(
            f"{len(devices)} devices; neuron-ls is not installed",
            why="without it neither their cores nor other processes on them can be seen",
            fix="sudo apt-get install -y aws-neuronx-tools=2.28.*",
        )
        return
    listed = _listed(answer.out) if answer.code == 0 else None
    if listed is None:
        yield say.error(
            f"neuron-ls fails ({answer.code}): {answer.words}",
            why="the runtime will not find the devices either",
            fix="sudo rmmod neuron; sudo modprobe neuron; sudo dmesg | grep -i neuron",
            code=_CODE,
        )
        return
    yield from _enough_cores(context, say, listed)
    yield from _free_cores(say, listed)


def _listed(out: str) -> list[dict[str, Any]] | None:
    """What neuron-ls lists; None if it is no list of devices."""
    try:
        listed = json.loads(out)
    except ValueError:
        return None
    good = isinstance(listed, list) and all(isinstance(device, dict) for device in listed)
    return listed if good else None


def _enough_cores(
    context: HostContext, say: Findings, listed: list[dict[str, Any]]
) -> Iterator[Finding]:
    cores = sum(int(device.get("nc_count", 0)) for device in listed)
    each, followers = context.config.neuron.cores_per_node, context.placement.followers
    seen = f"{len(listed)} devices with {cores} cores"
    if cores >= each * followers:
        yield say.ok(f"{seen}; {each * followers} are needed")
        return
    yield say.error(
        f"{seen}, but neuron.cores_per_node {each} x {followers} followers on this host = "
        f"{each * followers}",
        why="every core holds a shard of its own",
        fix=f"set neuron.cores_per_node to {max(1, cores // followers)}, or use a larger instance",
        code=_CODE,
    )


def _free_cores(say: Findings, listed: list[dict[str, Any]]) -> Iterator[Finding]:
    """Processes on the devices that are not our followers."""
    for device in listed:
        for process in device.get("neuron_processes") or ():
            pid, command = process.get("pid"), str(process.get("command", ""))
            if "rufus_serve" in command or "neuron-ls" in command:
                continue
            yield say.error(
                f"process {pid} ({command[:60]}) holds device {device.get('neuron_device')}",
                why="a NeuronCore belongs to one process at a time",
                fix=f"kill {pid}",
                code=_CODE,
            )
            return


def neuron_driver(context: HostContext) -> Iterator[Finding]:
    """The kernel module's version."""
    say = Findings("neuron driver")
    if not context.on_device:
        yield say.skipped(context.not_on_device)
        return
    version = driver_version(context)
    why = f"this server is written to Neuron SDK {SDK}, whose driver is 2.26.5"
    install = "sudo apt-get install -y aws-neuronx-dkms=2.26.*"
    fix = f"{install}; sudo rmmod neuron; sudo modprobe neuron"
    if not version:
        load = f"{install}; sudo modprobe neuron"
        yield say.error("module neuron is not there", why=why, fix=load, code=_CODE)
    elif numbers(version)[:2] < _DRIVER:
        yield say.error(
            f"driver {version} is older than SDK {SDK} wants", why=why, fix=fix, code=_CODE
        )
    elif numbers(version)[:2] > _DRIVER:
        yield say.note(f"driver {version} is newer than SDK {SDK}'s 2.26.5", why=why)
    else:
        yield say.ok(f"driver {version}")


def driver_version(context: HostContext) -> str:
    """Version of module neuron, loaded or at least installed; empty if it is neither."""
    loaded = context.system.read("/sys/module/neuron/version")
    if loaded:
        return loaded
    answer = context.system.run("modinfo", "-F", "version", "neuron")
    return answer.out.strip() if answer is not None and answer.code == 0 else ""


def neuron_runtime(context: HostContext) -> Iterator[Finding]:
    """Runtime and collectives of the system, and the SDK's Python packages."""
    say = Findings("neuron runtime")
    if not context.on_device:
        yield say.skipped(context.not_on_device)
        return
    installed = {name: context.system.package(name) for name in _PYTHON_PACKAGES}
    where = context.config.cluster.python or "this Python"
    yield from _judge(
        say,
        installed,
        _PYTHON_PACKAGES,
        missing=f"not installed for {where}",
        fix=f"{_PIP}; or set cluster.python to the Neuron environment's interpreter",
    )
    names = " ".join(f"{name}={wanted}.*" for name, wanted in _SYSTEM_PACKAGES.items())
    yield from _judge(
        say,
        library_versions(context),
        _SYSTEM_PACKAGES,
        missing="not installed as system packages",
        fix=f"sudo apt-get install -y {names}",
    )


def _judge(
    say: Findings,
    installed: Mapping[str, str],
    wanted: Mapping[str, str],
    *,
    missing: str,
    fix: str,
) -> Iterator[Finding]:
    """Installed versions against those of the SDK."""
    absent = [name for name in wanted if not installed.get(name)]
    other = [
        name
        for name in wanted
        if name not in absent and not installed[name].startswith(f"{wanted[name]}.")
    ]
    if absent:
        yield say.error(
            f"{missing}: {', '.join(absent)}",
            why="followers load and run the model through them",
            fix=fix,
            code=_CODE,
        )
    for name in other:
        yield say.warning(
            f"{name} is {installed[name]}, SDK {SDK} has {wanted[name]}",
            why="driver, runtime, collectives and NxD Inference are tested together per SDK",
            fix=fix,
        )
    if not absent and not other:
        yield say.ok(", ".join(f"{name} {installed[name]}" for name in wanted))


def library_versions(context: HostContext) -> dict[str, str]:
    """Installed system packages of the SDK, by dpkg or rpm."""
    versions = {}
    for name in _SYSTEM_PACKAGES:
        answer = context.system.run("dpkg-query", "-W", "-f=${Version}", name)
        if answer is None or answer.code:
            answer = context.system.run("rpm", "-q", "--qf=%{VERSION}", name)
        if answer is not None and answer.code == 0:
            versions[name] = answer.out.strip().partition("-")[0]
    return versions


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a dotted version; ends at the first part that is none."""
    parts = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)
