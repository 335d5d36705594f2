"""How long a token computes when nothing waits: a few tokens run through the engine itself.

Every token is evaluated after the same one from an empty context (no model has to take back what it
has seen). The first time its experts may be missing; some are evaluated again, when their experts are
resident, so that what is left is computing. The engine says how long a
token's expert FFNs took and how long they waited, which splits the time of both.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from remoe_edge.engine.counters import Counts
from remoe_edge.errors import InputError
from remoe_edge.plan.sizes import ModelSizes

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine
    from remoe_edge.engine.settings import EngineSettings

SECONDS = 6.0
_BATCHES = (4, 20)  # prompt lengths between which prefill is taken to be linear
_BATCH_KINDS = 2  # different tokens in them: few, so that their experts fit the probe's cache
_AT_LEAST, _AT_MOST = 4, 12  # tokens measured; storage's speed varies more than computing's
_REPEATED, _REPEATS = 4, 2  # how many of them again, and how often, with their experts resident


@dataclass(frozen=True)
class ComputeModel:
    """Hold times of computing, in milliseconds, and what else the probe's engine told.

    dense_ms: all of a token but its expert FFNs. whole_ms: one layer's expert FFN when all is
    resident. pair_ms: one expert of it, computed on its own because others are missing. prefill_*:
    a prompt of n tokens takes `base + n * each`, split in the same way; expert FFNs over all layers.
    """

    dense_ms: float
    whole_ms: float
    pair_ms: float
    sample_ms: float
    prefill_dense_base_ms: float
    prefill_dense_each_ms: float
    prefill_ffn_base_ms: float
    prefill_ffn_each_ms: float
    compute_bytes: int  # llama.cpp's compute buffers
    depth: int  # reads in flight
    prefetches: bool  # the engine does, unless told not to, as the probe tells it
    n_cold: int
    cold_misses: float  # of a token, mean
    cold_ffn_ms: float
    cold_stall_ms: float


@dataclass
class _Sample:
    wall_ms: float
    ffn_ms: float
    stall_ms: float
    misses: int

    @property
    def dense_ms(self) -> float:
        return self.wall_ms - self.ffn_ms

    @property
    def busy_ms(self) -> float:
        return self.ffn_ms - self.stall_ms


def measure_compute(
    path: str | os.PathLike[str],
    sizes: ModelSizes,
    settings: EngineSettings,
    *,
    memory_bytes: int,
    seconds: float = SECONDS,
) -> ComputeModel:
    """Open the model with a small cache and time some tokens, for about `seconds` once it is open.

    `memory_bytes` bounds the process, down to the engine's floor. Of `settings`, cache and policy are
    the probe's own. Raises what opening it raises.
    """
    from remoe_edge.engine.engine import Engine

    # What two tokens use: the one measured, and the one before it.
    room = memory_bytes - sizes.dense_bytes - sizes.kv_bytes
    slots = min(2 * sizes.top_k * sizes.n_layers, sizes.total_experts, sizes.slots_for(room))
    slots = max(slots, sizes.floor_slots)
    # What reading ahead hides depends on the text, and it is tried on and off while it runs.
    probe = settings.replace(
        cache=str(sizes.cache_bytes(slots)), policy="lru", prefetch="off", verbose=False
    )
    with Engine(path, probe) as engine:
        return _measure(engine, sizes, seconds)


def _measure(engine: Engine, sizes: ModelSizes, seconds: float) -> ComputeModel:
    end = time.perf_counter() + seconds
    n_vocab = int(engine.llama.n_vocab())
    before = [_token(0, n_vocab)]
    cold: list[_Sample] = []
    resident: list[_Sample] = []
    for i in range(_AT_MOST):
        token = [_token(1 + i, n_vocab)]
        for repeat in range(1 + (_REPEATS if i < _REPEATED else 0)):
            engine.evaluate(before)
            (resident if repeat else cold).append(_timed(engine, token))
        # The rest of the time is for the prompts.
        if time.perf_counter() > end - 0.4 * seconds and len(cold) >= _AT_LEAST:
            break
    sample_ms = _sample_ms(engine)
    # The first token also pays for memory that nobody has touched yet.
    missed = [each for each in cold[1:] if each.misses]
    still = [each for each in resident[_REPEATS:] if not each.misses]
    known = still or missed or resident
    whole = statistics.median(each.busy_ms for each in known) / sizes.n_layers
    stats = engine.stats()
    return ComputeModel(
        dense_ms=statistics.median(each.dense_ms for each in known),
        whole_ms=whole,
        pair_ms=_pair_ms(missed, whole, sizes),
        sample_ms=sample_ms,
        **_prefill(engine, n_vocab),
        compute_bytes=stats.buffers.get("compute", 0),
        depth=int((stats.io or {})["depth"]),
        prefetches=True,
        n_cold=len(missed),
        cold_misses=_mean(each.misses for each in missed),
        cold_ffn_ms=_mean(each.ffn_ms for each in missed),
        cold_stall_ms=_mean(each.stall_ms for each in missed),
    )


def _token(i: int, n_vocab: int) -> int:
    """Pick tokens that differ, spread over the vocabulary; their text means nothing here."""
    return (i * 7919 + 101) % n_vocab


def _mean(values: Any) -> float:
    found = list(values)
    return statistics.fmean(found) if found else 0.0


def _timed(engine: Engine, tokens: Sequence[int], *, reset: bool = False) -> _Sample:
    before = engine.counts()
    start = time.perf_counter()
    engine.evaluate(tokens, reset=reset)
    wall_ms = (time.perf_counter() - start) * 1000
    spent = Counts(**Counts.between(before, engine.counts()))
    return _Sample(wall_ms, spent.ffn_ms, spent.stall_ms, spent.misses)


def _pair_ms(missed: Sequence[_Sample], whole_ms: float, sizes: ModelSizes) -> float:
    """Find the time of one expert by itself from tokens with misses.

    Layers that missed nothing ran whole; their share is what spreading a token's misses evenly over
    all its choices leaves without one.
    """
    k, n = sizes.top_k, sizes.n_layers
    found = []
    for each in missed:
        untouched = (1 - min(1.0, each.misses / (k * n))) ** k
        if untouched < 0.9:
            busy = each.busy_ms / n - untouched * whole_ms
            found.append(max(0.0, busy / (1 - untouched) / k))
    return statistics.median(found) if found else whole_ms / k


def _sample_ms(engine: Engine) -> float:
    """Time choosing a token as a chat does."""

    def once() -> float:
        start = time.perf_counter()
        engine.llama.sample(temp=0.7, top_k=40, top_p=0.95, min_p=0.05)
        return (time.perf_counter() - start) * 1000

    return statistics.median(once() for _ in range(5))


def _prefill(engine: Engine, n_vocab: int) -> dict[str, float]:
    """Time two short prompts, each for the second time, and draw lines through them."""
    found: list[tuple[int, _Sample]] = []
    for n in _BATCHES:
        n = min(n, engine.n_ctx)
        prompt = [_token(i % _BATCH_KINDS, n_vocab) for i in range(n)]
        _timed(engine, prompt, reset=True)
        found.append((n, _timed(engine, prompt, reset=True)))
    (few, short), (many, long) = found

    def line(value: Callable[[_Sample], float]) -> tuple[float, float]:
        each = max(0.0, (value(long) - value(short)) / max(1, many - few))
        return max(0.0, value(short) - few * each), each

    dense_base, dense_each = line(lambda s: s.dense_ms)
    ffn_base, ffn_each = line(lambda s: s.busy_ms)
    return {
        "prefill_dense_base_ms": dense_base,
        "prefill_dense_each_ms": dense_each,
        "prefill_ffn_base_ms": ffn_base,
        "prefill_ffn_each_ms": ffn_each,
    }


def from_dict(record: dict[str, Any]) -> ComputeModel:
    """Read what `dataclasses.asdict` wrote. Raises InputError where it is something else."""
    names = {field.name for field in fields(ComputeModel)}
    numbers = all(isinstance(v, int | float) and v >= 0 for v in record.values())
    if set(record) != names or not numbers:
        raise InputError("not a record of computing times")
    return ComputeModel(**record)


def as_dict(compute: ComputeModel) -> dict[str, Any]:
    """Write it as plain values."""
    return asdict(compute)
