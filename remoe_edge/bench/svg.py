"""Plots as SVG that stands in a page: sized for a phone, coloured by the page's style sheet.

Colours are the classes `c0` ... `c7`, so that a page can be light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
N_COLOURS = 8


@dataclass(frozen=True)
class Series:
    """Hold one line: its name, colour and points (x, y); spans are (x, low, high) beside them."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float, float]] = ()
    dots: bool = False


@dataclass(frozen=True)
class _Axis:
    """Turn values into places between two ends."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[float]:
        step = _nice((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


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
    xs = [x for each in series for x, _ in each.points]
    heights = [y for each in series for _, y in each.points]
    heights += [high for each in series for _, _, high in each.spans]
    if level is not None:
        heights.append(level[1])
    x_axis, y_axis = _axes(xs, top if top is not None else max(heights, default=1) * 1.05)
    parts = [_frame(x_axis, y_axis, x_label, y_label)]
    if level is not None:
        y = y_axis.at(level[1])
        beside = y + 13 if y < _TOP + 16 else y - 4
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text class="tick" x="{_LEFT + 4}" y="{beside}">{escape(level[0])}</text>'
        )
    for each in series:
        parts.append(_line(each, x_axis, y_axis))
    return _svg(title, parts)


def heat_map(
    title: str, x_label: str, y_label: str, rows: Sequence[Sequence[float]], unit: str
) -> str:
    """Draw `rows[y][x]` as shades, the first row at the top; the darkest is the largest value."""
    n_columns = max((len(row) for row in rows), default=0) or 1
    largest = max((value for row in rows for value in row), default=0) or 1
    width = (WIDTH - _LEFT - _RIGHT) / n_columns
    height = (HEIGHT - _TOP - _BOTTOM) / (len(rows) or 1)
    parts = []
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            if value > 0:
                parts.append(
                    f'<rect class="heat" x="{_LEFT + x * width:.1f}" y="{_TOP + y * height:.1f}" '
                    f'width="{width + 0.3:.1f}" height="{height + 0.3:.1f}" '
                    f'fill-opacity="{value / largest:.2f}">'
                    f"<title>layer {y}: {value:.2f} {escape(unit)}</title></rect>"
                )
    step = max(1, math.ceil(len(rows) / 8))
    for y in range(0, len(rows), step):
        at = round(_TOP + (y + 0.5) * height + 4, 1)
        parts.append(f'<text class="tick end" x="{_LEFT - 5}" y="{at}">{y}</text>')
    parts.append(_labels(x_label, y_label))
    edge = f'<path class="axis" d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>'
    return _svg(title, [*parts, edge])


def number(value: float) -> str:
    """Write a tick: 0, 0.25, 40, 1.5k."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def _line(series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    colour = f"c{series.colour % N_COLOURS}"
    places = [(x_axis.at(x), y_axis.at(min(y, y_axis.high))) for x, y in series.points]
    parts = []
    for x, low, high in series.spans:
        parts.append(
            f'<line class="span {colour}" x1="{x_axis.at(x)}" x2="{x_axis.at(x)}" '
            f'y1="{y_axis.at(low)}" y2="{y_axis.at(high)}"/>'
        )
    if len(places) > 1:
        path = "L".join(f"{x} {y}" for x, y in places)
        parts.append(f'<path class="line {colour}" d="M{path}"/>')
    if series.dots or len(places) == 1:
        for (x, y), (at, value) in zip(places, series.points, strict=True):
            parts.append(
                f'<circle class="dot {colour}" cx="{x}" cy="{y}" r="3.5">'
                f"<title>{escape(series.name)}: {number(value)} at {number(at)}</title></circle>"
            )
    return f"<g><title>{escape(series.name)}</title>{''.join(parts)}</g>"


def _axes(xs: Sequence[float], highest: float) -> tuple[_Axis, _Axis]:
    low, high = min(xs, default=0), max(xs, default=1)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return (
        _Axis(low, high, _LEFT, WIDTH - _RIGHT),
        _Axis(0, highest or 1, HEIGHT - _BOTTOM, _TOP),
    )


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    parts = []
    for value in y_axis.ticks(4):
        y = y_axis.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 5}" y="{y + 4}">{number(value)}</text>')
    for value in x_axis.ticks(5):
        x = x_axis.at(value)
        parts.append(
            f'<text class="tick middle" x="{x}" y="{HEIGHT - _BOTTOM + 16}">{number(value)}</text>'
        )
    parts.append(_labels(x_label, y_label))
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    return "".join(parts)


def _labels(x_label: str, y_label: str) -> str:
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    return (
        f'<text class="label end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 5}">{escape(x_label)}</text>'
        f'<text class="label middle" transform="translate(13 {middle:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _nice(step: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    for factor in (1, 2, 5, 10):
        if step <= factor * power * (1 + 1e-9):
            return factor * power
    return 10 * power
