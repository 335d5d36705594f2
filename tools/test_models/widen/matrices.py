"""Widen one matrix at a time, each by the role that it plays for the padding.

A reader multiplies the hidden state: its columns over padding meet zeros and are free. A writer
adds to the hidden state: its rows into padding are silent. Copies of one hidden entry hold one
value, so dense readers hear the first copy only, and experts the first few, one for each part.
"""

from __future__ import annotations

import numpy as np

from widen.axis import Axis
from widen.blocks import Blocks, Floats, Format, decode, noise, overlay, silence, split


def read_hidden(fmt: Format, rows: Blocks, hidden: Axis, rng: np.random.Generator) -> Blocks:
    """Widen a dense reader's rows: the first copy carries the weights, the others are silent."""
    wide = noise(fmt, rng, (len(rows), hidden.wide // fmt.length), _magnitude(fmt, rows))
    silence(fmt, wide[:, : hidden.used // fmt.length])
    overlay(fmt, wide[:, : rows.shape[1]], rows)
    return wide


def hold_hidden(fmt: Format, rows: Blocks, hidden: Axis, rng: np.random.Generator) -> Blocks:
    """Widen rows that are hidden states themselves (embeddings): all copies, silent padding."""
    wide = noise(fmt, rng, (len(rows), hidden.wide // fmt.length), _magnitude(fmt, rows))
    silence(fmt, wide)
    for start in hidden.starts:
        first = start // fmt.length
        overlay(fmt, wide[:, first : first + rows.shape[1]], rows)
    return wide


def write_hidden(
    fmt: Format, rows: Blocks, hidden: Axis, rng: np.random.Generator, *, is_silent: bool
) -> Blocks:
    """Widen a dense writer: every copy gets the same rows, padding gets silent ones."""
    wide = noise(fmt, rng, (hidden.wide, rows.shape[1]), _magnitude(fmt, rows))
    silence(fmt, wide)
    if not is_silent:
        for start in hidden.starts:
            overlay(fmt, wide[start : start + hidden.real], rows)
    return wide


def norm_weights(weights: Floats, hidden: Axis) -> Floats:
    """Widen an RMSNorm: its scale makes up for the copies' energy and for the padding's zeros."""
    wide = np.full(hidden.wide, np.abs(weights).mean(), dtype=np.float32)
    for start in hidden.starts:
        wide[start : start + hidden.real] = weights * np.sqrt(hidden.energy)
    return wide


def gate(
    fmt: Format, weights: Floats, hidden: Axis, units: Axis, rng: np.random.Generator
) -> Blocks:
    """Widen an expert's gate [units, hidden]: all of its padding is noise."""
    wide = noise(fmt, rng, (units.wide, hidden.wide // fmt.length), float(np.abs(weights).max()))
    parts = split(fmt, _pad(weights, hidden.stride), hidden.parts)
    for row in units.starts:
        _place(fmt, wide[row : row + units.real], hidden, parts)
    return wide


def up(fmt: Format, weights: Floats, hidden: Axis, units: Axis, rng: np.random.Generator) -> Blocks:
    """Widen an expert's up: a padded unit hears only padding, so its output is exactly zero."""
    wide = gate(fmt, weights, hidden, units, rng)
    for rows in _padding(units):
        silence(fmt, wide[rows, : hidden.used // fmt.length])
    return wide


def down(
    fmt: Format,
    weights: Floats,
    hidden: Axis,
    units: Axis,
    rng: np.random.Generator,
    *,
    is_silent: bool,
) -> Blocks:
    """Widen an expert's down [hidden, units]: a padded row hears only padded units."""
    wide = noise(fmt, rng, (hidden.wide, units.wide // fmt.length), float(np.abs(weights).max()))
    if is_silent:
        silence(fmt, wide)
        return wide
    parts = split(fmt, _pad(weights, units.stride), units.parts)
    for row in hidden.starts:
        _place(fmt, wide[row : row + hidden.real], units, parts)
    for rows in _padding(hidden):
        silence(fmt, wide[rows, : units.used // fmt.length])
    return wide


def _place(fmt: Format, rows: Blocks, columns: Axis, parts: list[Blocks]) -> None:
    silence(fmt, rows[:, : columns.used // fmt.length])
    for start, part in zip(columns.starts[: columns.parts], parts, strict=True):
        first = start // fmt.length
        overlay(fmt, rows[:, first : first + part.shape[1]], part)


def _padding(axis: Axis) -> list[slice]:
    between = [slice(start + axis.real, start + axis.stride) for start in axis.starts]
    return [*between, slice(axis.used, axis.wide)]


def _pad(weights: Floats, columns: int) -> Floats:
    # Zeros, not noise: a block shared by weights and noise would take its scale from either.
    return np.pad(weights, ((0, 0), (0, columns - weights.shape[1])))


def _magnitude(fmt: Format, blocks: Blocks) -> float:
    return float(np.abs(decode(fmt, blocks)).max())
