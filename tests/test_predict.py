"""Similar prompts: against the formulas written out, and against searching everything."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_moe
from remoe_edge.errors import InputError
from remoe_edge.predict import PromptStore, SimilarPrompts
from remoe_edge.predict.divergence import jensen_shannon
from remoe_edge.predict.embeddings import TokenEmbeddings
from remoe_edge.predict.similarity import soft_cosine, summary
from remoe_edge.predict.store import activation
from remoe_edge.predict.tree import PromptTree, k_medoids
from remoe_edge.predict.warm_start import replay_start, to_load
from remoe_edge.routing.trace import Trace, from_routed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("predict") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.fixture
def embeddings(model: Path) -> TokenEmbeddings:
    return TokenEmbeddings(model)


# --- embeddings and similarity ---


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_K"])
def test_embeddings_are_those_of_the_file(tmp_path: Path, quant: str) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", quant)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    whole = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    tokens = [0, 7, 319, 7]
    got = TokenEmbeddings(path).unit(tokens)
    rows = whole[tokens]
    np.testing.assert_allclose(got, rows / np.linalg.norm(rows, axis=1)[:, None], rtol=1e-6)


def test_a_token_outside_the_vocabulary_is_refused(embeddings: TokenEmbeddings) -> None:
    for token in (-1, embeddings.n_vocab):
        with pytest.raises(InputError, match=f"token {token} lies outside"):
            embeddings.unit([token])


def written_out(a: list[int], b: list[int], embeddings: TokenEmbeddings, sigma: float) -> float:
    """Compute SCS as the paper writes it: ownership vectors and the whole Gram matrix."""
    everything = embeddings.unit(list(range(embeddings.n_vocab))).astype(np.float64)
    gram = everything @ everything.T
    own = np.zeros((2, embeddings.n_vocab))
    own[0, a], own[1, b] = 1, 1
    v, w = own
    return float(v @ gram @ w / (math.sqrt(v @ gram @ v) * math.sqrt(w @ gram @ w) + sigma))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 319), min_size=1, max_size=12),
    st.lists(st.integers(0, 319), min_size=1, max_size=12),
    st.sampled_from([1e-8, 0.5]),
)
def test_soft_cosine_is_the_formula(model: Path, a: list[int], b: list[int], sigma: float) -> None:
    embeddings = TokenEmbeddings(model)
    got = soft_cosine(summary(a, embeddings)[None], summary(b, embeddings)[None], sigma)
    assert got[0, 0] == pytest.approx(written_out(a, b, embeddings, sigma), abs=2e-5)


def test_a_repeated_token_counts_once_and_order_not_at_all(embeddings: TokenEmbeddings) -> None:
    np.testing.assert_array_equal(summary([3, 9, 3, 3], embeddings), summary([9, 3], embeddings))


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


# --- store, prediction, divergence ---


def made_up(n: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 320, rng.integers(1, 9)).tolist() for _ in range(n)]


def filled(
    embeddings: TokenEmbeddings, n: int = 40, seed: int = 0, fingerprint: str = ""
) -> PromptStore:
    rng = np.random.default_rng(seed)
    store = PromptStore(3, 10, fingerprint)
    for tokens in made_up(n, seed):
        store.add(summary(tokens, embeddings), activation(rng.integers(0, 10, (3, 6, 4)), 10))
    return store


def test_activation_counts() -> None:
    routed = np.array([[[0, 1], [1, 2]], [[3, 0], [3, 1]]])
    expected = [[0.25, 0.5, 0.25, 0], [0.25, 0.25, 0, 0.5]]
    np.testing.assert_array_equal(activation(routed, 4), expected)
    with pytest.raises(InputError, match=r"experts lie in 0\.\.3 of 3"):
        activation(routed, 3)
    with pytest.raises(InputError, match="not empty"):
        activation(np.zeros((2, 0, 4), int), 4)


def test_a_store_comes_back(tmp_path: Path, embeddings: TokenEmbeddings) -> None:
    for n in (0, 1, 40):
        store = filled(embeddings, n, fingerprint="abc")
        store.save(tmp_path / "s.npz")
        again = PromptStore.load(tmp_path / "s.npz", "abc")
        assert len(again) == n
        assert (again.n_layers, again.n_experts) == (3, 10)
        for a, b in zip(store.summaries, again.summaries, strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(store.activations, again.activations, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_store_forgets_the_oldest() -> None:
    store = PromptStore(1, 2, limit=3)
    even = np.array([[0.5, 0.5]], np.float32)
    for number in range(5):
        store.add(np.array([number], np.float32), even)
    assert [each.tolist() for each in store.summaries] == [[2], [3], [4]]
    assert len(store.activations) == 3
    with pytest.raises(InputError, match=r"a summary of \(2,\) beside others of \(1,\)"):
        store.add(np.zeros(2, np.float32), even)


def recorded(routed: np.ndarray, prompts: list[tuple[int, int]]) -> Trace:
    """Make a trace of prompts of (tokens read at once, tokens decoded) from one-token routing."""
    single = from_routed(routed, 10, path="made")
    phases = [p for n, m in prompts for p in [0] * n + [1] * m]
    single.phase = np.repeat(np.asarray(phases, np.uint8), single.n_layers)
    return single


def test_a_recording_falls_into_its_prompts() -> None:
    rng = np.random.default_rng(0)
    routed = np.argsort(rng.random((3, 12, 10)), axis=2)[..., :2]
    trace = recorded(routed, [(3, 2), (1, 3), (2, 1)])
    store = PromptStore(3, 10, "abc")
    summaries = list(np.eye(3, dtype=np.float32))
    store.add_trace(summaries, trace)
    for got, (begin, end) in zip(store.activations, [(0, 5), (5, 9), (9, 12)], strict=True):
        expected = activation(routed[:, begin:end], 10).astype(np.float16)
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(InputError, match="holds 3 prompts with answers, not 2"):
        store.add_trace(summaries[:2], trace)
    trace.fingerprint = "xyz"
    with pytest.raises(InputError, match="a trace of another model"):
        store.add_trace(summaries, trace)


def test_foreign_and_damaged_stores_are_refused(
    tmp_path: Path, embeddings: TokenEmbeddings
) -> None:
    path = tmp_path / "s.npz"
    filled(embeddings, 3, fingerprint="abc").save(path)
    with pytest.raises(InputError, match="prompts of another model"):
        PromptStore.load(path, "xyz")
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="cannot read the prompts in"):
            PromptStore.load(path)
    with path.open("wb") as file:
        np.savez(
            file, version=2, fingerprint="", limit=5, summaries=np.zeros((3, 8), np.float16),
            activations=np.zeros((2, 1, 4), np.float16),
        )  # fmt: skip
    with pytest.raises(InputError, match="do not fit together"):
        PromptStore.load(path)
    for wrong in (np.nan, np.inf, -1.0):
        with path.open("wb") as file:
            np.savez(
                file, version=2, fingerprint="", limit=5, summaries=np.zeros((2, 8), np.float16),
                activations=np.full((2, 1, 4), wrong, np.float16),
            )  # fmt: skip
        with pytest.raises(InputError, match="do not fit together"):
            PromptStore.load(path)
    with pytest.raises(InputError, match="cannot read"):
        PromptStore.load(tmp_path / "none.npz")


def test_the_prediction_is_the_weighted_sum(embeddings: TokenEmbeddings) -> None:
    store = filled(embeddings)
    tokens = [5, 80, 200]
    predicted = SimilarPrompts(store, embeddings, alpha=4, sharpness=3).predict(tokens)
    likeness = np.array(
        [written_out(tokens, past, embeddings, 1e-8) for past in made_up(len(store))]
    )
    best = np.argsort(-likeness)[:4]
    weights = np.exp(3 * likeness[best]) / np.exp(3 * likeness[best]).sum()
    expected = sum(
        w * store.activations[i].astype(float) for w, i in zip(weights, best, strict=True)
    )
    np.testing.assert_allclose(predicted, expected, atol=1e-3)  # summaries lie in float16
    np.testing.assert_allclose(predicted.sum(1), 1, atol=1e-3)


def test_a_past_prompt_finds_itself(embeddings: TokenEmbeddings) -> None:
    store = filled(embeddings, 400)
    similar = SimilarPrompts(store, embeddings, beta=50)
    assert len(similar.tree.leaves()) > 1
    near = similar.neighbours(made_up(400)[17])
    assert near.likeness[0] == pytest.approx(1, abs=1e-5)
    assert len(near.prompts) == 15
    assert sum(near.weights) == pytest.approx(1)


def test_an_empty_store_predicts_nothing(embeddings: TokenEmbeddings) -> None:
    with pytest.raises(InputError, match="no past prompts"):
        SimilarPrompts(PromptStore(3, 10), embeddings)
    with pytest.raises(InputError, match="no prompts"):
        PromptStore(3, 10).frequency()


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
