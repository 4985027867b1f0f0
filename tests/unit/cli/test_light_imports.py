"""Commands that ask a running server answer at once: they do not load what describes a server."""

import subprocess
import sys

import pytest

HEAVY = ("pydantic", "yaml", "torch", "ray", "vllm")


@pytest.mark.parametrize("command", ["status", "drain", "restart_follower"])
def test_an_order_to_a_server_imports_no_configuration(command):
    script = (
        f"import sys, rufus_serve.cli.main, rufus_serve.cli.{command}, "
        "rufus_serve.supervisor.orders; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    found = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert found.strip() == "[]"
