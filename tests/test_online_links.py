"""What reuse-biased learns while it runs lowers misses, where there is something to learn."""

from __future__ import annotations

import numpy as np

from remoe_edge import _core
from remoe_edge.profile.pack import pack
from remoe_edge.routing.trace import Trace, from_routed

# A score that is 0 whatever happens: what is left is what links learned on line say.
NOTHING = pack([1], np.zeros(len(_core.feature_names()), np.float32))
N_LAYERS, N_EXPERTS, N_SLOTS = 3, 32, 15  # of every layer, the experts of two and a half steps


def hot_and_cold(n_steps: int) -> Trace:
    """Make routing in which four pairs come back three steps later, and twelve others by chance."""
    rng = np.random.default_rng(0)
    pairs = 4 + rng.integers(0, 12, n_steps)
    hot = rng.integers(0, 4, n_steps // 6)
    pairs[0 : 6 * len(hot) : 6] = pairs[3 : 6 * len(hot) : 6] = hot
    routed = np.stack([2 * pairs, 2 * pairs + 1], axis=1).astype(np.int16)
    return from_routed(np.stack([routed] * N_LAYERS), N_EXPERTS)


def misses(trace: Trace, policy: str, profile: bytes | None = None) -> int:
    counts = _core.simulate(
        trace.columns(), N_LAYERS, N_EXPERTS, N_SLOTS, policy, trace.n_events // 2, profile
    )
    return int(counts["misses"])


def test_what_follows_is_kept_without_any_other_score() -> None:
    trace = hot_and_cold(1500)
    lru, best = misses(trace, "lru"), misses(trace, "belady")
    learned = misses(trace, "reuse-biased", NOTHING)
    assert best < learned < lru
    assert lru - learned > 0.3 * (lru - best)


def test_a_fit_sees_scores_without_links_learned_on_line() -> None:
    trace = hot_and_cold(300)
    assert not _core.policy_scores(trace.columns(), N_LAYERS, N_EXPERTS, NOTHING).any()
