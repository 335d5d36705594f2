"""The chat page: complete in itself, safe with any text; in a real browser, at a desk and on a phone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser
from serving import SECONDS, Live, chatting, live

from remoe_edge.serve.app import PAGE  # isort: skip
from remoe_edge.serve.guards import App  # isort: skip

HOSTILE = (
    '<img src=x onerror="window.hostile=1"> <script>window.hostile=1</script> [a](javascript:alert) '
    "[b](https://example.org/x) **bold** `<b>code</b>`\n\n"
    "```html\n<script>window.hostile=1</script>\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | <i>2</i> |\n\n1. one\n   - two\n\n> quoted\n\n# Heading\n"
)


# An answer is held back behind so many pieces, until the page stops it.
HELD_BEHIND = 20


def holding(app: App) -> App:
    """Let through the beginning of a stream alone, and no end of it, however fast the model is."""

    async def held(scope: Any, receive: Any, send: Any) -> None:
        n_sent = 0

        async def pass_on(message: dict[str, Any]) -> None:
            nonlocal n_sent
            n_sent += 1
            if n_sent > HELD_BEHIND:
                await asyncio.sleep(SECONDS)
            await send(message)

        await app(scope, receive, pass_on if scope["type"] == "http" else send)

    return held


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    model = chatting(tmp_path_factory.mktemp("page"))
    with live(model, around=holding, send_s=SECONDS) as started:
        yield started


@pytest.fixture
def opened() -> Iterator[browser.Browser]:
    path = browser.find()
    if path is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(browser.NAMES)}")
    with browser.Browser(path) as found:
        yield found


TEXTS = "[...document.querySelectorAll('article .body')].map(each => each.innerText)"
ANSWER = "document.querySelectorAll('article.assistant .body')[0]?.innerText.length > 3"
STOPPED = "document.getElementById('stop').hidden"


def setting(tab: browser.Tab, name: str, value: str) -> None:
    """Have the page's settings say so."""
    tab.ask("document.getElementById('open-settings').click()")
    tab.ask(f"document.getElementById('{name}').value = '{value}'")
    tab.ask("document.getElementById('close-settings').click()")
    tab.wait(saved(name, value))


def saved(name: str, value: str) -> str:
    """Ask whether the page keeps that setting."""
    return f"JSON.parse(localStorage['remoe-edge'] ?? '{{}}').settings?.{name} === '{value}'"


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_conversation(server: Live, opened: browser.Browser, width: int, dark: bool) -> None:
    tab = browser.Tab(opened, server.url, width=width, dark=dark)
    tab.wait("document.getElementById('model').textContent === 'tiny'")
    setting(tab, "temperature", "0")
    tab.type("hello <b>there</b>")
    tab.press("Enter", 13)
    tab.wait(ANSWER)
    assert not tab.ask(STOPPED)
    tab.press("Escape", 27)
    tab.wait(STOPPED)
    tab.wait("document.getElementById('status').textContent === 'Stopped.'")
    tab.wait("document.activeElement.id === 'question'")
    before = tab.ask(TEXTS)
    assert before[0] == "hello <b>there</b>"
    assert len(before) == 2
    tab.go(server.url)  # it is still there
    tab.wait("document.querySelectorAll('article').length === 2")
    assert tab.ask(TEXTS)[0] == before[0]
    # Again, with a bound and so to its end: what it cost stands below.
    setting(tab, "max_tokens", "8")
    tab.ask("[...document.querySelectorAll('article.assistant button')].at(-1).click()")
    tab.wait("document.querySelector('.cost')?.textContent.includes('tok/s')")
    cost = tab.ask("document.querySelector('.cost').textContent")
    assert re.search(r"TTFT .* s, hit rate .* %, .* MiB/token, peak memory \d+ MiB", cost)
    tab.wait("document.querySelector('.layers')?.childElementCount === 3")  # the model's layers
    told = tab.ask("document.querySelector('.layers').getAttribute('aria-label')")
    assert re.fullmatch(r"Misses by layer: 0: \d+, 1: \d+, 2: \d+", told)
    # Editing takes the question back.
    tab.wait(STOPPED)
    tab.ask("document.querySelector('article.user button').click()")
    assert tab.ask("document.getElementById('question').value") == "hello <b>there</b>"
    assert tab.ask("document.querySelectorAll('article').length") == 0
    assert (
        tab.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    )
    back = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is not dark
    tab.ask("document.getElementById('theme').click()")  # dark, whatever the system says
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert tab.went_wrong() == []
    own = [url for url in tab.requests() if not url.startswith((server.url, "data:"))]
    assert own == []


