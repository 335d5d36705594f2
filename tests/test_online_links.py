"""What reuse-biased learns while it runs lowers misses, where there is something to learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from remoe_edge import _core
from remoe_edge.errors import InputError
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


def chosen(rng: np.random.Generator, weights: np.ndarray, n_steps: int, top_k: int) -> np.ndarray:
    """Draw so many different experts for each step, each as likely as its weight says."""
    keys = np.log(weights) + rng.gumbel(size=(n_steps, len(weights)))
    return np.argsort(-keys, axis=1)[:, :top_k]


def even(rng: np.random.Generator, n_experts: int, n_steps: int, top_k: int) -> np.ndarray:
    return chosen(rng, np.ones(n_experts), n_steps, top_k)


def zipf(rng: np.random.Generator, n_experts: int, n_steps: int, top_k: int) -> np.ndarray:
    return chosen(rng, rng.permutation(1 / np.arange(1, n_experts + 1)), n_steps, top_k)


def phases(rng: np.random.Generator, n_experts: int, n_steps: int, top_k: int) -> np.ndarray:
    return np.concatenate([zipf(rng, n_experts, n_steps // 6, top_k) for _ in range(6)])


def cycle(rng: np.random.Generator, n_experts: int, n_steps: int, top_k: int) -> np.ndarray:
    return np.arange(n_steps * top_k).reshape(n_steps, top_k) % n_experts


def jumps(rng: np.random.Generator, n_experts: int, n_steps: int, top_k: int) -> np.ndarray:
    parts = []
    for _ in range(n_steps // 100):
        weights = np.full(n_experts, 0.05)
        weights[rng.choice(n_experts, min(2 * top_k, n_experts), replace=False)] = 1
        parts.append(chosen(rng, weights, 100, top_k))
    return np.concatenate(parts)


def flips(rng: np.random.Generator, n_experts: int, n_steps: int, top_k: int) -> np.ndarray:
    """What follows what is learned, and then another thing follows."""
    follows = [rng.permutation(n_experts) for _ in range(2)]
    now, rows = rng.permutation(n_experts)[:top_k], []
    for step in range(n_steps):
        fresh = rng.random() > 0.8
        now = rng.permutation(n_experts)[:top_k] if fresh else follows[step // 200 % 2][now]
        rows.append(now)
    return np.array(rows)


def drifting(rng: np.random.Generator, n_experts: int, n_steps: int, top_k: int) -> np.ndarray:
    scores, rows = rng.standard_normal(n_experts), []
    for _ in range(n_steps):
        scores = 0.93 * scores + 0.37 * rng.standard_normal(n_experts)
        rows.append(np.argsort(-scores)[:top_k])
    return np.array(rows)


@pytest.mark.parametrize("make", [even, zipf, phases, cycle, jumps, flips, drifting])
@pytest.mark.parametrize(
    ("n_experts", "top_k", "n_layers", "n_slots"),
    [(2, 1, 6, 7), (16, 4, 4, 19), (64, 6, 3, 48), (512, 10, 1, 128), (8, 2, 3, 2)],
)
def test_links_never_cost_more_than_a_point(
    make: Callable[..., np.ndarray], n_experts: int, top_k: int, n_layers: int, n_slots: int
) -> None:
    """Whatever the routing and the scores' scale; a point is of the gap between LRU and the optimum."""
    rng = np.random.default_rng(n_experts)
    routed = np.stack([make(rng, n_experts, 900, top_k) for _ in range(n_layers)])
    trace = from_routed(routed.astype(np.int16), n_experts)
    columns = trace.columns()
    default = np.array([weights[1] for _, weights, _ in _core.reuse_columns()], np.float32)

    def missed(policy: str, profile: bytes | None = None) -> int:
        return int(
            _core.replay_misses(columns, n_layers, n_experts, n_slots, policy, profile).sum()
        )

    gap = missed("lru") - missed("belady")
    for weights in (default, np.full_like(default, 0.01)):
        profile = pack([1], weights)
        plain = _core.policy_scores(columns, n_layers, n_experts, profile)
        without = _core.replay_scored(columns, n_layers, n_experts, n_slots, plain).sum()
        assert missed("reuse-biased", profile) - without <= max(0.01 * gap, 10)


def test_scores_that_do_not_fit_the_events_are_refused() -> None:
    trace = hot_and_cold(10)
    for shape in ((29, N_EXPERTS), (30, N_EXPERTS - 1), (30 * N_EXPERTS,)):
        with pytest.raises(InputError, match="a row of all experts for each event"):
            _core.replay_scored(
                trace.columns(), N_LAYERS, N_EXPERTS, N_SLOTS, np.zeros(shape, np.float32)
            )
