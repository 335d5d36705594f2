"""Which experts a worker serves, as people write it: `all`, `30%`, `0:0-7,3:12`, or a plan's file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile

_PART = re.compile(r"(\d+|\*):(\d+)(?:-(\d+))?")


def parse_experts(text: str, model: ModelFile) -> list[int]:
    """Turn a list into ids, `layer * n_experts + expert`, in ascending order.

    `all`; a share, which takes the first experts of every layer; or LAYER:FIRST-LAST, separated by
    commas, where LAYER is a block number of the model, or * for all of them. A file of
    `remoe-edge plan --price ... -o FILE.json` names what it leaves to others.

    Raises InputError for anything else, and for what the model does not have.
    """
    layers = model.expert_layers
    if not layers:
        raise InputError("a dense model has no experts to serve")
    if text.strip().endswith(".json"):
        return experts_of_plan(Path(text.strip()), model)
    n_experts = max(layer.n_experts for layer in layers)
    spans: list[tuple[int, int, int]] = []  # layer, begin, end
    if text.strip() == "all":
        spans = [(at, 0, layer.n_experts) for at, layer in enumerate(layers)]
    elif text.strip().endswith("%"):
        share = _share(text)
        spans = [(at, 0, round(share * layer.n_experts)) for at, layer in enumerate(layers)]
    else:
        for part in text.split(","):
            spans += _spans(part.strip(), [(layer.block, layer.n_experts) for layer in layers])
    chosen = {
        layer * n_experts + expert for layer, begin, end in spans for expert in range(begin, end)
    }
    if not chosen:
        raise InputError(f"'{text}' names no expert")
    return sorted(chosen)


def experts_of_plan(path: Path, model: ModelFile) -> list[int]:
    """List the experts that a placement leaves to others than the main host.

    Raises InputError where it is for a model of another shape, or leaves nothing.
    """
    from remoe_edge.placement import placement_file

    placement = placement_file.load(path)
    shape, layers = placement.request.shape, model.expert_layers
    n_experts = max(layer.n_experts for layer in layers)
    if (shape.n_layers, shape.n_experts) != (len(layers), n_experts):
        raise InputError(
            f"{path} places {shape.n_layers} layers of {shape.n_experts} experts, and the model has "
            f"{len(layers)} of {n_experts}"
        )
    chosen = {
        each.group.layer * n_experts + expert
        for each in placement.functions
        for expert in each.group.experts
    }
    if not chosen:
        raise InputError(f"{path} keeps every expert on the main host")
    return sorted(chosen)


def first_experts(model: ModelFile, hot: Sequence[int] = ()) -> list[int]:
    """List all experts: the hot ones in their order, then the first of every layer, the second, ...

    Raises InputError for a dense model.
    """
    layers = model.expert_layers
    if not layers:
        raise InputError("a dense model has no experts to serve")
    n_experts = max(layer.n_experts for layer in layers)
    rest = sorted(
        (expert, at) for at, layer in enumerate(layers) for expert in range(layer.n_experts)
    )
    ordered = dict.fromkeys([*hot, *(at * n_experts + expert for expert, at in rest)])
    return list(ordered)


def _share(text: str) -> float:
    try:
        share = float(text.strip()[:-1]) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise InputError(f"'{text}' is no share of the experts: write for example 30%")
    return share


def _spans(part: str, layers: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    match = _PART.fullmatch(part)
    if match is None:
        raise InputError(
            f"'{part}' names no experts: write all, 30%, or LAYER:FIRST-LAST such as 3:0-7,*:12"
        )
    first = int(match[2])
    last = int(match[3]) if match[3] else first
    spans = []
    for at, (block, n_experts) in enumerate(layers):
        if match[1] not in ("*", str(block)):
            continue
        if not first <= last < n_experts:
            raise InputError(f"'{part}': layer {block} has experts 0-{n_experts - 1}")
        spans.append((at, first, last + 1))
    if not spans:
        raise InputError(f"'{part}': the model has no experts in layer {match[1]}")
    return spans
