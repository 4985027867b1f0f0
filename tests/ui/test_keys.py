"""The page where callers need keys."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.models import tiny_checkpoint
from tests.e2e.server import Server, serving


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("keyed")
    program = str(Path(sys.executable).parent / "rufus-serve")
    keys = {}
    for name, *scopes in (("all", "infer", "metrics"), ("chat", "infer")):
        flags = [flag for scope in scopes for flag in ("--scope", scope)]
        command = [program, "key", "add", name, f"--file={folder / 'keys'}", *flags]
        keys[name] = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    model = tiny_checkpoint(folder / "llama", "llama")
    flags = ("--cluster.kind=local", "--max-model-len=512", f"--api-key-file={folder / 'keys'}")
    with serving(model, *flags) as server:
        yield server, {name: key.strip() for name, key in keys.items()}


def give(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("valid API key")
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button").click()


def test_a_key_is_asked_for_once(page: Page, keyed: tuple[Server, dict[str, str]]) -> None:
    server, keys = keyed
    page.goto(f"{server.url}/ui")
    give(page, keys["all"])
    expect(page.get_by_role("status")).to_have_text("ready")
    page.reload()
    expect(page.get_by_role("status")).to_have_text("ready")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_a_key_without_the_scope_is_told_so(
    page: Page, keyed: tuple[Server, dict[str, str]]
) -> None:
    server, keys = keyed
    page.goto(f"{server.url}/ui")
    give(page, keys["chat"])
    expect(page.get_by_role("alert")).to_contain_text(re.compile("this needs metrics"))
