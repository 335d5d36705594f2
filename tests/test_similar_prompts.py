"""The study of similar prompts: its tree against searching everything, its replays by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from remoe_edge.predict.embeddings import Floats
from remoe_edge.predict.similarity import soft_cosine
from remoe_edge.predict.store import activation
from similar_prompts.divergence import jensen_shannon
from similar_prompts.replayed_starts import replay_start, to_load
from similar_prompts.tree import PromptTree, k_medoids

# --- the tree ---


def crowds(seed: int, n_crowds: int = 6, each: int = 30, width: int = 24) -> np.ndarray:
    """Make summaries in well separated crowds."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_crowds, width))
    rows = np.repeat(centres, each, axis=0) + 0.15 * rng.normal(size=(n_crowds * each, width))
    return rows[rng.permutation(len(rows))].astype(np.float32)


def exhaustive(summaries: np.ndarray, query: np.ndarray, alpha: int) -> list[int]:
    likeness = soft_cosine(query[None], summaries)[0]
    return np.argsort(-likeness, kind="stable")[:alpha].tolist()


def test_a_small_tree_finds_what_searching_everything_finds() -> None:
    summaries = crowds(1)
    tree = PromptTree(summaries, beta=len(summaries))
    assert not tree.root.children
    for query in crowds(2)[:20]:
        found, likeness = tree.nearest(query, 15)
        assert found.tolist() == exhaustive(summaries, query, 15)
        np.testing.assert_array_equal(likeness, np.sort(likeness)[::-1])


def test_in_separate_crowds_the_tree_finds_them_too() -> None:
    summaries = crowds(3)
    tree = PromptTree(summaries, beta=40)
    assert len(tree.leaves()) > 1
    rng = np.random.default_rng(0)
    for row in rng.choice(len(summaries), 40, replace=False):
        query = summaries[row] + 0.02 * rng.normal(size=summaries.shape[1]).astype(np.float32)
        assert tree.nearest(query, 5)[0].tolist() == exhaustive(summaries, query, 5)


@pytest.mark.parametrize("beta", [1, 7, 40, 150])
def test_leaves_hold_every_prompt_once_and_at_most_beta(beta: int) -> None:
    summaries = crowds(4)
    leaves = PromptTree(summaries, beta=beta).leaves()
    members = np.concatenate([leaf.members for leaf in leaves])
    assert sorted(members.tolist()) == list(range(len(summaries)))
    assert max(len(leaf.members) for leaf in leaves) <= beta


def test_small_leaves_are_topped_up_by_their_siblings() -> None:
    summaries = crowds(5, n_crowds=4, each=6)
    tree = PromptTree(summaries, beta=6)
    query = summaries[0]
    found, _ = tree.nearest(query, 15)
    assert len(set(found.tolist())) == 15
    assert tree.nearest(query, 1000)[0].shape == (24,)
    # The own crowd comes first, whatever else was added.
    assert set(found[:6].tolist()) == set(exhaustive(summaries, query, 6))


def test_prompts_that_nothing_tells_apart_stay_one_leaf() -> None:
    summaries = np.ones((50, 8), np.float32)
    tree = PromptTree(summaries, beta=10)
    assert [len(leaf.members) for leaf in tree.leaves()] == [50]
    assert len(tree.nearest(summaries[0], 15)[0]) == 15


def test_medoids_of_crowds_are_the_best_of_all_choices() -> None:
    summaries = crowds(6, n_crowds=3, each=5)
    likeness = soft_cosine(summaries, summaries)
    best = max(
        itertools.combinations(range(len(summaries)), 3),
        key=lambda chosen: float(likeness[list(chosen)].max(0).sum()),
    )
    medoids, nearest = k_medoids(summaries, 3, np.random.default_rng(0))
    assert sorted(medoids.tolist()) == sorted(best)
    np.testing.assert_array_equal(nearest, likeness[medoids].argmax(0))


# --- divergence ---


def test_divergence() -> None:
    p = np.array([[1, 0, 0], [0.5, 0.5, 0]])
    assert jensen_shannon(p, p) == 0
    assert jensen_shannon(p, np.array([[0, 1, 0], [0, 0, 1]])) == pytest.approx(1)
    # By hand: half of KL((1, 0) | (3/4, 1/4)) and of KL((1/2, 1/2) | (3/4, 1/4)).
    by_hand = (math.log2(4 / 3) + (math.log2(2 / 3) + math.log2(2)) / 2) / 2
    assert jensen_shannon(np.array([[1, 0]]), np.array([[0.5, 0.5]])) == pytest.approx(by_hand)


