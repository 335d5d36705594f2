"""The running engine and the simulator count alike: same hits, misses and evictions, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_moe
from remoe_edge import Engine
from remoe_edge.native import _core
from remoe_edge.routing.trace import Trace, read_trace

POLICIES = ("lru", "lfu", "lfru", "arc", "least-stale", "reuse-biased")
N_EXPERTS, TOP_K = 16, 4
# Lengths of prompts given one after the other; ubatches of 16 tokens, so the longest takes three,
# two of which ask for no output and run the last layer for no token.
PROMPTS = (40, 1, 7, 23)
N_DECODED = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "m.gguf"
    return tiny_moe.make(path, "qwen3moe", "Q8_0", n_expert=N_EXPERTS, n_expert_used=TOP_K)


def slots_of(path: Path, share: float) -> int:
    total: int = _core.StreamedModel.open(str(path)).total_experts
    return max(TOP_K, round(share * total))


def run(path: Path, policy: str, n_slots: int, trace: Path) -> dict[str, int]:
    """Answer the prompts while recording, and return the engine's own counts."""
    budget = _core.StreamedModel.open(str(path)).budget_for(n_slots)
    rng = np.random.default_rng(3)
    with Engine(
        path, cache=str(budget), policy=policy, n_ctx=128, n_batch=64, n_ubatch=16, threads=2,
        trace=trace,
    ) as engine:  # fmt: skip
        assert engine.budget is not None
        assert engine.budget.n_slots == n_slots
        for length in PROMPTS:
            engine.evaluate(rng.integers(5, 250, length).tolist())
            for token in rng.integers(5, 250, N_DECODED).tolist():
                engine.evaluate([token], reset=False)
        assert engine.native is not None
        return engine.native.counts()


def replay(trace: Trace, policy: str, n_slots: int, profile: bytes | None = None) -> dict[str, int]:
    return _core.simulate(
        trace.columns(), trace.n_layers, trace.n_experts, n_slots, policy, 0, profile
    )


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1], ids=["floor", "25%", "50%", "100%"])
@pytest.mark.parametrize("policy", POLICIES)
def test_counts_agree(model: Path, tmp_path: Path, policy: str, share: float) -> None:
    n_slots = slots_of(model, share)
    live = run(model, policy, n_slots, tmp_path / "t")
    trace = read_trace(tmp_path / "t")
    assert trace.has_probs()
    simulated = replay(trace, policy, n_slots)
    assert {name: live[name] for name in simulated} == simulated
    assert live["misses"] > 0
    if share < 1:
        assert live["evictions"] > 0


def test_one_trace_serves_every_size(model: Path, tmp_path: Path) -> None:
    """Waves depend on the cache; what is recorded does not."""
    small = run(model, "lfru", slots_of(model, 0), tmp_path / "small")
    large = run(model, "lfru", slots_of(model, 0.5), tmp_path / "large")
    for name in ("small", "large"):
        trace = read_trace(tmp_path / name)
        for counts, share in ((small, 0), (large, 0.5)):
            simulated = replay(trace, "lfru", slots_of(model, share))
            assert {key: counts[key] for key in simulated} == simulated
    assert (tmp_path / "small").read_bytes() == (tmp_path / "large").read_bytes()


@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["floor", "50%", "100%"])
def test_an_ffn_in_pieces(tmp_path: Path, share: float) -> None:
    """Scales cut the FFN: in waves, its experts are presented once for each piece."""
    path = tiny_moe.make(
        tmp_path / "m.gguf", tiny_moe.SCALED_ARCHS[0], "Q8_0", expert_scales=True,
        n_expert=N_EXPERTS, n_expert_used=TOP_K,
    )  # fmt: skip
    n_slots = slots_of(path, share)
    live = run(path, "reuse-biased", n_slots, tmp_path / "t")
    trace = read_trace(tmp_path / "t")
    simulated = replay(trace, "reuse-biased", n_slots)
    assert {name: live[name] for name in simulated} == simulated
    steps = len(np.unique(trace.step))
    assert trace.total_tokens == sum(PROMPTS) + N_DECODED * len(PROMPTS)
    assert steps == sum(-(-length // 16) for length in PROMPTS) + N_DECODED * len(PROMPTS)
