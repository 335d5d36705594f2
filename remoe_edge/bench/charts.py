"""Charts as SVG that stands in a page: drawn by matplotlib, coloured by the page's style sheet.

matplotlib draws with stand-in colours, for which the SVG then gets the variables of page.css, so
that one page can be light or dark. It comes with the extra `[plot]`; files/pictures.py says whether it
is there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from remoe_edge.files.pictures import drawn_name

N_COLOURS = 8
_INCHES = (
    5.0,
    3.1,
)  # at 72 units an inch: as wide as a phone's screen, so that 12 units can be read
_LINES = [f"#fe00{i:02x}" for i in range(N_COLOURS)]
_SOFT, _EDGE, _HOT = "#fe0110", "#fe0111", "#fe0112"
_VARIABLES = {
    **{colour: f"var(--c{i})" for i, colour in enumerate(_LINES)},
    _SOFT: "var(--soft)",
    _EDGE: "var(--edge)",
    _HOT: "var(--hot)",
}
_STYLE = {
    "svg.fonttype": "none",  # letters stay letters: to be searched, read aloud and scaled
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "text.color": _SOFT,
    "grid.color": _EDGE,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Series:
    """Hold one line: its name, colour and points (x, y); spans are (x, low, high) beside them."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float, float]] = ()
    dots: bool = False


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    level: tuple[str, float] | None = None,
    top: float | None = None,
) -> str:
    """Draw lines over a common x; y begins at 0. level: a name and a height for a dashed line."""
    figure, axes = _axes(x_label, y_label, title)
    axes.grid(axis="y")
    for each in series:
        colour = _LINES[each.colour % N_COLOURS]
        for x, low, high in each.spans:
            axes.plot([x, x], [low, high], color=colour, alpha=0.5, linewidth=2, gid="span")
        if not each.points:
            continue
        xs, ys = zip(*each.points, strict=True)
        if len(each.points) > 1:
            axes.plot(xs, ys, color=colour, linewidth=1.5, gid="line")
        if each.dots or len(each.points) == 1:
            axes.scatter(xs, ys, s=28, color=colour, zorder=3, gid="dots")
    if level is not None:
        name, height = level
        axes.axhline(height, color=_SOFT, linestyle="--", linewidth=1, gid="level")
        axes.annotate(
            name, (0, height), (4, 3), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", color=_SOFT,
        )  # fmt: skip
    highest = axes.get_ylim()[1] if top is None else top
    axes.set_ylim(0, highest if highest > 0 else 1)
    return _svg(figure, title)


def heat_map(title: str, x_label: str, y_label: str, rows: Sequence[Sequence[float]]) -> str:
    """Draw `rows[y][x]` as shades, the first row at the top; the darkest is the largest value."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(x_label, y_label, title)
    largest = max((value for row in rows for value in row), default=0) or 1
    shades = LinearSegmentedColormap.from_list("shades", [(_HOT, 0.0), (_HOT, 1.0)])
    axes.pcolormesh(rows, cmap=shades, vmin=0, vmax=largest, linewidth=0, gid="heat")
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xticks([])
    return _svg(figure, title)


def _axes(x_label: str, y_label: str, title: str) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": drawn_name(title)}):
        figure = Figure(figsize=_INCHES, dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """Write a figure as an element that can stand in a page, the same bytes for the same data."""
    import matplotlib

    file = io.StringIO()
    # The salt names what the SVG refers to within itself, so that charts of one page do not mix.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": drawn_name(title)}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style .*?</style>", "", text, flags=re.S)
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(
        r' id="([^"]+)"', lambda match: match[0] if match[1] in referred else _class(match[1]), text
    )
    text = re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", text)
    text = re.sub(r"(font: [^;\"]*?[\d.]+px) [^;\"]+", r"\1 system-ui, sans-serif", text)
    text = re.sub(r' (?:d|x|y|transform)="[^"]+"', _shorter, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"\s*\n\s*", "\n", text)
    label = escape(title, quote=True)
    return re.sub(r"<svg[^>]*>", lambda match: _opening(match[0], label), text, count=1)


def _shorter(match: re.Match[str]) -> str:
    """Round places to a tenth of a unit, and put them on one line: pages stay small."""
    tenths = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", match[0])
    return re.sub(r"\s*\n\s*", " ", tenths).rstrip().replace(' "', '"')


def _opening(tag: str, label: str) -> str:
    """Keep of the root's attributes the ones that a page needs: its size is the page's to choose."""
    box = re.search(r'viewBox="[^"]+"', tag)
    assert box is not None
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} {box[0]} role="img" aria-label="{label}">'


def _class(name: str) -> str:
    """Turn the mark of a drawn thing into a class, since a page has many; drop all other ids."""
    return f' class="{name}"' if name in {"line", "span", "dots", "level", "heat"} else ""
