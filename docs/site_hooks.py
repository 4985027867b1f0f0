"""For mkdocs: pages that stand elsewhere in the repository join the site, with links that hold."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/README.md": "benchmarks.md",
    "deploy/README.md": "deploy.md",
    "deploy/eks/README.md": "eks.md",
    "deploy/eks/day-two.md": "eks-day-two.md",
    "deploy/eks/terraform/README.md": "terraform.md",
    "deploy/helm/rufus-serve/README.md": "chart.md",
    "tests/README.md": "tests.md",
}
"""Path in the repository to page of the site."""
_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]*)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in `docs`."""
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at pages of the site; what is no page keeps its name without a link."""
    places = {page: path for path, page in ELSEWHERE.items()}
    here = Path(places.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def replaced(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        path = os.path.normpath(here.parent / target) if target else str(here)
        if image or path.startswith("docs/"):
            return f"{image}[{text}]({path.removeprefix('docs/')}{anchor or ''})"
        if path in ELSEWHERE:
            return f"[{text}]({ELSEWHERE[path]}{anchor or ''})"
        return text

    return _LINK.sub(replaced, markdown)
