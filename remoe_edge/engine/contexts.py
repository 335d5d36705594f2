"""How many contexts there are to be, and whether memory holds them."""

from __future__ import annotations

from remoe_edge.engine.kv_cache import kv_bytes
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.nextn_layers import dense_bytes as dense_bytes_of
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import BudgetError
from remoe_edge.machine import memory
from remoe_edge.native import _core
from remoe_edge.units import mib

_SHARE = 8  # of the memory that is available
_MOST_CHOSEN = 8  # conversations, unless more are asked for


def fitting(loaded: Loaded, file: _core.ModelFile) -> int:
    """Choose how many conversations may be answered at a time."""
    each = kv_bytes(file, loaded.n_ctx)
    if not each:
        loaded.notes.append(
            "one conversation at a time: this model's header does not say what a context takes "
            "(--parallel N says how many)"
        )
        return 1
    share = memory.available().available_bytes // _SHARE
    return max(1, min(_MOST_CHOSEN, share // each))


def check(loaded: Loaded, file: _core.ModelFile) -> None:
    """Refuse what memory cannot hold: llama.cpp would be killed while it fills it."""
    n_ctx, n_places = loaded.n_ctx, loaded.n_places
    # Sliding windows make it no smaller: llama.cpp keeps all tokens, so that some can be taken back.
    cache_bytes = n_places * (kv_bytes(file, n_ctx) or 0)
    # Else mapped, and read as it is used.
    weights = dense_bytes_of(file, nextn=loaded.settings.draft == "mtp")
    dense_bytes = weights if loaded.streamed else 0
    here = 1 - loaded.offload.share_elsewhere
    cache_bytes, dense_bytes = int(cache_bytes * here), int(dense_bytes * here)
    room = memory.available()
    if cache_bytes + dense_bytes > room.available_bytes:
        dense = f" and the dense weights {mib(dense_bytes)}" if loaded.streamed else ""
        context = "a context" if n_places == 1 else f"{n_places} contexts"
        lower = "--ctx" if n_places == 1 else "--parallel or --ctx"
        raise BudgetError(
            f"{context} of {n_ctx} tokens takes {mib(cache_bytes)}{dense}, but "
            f"{mib(room.available_bytes)} are left by {room.limited_by}: lower {lower}"
        )


def note_sizes(loaded: Loaded) -> None:
    """Say where a size that was asked for is more than can be had."""
    settings, n_ctx = loaded.settings, loaded.n_ctx
    for name, default in (
        ("n_batch", EngineSettings.n_batch),
        ("n_ubatch", EngineSettings.n_ubatch),
    ):
        asked = getattr(settings, name)
        if asked > n_ctx and asked != default:
            loaded.notes.append(f"{name} {asked} is more than the context: {n_ctx} is used")
    most = min(settings.n_batch, n_ctx)
    if most < settings.n_ubatch <= n_ctx and settings.n_ubatch != EngineSettings.n_ubatch:
        loaded.notes.append(f"n_ubatch {settings.n_ubatch} is more than n_batch: {most} is used")
