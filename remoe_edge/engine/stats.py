"""What one answer cost, as plain numbers and as one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


def percentile(values: list[float], share: float) -> float:
    """Take the smallest value that at least `share` of the values do not exceed; NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass
class Answer:
    """Hold times and counts of one generation; times in milliseconds, sizes in bytes."""

    n_prompt: int = 0
    n_generated: int = 0
    ttft_ms: float = math.nan
    token_ms: list[float] = field(default_factory=list)  # every token after the first
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    device_bytes: int = 0
    stall_ms: float = 0.0
    ffn_ms: float = 0.0
    ahead_misses: int = 0  # those of `misses` whose reading had begun before they were asked for
    ahead_useful_bytes: int = 0  # those of `bytes_read` whose reading had
    ahead_wasted_bytes: int = 0  # read and not asked for; not in `bytes_read`
    ahead_given_up: int = 0
    predict_ms: float = 0.0
    decode_hits: int = 0
    decode_misses: int = 0
    decode_bytes: int = 0
    stop: str = ""
    energy: dict[str, Any] | None = None  # from who measures it; see docs/telemetry.md

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
        if self.energy and self.energy.get("joules_per_token") is not None:
            parts.append(f"{self.energy['joules_per_token']:.2f} J/token")
        return ", ".join(parts)


Stats = dict[str, Any]
