"""Which tensors are routers, and their names in GGUF and in Hugging Face checkpoints.

Both come from the gguf package's tables (`TENSOR_NAMES`, `TensorNameMap`); none is spelled here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, TENSOR_NAMES, TensorNameMap

from remoe_edge.errors import InputError, ModelError, UnsupportedError
from remoe_edge.native import _core

# The router's matrix (and bias, where it has one), and the bias that only sways which experts are
# selected.
_ROUTER = MODEL_TENSOR.FFN_GATE_INP
_SELECTION_BIAS = MODEL_TENSOR.FFN_EXP_PROBS_B
_MAX_BLOCKS = 4096


def _pattern(kind: MODEL_TENSOR, suffixes: str) -> re.Pattern[str]:
    before, after = TENSOR_NAMES[kind].split("{bid}")
    return re.compile(f"{re.escape(before)}(0|[1-9][0-9]{{0,5}}){re.escape(after)}{suffixes}")


_ROUTER_NAME = _pattern(_ROUTER, r"\.(weight|bias)")
_SELECTION_BIAS_NAME = _pattern(_SELECTION_BIAS, r"(\.bias)?")


def is_router(name: str) -> bool:
    """Tell whether a GGUF tensor belongs to a router: its matrix, bias or selection bias."""
    return bool(_ROUTER_NAME.fullmatch(name) or _SELECTION_BIAS_NAME.fullmatch(name))


def canonical(name: str) -> str:
    """Return a router tensor's name with a selection bias spelled one way.

    It is `blk.N.exp_probs_b.bias` in most files and `blk.N.exp_probs_b` in some.
    """
    return name.removesuffix(".bias") if _SELECTION_BIAS_NAME.fullmatch(name) else name


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
    n_blocks = model.unsigned(f"{model.architecture}.block_count")
    if n_blocks is None:
        return True
    n_predictors = model.unsigned(f"{model.architecture}.nextn_predict_layers") or 0
    return block_of(name) < n_blocks - n_predictors


def tensor_name_map(architecture: MODEL_ARCH, n_blocks: int) -> TensorNameMap:
    """Make the gguf package's map between Hugging Face and GGUF names.

    Making one for an architecture with names of its own writes them into a table that all maps share,
    where they would hide the names of the next architecture; so the table is put back.
    """
    shared = dict(TensorNameMap.block_mappings_cfg)
    try:
        return TensorNameMap(architecture, n_blocks)
    finally:
        TensorNameMap.block_mappings_cfg.clear()
        TensorNameMap.block_mappings_cfg.update(shared)


# What wrappers put before a language model's own names: compilers, distributed training, adapters, and
# models of several kinds of input, whose other parts (`visual`, `vision_tower`) are not among them.
_WRAPPERS = frozenset(
    ("_fsdp_wrapped_module", "_orig_mod", "base_model", "language_model", "llm", "model", "module",
     "text_model")
)  # fmt: skip
# What adapters put inside: the layer that an adapter sits on, and the trained copy of a whole module.
_INSIDE = re.compile(
    r"\.(?:base_layer|modules_to_save(?:\.(?!weight\Z|bias\Z)[^.]+)?|_checkpoint_wrapped_module)(?=\.)"
)
_UNTRAINED_COPY = ".original_module."


def is_untrained_copy(key: str) -> bool:
    """Tell whether an adapter kept this tensor only to remember what was there before training."""
    return _UNTRAINED_COPY in key


def _unwrapped(key: str) -> list[str]:
    """Return a checkpoint's key and the plainer ones that it may stand for."""
    inner = _INSIDE.sub("", key)
    parts = inner.split(".")
    while parts and parts[0] in _WRAPPERS:
        parts = parts[1:]
    bare = ".".join(parts)
    return list(dict.fromkeys((key, inner, f"model.{bare}", bare, f"transformer.{bare}")))


class CheckpointNames:
    """Hugging Face names of one architecture's routers, to GGUF and back."""

    def __init__(self, architecture: str, n_blocks: int) -> None:
        known: dict[str, MODEL_ARCH] = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        if architecture not in known:
            raise UnsupportedError(
                f"architecture '{architecture}' is unknown to the installed gguf package; "
                "name the tensors as the GGUF does (blk.N...)"
            )
        if not 0 < n_blocks <= _MAX_BLOCKS:
            raise ModelError(f"{n_blocks} layers; 1 to {_MAX_BLOCKS} are supported")
        self.architecture = architecture
        self._map = tensor_name_map(known[architecture], n_blocks)

    @classmethod
    def covering(cls, architecture: str, names: Iterable[str]) -> CheckpointNames:
        """Return the names for as many layers as the numbers in `names` tell."""
        numbers = [int(part) for name in names for part in name.split(".") if part.isdecimal()]
        return cls(architecture, max(numbers, default=0) + 1)

    def to_gguf(self, key: str) -> str | None:
        """Return the canonical GGUF name of a checkpoint's router tensor; None for others."""
        # Checkpoints write `e_score_correction_bias` for what the table calls a bias of
        # `e_score_correction`; others write `expert_bias` for an entry of that very name.
        candidates = [
            form for plain in _unwrapped(key) for form in (plain, re.sub(r"_bias$", ".bias", plain))
        ]
        for candidate in candidates:
            found = self._map.get_type_and_name(candidate, try_suffixes=(".weight", ".bias"))
            if found is None or found[0] not in (_ROUTER, _SELECTION_BIAS):
                continue
            name: str = found[1]
            if is_router(name):
                return canonical(name)
        return None

    def from_gguf(self, name: str) -> list[str]:
        """Return the names under which checkpoints of the family may hold a GGUF router tensor."""
        stem = name.removesuffix(".weight").removesuffix(".bias")
        suffix = name[len(stem) :]
        keys = [
            key for key, (_, mapped) in self._map.mapping.items() if mapped == stem and key != stem
        ]
        if _SELECTION_BIAS_NAME.fullmatch(name):
            return [key if key.endswith("_bias") else key + "_bias" for key in keys]
        return [key + suffix for key in keys]
