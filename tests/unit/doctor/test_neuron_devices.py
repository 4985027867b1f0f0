from collections.abc import Callable, Iterable

import pytest
from recorded_hosts import (
    NEURON_LS,
    NO_DEVICES,
    SPREAD,
    RecordedSystem,
    cpu_context,
    dpkg,
    neuron_context,
    neuron_ls,
    trn1_32xlarge,
)

from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.finding import Finding
from rufus_serve.doctor.neuron import neuron_devices, neuron_driver, neuron_runtime
from rufus_serve.doctor.system import CommandResult


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Iterable[Finding], level: str) -> Finding:
    (found,) = [finding for finding in findings if finding.level == level]
    return found


def test_a_healthy_trn1_has_nothing_but_good_news():
    context = neuron_context(trn1_32xlarge())
    found = [*neuron_devices(context), *neuron_driver(context), *neuron_runtime(context)]
    assert set(levels(found)) == {"ok"}
    assert "16 devices with 32 cores; 32 are needed" in found[0].what


@pytest.mark.parametrize("check", [neuron_devices, neuron_driver, neuron_runtime])
def test_nothing_is_asked_of_devices_where_there_are_none_to_be(check: Callable):
    reasons = {
        "runtime is cpu": cpu_context(),
        "neuron.mode is nxdi-cpu": neuron_context(
            RecordedSystem(), neuron={"mode": "nxdi-cpu", "cores_per_node": 1}
        ),
        "no follower runs on this host": neuron_context(
            RecordedSystem(), placement=HostPart(spread=True, followers=0)
        ),
    }
    for reason, context in reasons.items():
        (found,) = check(context)
        assert (found.level, found.what) == ("skipped", reason)


def test_absent_devices_are_an_error_and_the_driver_is_installed():
    found = only(neuron_devices(neuron_context(RecordedSystem())), "error")
    assert "no /dev/neuron*" in found.what
    assert "aws-neuronx-dkms" in found.fix
    assert found.exit_code == 7


def test_absent_devices_below_a_loaded_driver_are_the_containers_fault():
    system = trn1_32xlarge()
    system.folders["/dev"] = ("null",)
    found = only(neuron_devices(neuron_context(system)), "error")
    assert "--device=/dev/neuron0" in found.fix
    assert "aws.amazon.com/neuron" in found.fix


def test_devices_of_another_user_are_named():
    system = trn1_32xlarge()
    system.forbidden = {"/dev/neuron3"}
    found = only(neuron_devices(neuron_context(system)), "error")
    assert "/dev/neuron3 (1 of 16 devices)" in found.what


def test_too_few_cores_show_the_product():
    system = trn1_32xlarge()
    system.commands[NEURON_LS] = neuron_ls(1)
    found = only(neuron_devices(neuron_context(system)), "error")
    assert "1 devices with 2 cores, but neuron.cores_per_node 32 x 1 followers" in found.what
    assert "set neuron.cores_per_node to 2" in found.fix


def test_two_followers_of_one_host_need_the_cores_of_both():
    half = {"cores_per_node": 16}
    here = HostPart(followers=2)
    good = neuron_context(trn1_32xlarge(), placement=here, neuron=half)
    assert levels(neuron_devices(good)) == ["ok"]
    bad = neuron_context(trn1_32xlarge(), placement=here)
    assert "x 2 followers on this host = 64" in only(neuron_devices(bad), "error").what


def test_another_process_on_a_device_is_named_and_our_own_is_not():
    system = trn1_32xlarge()
    theirs = {"pid": 268911, "command": "neuron-bench exec --run-as-cc-neff"}
    ours = {"pid": 7, "command": "/venv/bin/python -m rufus_serve.follower"}
    system.commands[NEURON_LS] = neuron_ls(16, processes=(ours,))
    assert levels(neuron_devices(neuron_context(system))) == ["ok"]
    system.commands[NEURON_LS] = neuron_ls(16, processes=(ours, theirs))
    found = only(neuron_devices(neuron_context(system)), "error")
    assert "268911 (neuron-bench" in found.what
    assert found.fix == "kill 268911"


@pytest.mark.parametrize(
    "answer",
    [
        CommandResult(1, "", NO_DEVICES),
        CommandResult(0, "no JSON", ""),
        CommandResult(0, "{}", ""),
        CommandResult(124, "", ""),
    ],
)
def test_a_tool_that_fails_is_an_error_in_its_own_words(answer: CommandResult):
    system = trn1_32xlarge()
    system.commands[NEURON_LS] = answer
    found = only(neuron_devices(neuron_context(system)), "error")
    assert f"neuron-ls fails ({answer.code})" in found.what
    assert ("failed to discover Neuron devices" in found.what) == bool(answer.err)


def test_the_tool_is_found_where_the_sdk_puts_it():
    system = trn1_32xlarge()
    listed = system.commands.pop(NEURON_LS)
    assert levels(neuron_devices(neuron_context(system))) == ["warning"]
    system.commands["/opt/aws/neuron/bin/neuron-ls", "--json-output"] = listed
    assert levels(neuron_devices(neuron_context(system))) == ["ok"]


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.26.5.0", "ok"), ("2.24.7.0", "error"), ("2.27.4.0", "note"), ("2.9", "error")],
)
def test_the_driver_is_as_old_as_the_sdk_or_newer(version: str, level: str):
    system = trn1_32xlarge()
    system.files["/sys/module/neuron/version"] = version
    (found,) = neuron_driver(neuron_context(system))
    assert found.level == level
    assert version in found.what


def test_an_installed_driver_that_is_not_loaded_is_asked_for_its_version():
    system = trn1_32xlarge()
    del system.files["/sys/module/neuron/version"]
    assert levels(neuron_driver(neuron_context(system))) == ["error"]
    system.commands["modinfo", "-F", "version", "neuron"] = CommandResult(0, "2.26.5.0\n", "")
    assert levels(neuron_driver(neuron_context(system))) == ["ok"]


def test_absent_and_other_packages_are_told_apart():
    system = trn1_32xlarge()
    del system.packages["torch-neuronx"]
    system.packages["neuronx-distributed-inference"] = "0.9.17334"
    found = list(neuron_runtime(neuron_context(system, placement=SPREAD)))
    assert levels(found) == ["error", "warning", "ok"]
    assert "torch-neuronx" in found[0].what
    assert "0.9.17334, SDK 2.28 has 0.8" in found[1].what


def test_system_packages_are_found_by_rpm_too():
    system = trn1_32xlarge()
    for name in ("aws-neuronx-runtime-lib", "aws-neuronx-collectives"):
        del system.commands[dpkg(name)]
    assert levels(neuron_runtime(neuron_context(system))) == ["ok", "error"]
    for name in ("aws-neuronx-runtime-lib", "aws-neuronx-collectives"):
        system.commands["rpm", "-q", "--qf=%{VERSION}", name] = CommandResult(0, "2.30.51.0", "")
    assert levels(neuron_runtime(neuron_context(system))) == ["ok", "ok"]
