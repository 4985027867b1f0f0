import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 200


def test_every_file_that_it_names_exists():
    named = re.findall(
        r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", README.split("## Read the code")[1].split("Paths are")[0]
    )
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / "src/rufus_serve" / name).exists()] == []
