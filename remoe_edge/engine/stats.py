"""What an answer cost and how an engine runs, as typed values, as JSON and as one line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from remoe_edge.engine import lossy
from remoe_edge.engine.counters import Counts


def percentile(values: list[float], share: float) -> float:
    """Take the smallest value that at least `share` of the values do not exceed; NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass
class AnswerStats(Counts):
    """Hold times and counts of one answer, the prompt's included; times in ms, sizes in bytes.

    token_ms: every token after the first. decode_*: what came after the first token. guessed: tokens
    that drafts proposed, guessed_right: those that the model would have said. stop: "end" (the
    model's end token), "stop" (a stop string), "length" (max_tokens), "context" (it is full),
    "cancelled", "error", or "" while the answer runs. energy: from who measures it (docs/telemetry.md).
    """

    n_prompt: int = 0
    n_generated: int = 0
    ttft_ms: float = math.nan
    token_ms: list[float] = field(default_factory=list)
    decode_hits: int = 0
    decode_misses: int = 0
    decode_bytes: int = 0
    guessed: int = 0
    guessed_right: int = 0
    stop: str = ""
    energy: dict[str, Any] | None = None

    def count(
        self, start: Mapping[str, int], first: Mapping[str, int], end: Mapping[str, int]
    ) -> None:
        """Take the core's counts as the answer began, at its first token, and as it ended."""
        for name, value in Counts.between(start, end).items():
            setattr(self, name, value)
        if end:
            self.decode_hits = end["hits"] - first["hits"]
            self.decode_misses = end["misses"] - first["misses"]
            self.decode_bytes = end["bytes_read"] - first["bytes_read"]

    def tpot_ms(self) -> dict[str, float | None]:
        """Summarise the time per output token after the first; None without one."""
        if not self.token_ms:
            return {"mean": None, "p50": None, "p90": None, "p99": None}
        mean = sum(self.token_ms) / len(self.token_ms)
        return {
            "mean": round(mean, 3),
            "p50": round(percentile(self.token_ms, 0.5), 3),
            "p90": round(percentile(self.token_ms, 0.9), 3),
            "p99": round(percentile(self.token_ms, 0.99), 3),
        }

    def loss(self) -> str:
        """Say what was swapped and skipped; "" where the answer is without loss."""
        return lossy.said_of({name: getattr(self, name) for name in lossy.COUNTS})

    def line(self, streamed: bool) -> str:
        """Write the one line that follows an answer in the terminal."""
        mean = self.tpot_ms()["mean"]
        parts = [f"{self.n_generated} tokens"]
        if mean:
            parts.append(f"{1000 / mean:.1f} tok/s")
        if not math.isnan(self.ttft_ms):
            parts.append(f"TTFT {self.ttft_ms / 1000:.2f} s")
        if streamed:
            used = self.decode_hits + self.decode_misses
            if used:
                parts.append(f"hit rate {100 * self.decode_hits / used:.1f} %")
            if self.token_ms:
                parts.append(f"{self.decode_bytes / len(self.token_ms) / 2**20:.1f} MiB/token")
        else:
            parts.append("not streamed")
        if self.guessed:
            parts.append(f"{self.guessed_right} of {self.guessed} guesses right")
        if said := self.loss():
            parts.append(said)
        if self.energy and self.energy.get("joules_per_token") is not None:
            parts.append(f"{self.energy['joules_per_token']:.2f} J/token")
        return ", ".join(parts)


