import json
from pathlib import Path

import pytest
from recorded_hosts import (
    SPREAD,
    RecordedSystem,
    cpu_context,
    meminfo,
    neuron_context,
    trn1_32xlarge,
)

from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.limits import huge_pages, memlock, open_files, processes
from rufus_serve.doctor.memory import disk, host_memory, shared_memory
from rufus_serve.doctor.system import UNLIMITED, Space
from rufus_serve.units import GIB

LLAMA_70B = {
    "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192,
    "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672,
    "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.fixture
def llama_70b(tmp_path: Path) -> str:
    """The model's config.json beside a sparse weight file of its size: 141 GB, none on disk."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(141_107_412_992)
    return str(tmp_path)


def test_memory_must_be_lockable_where_efa_is_used():
    system = trn1_32xlarge()
    (found,) = memlock(neuron_context(system))
    assert (found.level, found.what) == ("ok", "unlimited")
    system.limits["memlock"] = (8 << 20, 8 << 20)
    (found,) = memlock(neuron_context(system))
    assert (found.level, found.exit_code) == ("error", 7)
    assert "8,192 KiB" in found.what
    assert "/etc/security/limits.d" in found.fix
    (found,) = memlock(neuron_context(system, placement=HostPart()))
    assert found.level == "warning"
    system.limits["memlock"] = (8 << 20, UNLIMITED)
    (found,) = memlock(neuron_context(system))
    assert found.fix == "ulimit -l unlimited"


def test_open_files_follow_the_requests_that_may_wait():
    system = RecordedSystem()
    system.limits["nofile"] = (1600, 1600)
    (found,) = open_files(cpu_context(system))
    assert (found.level, found.what) == ("ok", "1,600; about 1,544 are needed")
    (found,) = open_files(cpu_context(system, limits={"max_waiting": 5000}))
    assert found.level == "warning"
    assert "limits.max_waiting 5000 + max_num_seqs 8 + 512" in found.what
    follower = HostPart(is_leader=False)
    assert next(open_files(cpu_context(system, placement=follower))).level == "ok"


def test_the_containers_bound_on_processes_counts_too():
    system = RecordedSystem()
    assert next(processes(cpu_context(system))).level == "ok"
    system.files["/sys/fs/cgroup/pids.max"] = "max"
    assert next(processes(cpu_context(system))).level == "ok"
    system.files["/sys/fs/cgroup/pids.max"] = "1024"
    (found,) = processes(cpu_context(system))
    assert (found.level, "cgroup pids.max" in found.what) == ("warning", True)
    system.limits["nproc"] = (100, 100)
    assert (
        "100 threads and processes are allowed (ulimit -u)"
        in next(processes(cpu_context(system))).what
    )


def test_missing_huge_pages_are_a_note():
    system = trn1_32xlarge()
    assert next(huge_pages(neuron_context(system))).level == "ok"
    system.files["/proc/meminfo"] = meminfo(total_gib=496, available_gib=480)
    (found,) = huge_pages(neuron_context(system))
    assert (found.level, found.fix) == ("note", "sudo sysctl -w vm.nr_hugepages=2560")
    assert next(huge_pages(cpu_context(system))).level == "skipped"


def test_compiling_70b_needs_a_large_host(llama_70b: str):
    system = trn1_32xlarge()
    settings = {
        "model": llama_70b, "max_model_len": 8192, "max_num_seqs": 4,
        "buckets": {"prefill": (512, 2048, 8192)},
    }  # fmt: skip
    (found,) = host_memory(neuron_context(system, **settings))
    assert found.level == "ok"
    assert "compiling: checkpoint, one node's shards, compiler" in found.what
    system.files["/proc/meminfo"] = meminfo(total_gib=128, available_gib=120)
    (found,) = host_memory(neuron_context(system, **settings))
    assert (found.level, found.exit_code) == ("error", 7)
    assert "rufus-serve compile" in found.fix
    ready = {"artifacts": {"location": "/artifacts"}}
    (found,) = host_memory(neuron_context(system, **settings, **ready))
    assert (found.level, "this node's shards" in found.what) == ("ok", True)


def test_the_containers_bound_on_memory_counts(llama_70b: str):
    system = RecordedSystem()
    system.files["/proc/meminfo"] = meminfo(total_gib=496, available_gib=480)
    context = cpu_context(system, model=llama_70b, nodes=2)
    assert next(host_memory(context)).level == "ok"
    system.files["/sys/fs/cgroup/memory.max"] = str(200 * GIB)
    system.files["/sys/fs/cgroup/memory.current"] = str(100 * GIB)
    (found,) = host_memory(context)
    assert (found.level, "100.0 GiB of 200.0 GiB are available" in found.what) == ("warning", True)
    system.files["/sys/fs/cgroup/memory.max"] = str(100 * GIB)
    assert next(host_memory(context)).level == "error"


def test_a_running_server_has_taken_its_memory_already(llama_70b: str):
    system = RecordedSystem()
    system.files["/proc/meminfo"] = meminfo(total_gib=200, available_gib=20)
    serving = HostPart(followers=2, served_by=4711)
    context = cpu_context(system, model=llama_70b, nodes=2, placement=serving)
    assert next(host_memory(context)).level == "ok"


def test_disk_is_needed_for_what_is_compiled_or_fetched(llama_70b: str, tmp_path: Path):
    system = trn1_32xlarge()
    cache = str(tmp_path / "cache")
    system.spaces[cache] = Space(200 * GIB, 100 * GIB)
    (_, found) = disk(neuron_context(system, model=llama_70b, artifacts={"cache": cache}))
    assert (found.level, found.exit_code) == ("error", 12)
    assert f"about 133.4 GiB in {cache}, 100.0 GiB are free" in found.what
    fetched = {"location": "s3://bucket/artifacts", "cache": cache}
    (_, found) = disk(neuron_context(system, model=llama_70b, artifacts=fetched))
    assert (found.level, "about 67.7 GiB" in found.what) == ("ok", True)
    assert [each.level for each in disk(cpu_context(model=llama_70b))] == ["ok", "skipped"]


def test_a_full_temporary_disk_is_a_warning():
    system = RecordedSystem()
    system.variables["TMPDIR"] = "/scratch"
    system.spaces["/scratch"] = Space(100 * GIB, 4 * GIB)
    assert next(disk(cpu_context(system))).level == "warning"


def test_a_containers_default_of_shared_memory_is_too_small():
    system = RecordedSystem()
    system.spaces["/dev/shm"] = Space(64 << 20, 64 << 20)
    (found,) = shared_memory(cpu_context(system))
    assert (found.level, "64 MiB free" in found.what) == ("warning", True)
    assert next(shared_memory(cpu_context(system, cluster={"kind": "local"}))).level == "ok"
    assert next(shared_memory(neuron_context(system, placement=SPREAD))).level == "warning"
