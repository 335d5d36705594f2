"""One dimension of a model before and after: where its real entries lie, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from remoe_edge.errors import InputError


@dataclass(frozen=True)
class Axis:
    """A dimension of `real` entries, laid `copies` times, `stride` apart, into `wide` entries.

    Every copy carries the same values. What lies between and behind the copies is padding and
    always zero. Experts spread a weight over the first `parts` copies. All are counted in entries;
    `stride` is a multiple of every block length used.
    """

    real: int
    wide: int
    copies: int
    parts: int
    stride: int

    @property
    def starts(self) -> list[int]:
        """The first entry of each copy."""
        return [copy * self.stride for copy in range(self.copies)]

    @property
    def used(self) -> int:
        """Entries up to the end of the last copy's last block; the rest is whole padding blocks."""
        return self.copies * self.stride

    @property
    def energy(self) -> float:
        """Mean square after over mean square before."""
        return self.copies * self.real / self.wide

    @property
    def is_full(self) -> bool:
        """Say whether copies fill the width, so that norms see the mean square of before."""
        return self.copies * self.real == self.wide


def fit(name: str, real: int, wide: int, parts: int, block: int) -> Axis:
    """Lay a copy for each part, or as many as there is room for; refuse less than one."""
    stride = -(-real // block) * block
    if wide < real:
        raise InputError(f"{name} {wide} is below the source's {real}: a widening cannot narrow")
    if wide % block or wide < stride:
        way_out = max(stride, -(-wide // block) * block)
        raise InputError(f"{name} {wide} does not divide into blocks of {block}: take {way_out}")
    copies = min(parts, wide // stride)
    return Axis(real, wide, copies, copies, stride)


def fill(name: str, real: int, wide: int, parts: int, block: int) -> Axis:
    """Like `fit`, with more copies than parts where they fill the width without a rest."""
    axis = fit(name, real, wide, parts, block)
    full = Axis(real, wide, wide // axis.stride, axis.parts, axis.stride)
    return full if full.is_full else axis
