"""What people do with the page: look, ask, stop, copy, lose a follower."""

import json
import re
import signal
import subprocess

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.server import Server
from tests.ui.conftest import keep

LONG = "Write a long story about a river, with many sentences."


def open_chat(page: Page, server: Server, **settings: str) -> None:
    page.goto(f"{server.url}/ui")
    page.get_by_role("button", name="Chat").click()
    page.get_by_text("Settings").click()
    for label, value in settings.items():
        page.get_by_label(label.replace("_", " ")).fill(value)


def message(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message", exact=True)


def ask(page: Page, question: str) -> None:
    message(page).fill(question)
    message(page).press("Enter")


def answer(page: Page) -> str:
    return page.get_by_role("article", name="Model").last.locator(".text").inner_text()


def streams(page: Page) -> None:
    """Wait until a part of the answer is there; the page forbids what `wait_for_function` does."""
    while len(answer(page)) < 40:
        assert page.get_by_role("button", name="Stop").is_visible(), answer(page)


def finished(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_the_cluster_is_shown_and_moves(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/ui")
    expect(page.get_by_role("status")).to_have_text("ready")
    expect(page.get_by_role("table").get_by_role("row")).to_have_count(3)
    server.ask()
    tile = page.locator(".tile", has_text="TTFT").locator("dd")
    expect(tile).to_have_text(re.compile(r"[\d.]+ / [\d.]+ / [\d.]+"))
    expect(page.get_by_role("img", name=re.compile("Parts of a step"))).to_be_visible()
    expect(page.get_by_role("region", name="Timeline")).to_contain_text("ready, epoch 1")


def test_an_answer_streams_and_its_tokens_tell_how_sure_they_are(
    page: Page, server: Server
) -> None:
    open_chat(page, server, Temperature="0", Max_tokens="40")
    page.get_by_label("Colour tokens").check()
    ask(page, LONG)
    seen = set()
    while page.get_by_role("button", name="Stop").is_visible():
        seen.add(answer(page))
    assert len(seen) > 2
    expect(page.get_by_text(re.compile("40 tokens, first after"))).to_be_visible()
    tokens = page.locator(".token")
    assert tokens.count() > 3
    assert "%" in str(tokens.first.get_attribute("title"))
    keep(page, "ui-chat")


def test_a_schema_is_kept_and_a_wrong_one_is_told(page: Page, server: Server) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [3]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    open_chat(page, server, Temperature="0", JSON_schema_of_the_answer=json.dumps(schema))
    ask(page, "A number, please.")
    finished(page)
    assert json.loads(answer(page)) == {"n": 3}
    page.get_by_label("JSON schema of the answer").fill("{")
    ask(page, "Again.")
    expect(page.get_by_role("alert")).to_contain_text("is not JSON")


def test_a_stopped_answer_stays_and_the_server_is_free_again(page: Page, server: Server) -> None:
    open_chat(page, server, Max_tokens="900")
    ask(page, LONG)
    streams(page)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    assert len(answer(page)) > 40
    page.get_by_role("button", name="Cluster").click()
    running = page.locator(".tile", has_text="Running").locator("dd")
    expect(running).to_have_text("0")


def test_a_copied_command_asks_the_same(page: Page, server: Server) -> None:
    open_chat(page, server, Temperature="0", Max_tokens="8", Stop_strings="\n\n")
    message(page).fill("What's 2 + 2?")
    page.get_by_role("button", name="Copy as curl").click()
    command = page.get_by_label("The request").inner_text()
    assert page.evaluate("navigator.clipboard.readText()") == command
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "data: [DONE]" in done.stdout
    page.get_by_role("button", name="Copy as Python").click()
    program = page.get_by_label("The request").inner_text()
    compile(program, "copied", "exec")
    assert "What's 2 + 2?" in program


def test_a_killed_follower_shows_as_recovering_and_the_stream_goes_on(
    page: Page, server: Server
) -> None:
    open_chat(page, server, Temperature="0", Max_tokens="250")
    ask(page, LONG)
    streams(page)
    before = answer(page)
    server.followers()[-1].send_signal(signal.SIGKILL)
    expect(page.get_by_role("status")).to_have_text("recovering")
    expect(page.get_by_role("status")).to_have_text("ready")
    finished(page)
    assert answer(page).startswith(before)
    assert len(answer(page)) > len(before)
    page.get_by_role("button", name="Cluster").click()
    timeline = page.get_by_role("region", name="Timeline")
    expect(timeline).to_contain_text(re.compile(r"recovered in [\d.]+ s"))
    expect(timeline).to_contain_text("was replaced")
    keep(page, "ui-cluster")


def test_a_phone_in_the_dark_needs_no_sideways_scrolling(page: Page, server: Server) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    for tab in ("Cluster", "Chat"):
        page.goto(f"{server.url}/ui")
        page.get_by_role("button", name=tab).click()
        expect(page.get_by_role("status")).to_have_text("ready")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour == "rgb(18, 21, 26)"
        keep(page, f"ui-phone-{tab.lower()}")


@pytest.mark.parametrize("tab", ["Cluster", "Chat"])
def test_every_control_has_a_name_and_is_reached_by_keyboard(
    page: Page, server: Server, tab: str
) -> None:
    page.goto(f"{server.url}/ui")
    page.get_by_role("button", name=tab).click()
    expect(page.get_by_role("status")).to_have_text("ready")
    for control in page.locator("button:visible, input:visible, textarea:visible").all():
        named = control.evaluate("e => e.labels?.length || e.innerText || e.ariaLabel")
        assert named, control.evaluate("e => e.outerHTML")
    for image in page.locator("svg:visible").all():
        assert image.get_attribute("aria-label")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") in ("BUTTON", "DIV", "TEXTAREA")
    page.get_by_role("button", name="Cluster").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("table")).to_be_visible()
