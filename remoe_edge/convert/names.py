"""The names of routers in GGUF and in Hugging Face checkpoints.

They come from the gguf package's tables (`TensorNameMap`); none is spelled here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, TensorNameMap

from remoe_edge.errors import ModelError, UnsupportedError
from remoe_edge.files.router_tensors import (
    ROUTER,
    SELECTION_BIAS,
    canonical,
    is_router,
    is_selection_bias,
)

_MAX_BLOCKS = 4096


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
            if found is None or found[0] not in (ROUTER, SELECTION_BIAS):
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
        if is_selection_bias(name):
            return [key if key.endswith("_bias") else key + "_bias" for key in keys]
        return [key + suffix for key in keys]
