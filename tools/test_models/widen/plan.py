"""What the twin will look like: axes, types, layers, and what had to differ from the wish."""

from __future__ import annotations

from dataclasses import dataclass, field

from gguf import GGMLQuantizationType

from remoe_edge.errors import InputError
from widen.axis import Axis, fill, fit
from widen.blocks import F16, Q4_0, Q4_K, Q5_0, Q8_0, Format
from widen.source import LAYER_TENSORS, TOP_TENSORS, Source

QUANTS: dict[str, GGMLQuantizationType] = {"q4_0": Q4_0, "q4_k": Q4_K, "q8_0": Q8_0, "f16": F16}

# Parts that a weight is split into where its type changes: three of four bits outdo Q8_0.
PARTS = {"q4_0": 3, "q4_k": 3, "q8_0": 2, "f16": 1}


@dataclass(frozen=True)
class Layer:
    """A layer of the twin: its source, and whether it only echoes it (routes, reads, adds zero)."""

    source: int
    is_echo: bool


@dataclass(frozen=True)
class Plan:
    """The twin's axes, expert types and layers."""

    hidden: Axis
    units: Axis
    gate_up: Format
    down: Format
    layers: list[Layer]
    notes: list[str] = field(default_factory=list)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert: gate, up and down."""
        weights = self.hidden.wide * self.units.wide
        total = 0
        for fmt, matrices in ((self.gate_up, 2), (self.down, 1)):
            total += matrices * (weights // fmt.length) * fmt.record.itemsize
        return total


def make_plan(
    source: Source, embed: int, expert_ffn: int, quant: str, layers: int | None, parts: int | None
) -> Plan:
    """Choose axes, types and layers; say in `notes` what differs from the wish."""
    notes: list[str] = []
    gate_up = _storable(QUANTS[quant], embed, "gate and up", notes)
    down = _storable(QUANTS[quant], expert_ffn, "down", notes)
    dense = max(
        source.tensor(name).fmt.length
        for name in [*TOP_TENSORS, *(f"blk.0.{name}" for name in LAYER_TENSORS)]
        if not name.endswith("_exps.weight")
    )
    wanted = PARTS[quant] if parts is None else parts
    if wanted < 1:
        raise InputError(f"--parts {wanted}: a weight needs at least one part")
    gate_parts = max(_parts(source, m, gate_up, wanted) for m in ("gate", "up"))
    down_parts = _parts(source, "down", down, wanted)
    block = max(dense, gate_up.length)
    hidden = fill("--embed", source.embed, embed, gate_parts, block)
    units = fit("--expert-ffn", source.expert_ffn, expert_ffn, down_parts, down.length)
    for option, axis, needed in (
        ("--embed", hidden, gate_parts),
        ("--expert-ffn", units, down_parts),
    ):
        if axis.parts < needed:
            notes.append(
                f"{option} {axis.wide} has room for {axis.parts} of {needed} parts of "
                f"{axis.real}: experts are less exact than they could be"
            )
    if not hidden.is_full:
        notes.append(
            f"--embed {embed} is no multiple of {source.embed}: norms are scaled, and rounding "
            f"will tell twin and source apart in the last bits"
        )
    if _changes_type(source, gate_up, down):
        notes.append(
            f"experts change their type to {quant}, as sums of {hidden.parts} (gate, up) and "
            f"{units.parts} (down) parts: near to the source, not equal; experts that keep their "
            f"type stay equal bit for bit"
        )
    count = source.layers if layers is None else layers
    if count < source.layers:
        raise InputError(f"--layers {count}: the source has {source.layers}, all of them needed")
    if count > source.layers:
        notes.append(
            f"{count - source.layers} of {count} layers are echoes: they route and read experts, "
            f"and add zero"
        )
    return Plan(hidden, units, gate_up, down, _spread(source.layers, count), notes)


def _parts(source: Source, matrix: str, fmt: Format, wanted: int) -> int:
    # Of one type before and after, blocks come out as they went in, and nothing is left to split.
    return 1 if _keeps_type(source, matrix, fmt) else wanted


def _keeps_type(source: Source, matrix: str, fmt: Format) -> bool:
    names = [f"blk.{layer}.ffn_{matrix}_exps.weight" for layer in range(source.layers)]
    return all(source.tensor(name).fmt == fmt for name in names)


def _changes_type(source: Source, gate_up: Format, down: Format) -> bool:
    wanted = (("gate", gate_up), ("up", gate_up), ("down", down))
    return not all(_keeps_type(source, matrix, fmt) for matrix, fmt in wanted)


def _spread(real: int, count: int) -> list[Layer]:
    sources = [i * real // count for i in range(count)]
    return [Layer(s, is_echo=i > 0 and sources[i - 1] == s) for i, s in enumerate(sources)]


def _storable(kind: GGMLQuantizationType, columns: int, what: str, notes: list[str]) -> Format:
    if kind == Q4_K and columns % Format(Q4_K).length:
        notes.append(
            f"{what}: rows of {columns} do not divide by 256, so q5_0 instead of q4_K, "
            f"as llama.cpp falls back"
        )
        return Format(Q5_0)
    return Format(kind)
