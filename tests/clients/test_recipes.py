"""Every recipe of docs/clients.md, as it stands there, against a real server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.models import tiny_checkpoint
from tests.e2e.server import Server, serving

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
HEADINGS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
RECIPES = {
    heading.split("\n")[0]: re.search(r"```(\w+)\n(.*?)```", heading, flags=re.DOTALL)
    for heading in HEADINGS
}
PYTHON = os.environ.get("CLIENTS_PYTHON", sys.executable)
"""Of the environment that has the clients."""
CLIENTS = ("OpenAI, Python", "Anthropic", "LangChain", "LiteLLM")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tiny_checkpoint(tmp_path_factory.mktemp("clients") / "llama", "llama")
    with serving(model, "--cluster.kind=local", "--max-model-len=512") as found:
        yield found


def recipe(name: str, server: Server) -> str:
    found = RECIPES[name]
    assert found is not None
    text = found[2].replace("BASE", server.url).replace("MODEL", server.name)
    return text.replace("KEY", "sk-any")


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_python_client_gets_an_answer(name: str, server: Server, tmp_path: Path) -> None:
    assert run([PYTHON, "-c", recipe(name, server)], tmp_path).strip()


def test_curl_gets_an_answer(server: Server, tmp_path: Path) -> None:
    assert '"choices"' in run(["bash", "-c", recipe("curl", server)], tmp_path)


@pytest.mark.timeout(180)
def test_openais_javascript_client_gets_an_answer(server: Server, tmp_path: Path) -> None:
    if not (node := shutil.which("node")) or not shutil.which("npm"):
        pytest.skip("node and npm are not here")
    subprocess.run(
        ["npm", "install", "--silent", "--prefix", str(tmp_path), "openai@7.59.0"], check=True
    )
    (tmp_path / "recipe.mjs").write_text(recipe("OpenAI, JavaScript", server))
    assert run([node, "recipe.mjs"], tmp_path).strip()


def test_every_recipe_but_open_webuis_is_run() -> None:
    assert RECIPES.keys() - set(CLIENTS) == {"curl", "OpenAI, JavaScript", "Open WebUI"}
