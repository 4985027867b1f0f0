"""From `rufus-serve compile` to a server that may not read the checkpoint's weights."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.models import assert_greedy, prompt
from tests.e2e.server import DEMO_MODEL, Server, serving

FLAGS = ("--nodes=2", "--cluster.kind=local", "--dtype=float32", "--max-model-len=512")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the demo model for two followers, made by the command."""
    out = tmp_path_factory.mktemp("artifacts")
    command = [
        Path(sys.executable).parent / "rufus-serve",
        "compile",
        DEMO_MODEL,
        "--runtime=cpu",
        *FLAGS,
    ]
    subprocess.run([*command, f"--out={out}"], check=True, timeout=100, capture_output=True)
    return out


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model without its weights."""
    folder = tmp_path_factory.mktemp("model") / "demo"
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_followers_serve_from_their_own_shards_alone(
    artifacts: Path, bare_model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    made = (f"--artifacts.location={artifacts}", f"--artifacts.cache={cache}")
    with serving(bare_model, *FLAGS, "--require-artifacts", *made) as server:
        tokens = prompt(40)
        assert_greedy(DEMO_MODEL, tokens, server.greedy(tokens, 16))
        logs = [path.read_text() for path in server.temporary.glob("*/logs/follower-*.log")]
    brought = [log.partition(": fetching to ")[2].partition("\n")[0] for log in logs]
    folder = next(cache.iterdir())
    assert sorted(brought) == [f"{folder}: shards/node-00{rank}.safetensors" for rank in (0, 1)]
    assert all(log.count(": fetching to ") == 1 for log in logs)
    assert len(list(cache.glob("*/shards/*.safetensors"))) == 2


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[object]:
    """Runs servers that are to end by themselves: exit code and log."""
    servers = []

    def ended(model: Path, *flags: str) -> tuple[int, str]:
        servers.append(Server(model, *flags))
        return servers[-1].process.wait(60), servers[-1].log

    yield ended
    for server in servers:
        server.remove()


def test_what_differs_from_the_artifacts_is_refused_by_field(ended, artifacts, tmp_path):
    made = ("--require-artifacts", f"--artifacts.location={artifacts}")
    code, log = ended(DEMO_MODEL, *FLAGS, "--nodes=3", *made)
    assert code == 12, log
    assert "num_nodes is 2, wanted 3" in log
    changed = tmp_path / "changed"
    shutil.copytree(DEMO_MODEL, changed)
    config = changed / "config.json"
    config.write_text(config.read_text().replace("100000", "200000"))
    code, log = ended(changed, *FLAGS, *made)
    assert code == 12, log
    assert "model.config_sha256 is" in log
    assert "num_nodes" not in log


def test_required_artifacts_need_a_place(ended):
    code, log = ended(DEMO_MODEL, *FLAGS, "--require-artifacts")
    assert code == 2
    assert "artifacts.required is true but artifacts.location is empty" in log
