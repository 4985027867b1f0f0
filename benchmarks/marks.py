"""Tables that a benchmark keeps in a document, between two marks."""

from pathlib import Path


def between_marks(path: Path, text: str, marks: tuple[str, str]) -> None:
    """Replace what stands between `marks` in a document."""
    before, rest = path.read_text().split(marks[0])
    path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}")
