"""How many slots a cache that shares its memory should have: decisions alone, no clock, no sensor.

`--cache auto` takes what others leave. When free memory falls below a reserve, the cache shrinks at
once: far enough to have the reserve free again, and further where memory is falling fast, by what
will be gone before the next look takes effect. It grows only after a calm time and in small steps.
A neighbour that once took much in a moment is remembered for some minutes: that much more stays free.
"""

from __future__ import annotations

from dataclasses import dataclass

from remoe_edge.units import MIB

# Kept free of a cgroup's limit while somebody looks this often; of the machine more, as others live
# off it too, and what is free there is an estimate.
CGROUP_RESERVE_BYTES = 64 * MIB
MACHINE_RESERVE_BYTES = 256 * MIB

_REACTION_S = 0.1  # from a look to memory that is free again: the layer under way is computed first
_CALM_S = 1.0  # without a fall, before the cache grows
_STEP_S = 0.25  # between two steps of growth
_STALLED, _UNSTALLED = 0.10, 0.02  # of the time: shrink where memory is short too; grow below
_MOST_SOON_BYTES = 256 * MIB  # reckoned with before a fall is over, and remembered of one
_FORGET_S = 120.0  # half of a remembered fall
_NOISE_BYTES = 4 * MIB  # a change that means nothing


@dataclass(frozen=True)
class Sight:
    """Hold what is seen at a moment. Bytes, seconds.

    free_bytes: what can be taken, less what the cache has promised itself and not touched yet.
    stalled: share of the last moments in which everybody waited for memory.
    """

    now_s: float
    free_bytes: int
    reserve_bytes: int
    stalled: float
    n_slots: int


class ElasticBudget:
    """Decide slots between `least` and `most`, of `slot_bytes` each, from one sight after another."""

    def __init__(self, slot_bytes: int, least: int, most: int) -> None:
        self._slot_bytes, self._least, self._most = slot_bytes, least, most
        self._before: Sight | None = None
        self._calm_s: float | None = None  # since when nothing fell
        self._grew_s = float("-inf")
        self._fall_bytes = 0.0  # the largest in a reaction's time, fading

    @property
    def remembered_bytes(self) -> int:
        """Give what is kept free beyond the reserve, since a neighbour has taken as much at once."""
        return int(self._fall_bytes)

    def calm(self, now_s: float) -> bool:
        """Say whether nothing has fallen for a while."""
        return self._calm_s is not None and now_s - self._calm_s >= _CALM_S

    def decide(self, sight: Sight) -> int:
        """Say how many slots there should be now."""
        falling = self._falling(sight)
        self._before = sight
        if self._calm_s is None or falling > 0 or sight.stalled >= _STALLED:
            self._calm_s = sight.now_s
        reserve = sight.reserve_bytes + self._fall_bytes
        left = sight.free_bytes - falling
        slots = sight.n_slots
        if left < 0.75 * sight.reserve_bytes:
            slots -= self._slots_up(reserve - left)
        elif sight.stalled >= _STALLED and sight.free_bytes < 2 * reserve:
            slots -= self._slots_up(max(self._slot_bytes, reserve / 4))
        else:
            slots += self._growth(sight, reserve)
        return max(self._least, min(self._most, slots))

    def _falling(self, sight: Sight) -> float:
        """Reckon what will be gone within a reaction's time, at the speed since the last look."""
        before = self._before
        if before is None or sight.now_s <= before.now_s:
            return 0.0
        span_s = sight.now_s - before.now_s
        self._fall_bytes *= 0.5 ** (span_s / _FORGET_S)
        if self._fall_bytes < _NOISE_BYTES:
            self._fall_bytes = 0.0
        fall = before.free_bytes - sight.free_bytes
        # What the cache itself took or gave since then is nobody's doing.
        fall += (before.n_slots - sight.n_slots) * self._slot_bytes
        if fall < _NOISE_BYTES:
            return 0.0
        soon = min(float(_MOST_SOON_BYTES), fall * max(1.0, _REACTION_S / span_s))
        self._fall_bytes = max(self._fall_bytes, min(fall, soon))
        return soon

    def has_room(self, sight: Sight) -> bool:
        """Say whether memory has room for more slots, be it after a calm time."""
        unused = sight.free_bytes - sight.reserve_bytes - self._fall_bytes
        enough = unused >= max(self._slot_bytes, _NOISE_BYTES)
        return enough and sight.stalled < _UNSTALLED and sight.n_slots < self._most

    def _growth(self, sight: Sight, reserve: float) -> int:
        unused = sight.free_bytes - reserve
        if not self.has_room(sight):
            return 0
        if not self.calm(sight.now_s) or sight.now_s - self._grew_s < _STEP_S:
            return 0
        self._grew_s = sight.now_s
        return max(1, int(min(unused / 2, self._most * self._slot_bytes / 8) // self._slot_bytes))

    def _slots_up(self, n_bytes: float) -> int:
        return int(-(-n_bytes // self._slot_bytes))
