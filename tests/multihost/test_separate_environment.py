"""Followers in an environment of their own: no vLLM, other transformers, another Python patch."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.losses import pids, strike
from tests.e2e.models import assert_greedy, prompt
from tests.e2e.server import DEMO_MODEL, ROOT
from tests.multihost import hosts
from tests.multihost.hosts import Network
from tests.multihost.spread import SpreadServer, write_token

OTHER = ROOT / ".venv-follower" / "bin"
pytestmark = [
    pytest.mark.timeout(200),
    hosts.NEEDED,
    pytest.mark.skipif(
        not (OTHER / "rufus-serve").exists(),
        reason="no .venv-follower: run tests/multihost/environments.sh",
    ),
]

_VERSIONS = """
import importlib.metadata, importlib.util, json
found = {each: importlib.util.find_spec(each) is not None for each in ("vllm", "fastapi")}
names = ("ray", "rufus-serve", "transformers")
print(json.dumps(found | {name: importlib.metadata.version(name) for name in names}))
"""


def versions(python: Path) -> dict[str, str | bool]:
    done = subprocess.run([python, "-I", "-c", _VERSIONS], capture_output=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadServer]:
    folder = tmp_path_factory.mktemp("separate")
    flags = ("--nodes=2", f"--cluster.python={OTHER / 'python'}", "--max-model-len=512")
    with Network(2) as network, network.hosts[0].entered():
        server = SpreadServer(
            network, DEMO_MODEL, *flags, "--dtype=float32", token=write_token(folder / "t")
        )
        try:
            server.offer(network.hosts[1], program=str(OTHER / "rufus-serve"))
            server.wait_ready()
            yield server
            assert server.stop() == 0
        finally:
            server.remove()


def test_the_environments_differ_in_all_but_ray_and_the_package() -> None:
    ours, other = versions(ROOT / ".venv" / "bin" / "python"), versions(OTHER / "python")
    assert (ours["vllm"], ours["fastapi"]) == (True, True)
    assert (other["vllm"], other["fastapi"]) == (False, False)
    assert other["transformers"] != ours["transformers"]
    assert (other["ray"], other["rufus-serve"]) == (ours["ray"], ours["rufus-serve"])


def test_the_group_gives_the_reference_tokens(server: SpreadServer) -> None:
    tokens = prompt(100)
    assert_greedy(DEMO_MODEL, tokens, server.greedy(tokens, 16))


def test_followers_hold_nothing_of_the_leaders_environment(server: SpreadServer) -> None:
    strike(server, 1).wait_recovered()
    leaders = str(ROOT / ".venv" / "lib")
    for pid in pids(server).values():
        follower = psutil.Process(pid)
        assert follower.cmdline()[0] == str(OTHER / "python")
        assert leaders not in follower.environ().get("PYTHONPATH", "")
        mapped = {region.path for region in follower.memory_maps()}
        assert any("/.venv-follower/lib" in path for path in mapped)
        assert not [path for path in mapped if path.startswith(leaders)]


def test_the_other_hosts_raylet_runs_in_the_followers_environment(server: SpreadServer) -> None:
    second = server.network.hosts[1]
    found = [each for each in psutil.process_iter(["name"]) if each.info["name"] == "raylet"]
    (raylet,) = [each for each in found if second.has(each.pid)]
    assert str(OTHER.parent) in " ".join(raylet.cmdline())
