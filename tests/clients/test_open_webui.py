"""Open WebUI with the settings of docs/clients.md: it finds the model and gets answers."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rufus_serve.cluster.addresses import free_port
from tests.e2e.models import tiny_checkpoint
from tests.e2e.server import Server, serving

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
FOLDER = os.environ.get("OPEN_WEBUI_FOLDER", "")
"""Of the environment that has it, which is as large as all others together."""
NOTHING_FROM_OUTSIDE = {
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "openai",
    "WEBUI_AUTH": "false",
    "ENABLE_TITLE_GENERATION": "false",
}
START_S = 240.0

pytestmark = pytest.mark.skipif(not FOLDER, reason="OPEN_WEBUI_FOLDER names no environment")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tiny_checkpoint(tmp_path_factory.mktemp("webui") / "llama", "llama")
    with serving(model, "--cluster.kind=local", "--max-model-len=512") as found:
        yield found


@pytest.fixture(scope="module")
def webui(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("data")
    block = re.search(r"## Open WebUI\n+```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert block is not None
    recipe = re.sub(r"\bKEY\b", "sk-any", re.sub(r"\bBASE\b", server.url, block[1])).rstrip()
    port = free_port("127.0.0.1")
    command = f"{recipe} --host 127.0.0.1 --port {port}"
    environ = os.environ | NOTHING_FROM_OUTSIDE
    environ |= {"DATA_DIR": str(folder), "PATH": f"{FOLDER}/bin:{os.environ['PATH']}"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environ, stdout=log,
            stderr=log, start_new_session=True,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):  # fmt: skip
        try:
            await_health(client, process, folder / "log")
            signed_in = client.post("/api/v1/auths/signin", json={"email": "", "password": ""})
            client.headers["Authorization"] = f"Bearer {signed_in.json()['token']}"
            yield client
        finally:
            os.killpg(process.pid, 9)


def await_health(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + START_S
    while True:
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            pass
        waits = process.poll() is None and time.monotonic() < give_up
        assert waits, log.read_text()[-4000:]
        time.sleep(0.5)


@pytest.mark.timeout(400)
def test_open_webui_finds_the_model(webui: httpx.Client, server: Server) -> None:
    models = webui.get("/api/models").json()["data"]
    assert server.name in [model["id"] for model in models]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_in_open_webui_is_answered(
    stream: bool, webui: httpx.Client, server: Server
) -> None:
    asked = {
        "model": server.name,
        "messages": [{"role": "user", "content": "Name a river."}],
        "max_tokens": 8,
        "stream": stream,
    }
    answer = webui.post("/api/chat/completions", json=asked)
    assert answer.is_success, answer.text
    assert '"finish_reason"' in answer.text
    assert '"content"' in answer.text
