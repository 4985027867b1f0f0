"""`rufus-serve trace` on a server that works."""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.models import prompt
from tests.e2e.server import Server


def test_a_trace_shows_each_part_of_the_asked_steps(demo_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    command = [sys.executable, "-m", "rufus_serve.cli.main", "trace", f"--port={demo_server.port}"]
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(demo_server.greedy, prompt(20), 200)
        subprocess.run([*command, "--steps=20", f"--output={path}"], check=True, timeout=100)
        work.result()
    spans = [each for each in json.loads(path.read_text())["traceEvents"] if each["ph"] == "X"]
    counts = Counter(span["name"] for span in spans)
    assert counts["execute"] == counts["collective"] == counts["reply"] == 2 * 20
    for name in ("schedule", "send", "sample", "output"):
        assert counts[name] >= 18, counts
    # Most steps are made ready while the one before them runs.
    assert counts["ahead"] >= 10, counts
    for name in ("take over", "build"):
        assert counts["ahead"] + counts[name] >= 18, counts
    executed = [span for span in spans if span["name"] == "execute"]
    assert all(0 < span["dur"] < 60e6 for span in executed)
