"""Put together what the last answer cost and how an engine runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoe_edge.engine import peers
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.stats import CacheStats, EngineStats
from remoe_edge.machine import memory
from remoe_edge.native import WAIT_POLICY

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel


def stats_of(loaded: Loaded) -> EngineStats:
    """Tell it of a loaded model. Times in ms, sizes in bytes."""
    native = loaded.native
    return EngineStats(
        answer=loaded.last,
        load_ms=loaded.load_ms,
        peak_rss_bytes=memory.peak_rss_bytes(),
        streamed=loaded.streamed,
        threads=loaded.settings.n_cores,
        n_ctx=loaded.n_ctx,
        buffers=dict(loaded.buffers.n_bytes),
        gpu_buffers=dict(loaded.buffers.gpu_bytes),
        wait_policy=WAIT_POLICY,
        notes=tuple(loaded.notes),
        router_probabilities=None if native is None else native.router_probabilities,
        cache=None if native is None else _cache(loaded, native),
        io=None if native is None else dict(native.io),
        remote=peers.stats(loaded),
        lossy=loaded.lossy or None,
    )


def _cache(loaded: Loaded, native: StreamedModel) -> CacheStats:
    budget, counts = loaded.budget, native.counts()
    assert budget is not None
    prefetch = {
        name: round(each, 4) if isinstance(each, float) else each
        for name, each in native.prefetch.items()
    }
    return CacheStats(
        budget_bytes=native.budget_bytes,
        slots=native.n_slots,
        most_slots=native.most_slots,
        policy=native.policy,
        warm_experts=counts["warm_experts"],
        warm_bytes=counts["warm_bytes"],
        prefetch=prefetch,
        why=budget.why,
        expert_bytes=native.expert_bytes,
        dense_bytes=native.dense_bytes,
        dense_bytes_read=native.dense_bytes_read,
        repacked=native.repacked,
        locked=native.locked,
        huge_pages=native.huge_pages,
        plan=None if loaded.keeper is None else loaded.keeper.to_dict(),
    )
