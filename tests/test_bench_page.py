"""The page of a bench: complete in itself, opened in a real browser, and fit for a phone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import browser
from bench_record import made_up
from remoe_edge.bench.page import page
from remoe_edge.bench.plots import plots, sequence
from remoe_edge.files import pictures

needs_matplotlib = pytest.mark.skipif(
    not pictures.available(), reason="matplotlib is not installed: pip install '.[plot]'"
)
ASK = {
    "width": "window.innerWidth",
    "overflow": ("document.documentElement.scrollWidth - document.documentElement.clientWidth"),
    "widest": (
        "Math.max(...[...document.querySelectorAll('body *')]"
        ".map(each => each.getBoundingClientRect().right))"
    ),
    "back": "getComputedStyle(document.body).backgroundColor",
    "ink": "getComputedStyle(document.body).color",
    "plots": "document.querySelectorAll('figure svg').length",
    "lines": "document.querySelectorAll('svg .line path').length",
    "smallest": (  # a rotated letter is as high as it was wide: measured as it was before
        "Math.min(...[...document.querySelectorAll('svg text')].map(each => each.getBBox().height"
        " * each.closest('svg').getBoundingClientRect().width"
        " / each.closest('svg').viewBox.baseVal.width))"
    ),
    "text": "document.body.innerText",
    "strangers": "document.querySelectorAll('script,link[rel=stylesheet],img,iframe').length",
    "hostile": "typeof window.hostile",
}


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return made_up(arms=("stock-mmap", "stream:lru cache=30%", "stream:lru cache=60%"))


@needs_matplotlib
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(record: dict[str, Any], tmp_path: Path, width: int, dark: bool) -> None:
    path = browser.find()
    if path is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(browser.NAMES)}")
    file = tmp_path / "page.html"
    file.write_text(page(record), encoding="utf-8")
    with browser.Browser(path) as opened:
        seen = opened.open(file, width=width, dark=dark, ask=ASK)
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [file.as_uri()]
    assert seen.values["width"] == width
    assert seen.values["overflow"] == 0  # nothing to scroll sideways
    assert seen.values["widest"] <= width
    assert seen.values["strangers"] == 0
    assert seen.values["hostile"] == "undefined"
    assert seen.values["plots"] == len([plot for plot in plots(record) if plot.svg]) >= 7
    assert seen.values["lines"] >= 10
    assert seen.values["smallest"] >= 10  # CSS pixels: readable
    for name in record["arms"]:
        assert name in seen.values["text"]
    lightness = [sum(map(int, re.findall(r"\d+", seen.values[part])[:3])) for part in ASK_COLOURS]
    assert (lightness[0] < lightness[1]) == dark


ASK_COLOURS = ("back", "ink")


@needs_matplotlib
def test_every_plot_that_was_asked_for(record: dict[str, Any]) -> None:
    drawn = {plot.heading: plot for plot in plots(record)}
    assert list(drawn) == [
        "Time per token", "Hit rate", "Bytes from storage", "Memory", "Power",
        "Time per token against cache size", "Misses by layer: stream:lru cache=30%",
        "Misses by layer: stream:lru cache=60%",
    ]  # fmt: skip
    for plot in drawn.values():
        ElementTree.fromstring(plot.svg)
    assert drawn["Time per token"].svg.count('class="line"') == 3
    assert drawn["Hit rate"].svg.count('class="line"') == 2
    # Two sizes of one policy are one line with two points and their intervals.
    cache = drawn["Time per token against cache size"].svg
    assert elements(cache, "dots", "use") == 2
    assert cache.count('class="span"') == 2
    assert 'class="level"' in cache
    heat = drawn["Misses by layer: stream:lru cache=30%"].svg
    layers = len(record["runs"][1]["prompts"][0]["tokens"]["layer_misses"][0])
    n_tokens = sum(len(prompt["tokens"]["layer_misses"]) for prompt in record["runs"][1]["prompts"])
    assert elements(heat, "heat", "use") + elements(heat, "heat", "path") == layers * n_tokens


def elements(svg: str, mark: str, name: str) -> int:
    """Count the elements of a name below the one that has the mark as its class."""
    root = ElementTree.fromstring(svg)
    (group,) = (each for each in root.iter() if each.get("class") == mark)
    return sum(each.tag.endswith("}" + name) for each in group.iter() if each.get("id") is None)


@needs_matplotlib
def test_plots_are_coloured_by_the_page_alone(record: dict[str, Any]) -> None:
    for plot in plots(record):
        assert re.findall(r"#[0-9a-f]{6}\b", plot.svg) == []
        texts = re.findall(r"<text [^>]*>", plot.svg)
        assert texts
        assert all("fill: var(--soft)" in text for text in texts)
    assert plots(record) == plots(record)  # the same data, the same bytes


@needs_matplotlib
def test_charts_of_one_page_do_not_refer_to_each_other(record: dict[str, Any]) -> None:
    seen: set[str] = set()
    for plot in plots(record):
        ids = set(re.findall(r' id="([^"]+)"', plot.svg))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', plot.svg)) <= ids
        assert not ids & seen
        seen |= ids


def test_without_matplotlib_the_page_says_how_to_get_plots(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    text = page(record)
    assert "<svg" not in text
    assert "pip install &#x27;remoe-edge[plot]&#x27;" in text
    for name in record["arms"]:  # the figures are there all the same
        assert f"<h2>{name}</h2>" in text


@needs_matplotlib
def test_without_a_sensor_the_page_says_so() -> None:
    record = made_up(arms=("stream:lru",), watts=False)
    (power,) = (plot for plot in plots(record) if plot.heading == "Power")
    assert power.svg == ""
    assert "no power sensor" in power.note
    assert "no power sensor" in page(record)


@needs_matplotlib
def test_stock_alone_has_no_cache_to_draw() -> None:
    record = made_up(arms=("stock-mmap",))
    assert "No arm has an expert cache." in page(record)


def test_what_a_model_calls_itself_is_text() -> None:
    record = made_up(arms=("stream:lru",))
    record["model"]["name"] = "<script>hostile=1</script>&"
    assert "<script" not in page(record)
    assert "&lt;script&gt;hostile=1&lt;/script&gt;&amp;" in page(record)


def test_a_record_without_runs_has_a_page() -> None:
    record = made_up(arms=("stream:lru",))
    record.update(runs=[], summary={}, complete=False, ended="interrupted")
    assert "not complete: interrupted after 0 runs" in page(record)


def test_lines_are_medians_of_the_rounds() -> None:
    record = made_up(arms=("stream:lru",), rounds=3)
    for i, run in enumerate(record["runs"]):
        run["prompts"][0]["tokens"]["token_ms"] = [10.0 * (i + 1)] * 12
    values = sequence(record["runs"], "token_ms")
    assert values.tolist()[:12] == [20.0] * 12
