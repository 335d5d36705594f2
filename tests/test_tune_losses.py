"""The losses of tuning by hand: one layer, one sequence of three tokens over three experts."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="tuning needs torch (extra [tune])")
pytest.importorskip("transformers", reason="tuning needs transformers (extra [tune])")

from remoe_edge.tune import losses  # noqa: E402

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
