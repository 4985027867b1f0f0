"""A real browser on a real server's page. RUFUS_CHROMIUM names the browser, if it is not found."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.server import DEMO_MODEL, Server, serving

expect.set_options(timeout=60_000)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
SCREENSHOTS = Path(__file__).parents[2] / "docs" / "images"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/ui" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = (shutil.which(name) for name in _NAMES)
    path = os.environ.get("RUFUS_CHROMIUM") or next(filter(None, found), None)
    with sync_playwright() as playwright:
        # Without a path, what `playwright install chromium` brought.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The demo model on two followers."""
    flags = ("--nodes=2", "--cluster.kind=local", "--max-model-len=1024")
    with serving(DEMO_MODEL, *flags) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose console must stay silent."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(60_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    yield page
    context.close()
    # Chromium itself reports every answer of 400 and above.
    refused = "error: Failed to load resource: the server responded with a status of 40"
    assert [line for line in said if not line.startswith(("log:", "info:", refused))] == []


def keep(page: Page, name: str) -> None:
    """Renew a screenshot of the documentation, if asked to."""
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=SCREENSHOTS / f"{name}.png")
