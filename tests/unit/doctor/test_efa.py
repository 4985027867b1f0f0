from collections.abc import Callable

import pytest
from recorded_hosts import (
    EFA_NAMES,
    FI_INFO,
    NO_EFA,
    cpu_context,
    fi_info,
    neuron_context,
    trn1_32xlarge,
)

from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.efa import efa_devices, efa_provider, rdma
from rufus_serve.doctor.system import CommandResult

CHECKS = (efa_devices, efa_provider, rdma)


def test_a_healthy_trn1_has_eight_devices_and_as_many_domains():
    context = neuron_context(trn1_32xlarge())
    found = [finding for check in CHECKS for finding in check(context)]
    assert [finding.level for finding in found] == ["ok"] * 3
    assert "8 of 8 devices" in found[0].what
    assert "8 domains" in found[1].what


@pytest.mark.parametrize("check", CHECKS)
def test_followers_of_one_host_need_no_efa(check: Callable):
    (found,) = check(neuron_context(trn1_32xlarge(), placement=HostPart()))
    assert (found.level, found.what) == ("skipped", "all followers are on this host")
    (found,) = check(cpu_context())
    assert (found.level, found.what) == ("skipped", "runtime is cpu")


def test_no_device_is_an_error_and_fewer_than_the_instance_has_a_warning():
    system = trn1_32xlarge()
    system.folders["/sys/class/infiniband"] = tuple(EFA_NAMES[:2])
    (found,) = efa_devices(neuron_context(system))
    assert (found.level, found.what) == ("warning", "2 EFA devices; trn1.32xlarge has 8")
    system.folders["/sys/class/infiniband"] = ()
    (found,) = efa_devices(neuron_context(system))
    assert (found.level, found.exit_code) == ("error", 7)
    assert "InterfaceType=efa" in found.fix


def test_adapters_of_other_makers_do_not_count():
    system = trn1_32xlarge()
    system.folders["/sys/class/infiniband"] = ("mlx5_0",)
    system.files["/sys/class/infiniband/mlx5_0/device/vendor"] = "0x15b3"
    assert [finding.level for finding in efa_devices(neuron_context(system))] == ["error"]


def test_a_domain_that_is_listed_twice_counts_once():
    system = trn1_32xlarge()
    system.commands[FI_INFO] = fi_info(EFA_NAMES[:7], fabrics=("efa", "efa-direct"))
    (found,) = efa_provider(neuron_context(system))
    assert (found.level, found.what) == ("warning", "provider efa has 7 domains for 8 devices")


def test_a_provider_that_finds_nothing_is_an_error_in_its_own_words():
    system = trn1_32xlarge()
    system.commands[FI_INFO] = CommandResult(195, "", NO_EFA)
    (found,) = efa_provider(neuron_context(system))
    assert found.level == "error"
    assert "finds nothing (195): fi_getinfo: -61 (No data available)" in found.what


def test_libfabric_that_is_not_installed_is_an_error_with_the_installer():
    system = trn1_32xlarge()
    answer = system.commands.pop(FI_INFO)
    (found,) = efa_provider(neuron_context(system))
    assert found.level == "error"
    assert "aws-efa-installer-latest.tar.gz" in found.fix
    system.commands[("/opt/amazon/efa/bin/fi_info", *FI_INFO[1:])] = answer
    assert [finding.level for finding in efa_provider(neuron_context(system))] == ["ok"]


def test_variables_that_followers_would_keep_are_told():
    system = trn1_32xlarge()
    system.variables = {"FI_PROVIDER": "tcp", "FI_EFA_USE_DEVICE_RDMA": "0"}
    context = neuron_context(system)
    assert [finding.level for finding in efa_provider(context)] == ["error", "ok"]
    (found,) = rdma(context)
    assert (found.level, found.fix) == ("warning", "unset FI_EFA_USE_DEVICE_RDMA")


def test_verbs_devices_must_be_there_and_usable():
    system = trn1_32xlarge()
    system.forbidden = {"/dev/infiniband/uverbs0"}
    (found,) = rdma(neuron_context(system))
    assert (found.level, found.exit_code) == ("error", 7)
    assert "7 usable /dev/infiniband/uverbs* for 8 EFA devices" in found.what


def test_a_driver_without_rdma_read_is_a_warning():
    system = trn1_32xlarge()
    system.folders[f"/sys/class/infiniband/{EFA_NAMES[3]}/ports/1/hw_counters"] = ("rx_bytes",)
    (found,) = rdma(neuron_context(system))
    assert (found.level, EFA_NAMES[3] in found.what) == ("warning", True)
