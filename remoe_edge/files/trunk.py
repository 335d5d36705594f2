"""How far a model's trunk goes: the blocks that every token runs through.

Those behind it predict further tokens (MTP), and take no part in ordinary decoding.
"""

from __future__ import annotations

from remoe_edge.native import _core


def trunk_blocks(model: _core.ModelFile) -> int | None:
    """Count the blocks of the trunk, from the header; None where it does not say."""
    n_blocks = model.unsigned(f"{model.architecture}.block_count")
    if n_blocks is None:
        return None
    return n_blocks - (model.unsigned(f"{model.architecture}.nextn_predict_layers") or 0)
