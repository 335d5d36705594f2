"""Which tensors of a GGUF are routers.

Their names come from the gguf package's tables (`TENSOR_NAMES`); none is spelled here.
"""

from __future__ import annotations

import re

from gguf import MODEL_TENSOR, TENSOR_NAMES

from remoe_edge.errors import InputError
from remoe_edge.files.trunk import trunk_blocks
from remoe_edge.native import _core

# The router's matrix (and bias, where it has one), and the bias that only sways which experts are
# selected.
ROUTER = MODEL_TENSOR.FFN_GATE_INP
SELECTION_BIAS = MODEL_TENSOR.FFN_EXP_PROBS_B


def _pattern(kind: MODEL_TENSOR, suffixes: str) -> re.Pattern[str]:
    before, after = TENSOR_NAMES[kind].split("{bid}")
    return re.compile(f"{re.escape(before)}(0|[1-9][0-9]{{0,5}}){re.escape(after)}{suffixes}")


_ROUTER_NAME = _pattern(ROUTER, r"\.(weight|bias)")
_SELECTION_BIAS_NAME = _pattern(SELECTION_BIAS, r"(\.bias)?")


def is_router(name: str) -> bool:
    """Tell whether a GGUF tensor belongs to a router: its matrix, bias or selection bias."""
    return bool(_ROUTER_NAME.fullmatch(name)) or is_selection_bias(name)


def is_selection_bias(name: str) -> bool:
    """Tell whether a GGUF tensor only sways which experts are selected."""
    return bool(_SELECTION_BIAS_NAME.fullmatch(name))


def canonical(name: str) -> str:
    """Return a router tensor's name with a selection bias spelled one way.

    It is `blk.N.exp_probs_b.bias` in most files and `blk.N.exp_probs_b` in some.
    """
    return name.removesuffix(".bias") if is_selection_bias(name) else name


def block_of(name: str) -> int:
    """Return N of a router tensor's `blk.N`."""
    match = _ROUTER_NAME.fullmatch(name) or _SELECTION_BIAS_NAME.fullmatch(name)
    if match is None:
        raise InputError(f"'{name}' is not a router tensor")
    return int(match[1])


def routers_of(model: _core.ModelFile) -> dict[str, _core.Tensor]:
    """Return a model's router tensors by name, in file order."""
    return {tensor.name: tensor for tensor in model.tensors if is_router(tensor.name)}


def must_be_tuned(model: _core.ModelFile, name: str) -> bool:
    """Tell whether a set of tuned routers without this tensor is incomplete.

    Biases need not be trained, and multi-token-prediction layers take no part in ordinary decoding.
    """
    if not (_ROUTER_NAME.fullmatch(name) and name.endswith(".weight")):
        return False
    end = trunk_blocks(model)
    return end is None or block_of(name) < end