def test_no_text_becomes_html(server: Live, opened: browser.Browser) -> None:
    tab = browser.Tab(opened, server.url, width=1200, dark=False)
    tab.wait("document.getElementById('model').textContent === 'tiny'")
    tab.ask(
        "import('/page/markdown.js').then(({render}) => {"
        f"document.getElementById('log').append(render({HOSTILE!r}))}})"
    )
    assert tab.ask("typeof window.hostile") == "undefined"
    assert tab.ask("document.querySelectorAll('#log img, #log script, #log b, #log i').length") == 0
    links = tab.ask("[...document.querySelectorAll('#log a')].map(each => each.href)")
    assert links == ["https://example.org/x"]
    for tag in ("strong", "code", "pre", "table", "ol", "ol ul", "blockquote", "h3"):
        assert tab.ask(f"document.querySelectorAll('#log {tag}').length") >= 1, tag
    assert "<script>window.hostile=1</script>" in tab.ask("document.querySelector('pre').innerText")


def test_every_control_has_a_name(server: Live, opened: browser.Browser) -> None:
    tab = browser.Tab(opened, server.url, width=360, dark=False)
    unnamed = tab.ask(
        "[...document.querySelectorAll('button, input, textarea, nav, dialog')].filter(each => !("
        "each.getAttribute('aria-label') || each.getAttribute('aria-labelledby') || each.labels?.length"
        " || each.textContent.trim())).map(each => each.id)"
    )
    assert unnamed == []
    assert tab.ask("document.documentElement.lang") == "en"
    assert not tab.ask("getComputedStyle(document.getElementById('side')).display !== 'none'")
    tab.ask("document.getElementById('menu').click()")
    assert tab.ask("getComputedStyle(document.getElementById('side')).display") == "block"
    assert tab.ask("document.getElementById('menu').getAttribute('aria-expanded')") == "true"


TAB, ENTER, ESCAPE, SPACE = ("Tab", 9), ("Enter", 13), ("Escape", 27), (" ", 32)
FOCUSED = (
    "(e => e.id || e.getAttribute('aria-label') || e.textContent.trim().slice(0, 20) || e.tagName)"
    "(document.activeElement)"
)


def tabbed(tab: browser.Tab, until: str, *, shift: bool = False) -> list[str]:
    """Press Tab until something has the focus; give what had it on the way."""
    way: list[str] = []
    while not way or way[-1] != until:
        assert len(way) < 40, f"{until} is not on the way {way}"
        tab.press(*TAB, shift=shift)
        way.append(tab.ask(FOCUSED))
    return way


def test_with_a_keyboard_alone(server: Live, opened: browser.Browser) -> None:
    """Everything a mouse can do, in an order that makes sense, and never a focus that is lost."""
    tab = browser.Tab(opened, server.url, width=1200, dark=False)
    tab.wait("document.getElementById('model').textContent === 'tiny'")
    assert tabbed(tab, "question") == [
        "Skip to the question", "new", "New conversation", "Delete New conversation", "theme",
        "open-settings", "question",
    ]  # fmt: skip
    # The settings open, are changed and close; the focus goes back to where it came from.
    tabbed(tab, "open-settings", shift=True)
    tab.press(*ENTER)
    tab.wait("document.getElementById('settings').open")
    tabbed(tab, "max_tokens")
    tab.ask("document.activeElement.value = '8'")  # what a key writes
    tab.ask("document.getElementById('temperature').value = '0'")  # greedy answers do not end early
    tab.press(*ESCAPE)
    tab.wait("!document.getElementById('settings').open")
    tab.wait(saved("max_tokens", "8"))
    assert tab.ask(FOCUSED) == "open-settings"
    # A question by the button; while it is answered the focus is on what stops it.
    tabbed(tab, "question")
    tab.type("hello")
    tabbed(tab, "send")
    tab.press(*ENTER)
    tab.wait("document.querySelector('.cost')?.textContent.includes('tok/s')")
    tab.wait(STOPPED)
    tab.wait("document.activeElement.id === 'question'")
    # Back to the answer's buttons, and answered again from there: the focus stays in the log.
    assert tabbed(tab, "Answer again", shift=True) == ["Answer again"]
    tab.press(*ENTER)
    tab.wait("document.getElementById('status').textContent === 'The answer is complete.'")
    tab.wait(STOPPED)
    assert tab.ask(FOCUSED) in ("log", "question", "Answer again")
    # A conversation that is deleted takes the focus's button away, and not the focus.
    tab.ask("document.getElementById('new').focus()")
    tab.press(*ENTER)
    tab.wait("document.activeElement.id === 'question'")
    tab.ask("document.getElementById('new').focus()")
    tabbed(tab, "Delete hello")
    tab.press(*ENTER)
    tab.wait("document.activeElement.id === 'new'")
    assert "hello" not in tab.ask("document.getElementById('conversations').textContent")
    assert tab.went_wrong() == []


def test_the_list_of_conversations_by_keyboard_on_a_phone(
    server: Live, opened: browser.Browser
) -> None:
    tab = browser.Tab(opened, server.url, width=360, dark=False)
    tab.wait("document.getElementById('model').textContent === 'tiny'")
    assert "new" not in tabbed(tab, "menu")  # what is not shown takes no focus
    tab.press(*ENTER)
    tab.wait("document.activeElement.id === 'new'")
    tab.press(*ESCAPE)
    tab.wait("document.activeElement.id === 'menu'")
    assert tab.ask("document.getElementById('menu').getAttribute('aria-expanded')") == "false"


