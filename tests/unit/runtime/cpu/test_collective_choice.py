"""Which collectives a group uses."""

import pytest

from rufus_serve.errors import ConfigError
from rufus_serve.runtime.cpu import collectives


@pytest.fixture
def machine(monkeypatch):
    def machine(name, system="linux"):
        monkeypatch.setattr(collectives.platform, "machine", lambda: name)
        monkeypatch.setattr(collectives.sys, "platform", system)

    return machine


@pytest.mark.parametrize(
    ("name", "system", "same_host", "kind"),
    [
        ("x86_64", "linux", True, "shared_memory"),
        ("x86_64", "linux", False, "sockets"),
        ("aarch64", "linux", True, "sockets"),
        ("x86_64", "darwin", True, "sockets"),
    ],
)
def test_auto_shares_memory_only_where_stores_keep_their_order(
    machine, name, system, same_host, kind
):
    machine(name, system)
    assert collectives.choose_kind("auto", num_nodes=2, same_host=same_host) == kind


def test_a_group_of_one_needs_nothing(machine):
    machine("aarch64")
    assert collectives.choose_kind("shared_memory", num_nodes=1, same_host=False) == "single"


@pytest.mark.parametrize(("name", "same_host"), [("aarch64", True), ("x86_64", False)])
def test_shared_memory_is_refused_where_it_cannot_work(machine, name, same_host):
    machine(name)
    with pytest.raises(ConfigError, match=r"cpu\.collective: shared_memory needs"):
        collectives.choose_kind("shared_memory", num_nodes=2, same_host=same_host)


def test_sockets_work_anywhere(machine):
    machine("x86_64")
    assert collectives.choose_kind("sockets", num_nodes=2, same_host=True) == "sockets"
