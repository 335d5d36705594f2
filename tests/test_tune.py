"""Tuning: the decoder against its likes, what the trainer holds to, and the commands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="tuning needs torch (extra [tune])")
pytest.importorskip("transformers", reason="tuning needs transformers (extra [tune])")

from remoe_edge.errors import InputError, ModelError, RemoeError  # noqa: E402
from remoe_edge.tune.data import Batches, load_domains  # noqa: E402
from remoe_edge.tune.decoder import Decoder  # noqa: E402
from remoe_edge.tune.experts import FrozenExperts  # noqa: E402
from remoe_edge.tune.perplexity_budget import MEASURE_EVERY, PerplexityBudget  # noqa: E402
from remoe_edge.tune.settings import WEIGHTS  # noqa: E402
from remoe_edge.tune.trainer import Trainer  # noqa: E402
from remoe_edge.tune.weights import open_weights  # noqa: E402
from tune_models import (  # noqa: E402
    ARCHITECTURES,
    N_VOCAB,
    hf_model,
    write_gguf,
)
from tuning import ALL_TERMS, make_trainer, write_data  # noqa: E402


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(hf_model("qwen3moe"), "qwen3moe", tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


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
