"""`rufus-serve doctor --bring-up` on CPU: every stage, and a report of it."""

import json
from pathlib import Path

from rufus_serve.cli.main import main


def test_every_stage_is_served_compared_and_timed(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    main(["doctor", str(tiny_model), f"--bring-up={path}", "--dtype=float32"])
    report = json.loads(path.read_text())
    alone, several, configured = report["stages"]
    for stage in (alone, several):
        assert stage["error"] == ""
        assert stage["answers"]["divergences"] == []
        assert min(stage["ready_s"], stage["first_token_ms"], stage["token_ms"]) > 0
    assert (len(alone["follower_step_ms"]), len(several["follower_step_ms"])) == (1, 2)
    assert configured["skipped"]
    assert report["hosts"]["findings"]


def test_a_stage_that_fails_is_told_of_and_the_next_one_tried(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    flags = ("--cpu.kv-cache-gib=0.000001", f"--bring-up={path}")
    assert main(["doctor", str(tiny_model), *flags]) == 3
    alone, several, _ = json.loads(path.read_text())["stages"]
    for stage in (alone, several):
        assert stage["exit_code"] == 3
        assert "kv_cache_gib" in stage["error"]
