"""Give a model that is loaded its cache, of what the context and its buffers have left."""

from __future__ import annotations

from remoe_edge.engine import budget as budgets
from remoe_edge.engine import embedding
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.locked_memory import lock_loaded
from remoe_edge.machine.gpu import Gpu, gpus
from remoe_edge.native import _core


def lock(loaded: Loaded) -> None:
    """Keep dense weights out of swap; a model that is loaded whole is mapped, and not locked."""
    if loaded.native is not None and loaded.settings.lock and (note := lock_loaded()) is not None:
        loaded.notes.append(note)


def attach(loaded: Loaded, cache: str) -> None:
    """Give the model its cache, of what the context and its buffers have left."""
    native, settings = loaded.native, loaded.settings
    if native is None:
        return
    # KV and output buffers are cleared as they are made; compute buffers are not touched yet.
    scratch = native.scratch_bytes(min(settings.n_ubatch, loaded.n_ctx))
    buffers = loaded.buffers.n_bytes
    outputs = embedding.output_bytes(loaded, loaded.llama.n_vocab(), loaded.llama.n_embd())
    buffers["compute"] = buffers.get("compute", 0) + scratch + outputs
    prefetch = _prefetch(loaded)
    beside_bytes = native.router_bytes(prefetch)
    beside_bytes += _core.peer_check_bytes(native) if loaded.asks_peers else 0
    loaded.budget = budgets.resolve(
        cache, native, buffers["compute"], beside_bytes,
        follow=loaded.keeper is not None, gpu=_gpu_room(native.experts_on),
    )  # fmt: skip
    native.attach(
        n_slots=loaded.budget.n_slots,
        policy=settings.policy,
        lock=settings.lock,
        profile=None if loaded.profile is None else loaded.profile.data,
        prefetch=prefetch,
        most_slots=loaded.budget.most_slots,
    )
    loaded.notes.extend(native.notes)
    if said := loaded.offload.said():
        loaded.notes.append(said)
    prefetched = native.prefetch
    if prefetched["state"] != "off" and prefetched["why_not"]:
        loaded.notes.append(f"nothing is prefetched while answering: {prefetched['why_not']}")


def _prefetch(loaded: Loaded) -> str:
    """Give the prefetch setting; `auto` is off where something else would suffer, which is noted."""
    prefetch = loaded.settings.prefetch
    if prefetch != "auto":
        return prefetch
    if loaded.lossy:
        loaded.notes.append("nothing is prefetched: answers with loss must not depend on the clock")
        return "off"
    if loaded.asks_peers:
        loaded.notes.append("nothing is prefetched while peers are asked (--prefetch on does both)")
        return "off"
    return prefetch


def _gpu_room(name: str) -> Gpu | None:
    """Ask anew what is free on the GPU that has the experts: the context is there by now."""
    return next((each for each in gpus() if each.name == name), None)
