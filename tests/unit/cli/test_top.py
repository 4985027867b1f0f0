import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from rufus_serve.cli.main import main
from rufus_serve.cli.top_screen import screen
from rufus_serve.errors import ConfigError, EndpointError
from rufus_serve.leader.api.overview.views import GroupView, Load, Moment, Overview, Spread
from rufus_serve.protocol.messages import FollowerStatus

NOW = Overview(
    at=0.0, model="demo", version="1", state="recovering", healthy=True, ready=False, detail="",
    cluster_up=False, cluster_detail="Ray is away",
    load=Load(open_sequences=7, output_tokens_per_s=123.4, ttft_ms=Spread(p50=1, p90=2, p99=3)),
    groups=(
        GroupView(
            group=0, state="recovering", epoch=4, ready=False, restarts=2, recovery_s=1.5,
            kv_usage=0.5, step_ms={"decode": 20.0}, parts_ms={"wait": 15.0},
        ),
        GroupView(group=1, state="ready", epoch=1, ready=True, restarts=0, recovery_s=0.0),
    ),
    followers=(
        FollowerStatus(node_rank=0, host="node-[a]", pid=42, phase="loading", phase_s=3.0),
    ),
    timeline=(Moment(at=0.0, group=0, what="recovering, epoch 3"),),
)  # fmt: skip


def drawn(overview: Overview) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(screen(overview))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_screen_has_groups_followers_load_and_what_happened() -> None:
    text = drawn(NOW)
    for words in (
        "recovering", "Ray is away", "123.4", "1.0 / 2.0 / 3.0", "50%", "decode 20.0", "wait 15.0",
        "node-[a]", "42", "loading", "group 0: recovering, epoch 3",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--interval", "0"], ConfigError.exit_code, "above 0"),
        (["--url", "http://127.0.0.1:9"], EndpointError.exit_code, "is the server running?"),
    ],
)
def test_what_cannot_be_watched_is_told(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *words]) == code
    assert message in capsys.readouterr().err


def test_top_needs_neither_vllm_nor_torch() -> None:
    script = (
        "import sys, rufus_serve.cli.top, rufus_serve.cli.top_screen; "
        "print([name for name in ('torch', 'ray', 'vllm', 'starlette') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_the_schema_of_status_describes_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    fields = schema["$defs"]["Status"]["properties"]
    assert {"state", "epoch", "followers"} <= fields.keys()
    assert "node_rank" in schema["$defs"]["FollowerStatus"]["properties"]
