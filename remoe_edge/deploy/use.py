"""What was used of each function: how long it was held, how often it was asked, what it computed.

Times held come from the leases, counts from the engine's peers, each of which is one function's worker
while its lease lasts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass
class Use:
    """Hold the use of one function, over all its replicas that were held.

    held_ms: from when a lease was ready until it ended. start_ms: of the replicas that were started for a
    lease. calls: experts of a step that it was asked for. sent_bytes: to it; egress_bytes: from it.
    """

    held_ms: float = 0.0
    start_ms: float = 0.0
    starts: int = 0
    leases: int = 0
    calls: int = 0
    rows: int = 0
    compute_ms: float = 0.0
    sent_bytes: int = 0
    egress_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


class Uses:
    """Add up use by function. Any thread."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._uses = {name: Use() for name in names}
        self._held: dict[tuple[str, int], float] = {}
        self._last: dict[str, dict[str, int]] = {}  # a peer's counts, by address

    def began(self, name: str, at: int, start_ms: float) -> None:
        """A lease is ready. start_ms: of a replica that was started for it, else 0."""
        with self._lock:
            self._held[name, at] = self._clock()
            use = self._uses[name]
            use.leases += 1
            use.starts += start_ms > 0
            use.start_ms += start_ms

    def ended(self, name: str, at: int) -> None:
        """A lease has ended."""
        with self._lock:
            since = self._held.pop((name, at), None)
            if since is not None:
                self._uses[name].held_ms += 1000 * (self._clock() - since)

    def counted(self, of: Mapping[str, str], peers: Sequence[Mapping[str, Any]]) -> None:
        """Take the peers' counts. `of`: which function is at which address."""
        with self._lock:
            seen = {}
            for peer in peers:
                address = peer["address"]
                now = {name: n for name, n in peer.items() if isinstance(n, int)}
                before = self._last.get(address, {})
                if any(now.get(name, 0) < n for name, n in before.items() if name != "experts"):
                    before = {}  # another peer at the same address
                seen[address] = now
                if address in of:
                    self._add(self._uses[of[address]], now, before)
            self._last = seen

    @staticmethod
    def _add(use: Use, now: Mapping[str, int], before: Mapping[str, int]) -> None:
        def added(name: str) -> int:
            return now.get(name, 0) - before.get(name, 0)

        use.calls += added("remote_asked")
        use.rows += added("remote_rows")
        use.compute_ms += added("remote_compute_us") / 1000
        use.sent_bytes += added("remote_sent_bytes")
        use.egress_bytes += added("remote_received_bytes")

    def read(self) -> dict[str, Use]:
        """Give what was used so far, leases that last included."""
        with self._lock:
            now = self._clock()
            found = {name: replace(use) for name, use in self._uses.items()}
            for (name, _), since in self._held.items():
                found[name].held_ms += 1000 * (now - since)
            return found
