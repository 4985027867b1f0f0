from pathlib import Path

from rufus_serve.leader.api.reference import reference
from rufus_serve.leader.api.routes import ROUTES

PAGE = Path(__file__).parents[4] / "docs" / "api.md"


def test_the_page_is_made_of_the_code() -> None:
    assert PAGE.read_text() == reference(), "run `make docs`"


def test_every_route_has_a_line() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `/")]
    assert len(rows) == len(ROUTES)