@dataclass(frozen=True)
class CacheStats:
    """Hold how experts are kept in memory; sizes in bytes.

    budget_bytes, slots: now; most_slots: what they may grow to where `--cache auto` follows the memory
    that is free. why: a line that says how the budget was found. prefetch: the state of reading ahead, as
    docs/architecture.md explains it.
    """

    budget_bytes: int
    slots: int
    most_slots: int
    policy: str
    warm_experts: int
    warm_bytes: int
    prefetch: dict[str, Any]
    why: str
    expert_bytes: int
    dense_bytes: int
    dense_bytes_read: int
    repacked: bool
    locked: bool
    huge_pages: bool
    plan: dict[str, Any] | None = None  # how a `plan:` is kept

    def to_dict(self, answer: AnswerStats) -> dict[str, Any]:
        """Give plain values, with what the answer took from the cache among them."""
        prefetched = {
            "misses": answer.prefetched_misses,
            "useful_bytes": answer.prefetch_useful_bytes,
            "wasted_bytes": answer.prefetch_wasted_bytes,
            "given_up": answer.prefetch_given_up,
            "predict_ms": round(answer.predict_ms, 3),
        }
        return {
            "budget_bytes": self.budget_bytes,
            "slots": self.slots,
            "most_slots": self.most_slots,
            **({} if self.plan is None else {"plan": self.plan}),
            "hits": answer.hits,
            "misses": answer.misses,
            "bytes_read": answer.bytes_read,
            "device_bytes": answer.device_bytes,
            "stall_ms": round(answer.stall_ms, 3),
            "ffn_ms": round(answer.ffn_ms, 3),
            "policy": self.policy,
            "warm_experts": self.warm_experts,
            "warm_bytes": self.warm_bytes,
            "prefetch": {**self.prefetch, **prefetched},
            "decode": {
                "hits": answer.decode_hits,
                "misses": answer.decode_misses,
                "bytes_read": answer.decode_bytes,
            },
            "why": self.why,
            "expert_bytes": self.expert_bytes,
            "dense_bytes": self.dense_bytes,
            "dense_bytes_read": self.dense_bytes_read,
            "repacked": self.repacked,
            "locked": self.locked,
            "huge_pages": self.huge_pages,
        }


@dataclass(frozen=True, eq=False)
class EngineStats(Mapping[str, Any]):
    """Hold what the last answer cost and how the engine runs; times in ms, sizes in bytes.

    cache, io and router_probabilities are None where nothing is streamed, remote without peers, lossy
    (by which means experts are swapped and skipped) where answers are without loss.
    buffers, gpu_buffers: what llama.cpp has reserved, by kind, here and on GPUs. Until version 0.3 it
    also reads as the mapping that `to_dict` returns.
    """

    answer: AnswerStats
    load_ms: float
    peak_rss_bytes: int | None
    streamed: bool
    threads: int
    n_ctx: int
    buffers: dict[str, int]
    wait_policy: str
    notes: tuple[str, ...]
    router_probabilities: bool | None
    cache: CacheStats | None
    io: dict[str, Any] | None
    remote: dict[str, Any] | None = None
    gpu_buffers: dict[str, int] = field(default_factory=dict)
    lossy: str | None = None

    def _lossy(self) -> dict[str, Any]:
        counts = {name: getattr(self.answer, name) for name in lossy.COUNTS}
        return {"means": self.lossy, **counts}

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        answer = self.answer
        return {
            "n_prompt": answer.n_prompt,
            "n_generated": answer.n_generated,
            "stop": answer.stop,
            "load_ms": round(self.load_ms, 3),
            "ttft_ms": round(answer.ttft_ms, 3) if answer.n_generated else None,
            "tpot_ms": answer.tpot_ms(),
            "peak_rss_bytes": self.peak_rss_bytes,
            "streamed": self.streamed,
            "threads": self.threads,
            "n_ctx": self.n_ctx,
            "energy": answer.energy,
            "draft": {"guessed": answer.guessed, "right": answer.guessed_right},
            "buffers": dict(self.buffers),
            "wait_policy": self.wait_policy,
            "notes": list(self.notes),
            "router_probabilities": self.router_probabilities,
            **({} if self.lossy is None else {"lossy": self._lossy()}),
            "cache": None if self.cache is None else self.cache.to_dict(answer),
            "io": None if self.io is None else dict(self.io),
            **({} if self.remote is None else {"remote": dict(self.remote)}),
        }

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())
