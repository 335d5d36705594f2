"""What steps have cost lately, by how many conversations they were of and how far into a slice."""

from __future__ import annotations

from dataclasses import dataclass

_FADE = 0.3
LEAST_WAITING = 0.05  # of a step's time: less, and storage is no limit
_N_PARTS = 10  # of a slice: its steps 0, 1, 2-3, 4-7, ... 256 and on


@dataclass
class _Cost:
    """Hold an average, None while nothing was measured."""

    seconds: float | None = None

    def add(self, seconds: float) -> None:
        before = self.seconds
        self.seconds = seconds if before is None else before + _FADE * (seconds - before)


class _Size:
    """Hold what steps of one group's size have cost."""

    def __init__(self) -> None:
        self.parts = [_Cost() for _ in range(_N_PARTS)]
        self.n_steps = 0
        self.took, self.waited = _Cost(), _Cost()

    def at(self, part: int) -> float | None:
        """Give the cost of a slice's part, or of the nearest that was measured."""
        for distance in range(_N_PARTS):
            for near in (part - distance, part + distance):
                if 0 <= near < _N_PARTS and (found := self.parts[near].seconds) is not None:
                    return found
        return None


class StepCosts:
    """Keep averages of the time that a step takes. Times in seconds."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    def add(self, size: int, n_done: int, took_s: float, waited_s: float) -> None:
        """Note a step of `size` conversations, n_done steps into its slice; waited_s: for storage."""
        found = self._sizes.setdefault(size, _Size())
        found.n_steps += 1
        found.parts[min(n_done.bit_length(), _N_PARTS - 1)].add(took_s)
        found.took.add(took_s)
        found.waited.add(waited_s)

    def n_steps(self, size: int) -> int:
        """Count the steps of that size."""
        return self._sizes[size].n_steps if size in self._sizes else 0

    def waits(self, size: int) -> bool:
        """Say whether steps of that size wait for storage."""
        found = self._sizes.get(size)
        if found is None or found.took.seconds is None:
            return False
        return (found.waited.seconds or 0) > LEAST_WAITING * found.took.seconds

    def step_s(self, size: int, n_done: int) -> float:
        """Estimate a step n_done steps into a slice; 0 where nothing like it was measured."""
        found = self._sizes.get(size)
        if found is None:
            if not self._sizes:
                return 0
            nearest = min(self._sizes, key=lambda each: (abs(each - size), each))
            found = self._sizes[nearest]
        return found.at(min(n_done.bit_length(), _N_PARTS - 1)) or 0

    def slice_s(self, size: int, n_steps: int) -> float:
        """Estimate a slice of so many steps."""
        total, begin = 0.0, 0
        for part in range(_N_PARTS):
            end = n_steps if part == _N_PARTS - 1 else min(n_steps, 1 << part)
            if end > begin:
                total += (end - begin) * self.step_s(size, begin)
                begin = end
        return total

    def rate(self, size: int, n_steps: int) -> float:
        """Estimate tokens a second, all conversations together, in slices of so many steps."""
        took_s = self.slice_s(size, n_steps)
        return size * n_steps / took_s if took_s > 0 else 0.0

    def table(self) -> dict[int, dict[str, float]]:
        """Tell the averages in ms, by size: a step's time and the waiting in it, a slice's first step and
        a late one."""
        return {
            size: {
                "steps": found.n_steps,
                "step_ms": 1000 * (found.took.seconds or 0),
                "waited_ms": 1000 * (found.waited.seconds or 0),
                "first_ms": 1000 * (found.at(0) or 0),
                "late_ms": 1000 * (found.at(5) or 0),
            }
            for size, found in sorted(self._sizes.items())
        }
