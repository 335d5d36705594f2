"""Similar prompts: against the formulas written out, and against searching everything."""

from __future__ import annotations

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
from remoe_edge.predict.embeddings import TokenEmbeddings
from remoe_edge.predict.similarity import soft_cosine, summary
from remoe_edge.predict.store import activation
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


# --- store and prediction ---


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
        with pytest.raises(InputError, match="prompt 0, layer 0, is no share of every expert"):
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
    near = SimilarPrompts(store, embeddings).neighbours(made_up(400)[17])
    assert near.similarity[0] == pytest.approx(1, abs=1e-5)
    assert len(near.prompts) == 15
    assert sum(near.weights) == pytest.approx(1)


def test_an_empty_store_predicts_nothing(embeddings: TokenEmbeddings) -> None:
    with pytest.raises(InputError, match="no past prompts"):
        SimilarPrompts(PromptStore(3, 10), embeddings)
