"""An engine's functions: leased when a prompt wants them, used once they are there, given back later.

A prompt waits for none of it. Leases come in the background; until then, and for what stays asleep,
experts come from storage. A lease that ends, with its worker or its replica, is asked for anew. Some time
after the last answer all are given back, and functions without leases end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.deploy.use import Uses
from remoe_edge.deploy.waking import LEAST_ROWS, expected_rows, woken
from remoe_edge.native import _core

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel
    from remoe_edge.deploy.record import Deployment

KEEP_S = 30.0
_AGAIN_S = (1.0, 2.0, 5.0, 10.0)  # before a lost lease is asked for anew; the last from then on


class Holder(Protocol):
    """Who holds leases: `ray_process.RayHolder`, or a test."""

    def start(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Begin to tell `hear` of leases, in another thread."""
        ...

    def hold(self, function: str, at: int) -> None:
        """Ask for a lease."""
        ...

    def release(self, function: str, at: int) -> None:
        """Give a lease up."""
        ...

    def close(self) -> None:
        """End all of them."""
        ...


@dataclass
class _Lease:
    address: str | None = None  # None while it is being started
    lost: int = 0  # times in a row
    again_s: float | None = None  # when to ask anew


class Leases:
    """Hold the leases of one engine. See `engine.extensions.Functions`; any thread."""

    def __init__(
        self, deployment: Deployment, holder: Holder, *, keep_s: float = KEEP_S,
        least_rows: float = LEAST_ROWS,
    ) -> None:  # fmt: skip
        self.deployment = deployment
        self._holder, self._keep_s, self._least_rows = holder, keep_s, least_rows
        self._uses = Uses([each.name for each in deployment.functions])
        self._copies = {each.name: each.replicas for each in deployment.functions}
        self._native: StreamedModel | None = None
        self._beside: list[str] = []
        self._note: Callable[[str], None] = lambda text: None
        self._changed = threading.Condition()  # of all below
        self._leases: dict[tuple[str, int], _Lease] = {}
        self.told: dict[str, dict[str, Any]] = {}  # by function, what its last lease came with
        self._rows: dict[str, float] = {}
        self._answering = 0
        self._idle_since = time.monotonic()
        self._ended = False
        self._connecting = threading.Lock()  # of what peers the engine has
        self._watch = threading.Thread(target=self._tend, name="leases-tend", daemon=True)

    # --- what the engine calls ---

    def open(
        self, native: StreamedModel, beside: Sequence[str], note: Callable[[str], None]
    ) -> None:
        """Begin, and have read what the plan keeps here. Nothing is leased before a prompt wants it."""
        self._native, self._beside, self._note = native, list(beside), note
        native.warm(self._local())
        self._holder.start(self.hear)
        self._watch.start()

    @contextlib.contextmanager
    def beside(self, shares: npt.NDArray[np.floating] | None) -> Iterator[None]:
        """Wake what a prompt will ask, and hold it while the answer runs. Waits for nothing.

        shares: predicted for the prompt, [layers, experts]; None where nothing is known of it.
        """
        self.wake(shares)
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._idle_since = time.monotonic()

    def stats(self) -> list[dict[str, Any]]:
        """Tell of each function: its leases, what the last prompt was expected to ask, and its use."""
        self._settle()
        uses = self._uses.read()
        with self._changed:
            return [
                {
                    "name": each.name,
                    "experts": len(each.experts),
                    "memory_bytes": each.memory_bytes,
                    "replicas": each.replicas,
                    "leased": self._ready(each.name),
                    "starting": self._wanted(each.name) - self._ready(each.name),
                    "expected_rows": round(self._rows.get(each.name, each.rows), 4),
                    **uses[each.name].as_dict(),
                }
                for each in self.deployment.functions
            ]

    def close(self) -> None:
        """Give everything back."""
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._changed.notify_all()
        self._settle()
        self._native = None
        self._holder.close()
        if self._watch.is_alive():
            self._watch.join(10)

    # --- what happens ---

    def wake(self, shares: npt.NDArray[np.floating] | None) -> None:
        """Ask for the leases that a prompt wants; an answer begins."""
        request = self.deployment.placement.request
        rows = expected_rows(self.deployment.functions, shares, request.shape.top_k)
        with self._changed:
            self._answering += 1
            self._rows = rows
            for name in woken(rows, request.workload.n_answer, self._least_rows):
                for at in range(self._copies[name]):
                    if (name, at) not in self._leases:
                        self._leases[name, at] = _Lease()
                        self._holder.hold(name, at)

    def hear(self, line: dict[str, Any]) -> None:
        """Take a line of the holder."""
        if "error" in line:
            self._lost_all(str(line["error"]))
        elif "lease" in line:
            which = (str(line["lease"][0]), int(line["lease"][1]))
            if "address" in line:
                self._leased(which, line)
            elif "lost" in line:
                self._lost(which, str(line["lost"]))

    def _leased(self, which: tuple[str, int], line: dict[str, Any]) -> None:
        with self._changed:
            lease = self._leases.get(which)
            if lease is None:  # given up meanwhile
                return
            lease.address, lease.lost = str(line["address"]), 0
            self.told[which[0]] = line
            self._uses.began(*which, float(line.get("start_ms", 0.0)))
        self._connect()

    def _lost(self, which: tuple[str, int], why: str) -> None:
        with self._changed:
            lease = self._leases.get(which)
            if lease is None:
                return
            if lease.lost == 0:
                self._note(f"function {which[0]} is gone ({why}): its experts come from storage")
            pause = _AGAIN_S[min(lease.lost, len(_AGAIN_S) - 1)]
            lease.lost += 1
            lease.again_s = time.monotonic() + pause
        self._settle()
        with self._changed:
            self._uses.ended(*which)
            lease.address = None
            self._changed.notify_all()
        self._connect()

    def _lost_all(self, why: str) -> None:
        with self._changed:
            if self._ended:
                return
            held = list(self._leases)
            self._note(f"functions are not used: {why}")
        self._settle()
        with self._changed:
            for which in held:
                self._uses.ended(*which)
            self._leases.clear()
        self._connect()

    def _tend(self) -> None:
        """Ask anew for what was lost, and give back what nobody has used for a while."""
        while True:
            with self._changed:
                if self._ended:
                    return
                now = time.monotonic()
                idle = not self._answering and now - self._idle_since >= self._keep_s
                back = list(self._leases) if idle else []
                for which, lease in self._leases.items():
                    if not idle and lease.again_s is not None and now >= lease.again_s:
                        lease.again_s = None
                        self._holder.hold(*which)
                if not back:
                    self._changed.wait(min(0.25, max(0.01, self._keep_s / 4)))
                    continue
            self._settle()
            with self._changed:
                for which in back:
                    self._uses.ended(*which)
                    self._leases.pop(which, None)
            self._connect()  # first nobody asks any more, then it may end
            for which in back:
                self._holder.release(*which)

    def _connect(self) -> None:
        """Have the engine ask the functions that are leased now, and no others."""
        with self._connecting:
            native = self._native
            with self._changed:
                leased = sorted({e.address for e in self._leases.values() if e.address})
            if native is not None:
                _core.set_peers(native, [*self._beside, *leased])

    def _settle(self) -> None:
        """Read the peers' counts, before peers go and when somebody asks."""
        native = self._native
        if native is None:
            return
        with self._changed:
            of = {e.address: name for (name, _), e in self._leases.items() if e.address}
        self._uses.counted(of, _core.peers(native))

    def _local(self) -> npt.NDArray[np.int64]:
        placement = self.deployment.placement
        n_experts = placement.request.shape.n_experts
        ids = [layer * n_experts + e for layer, mine in enumerate(placement.local) for e in mine]
        return np.asarray(ids, np.int64)

    def _ready(self, name: str) -> int:
        return sum(e.address is not None for (n, _), e in self._leases.items() if n == name)

    def _wanted(self, name: str) -> int:
        return sum(n == name for n, _ in self._leases)

    def ready(self, names: Sequence[str] | None = None) -> bool:
        """Say whether all leases that are wanted, or of these functions, are there."""
        with self._changed:
            if names is None:
                return all(each.address is not None for each in self._leases.values())
            return all(self._ready(name) >= self._copies[name] for name in names)
