import subprocess
import sys

import pytest

CODE = """
import ctypes, os, sys
from rufus_serve.follower.__main__ import let_threads_sleep
assert "torch" not in sys.modules, "OpenMP has read its environment already"
let_threads_sleep()
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(getenv(b"GOMP_SPINCOUNT").decode())
"""


@pytest.mark.parametrize(("given", "seen"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_are_told_to_sleep_before_torch_is_imported(
    given: dict[str, str], seen: str
) -> None:
    """As C sees the environment, which is where OpenMP reads it."""
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == seen
