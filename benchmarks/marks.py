"""What a benchmark leaves in the repository: its record, and tables between two marks."""

import json
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")


def keep(record: dict[str, Any], path: Path, text: str, marks: tuple[str, str]) -> None:
    """Write the record to `path`, and `text` into the benchmarks' README."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    between_marks(README, f"\n{text}\n", marks)


def between_marks(path: Path, text: str, marks: tuple[str, str]) -> None:
    """Replace what stands between `marks` in a document."""
    before, rest = path.read_text().split(marks[0])
    path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}")
