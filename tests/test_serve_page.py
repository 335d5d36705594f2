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
    tab.wait(f"JSON.parse(localStorage['remoe-edge'] ?? '{{}}').settings?.{name} === '{value}'")


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