# What a screen reader may land on, and has to be told the name of.
CONTROLS = {
    "button", "textbox", "spinbutton", "link", "navigation", "form", "log", "dialog", "image", "img",
    "DisclosureTriangle",
}  # fmt: skip


def test_what_a_screen_reader_is_told(server: Live, opened: browser.Browser) -> None:
    """Chromium's accessibility tree: names, roles, states, landmarks, headings and what is live."""
    tab = browser.Tab(opened, server.url, width=1200, dark=False)
    tab.wait("document.getElementById('model').textContent === 'tiny'")
    setting(tab, "max_tokens", "8")
    setting(tab, "temperature", "0")
    tab.type("hello")
    tab.press(*ENTER)
    tab.wait("document.querySelector('.layers')?.childElementCount === 3")
    tab.wait(STOPPED)
    heard = tab.heard()
    unnamed = [each for each in heard if each.role in CONTROLS and not each.name]
    assert unnamed == []
    named = {(each.role, each.name) for each in heard}
    for role, name in (
        ("RootWebArea", "tiny \u2013 remoe-edge"), ("navigation", "Conversations"), ("banner", ""),
        ("main", ""), ("form", "Ask"), ("log", "Conversation"), ("heading", "tiny"),
        ("heading", "You"), ("heading", "Answer"), ("textbox", "Question"), ("button", "Send"),
        ("button", "Edit this question"), ("button", "Copy this answer"), ("button", "Answer again"),
        ("button", "Delete hello"), ("button", "Theme: system"), ("button", "Settings"),
    ):  # fmt: skip
        assert (role, name) in named, (role, name)
    levels = [each.values["level"] for each in heard if each.role == "heading"]
    assert levels == [1, 2, 2]
    (status,) = [each for each in heard if each.role == "status"]
    assert status.values["live"] == "polite"
    assert tab.ask("document.getElementById('status').textContent") == "The answer is complete."
    # The answer is said once, when it is whole; while it is written nothing of it is.
    answer = tab.ask("document.querySelector('article.assistant .body').textContent")
    assert tab.ask("document.getElementById('spoken').textContent") == answer != ""
    assert tab.ask("document.getElementById('spoken').getAttribute('aria-live')") == "polite"
    (log,) = [each for each in heard if each.role == "log"]
    assert log.values.get("live", "off") == "off"
    (bars,) = [each for each in heard if each.name.startswith("Misses by layer: 0: ")]
    assert bars.role in ("image", "img")
    assert not any(each.name == "Stop" for each in heard)  # hidden while nothing runs
    tab.ask("document.getElementById('open-settings').click()")
    inside = tab.heard()
    (dialog,) = [each for each in inside if each.role == "dialog"]
    assert (dialog.name, dialog.values["modal"]) == ("Settings", True)
    fields = {each.name for each in inside if each.role in ("textbox", "spinbutton")}
    assert fields == {
        "System prompt", "Temperature", "Top p", "Top k", "Min p", "Most tokens of an answer", "Seed",
        "API key",
    }  # fmt: skip
    assert not any(each.role == "log" for each in inside)  # behind the dialog


def contrast(tab: browser.Tab, one: str, other: str) -> float:
    """Give the contrast of two of the page's colours, as WCAG has it."""

    def lightness(name: str) -> float:
        value = tab.ask(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')")
        parts = [int(value.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((lightness(one), lightness(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_can_be_told_apart(server: Live, opened: browser.Browser, dark: bool) -> None:
    tab = browser.Tab(opened, server.url, width=1200, dark=dark)
    for ink in ("ink", "soft", "bad", "accent"):
        assert contrast(tab, ink, "paper") >= 4.5, ink
    for ink in ("ink", "soft"):
        assert contrast(tab, ink, "shade") >= 4.5, ink
    assert contrast(tab, "on-accent", "accent") >= 4.5
    assert contrast(tab, "edge", "paper") >= 3


def test_the_page_is_complete(server: Live) -> None:
    """Without a browser: every file is served, and none names another place."""
    status, headers, data = server.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    named = set(re.findall(r"page/([\w.]+)", data.decode()))
    for file in sorted(PAGE.iterdir()):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src|href|import|fetch|url)\W{1,3}https?:""", text), file
        assert "innerHTML" not in text
        if file.name == "index.html":
            continue
        status, headers, data = server.ask(f"/page/{file.name}")
        assert (status, data.decode()) == (200, text)
        named |= set(re.findall(r"from \"\./([\w.]+)\"", text))
    assert named == {each.name for each in PAGE.iterdir()} - {"index.html"}
    assert Path(PAGE).is_dir()
