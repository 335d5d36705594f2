"""The counters of the native core, in one table: name, unit, help, and the metric that shows it.

`Counts` is that table. What the engine tells of a step, of an answer, in metrics, in the telemetry
file and in a benchmark's record is taken from it; a test holds it against the core's own counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NS = "_ns"


def _counter(
    help_: str, unit: str = "", *, metric: str = "", per_step: bool = False, per_token: bool = False
) -> Any:
    """Declare one. per_step: told to every observer's file. per_token: kept by a benchmark."""
    return dataclasses.field(
        default=0.0 if unit == "ms" else 0,
        metadata={
            "help": help_, "unit": unit, "metric": metric, "per_step": per_step,
            "per_token": per_token,
        },
    )  # fmt: skip


@dataclass(kw_only=True)
class Counts:
    """Hold what was counted between two moments. Times in ms (the core's in ns), sizes in bytes."""

    hits: int = _counter(
        "Experts found resident.", metric="expert_hits", per_step=True, per_token=True
    )
    misses: int = _counter(
        "Experts that had to be read.", metric="expert_misses", per_step=True, per_token=True
    )
    bytes_read: int = _counter(
        "Bytes of experts read.", "bytes", metric="expert_read_bytes", per_step=True, per_token=True
    )
    coarse_bytes: int = _counter(
        "Bytes of those that came in a coarser form.", "bytes", metric="coarse_read_bytes"
    )
    device_bytes: int = _counter("Bytes moved by storage, whole pages.", "bytes")
    stall_ms: float = _counter(
        "Time spent waiting for experts.", "ms", metric="stall_seconds", per_step=True,
        per_token=True,
    )  # fmt: skip
    read_ms: float = _counter("Time in which reads were in flight.", "ms", per_token=True)
    events: int = _counter("Layers' expert FFNs run.")
    evictions: int = _counter("Experts that left the cache.")
    warm_experts: int = _counter("Experts read before anything asked for them.")
    warm_bytes: int = _counter("Bytes of those experts.", "bytes")
    warm_dropped_bytes: int = _counter("Bytes read for such experts that came too late.", "bytes")
    begun_misses: int = _counter("Misses whose gate and up were computed before down had come.")
    prefetched_misses: int = _counter("Misses whose reading had begun before they were asked for.")
    prefetch_useful_bytes: int = _counter(
        "Bytes read whose reading had begun before.", "bytes", per_token=True
    )
    prefetch_wasted_bytes: int = _counter(
        "Bytes prefetched and not asked for; not in bytes_read.", "bytes", per_token=True
    )
    prefetch_given_up: int = _counter("Prefetches given up.")
    predict_ms: float = _counter("Time spent on predicting experts.", "ms")
    ffn_ms: float = _counter(
        "Time inside expert FFNs, stalls included.", "ms", per_step=True, per_token=True
    )
    weighed: int = _counter("Experts of tokens that might have been swapped or skipped.")
    swapped: int = _counter(
        "Experts that a lossy setting swapped for resident ones.", metric="lossy_swaps"
    )
    skipped_cold: int = _counter(
        "Experts that a lossy setting skipped, as they would have been read.",
        metric="lossy_cold_skips",
    )
    skipped_small: int = _counter(
        "Experts that a lossy setting skipped for their weight.", metric="lossy_small_skips"
    )
    coarse: int = _counter(
        "Experts that a lossy setting took in a coarser form.", metric="lossy_coarse"
    )
    trace_ms: float = _counter("Time spent on recording a trace.", "ms")

    @classmethod
    def between(cls, before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
        """Turn two of the core's counts into these fields; none where nothing is streamed."""
        if not after:
            return {}
        found: dict[str, Any] = {name: after[key] - before[key] for name, key in _NUMBERS}
        for name, key in _TIMES:
            found[name] = (after[key] - before[key]) / 1e6
        return found

    def told(self, *, digits: int = 4) -> dict[str, Any]:
        """Give those that observers' files keep of a step."""
        return {
            name: round(value, digits) if isinstance(value := getattr(self, name), float) else value
            for name in PER_STEP
        }


FIELDS = dataclasses.fields(Counts)


def core_key(name: str) -> str:
    """Name the core's count behind a field: its times are in nanoseconds."""
    return name.removesuffix("_ms") + _NS if name.endswith("_ms") else name


_KEYS = tuple((each.name, core_key(each.name)) for each in FIELDS)
_NUMBERS = tuple(pair for pair in _KEYS if not pair[1].endswith(_NS))
_TIMES = tuple(pair for pair in _KEYS if pair[1].endswith(_NS))
_TIMES_FIRST = sorted(FIELDS, key=lambda each: each.metadata["unit"] != "ms")  # as files have them
PER_STEP = tuple(each.name for each in _TIMES_FIRST if each.metadata["per_step"])
PER_TOKEN = tuple(each.name for each in _TIMES_FIRST if each.metadata["per_token"])
METRICS = tuple(each for each in FIELDS if each.metadata["metric"])
