"""What the server counts, for Prometheus, beside what telemetry knows of the engine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from remoe_edge.telemetry.families import Family, Histogram

if TYPE_CHECKING:
    from remoe_edge.engine.stats import AnswerStats
    from remoe_edge.serve.conversations import Load

_TPOT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
_TTFT_BOUNDS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)


class Figures:
    """Count requests and how long they took. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("finished", "embedded", "cancelled", "failed", "refused"), 0)
        self._ttft_s, self._tpot_s = Histogram(_TTFT_BOUNDS_S), Histogram(_TPOT_BOUNDS_S)

    def finished(self, stats: AnswerStats, first_s: float | None) -> None:
        """Count an answer; first_s: from when its request came to the first that was said of it."""
        with self._lock:
            self._counts["finished"] += 1
            if first_s is not None:
                self._ttft_s.observe(first_s)
            if stats.token_ms:
                self._tpot_s.observe(sum(stats.token_ms) / len(stats.token_ms) / 1000)

    def embedded(self) -> None:
        """Count a text that has become a vector."""
        self._count("embedded")

    def cancelled(self) -> None:
        """Count a request whose client went away."""
        self._count("cancelled")

    def failed(self) -> None:
        """Count a request that ended in an error."""
        self._count("failed")

    def refused(self) -> None:
        """Count a request that the queue did not take."""
        self._count("refused")

    def _count(self, how: str) -> None:
        with self._lock:
            self._counts[how] += 1

    def families(self, load: Load) -> list[Family]:
        """Give everything, as it is now."""
        answers = Family("remoe_edge_requests_total", "counter", "Answers by how they ended.")
        ttft = Family(
            "remoe_edge_request_time_to_first_token_seconds", "histogram",
            "Time from a request, waiting included, to the first token.",
        )  # fmt: skip
        tpot = Family(
            "remoe_edge_request_time_per_output_token_seconds", "histogram",
            "Mean time per token after the first, one observation an answer.",
        )  # fmt: skip
        queued = Family("remoe_edge_requests_queued", "gauge", "Requests that wait.")
        running = Family("remoe_edge_requests_running", "gauge", "Requests that are answered.")
        with self._lock:
            for how, count in self._counts.items():
                answers.add(count, outcome=how)
            self._ttft_s.add_to(ttft)
            self._tpot_s.add_to(tpot)
        return [queued.add(load.queued), running.add(load.running), answers, ttft, tpot]
