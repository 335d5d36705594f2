"""Tuning: the decoder against its likes, the losses by hand, what the trainer holds to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="tuning needs torch (extra [tune])")
pytest.importorskip("transformers", reason="tuning needs transformers (extra [tune])")

from remoe_edge.cli.eval import command as eval_command  # noqa: E402
from remoe_edge.cli.tune import command as tune_command  # noqa: E402
from remoe_edge.convert.routers import convert_routers  # noqa: E402
from remoe_edge.errors import InputError, ModelError, RemoeError, UnsupportedError  # noqa: E402
from remoe_edge.tune import losses  # noqa: E402
from remoe_edge.tune.architecture import hf_router_name  # noqa: E402
from remoe_edge.tune.data import Batches, load_domains, open_tokenizer  # noqa: E402
from remoe_edge.tune.decoder import Decoder  # noqa: E402
from remoe_edge.tune.experts import FrozenExperts  # noqa: E402
from remoe_edge.tune.perplexity_budget import MEASURE_EVERY, PerplexityBudget  # noqa: E402
from remoe_edge.tune.record import (  # noqa: E402
    base_fingerprint,
    load_overlay_routers,
    load_routers,
    save_routers,
)
from remoe_edge.tune.settings import WEIGHTS, Settings  # noqa: E402
from remoe_edge.tune.trainer import Trainer  # noqa: E402
from remoe_edge.tune.weights import open_weights  # noqa: E402
from tune_models import (  # noqa: E402
    ARCHITECTURES,
    CHAT,
    N_VOCAB,
    SPECIALS,
    byte_tokens,
    hf_model,
    write_gguf,
)

ALL_TERMS: dict[str, Any] = {
    "distill": 0.3, "kl": 0.1, "miss": 0.5, "overlap": 0.2, "reuse": 0.2, "smooth": 0.1, "lag": 0.1,
    "ws": 0.1, "ws_window": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(hf_model("qwen3moe"), "qwen3moe", tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    prose = "It was a bright cold day. " * 20 + SPECIALS[0] + "Next. " * 30
    (folder / "prose.txt").write_text(prose)
    (folder / "code.txt").write_text("def f(x):\n    return x + 1\n" * 20)
    return folder


def make_trainer(gguf_path: Path, data_dir: Path, **values: Any) -> Trainer:
    decoder = Decoder(open_weights(gguf_path))
    domains = load_domains([data_dir], gguf_path, 24, decoder.n_vocab)
    few = {"steps": 6, "batch": 2, "window": 24, "lr": 1e-2, "lr_warmup": 2, "loc_warmup": 4}
    return Trainer(decoder, domains, Settings(**{**few, **values}))


# The decoder


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decoder_matches_transformers_and_llama_cpp(arch: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = hf_model(arch)
    model.save_pretrained(tmp_path / "hf")
    gguf_path = write_gguf(model, arch, tmp_path / "tiny.gguf")
    tokens = torch.randint(0, 256, (1, 48), generator=torch.Generator().manual_seed(1))
    from_hf = Decoder(open_weights(tmp_path / "hf"))
    from_gguf = Decoder(open_weights(gguf_path))
    with torch.no_grad():
        expected = model(tokens).logits
        hidden, routing = from_hf.hidden(tokens)
        ours = from_hf.logits(hidden)
        hidden, routing_again = from_gguf.hidden(tokens)
        again = from_gguf.logits(hidden)
    assert expected.std() > 0.5
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, ours, atol=1e-4, rtol=1e-4)
    assert torch.equal(routing.chosen, routing_again.chosen)
    assert routing.chosen.shape == (len(from_hf.shape.router_layers), 1, 48, 3)
    llama = llama_cpp.Llama(str(gguf_path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    llama.eval(tokens[0].tolist())
    theirs = torch.from_numpy(np.array(llama.scores[:48]))
    # llama.cpp keeps keys and values in float16; a near tie between experts may fall either way.
    far = (ours[0] - theirs).abs().amax(-1) > 0.05
    assert far.float().mean() < 0.05
    assert (ours[0].argmax(-1) == theirs.argmax(-1)).float().mean() > 0.95


def test_deepseek_without_query_compression(tmp_path: Path) -> None:
    model = hf_model("deepseek2", q_lora_rank=None)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(2))
    decoder = Decoder(open_weights(tmp_path))
    with torch.no_grad():
        ours = decoder.logits(decoder.hidden(tokens)[0])
        torch.testing.assert_close(ours, model(tokens).logits, atol=1e-4, rtol=1e-4)


def test_frozen_experts_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gate, up, down = random(5, 4, 6), random(5, 4, 6), random(5, 6, 4)
    chosen = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(7)])
    x, weight = random(7, 6).requires_grad_(), random(7, 2).requires_grad_()

    def experts(x: Any, weight: Any) -> Any:
        return FrozenExperts.apply(x, chosen, weight, torch.cat((gate, up), dim=1), down)

    assert torch.autograd.gradcheck(experts, (x, weight))
    rows = []
    for t in range(7):
        row = torch.zeros(6, dtype=torch.float64)
        for k, e in enumerate(chosen[t].tolist()):
            inner = torch.nn.functional.silu(gate[e] @ x[t]) * (up[e] @ x[t])
            row = row + weight[t, k] * (down[e] @ inner)
        rows.append(row)
    torch.testing.assert_close(experts(x, weight), torch.stack(rows))


def test_grouped_kernel_agrees_with_one_product_after_the_other() -> None:
    from remoe_edge.tune.experts import _product

    if not hasattr(torch, "_grouped_mm"):
        pytest.skip("this torch has no grouped matrix product")
    generator = torch.Generator().manual_seed(8)
    matrices = torch.randn(5, 48, 32, generator=generator).bfloat16()
    ends = [8, 8, 20, 33, 40]
    for width, stack in ((32, matrices), (48, matrices.transpose(1, 2))):
        rows = torch.randn(40, width, generator=generator).bfloat16()
        grouped = _product(rows, stack, torch.tensor(ends, dtype=torch.int32))
        torch.testing.assert_close(grouped, _product(rows, stack, ends))


def test_only_routers_have_gradients_and_recomputing_changes_nothing(
    gguf_path: Path, data_dir: Path
) -> None:
    batch = torch.from_numpy(Batches(load_domains([data_dir], gguf_path, 24, N_VOCAB), 24, 2, 0)[0])
    gradients = []
    for recompute in (False, True):
        trainer = make_trainer(gguf_path, data_dir, recompute=recompute, **ALL_TERMS)
        loss, _ = trainer.objective(batch)
        loss.backward()
        gradients.append([router.grad for router in trainer.routers])
        assert all(gradient.abs().sum() > 0 for gradient in gradients[-1])
        frozen = [t for layer in trainer.decoder._layers for t in layer.values()]
        assert not any(t.requires_grad for t in [*frozen, *trainer.decoder.routers])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_logits_in_slices_give_the_same_losses(
    gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(open_weights(gguf_path))
    hidden = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(4))
    targets = torch.arange(20).view(2, 10)
    whole = decoder.token_losses(hidden, targets)
    divergence = decoder.token_divergences(hidden, hidden.roll(1, 1))
    monkeypatch.setattr("remoe_edge.tune.decoder._LOGITS_AT_ONCE", 3 * N_VOCAB)
    torch.testing.assert_close(decoder.token_losses(hidden, targets), whole)
    torch.testing.assert_close(decoder.token_divergences(hidden, hidden.roll(1, 1)), divergence)
    expected = torch.nn.functional.cross_entropy(decoder.logits(hidden)[0, 0], targets[0, 0])
    assert whole[0, 0].item() == pytest.approx(expected.item(), abs=1e-5)


# The losses, on one layer and one sequence of three tokens over three experts

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]])[None, None]


def symmetric(p: list[float], q: list[float]) -> float:
    return 0.5 * sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_trust_is_the_kl_to_the_reference() -> None:
    even = torch.zeros(1, 1, 3, 3)
    expected = np.mean([sum(p * math.log(p * 3) for p in row) for row in P[0, 0].tolist()])
    assert losses.trust(P.log() + 5.0, even).item() == pytest.approx(expected, abs=1e-6)
    assert losses.trust(P.log(), P.log()).item() == pytest.approx(0, abs=1e-7)


def test_trust_moves_the_router_and_not_its_reference() -> None:
    logits, reference = P.log().requires_grad_(), torch.zeros(1, 1, 3, 3, requires_grad=True)
    losses.trust(logits, reference).backward()
    assert reference.grad is None
    assert logits.grad.abs().sum() > 0


def test_reuse_is_minus_log_of_the_mass_on_the_experts_before() -> None:
    chosen = torch.tensor([[0, 1], [1, 2], [0, 1]])[None, None]
    # Token 1 gives experts 0 and 1 (0.1 + 0.6) / 2; token 2 gives 1 and 2 (0.3 + 0.2) / 2.
    expected = -math.log((0.35 + 0.25) / 2)
    assert losses.reuse(P, chosen).item() == pytest.approx(expected, abs=1e-6)


def test_smoothness_and_lags_are_symmetric_kls() -> None:
    rows = P[0, 0].tolist()
    first = (symmetric(rows[0], rows[1]) + symmetric(rows[1], rows[2])) / 2
    assert losses.smooth(P.log()).item() == pytest.approx(first, abs=1e-6)
    # Of the lags 1, 2, 4, 8, 16 two fit three tokens.
    second = symmetric(rows[0], rows[2])
    assert losses.lagged(P.log()).item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert losses.lagged(P.log()[:, :, :1]).item() == 0


def test_working_set_is_the_entropy_of_the_mean() -> None:
    expected = -sum(p * math.log(p) for p in (0.4, 0.4, 0.2))
    assert losses.working_set(P, 2).item() == pytest.approx(expected, abs=1e-6)
    one_hot = torch.eye(4)[torch.tensor([1, 1, 1, 1])][None, None]
    assert losses.working_set(one_hot, 4).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("term", ["trust", "reuse", "smooth", "lag", "ws"])
def test_gradients_of_the_papers_losses_match_finite_differences(term: str) -> None:
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(2, 2, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 2, 6, 5, generator=generator, dtype=torch.float64)
    chosen = logits.detach().topk(2, -1).indices
    functions = {
        "trust": lambda z: losses.trust(z, reference),
        "reuse": lambda z: losses.reuse(z.softmax(-1), chosen),
        "smooth": lambda z: losses.smooth(z.log_softmax(-1)),
        "lag": lambda z: losses.lagged(z.log_softmax(-1)),
        "ws": lambda z: losses.working_set(z.softmax(-1), 3),
    }
    assert torch.autograd.gradcheck(functions[term], (logits,))


def test_ages_and_ranks_by_hand() -> None:
    # One layer of 4 experts, one expert per token: 0, 2, 0, 3.
    chosen = torch.tensor([0, 2, 0, 3]).view(1, 1, 4, 1)
    age = losses.ages(chosen, 4, horizon=9)
    assert age[0, 0].tolist() == [[4, 4, 4, 4], [1, 4, 4, 4], [2, 4, 1, 4], [1, 4, 2, 4]]
    assert losses.recency_rank(age)[0, 0, 2].tolist() == [1, 4, 0, 4]
    # Two layers share the ranks: equal ages share the middle.
    both = losses.recency_rank(losses.ages(torch.cat((chosen, chosen)), 4, horizon=9))
    assert both[:, 0, 2, 2].tolist() == [0.5, 0.5]
    assert both[:, 0, 2, 0].tolist() == [2.5, 2.5]


def test_rank_below_c_is_what_an_lru_cache_holds() -> None:
    random = np.random.default_rng(0)
    chosen = torch.from_numpy(random.integers(0, 12, (1, 1, 60, 1)))
    rank = losses.recency_rank(losses.ages(chosen, 12))
    held: list[int] = []
    for t in range(60):
        assert {e for e in range(12) if rank[0, 0, t, e] < 5} == set(held)
        expert = int(chosen[0, 0, t, 0])
        held = [expert, *(e for e in held if e != expert)][:5]


def test_miss_rate_counts_misses() -> None:
    # One layer, one expert per token, 3 slots: with a hard edge the value is the LRU miss rate.
    random = np.random.default_rng(1)
    picks = random.integers(0, 8, 50)
    chosen = torch.from_numpy(picks).view(1, 1, 50, 1)
    logits = torch.randn(1, 1, 50, 8, generator=torch.Generator().manual_seed(5))
    held: list[int] = []
    missed = 0
    for t, expert in enumerate(picks.tolist()):
        missed += t > 0 and expert not in held
        held = [expert, *(e for e in held if e != expert)][:3]
    value = losses.miss_rate(logits, chosen, 3, softness=1e-3)
    assert value.item() == pytest.approx(missed / 49, abs=1e-3)


def test_miss_gradient_pulls_residents_in_and_pushes_the_rest_out() -> None:
    logits = torch.tensor([2.0, 1.0, 0.9, -3.0]).repeat(6, 1)[None, None].requires_grad_()
    chosen = torch.tensor([0, 2]).repeat(6, 1)[None, None].clone()
    chosen[0, 0, -1] = torch.tensor([0, 1])  # the last token picks expert 1, which is not held
    losses.miss_rate(logits, chosen, 2, softness=0.05).backward()
    last = logits.grad[0, 0, -1]
    assert last[1] > 0 > last[2]  # descent lowers expert 1 and raises expert 2
    assert last.sum().abs() < 1e-6


def test_miss_gradient_is_the_one_written_down() -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    chosen = logits.detach().topk(2, -1).indices
    losses.miss_rate(logits, chosen, 4).backward()
    with torch.no_grad():
        theta = logits.topk(3, -1).values[..., 1:].mean(-1, keepdim=True)
        slope = torch.sigmoid(logits - theta)
        slope = slope * (1 - slope)
        rank = losses.recency_rank(losses.ages(chosen, 5))
        cost = 1 - losses.soft_residency(rank, 4, 0.25).double()
        mean = (slope * cost).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
        expected = slope * (cost - mean) / (2 * 5 * 2)
        expected[:, :, 0] = 0  # the first token meets an empty cache whatever it does
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-4)


def test_overlap_is_what_the_ratio_leaves() -> None:
    logits = torch.randn(3, 2, 20, 8, generator=torch.Generator().manual_seed(8))
    chosen = logits.topk(3, -1).indices
    value = losses.overlap(logits, chosen)
    assert value.item() == pytest.approx(1 - losses.overlap_ratio(chosen), abs=1e-6)


def test_overlap_gradient_brings_neighbours_together() -> None:
    # Token 0 takes {0, 1} and token 1 {0, 2}; 1 and 2 are nearly tied for both.
    logits = torch.tensor([[2.0, 1.0, 0.9, -3.0], [2.0, 0.9, 1.0, -3.0]])[None, None]
    logits.requires_grad_()
    losses.overlap(logits, logits.detach().topk(2, -1).indices).backward()
    before, after = logits.grad[0, 0]
    assert before[1] > 0 > before[2]  # descent makes token 0 likelier to take 2 in place of 1
    assert after[2] > 0 > after[1]  # and token 1 to take 1 in place of 2
    assert before.sum().abs() < 1e-6
    assert after.sum().abs() < 1e-6


def test_windowed_occupancy_by_hand_and_its_gradient() -> None:
    choice = torch.tensor([0.5, 0.25, 0.0, 0.5]).view(1, 1, 4, 1).double().requires_grad_()
    found = losses.windowed_occupancy(choice, 2)[0, 0, :, 0].tolist()
    assert found == pytest.approx([0.0, 0.5, 1 - 0.5 * 0.75, 0.25])
    assert torch.autograd.gradcheck(lambda c: losses.windowed_occupancy(c, 2), (choice,))


def test_through_past_credits_the_choice_before() -> None:
    logits = torch.randn(1, 1, 12, 6, generator=torch.Generator().manual_seed(7))
    chosen = logits.topk(2, -1).indices
    gradients = []
    for through_past in (False, True):
        x = logits.clone().requires_grad_()
        value = losses.miss_rate(x, chosen, 3, through_past=through_past)
        value.backward()
        assert 0 < value.item() <= 1
        gradients.append(x.grad[0, 0, 0])
    # The first token's choice matters only for those after it.
    assert gradients[0].abs().sum() == 0
    assert gradients[1].abs().sum() > 0


def test_lifetime_fills_the_cache() -> None:
    # Every token brings one new expert of 16: a cache of 4 holds four tokens' worth.
    chosen = (torch.arange(64) % 16).view(1, 1, 64, 1)
    assert losses.lifetime(losses.ages(chosen, 16), 4) == 4


def test_overlap_ratio_by_hand() -> None:
    chosen = torch.tensor([[0, 1], [1, 2], [1, 2], [3, 4]])[None, None]
    assert losses.overlap_ratio(chosen) == pytest.approx((1 + 2 + 0) / 6)


# The trainer


def test_training_moves_only_routers_towards_reuse(gguf_path: Path, data_dir: Path) -> None:
    trainer = make_trainer(gguf_path, data_dir, steps=40, lr=0.05, miss=5.0, cache_slots=6)
    before = [t.clone() for layer in trainer.decoder._layers for t in layer.values()]
    base = [router.clone() for router in trainer.decoder.routers]
    trainer.run()
    after = [t for layer in trainer.decoder._layers for t in layer.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(base, trainer.decoder.routers, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(base, trainer.routers, strict=True))
    early = np.mean([report["eor"] for report in trainer.history[:5]])
    late = np.mean([report["eor"] for report in trainer.history[-5:]])
    assert late > early + 0.05


@pytest.mark.parametrize("budget", [0.0, 1e-6])
def test_resumed_run_is_bit_exact(
    gguf_path: Path, data_dir: Path, tmp_path: Path, budget: float
) -> None:
    terms = {**ALL_TERMS, "ppl_budget": budget}
    whole = make_trainer(gguf_path, data_dir, **terms)
    whole.run()
    first = make_trainer(gguf_path, data_dir, **terms)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "state")
    second = make_trainer(gguf_path, data_dir, **terms)
    second.resume(tmp_path / "state")
    second.run()
    assert second.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(whole.routers, second.routers, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.averaged, second.averaged, strict=True))


def test_result_is_the_moving_average_of_the_steps(gguf_path: Path, data_dir: Path) -> None:
    trainer = make_trainer(gguf_path, data_dir, steps=6, ema=0.5)
    expected = [router.clone() for router in trainer.decoder.routers]
    for step in range(1, 7):
        trainer.train_step()
        share = max(0.5, 1 / (1 + step / 4))
        for average, router in zip(expected, trainer.routers, strict=True):
            average += share * (router.detach() - average)
    torch.testing.assert_close(trainer.averaged, expected)
    assert not torch.equal(trainer.averaged[0], trainer.routers[0])
    last = make_trainer(gguf_path, data_dir, steps=3, ema=0.0)
    last.run()
    assert all(torch.equal(a, b) for a, b in zip(last.averaged, last.routers, strict=True))


def test_budget_weighs_each_domain_and_moves_the_multipliers() -> None:
    budget = PerplexityBudget(3, 0.01, 2.0)
    ce = torch.tensor([[3.0, 1.0], [4.0, 4.0], [1.0, 1.0]], requires_grad=True)
    base = torch.tensor([[1.0, 1.0], [4.0, 4.0], [3.0, 1.0]])
    loss = budget.weigh(ce, [0, 2, 2])
    loss.backward()
    budget.observe(ce.detach(), base, [0, 2, 2])
    assert loss.item() == pytest.approx(2.0 * (2 + 4 + 1) / 3)
    assert ce.grad is not None
    assert ce.grad.tolist() == [[pytest.approx(1 / 3)] * 2] * 3
    # Domain 0 is a nat above the base, 1 has not come, 2 is half a nat below on average.
    assert budget.excess.tolist() == pytest.approx([0.1, 0.0, -0.05])
    assert budget.multipliers[0] > 2.0
    assert budget.multipliers[1:].tolist() == [2.0, 2.0]
    above = budget.multipliers[0].item()
    assert budget.weigh(ce, [0, 2, 2]).item() == pytest.approx((2 * above + 2 * 5) / 3)
    again = PerplexityBudget(3, 0.01, 2.0)
    again.state = json.loads(json.dumps(budget.state))
    assert again.state == budget.state


def test_budget_settles_where_the_limit_is() -> None:
    # A domain whose excess falls as its multiplier grows, and one that never has any.
    budget = PerplexityBudget(2, 0.01, 1.0)
    for _ in range(1500):
        excess = torch.tensor([[0.08 / budget.multipliers[0]], [-0.1]], dtype=torch.float64)
        budget.observe(excess, torch.zeros(2, 1), [0, 1])
    assert budget.excess[0] == pytest.approx(math.log(1.01), rel=0.05)
    assert budget.multipliers.tolist() == [pytest.approx(8.04, rel=0.05), 1.0]


def test_budget_answers_to_the_averaged_routers(gguf_path: Path, data_dir: Path) -> None:
    trainer = make_trainer(gguf_path, data_dir, steps=MEASURE_EVERY, ppl_budget=0.01, ema=0.5)
    trainer.run()
    batch = torch.from_numpy(trainer._batches[MEASURE_EVERY - 1])
    domains = trainer._batches.domains(MEASURE_EVERY - 1)
    base, averaged = (
        trainer.decoder.token_losses(
            trainer.decoder.hidden(batch[:, :-1], routers)[0], batch[:, 1:]
        ).mean(-1)
        for routers in (None, trainer.averaged)
    )
    expected = PerplexityBudget(2, 0.01, 1.0)
    expected.observe(averaged[:, None], base[:, None], domains)
    assert trainer.budget is not None
    assert any(expected.excess)
    assert trainer.budget.excess.tolist() == pytest.approx(expected.excess.tolist())


def test_budget_holds_a_run_back(gguf_path: Path, data_dir: Path) -> None:
    eager = {"steps": 150, "lr": 0.02, "reuse": 1.0, "kl": 0.0, "ce": 0.02}
    free = make_trainer(gguf_path, data_dir, **eager)
    held = make_trainer(gguf_path, data_dir, ppl_budget=1e-6, **eager)
    free.run()
    held.run()
    assert held.run_record()["budget"]["domains"] == ["code", "prose"]
    assert "excess" not in free.history[-1]
    assert max(report["multiplier"] for report in held.history) > 0.04

    def late(trainer: Trainer) -> float:
        return float(np.mean([report["ce"] for report in trainer.history[-10:]]))

    assert late(held) < late(free)


def test_stopped_run_has_saved_its_state(gguf_path: Path, data_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(gguf_path, data_dir)
    assert trainer.run(None, tmp_path / "state", 50, lambda: trainer.step == 2) is False
    again = make_trainer(gguf_path, data_dir)
    again.resume(tmp_path / "state")
    assert again.step == 2
    assert again.run() is True
    assert again.step == 6


def test_resume_refuses_another_run_and_damage(
    gguf_path: Path, data_dir: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    make_trainer(gguf_path, data_dir).save(state)
    with pytest.raises(InputError, match=r"lr 0\.01, now 0\.02"):
        make_trainer(gguf_path, data_dir, lr=0.02).resume(state)
    (data_dir / "prose.txt").write_text("Other words. " * 40)
    with pytest.raises(InputError, match="other data"):
        make_trainer(gguf_path, data_dir).resume(state)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        make_trainer(gguf_path, data_dir).resume(state)


def test_gradient_that_is_not_finite_stops_before_the_step(gguf_path: Path, data_dir: Path) -> None:
    trainer = make_trainer(gguf_path, data_dir)
    trainer.decoder._output = trainer.decoder._output * math.inf
    before = [router.detach().clone() for router in trainer.routers]
    with pytest.raises(RemoeError, match="gradient is not finite"):
        trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.routers, strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache_slots": 2}, "--cache-slots 2 must lie between 3"),
        ({"cache_slots": 25}, "and 24"),
        ({"window": 4096}, "beyond the model's 128 tokens"),
        ({"steps": 0}, "steps must be above 0"),
        ({"miss": -1.0}, "miss must not be below 0"),
        (dict.fromkeys(WEIGHTS, 0.0), "nothing to train for"),
        ({"window": 1}, "at least 2"),
        ({"ema": 1.0}, "ema must be from 0 to below 1"),
        ({"ppl_budget": -0.01}, "ppl_budget must not be below 0"),
        ({"ppl_budget": 0.01, "ce": 0.0}, "needs a cross entropy weight"),
    ],
)
def test_settings_that_make_no_sense(
    gguf_path: Path, data_dir: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(gguf_path, data_dir, **values)


# Routers on disk


def test_saved_routers_load_bit_exactly_with_their_record(gguf_path: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    decoder = Decoder(open_weights(gguf_path))
    tuned = [torch.randn(8, 32, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    path = tmp_path / "tuned.safetensors"
    save_routers(path, tuned, decoder.shape, "f" * 64, {"seed": 7})
    loaded = load_routers(path, decoder.shape, "f" * 64)
    assert all(torch.equal(a, b) for a, b in zip(tuned, loaded, strict=True))
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        assert sorted(opened.keys()) == [hf_router_name(layer) for layer in range(3)]
    assert metadata["format"] == "remoe-edge-routers"
    assert metadata["version"] == "1"
    assert metadata["architecture"] == "qwen3moe"
    assert json.loads(metadata["run"]) == {"seed": 7}
    with pytest.raises(ModelError, match="another base"):
        load_routers(path, decoder.shape, "e" * 64)


def test_routers_that_are_not_finite_are_not_saved(gguf_path: Path, tmp_path: Path) -> None:
    decoder = Decoder(open_weights(gguf_path))
    bad = [router.clone() for router in decoder.routers]
    bad[2][0, 0] = math.nan
    with pytest.raises(ModelError, match="layer 2"):
        save_routers(tmp_path / "x.safetensors", bad, decoder.shape, "", {})
    assert list(tmp_path.iterdir()) == []


def broken(kind: str) -> dict[str, Any]:
    tensors = {hf_router_name(layer): torch.randn(8, 32) for layer in range(3)}
    if kind == "nan":
        tensors[hf_router_name(1)][2, 3] = math.nan
    elif kind == "inf":
        tensors[hf_router_name(2)][0, 0] = math.inf
    elif kind == "missing":
        del tensors[hf_router_name(1)]
    elif kind == "transposed":
        tensors[hf_router_name(0)] = torch.randn(32, 8)
    elif kind == "shape":
        tensors[hf_router_name(0)] = torch.randn(9, 32)
    elif kind == "names":
        return {"lm_head.weight": torch.randn(4, 4)}
    elif kind == "extra":
        tensors["model.layers.9.mlp.gate.weight"] = torch.randn(8, 32)
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "layer 1 has 1 values that are NaN"),
        ("inf", "layer 2 has 1 values"),
        ("missing", r"1 of 3 routers are missing, first model\.layers\.1"),
        ("transposed", r"shape \[32, 8\], expected \[8, 32\] \(it is transposed\)"),
        ("shape", r"shape \[9, 32\]"),
        ("names", r"3 of 3 routers are missing.*holds lm_head\.weight"),
        ("extra", r"model\.layers\.9\.mlp\.gate\.weight is no router of this model"),
    ],
)
def test_broken_routers_are_refused(
    gguf_path: Path, tmp_path: Path, kind: str, message: str
) -> None:
    from safetensors.torch import save_file

    shape = open_weights(gguf_path).shape
    path = tmp_path / "bad.safetensors"
    save_file(broken(kind), path)
    with pytest.raises(ModelError, match=message):
        load_routers(path, shape)


def test_routers_file_that_is_none(gguf_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shape = open_weights(gguf_path).shape
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="no such routers file"):
        load_routers(path, shape)
    path.write_text("not safetensors at all")
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_routers(path, shape)
    save_file(broken(""), path, metadata={"architecture": "olmoe"})
    with pytest.raises(ModelError, match="routers of a olmoe model, but the base is qwen3moe"):
        load_routers(path, shape)


def test_base_with_broken_routers_is_refused(tmp_path: Path) -> None:
    model = hf_model("qwen3moe")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "hf")
    path = write_gguf(model, "qwen3moe", tmp_path / "nan.gguf")
    for source in (path, tmp_path / "hf"):
        with pytest.raises(ModelError, match="router of layer 1 has 1 values"):
            Decoder(open_weights(source))


def test_models_that_cannot_be_tuned(tmp_path: Path) -> None:
    import gguf
    import transformers

    with pytest.raises(InputError, match="no such model"):
        open_weights(tmp_path / "absent.gguf")
    (tmp_path / "junk.gguf").write_bytes(b"GGUFjunk")
    with pytest.raises(ModelError, match="not a readable GGUF"):
        open_weights(tmp_path / "junk.gguf")
    writer = gguf.GGUFWriter(tmp_path / "dense.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="architecture 'llama'"):
        open_weights(tmp_path / "dense.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        open_weights(tmp_path / "empty")
    transformers.LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(UnsupportedError, match="model type 'llama'"):
        open_weights(tmp_path / "llama")


def test_gguf_cut_short_is_refused(gguf_path: Path, tmp_path: Path) -> None:
    whole = gguf_path.read_bytes()
    for keep in (len(whole) // 2, len(whole) - 100, 5000):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:keep])
        with pytest.raises(ModelError, match="not a readable GGUF"):
            Decoder(open_weights(path))


def test_missing_expert_and_missing_router_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    hf_model("qwen3moe").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    expert = "model.layers.0.mlp.experts.5.up_proj.weight"
    assert expert in tensors
    save_file({k: v for k, v in tensors.items() if k != expert}, file)
    with pytest.raises(ModelError, match="up_proj has 7 experts, expected 8"):
        open_weights(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != hf_router_name(2)}, file)
    with pytest.raises(ModelError, match="layer 2 has no router"):
        Decoder(open_weights(tmp_path))
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="damaged safetensors"):
        open_weights(tmp_path)


# Data


def test_text_and_chat_become_tokens(gguf_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one" + SPECIALS[0] + "two")
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    lines = [json.dumps({"messages": talk}), "", json.dumps({"text": "é" + SPECIALS[1]})]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    np.save(tmp_path / "c.npy", np.arange(30, dtype=np.uint16))
    a, b, c = load_domains([tmp_path], gguf_path, 4, N_VOCAB)
    assert [d.name for d in (a, b, c)] == ["a", "b", "c"]
    assert a.tokens.tolist() == [*b"one", 256, *b"two", 256]
    chat = [257, *b"user\nhi", 258, *b"\n", 257, *b"assistant\nyo", 258, *b"\n", 256]
    # A marker inside a document's text stays text.
    assert b.tokens.tolist() == [*chat, *"é<|im_start|>".encode(), 256]
    assert c.tokens.tolist() == list(range(30))


def test_only_the_line_ends_beside_a_marker_are_layout(gguf_path: Path, tmp_path: Path) -> None:
    end = SPECIALS[0]
    (tmp_path / "a.txt").write_text(f"one\n\n{end}\n  two\n{end}\n")
    (only,) = load_domains([tmp_path], gguf_path, 4, N_VOCAB)
    assert only.tokens.tolist() == [*b"one\n", 256, *b"  two", 256]


def test_hf_tokenizer_agrees_with_the_gguf(gguf_path: Path, tmp_path: Path) -> None:
    import tokenizers
    import transformers

    vocab = {token: n for n, token in enumerate(byte_tokens())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], chat_template=CHAT
    )
    fast.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    ours, theirs = open_tokenizer(tmp_path), open_tokenizer(gguf_path)
    text = "Grüße, 12 <|im_end|>\n\tx"
    assert ours.encode(text) == theirs.encode(text) == list(text.encode())
    talk = [{"role": "user", "content": "hi"}]
    assert ours.chat(talk) == theirs.chat(talk)
    assert ours.end() == theirs.end() == [256]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "the data file is empty"),
        ("a.txt", b" \n ", "holds no text"),
        ("a.txt", b"too short", r"10 tokens are fewer than one window of 24 \+ 1"),
        ("a.txt", b"ok " * 40 + b"\xff", "not UTF-8 text at byte 120"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r"a\.jsonl:1: expected"),
        ("a.npy", b"nonsense", r"not a readable \.npy"),
        ("a.pdf", b"%PDF", r"data files end in \.txt, \.jsonl, \.npy"),
    ],
)
def test_bad_data_files(
    gguf_path: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_domains([tmp_path / name], gguf_path, 24, N_VOCAB)


def test_data_that_is_not_there_or_not_of_this_model(gguf_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data file"):
        load_domains([tmp_path / "x.txt"], gguf_path, 24, N_VOCAB)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="file in this folder"):
        load_domains([tmp_path / "folder"], gguf_path, 24, N_VOCAB)
    np.save(tmp_path / "t.npy", np.full(50, N_VOCAB))
    with pytest.raises(InputError, match="token 260 is not in the model's vocabulary"):
        load_domains([tmp_path / "t.npy"], gguf_path, 24, N_VOCAB)
    np.save(tmp_path / "t.npy", np.ones((5, 50)))
    with pytest.raises(InputError, match="one row of integer token ids"):
        load_domains([tmp_path / "t.npy"], gguf_path, 24, N_VOCAB)
    (tmp_path / "folder" / "t.txt").write_text("x")
    with pytest.raises(InputError, match="two data files are named 't'"):
        load_domains([tmp_path / "t.npy", tmp_path / "folder"], gguf_path, 24, N_VOCAB)


def test_batches_hang_on_seed_and_step_alone(gguf_path: Path, data_dir: Path) -> None:
    domains = load_domains([data_dir], gguf_path, 24, N_VOCAB)
    one, two = Batches(domains, 24, 4, 1), Batches(domains, 24, 4, 1)
    one[0]
    assert (one[5] == two[5]).all()
    assert not (one[5] == one[6]).all()
    assert not (one[5] == Batches(domains, 24, 4, 2)[5]).all()
    # Rows take turns: code, prose, code, prose.
    streams = [" ".join(map(str, d.tokens)) for d in domains]
    for row, number in zip(one[0], (0, 1, 0, 1), strict=True):
        text = " ".join(map(str, row))
        assert text in streams[number]
        assert text not in streams[1 - number]


# The command


def test_command_writes_routers_record_and_curves(
    gguf_path: Path, data_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out" / "tuned.safetensors"
    arguments = [str(gguf_path), "--data", str(data_dir), "-o", str(out), "--steps", "4"]
    arguments += ["--batch", "2", "--window", "24", "--checkpoint-every", "2"]
    result = CliRunner().invoke(tune_command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["settings"]["steps"] == 4
    assert record["cache_slots"] == 6
    assert len(record["history"]) == 4
    assert {d["domain"] for d in record["data"]} == {"prose", "code"}
    assert all(len(d["sha256"]) == 64 for d in record["data"])
    assert "torch" in record["versions"]
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    shape = open_weights(gguf_path).shape
    assert len(load_routers(out, shape)) == 3
    again = CliRunner().invoke(tune_command, arguments)
    assert "going on from step 4" in again.stderr
    refused = CliRunner().invoke(tune_command, [*arguments, "--lr", "0.5"])
    assert isinstance(refused.exception, InputError)
    assert "now 0.5" in str(refused.exception)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--window", "24"], "the data file is empty"),
        (["--device", "cuda:99"], "no CUDA device" if not torch.cuda.is_available() else ""),
        (["--device", "toaster"], "not a device"),
        (["--lr", "0"], "lr must be above 0"),
    ],
)
def test_command_refuses_before_any_work(
    gguf_path: Path, tmp_path: Path, extra: list[str], message: str
) -> None:
    (tmp_path / "a.txt").write_text("")
    out = tmp_path / "tuned.safetensors"
    arguments = [str(gguf_path), "--data", str(tmp_path / "a.txt"), "-o", str(out), *extra]
    result = CliRunner().invoke(tune_command, arguments)
    assert isinstance(result.exception, RemoeError)
    assert message in str(result.exception)
    assert not list(tmp_path.glob("tuned*"))


def test_eval_reads_an_overlay_as_it_reads_its_routers(
    gguf_path: Path, data_dir: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(gguf_path.read_bytes())
    decoder = Decoder(open_weights(base), torch.device("cpu"), torch.float32)
    tuned = [torch.randn_like(router) for router in decoder.routers]
    routers = tmp_path / "tuned.safetensors"
    save_routers(routers, tuned, decoder.shape, base_fingerprint(base), {})
    overlay = tmp_path / "base.routers.gguf"
    convert_routers(routers, base, overlay)
    loaded = load_overlay_routers(overlay, base, decoder.shape)
    assert all(torch.equal(a, b) for a, b in zip(tuned, loaded, strict=True))

    report = tmp_path / "figures.json"
    arguments = [str(base), "--data", str(data_dir), "--window", "24", "-o", str(report)]
    for name in (f"a={routers}", f"b={overlay}", "default"):
        arguments += ["--routers", name]
    result = CliRunner().invoke(eval_command, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_text())["routers"]
    assert figures["a"] == figures["b"] == figures["default"]
    assert figures["a"] != figures["base"]

    (tmp_path / "hf").mkdir()
    with pytest.raises(InputError, match="an overlay belongs to a GGUF"):
        load_overlay_routers(overlay, tmp_path / "hf", decoder.shape)