# --- what a cache makes of it ---


def test_layers_are_completed_in_order() -> None:
    scores = np.array([[0.7, 0.2, 0.1, 0.0], [0.4, 0.3, 0.2, 0.1]], np.float32)
    # One token, one expert: only (0, 0) is likelier than not; the rest by likelihood.
    assert to_load(scores, 4, 1, 1) == [(0, 0), (1, 0), (1, 1), (0, 1)]
    # A long prompt uses all that can be used: the first layer whole, then the second.
    assert to_load(scores, 5, 50, 1) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert len(to_load(scores, 100, 1, 1)) == 8


def test_a_replay_by_hand() -> None:
    prompt = np.array([[[0], [1]], [[2], [3]]])  # 2 layers, 2 tokens, top-1
    answer = np.array([[[0], [0]], [[2], [0]]])
    cold = replay_start(prompt, answer, 4, 8)
    assert (cold.prompt, cold.decode, cold.loaded) == (4, (0, 1), 0)
    truth = activation(np.concatenate([prompt, answer], 1), 4)
    warm = replay_start(prompt, answer, 4, 8, load=truth)
    assert (warm.prompt, warm.decode, warm.loaded) == (0, (0, 0), 8)


def test_keeping_by_likelihood_saves_what_recency_loses() -> None:
    prompt = np.array([[[0], [1]], [[0], [1]]])
    answer = np.array([[[0]], [[1]]])
    # Three slots: recency gives up layer 0's expert 0, the first read, which is needed next.
    assert replay_start(prompt, answer, 2, 3).decode == (1,)
    scores = np.array([[0.9, 0.1], [0.4, 0.6]], np.float32)
    assert replay_start(prompt, answer, 2, 3, keep=scores).decode == (0,)


def test_more_experts_than_slots_come_in_waves() -> None:
    prompt = np.array([[[0], [1], [2], [3]]])
    assert replay_start(prompt, np.array([[[3]]]), 4, 2).prompt == 4


# Counted before the core cut the waves and before links were learned on line, of which there are none
# in random routing: slots, policy, what is given; then misses of the prompt, the
# digest of those of the tokens after it, and what was loaded.
FROZEN = [
    (4, "lru", [], 30, (81, 405), 0),
    (4, "lru", ["load"], 26, (81, 405), 4),
    (4, "lru", ["keep"], 30, (81, 405), 0),
    (4, "lru", ["keep", "load"], 26, (81, 405), 4),
    (4, "reuse-biased", [], 30, (80, 399), 0),
    (4, "reuse-biased", ["expect"], 30, (79, 398), 0),
    (4, "reuse-biased", ["load"], 26, (79, 394), 4),
    (8, "lru", [], 30, (66, 320), 0),
    (8, "lru", ["load"], 22, (66, 320), 8),
    (8, "lru", ["keep"], 30, (66, 320), 0),
    (8, "lru", ["keep", "load"], 22, (66, 320), 8),
    (8, "reuse-biased", [], 30, (68, 330), 0),
    (8, "reuse-biased", ["expect"], 30, (66, 332), 0),
    (8, "reuse-biased", ["load"], 22, (69, 336), 8),
    (14, "lru", [], 30, (55, 262), 0),
    (14, "lru", ["load"], 18, (55, 262), 14),
    (14, "lru", ["keep"], 30, (50, 256), 0),
    (14, "lru", ["keep", "load"], 18, (50, 256), 14),
    (14, "reuse-biased", [], 30, (48, 229), 0),
    (14, "reuse-biased", ["expect"], 30, (48, 240), 0),
    (14, "reuse-biased", ["load"], 18, (51, 239), 14),
]


@pytest.mark.parametrize(("n_slots", "policy", "given", "prompt", "after", "loaded"), FROZEN)
def test_frozen_starts(
    n_slots: int, policy: str, given: list[str], prompt: int, after: tuple[int, int], loaded: int
) -> None:
    rng = np.random.default_rng(5)
    asked = np.argsort(rng.random((3, 12, 10)), axis=2)[..., :3]
    answer = np.argsort(rng.random((3, 9, 10)), axis=2)[..., :3]
    scores = rng.dirichlet(np.ones(10), 3).astype(np.float32)
    values: dict[str, Floats] = {"load": scores, "keep": scores, "expect": scores * 3}
    got = replay_start(
        asked, answer, 10, n_slots, policy=policy, **{name: values[name] for name in given}
    )
    counts = np.asarray(got.decode)
    assert (got.prompt, got.loaded) == (prompt, loaded)
    assert (counts.sum(), (counts * np.arange(1, 10)).sum()) == after
