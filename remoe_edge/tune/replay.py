"""Count the misses of one expert cache over all layers, token by token.

The command `simulate` runs the engine's own policies on recorded traces; what is needed here is the
misses of each single token, for confidence intervals, under the two policies that bracket the
others.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError

POLICIES = ("lru", "belady")
Counts = npt.NDArray[np.int64]
_NEVER = 1 << 60


def misses(trace: npt.NDArray[np.integer], n_slots: int, policy: str) -> Counts:
    """Return the misses of each token, [tokens], of a cache that starts empty.

    `trace` [layers, tokens, k] holds the chosen experts. All k of one layer and token are one
    event: resident together, and none of them a victim while it lasts.
    """
    layers, tokens, k = trace.shape
    if n_slots < k:
        raise InputError(f"a cache of {n_slots} slots cannot hold the {k} experts of one layer")
    if policy not in POLICIES:
        raise InputError(f"unknown policy {policy!r}; here there are {', '.join(POLICIES)}")
    span = int(trace.max(initial=0)) + 1
    keys = trace.astype(np.int64) + np.arange(layers)[:, None, None] * span
    events = keys.transpose(1, 0, 2).reshape(tokens * layers, k)
    counted = _lru(events, n_slots) if policy == "lru" else _belady(events, n_slots)
    per_token: Counts = np.asarray(counted, dtype=np.int64).reshape(tokens, layers).sum(1)
    return per_token


def _lru(events: Counts, n_slots: int) -> list[int]:
    # A dict keeps insertion order: the first key is the least recently used.
    cache: dict[int, None] = {}
    counted = []
    for event in events.tolist():
        missed = 0
        for key in event:
            if key in cache:
                del cache[key]
            else:
                missed += 1
            cache[key] = None
        while len(cache) > n_slots:
            del cache[next(iter(cache))]
        counted.append(missed)
    return counted


def _belady(events: Counts, n_slots: int) -> list[int]:
    upcoming = next_uses(events).tolist()
    resident: dict[int, int] = {}  # expert -> event of its next use
    furthest: list[tuple[int, int]] = []  # (-next use, expert); stale entries are skipped
    counted = []
    for event, following in zip(events.tolist(), upcoming, strict=True):
        missed = sum(key not in resident for key in event)
        for key in event:
            resident.pop(key, None)
        while len(resident) + len(event) > n_slots:
            use, victim = heapq.heappop(furthest)
            if resident.get(victim) == -use:
                del resident[victim]
        for key, use in zip(event, following, strict=True):
            resident[key] = use
            heapq.heappush(furthest, (-use, key))
        counted.append(missed)
    return counted


def next_uses(events: Counts) -> Counts:
    """Return for every entry of [events, k] the number of the next event with the same expert."""
    n_events, k = events.shape
    flat = events.reshape(-1)
    order = np.argsort(flat, kind="stable")
    event = np.repeat(np.arange(n_events), k)[order]
    following = np.full(flat.shape, _NEVER, dtype=np.int64)
    same: npt.NDArray[np.bool_] = flat[order[:-1]] == flat[order[1:]]
    following[order[:-1][same]] = event[1:][same]
    shaped: Counts = following.reshape(n_events, k)
    return shaped
