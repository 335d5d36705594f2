"""What the routers are trained for, one function per term, each with its formula.

Symbols: P_t the full routing distribution of token t in one layer (softmax over all E experts), E_t
its top-K set, sg the stop-gradient. Routing tensors are [layers, batch, tokens, experts]; every
function returns a scalar, the mean over layers and sequences. Terms without another source follow
ReMoE (arXiv 2605.27081); `miss_rate` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LAGS = (1, 2, 4, 8, 16)
_EPSILON = 1e-8


def trust(logits: Tensor, reference: Tensor) -> Tensor:
    """Return L_Trust = 1/T sum_t KL(P_t || sg(P_ref_t)), in nats.

    P_ref is the frozen float32 reference router applied to the current hidden state.
    """
    log_p, log_ref = logits.log_softmax(-1), reference.detach().log_softmax(-1)
    return (log_p.exp() * (log_p - log_ref)).sum(-1).mean()


def reuse(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Return L_Reuse = -log(rho + 1e-8), rho = mean_t 1/K sum_{k in sg(E_{t-1})} P_t[k].

    rho is the mean over one sequence of one layer; `chosen` is [layers, batch, tokens, k].
    """
    mass = probabilities[:, :, 1:].gather(-1, chosen[:, :, :-1].detach())
    rho = mass.mean(-1).mean(-1)
    return -(rho + _EPSILON).log().mean()


def symmetric_kl(log_p: Tensor, lag: int) -> Tensor:
    """Return 1/(T-lag) sum_t SymKL(P_t, P_{t-lag}), SymKL(p, q) = (KL(p||q) + KL(q||p)) / 2.

    No stop-gradient. Zero for a sequence no longer than the lag.
    """
    if log_p.shape[2] <= lag:
        return log_p.new_zeros(())
    now, before = log_p[:, :, lag:], log_p[:, :, :-lag]
    return 0.5 * ((now.exp() - before.exp()) * (now - before)).sum(-1).mean()


def smooth(log_p: Tensor) -> Tensor:
    """Return L_Smooth, the symmetric KL of neighbours; see `symmetric_kl`."""
    return symmetric_kl(log_p, 1)


def lagged(log_p: Tensor, lags: Sequence[int] = LAGS) -> Tensor:
    """Return L_Lag, the mean of `symmetric_kl` over the lags that fit the sequence."""
    fitting = [lag for lag in lags if lag < log_p.shape[2]]
    if not fitting:
        return log_p.new_zeros(())
    return torch.stack([symmetric_kl(log_p, lag) for lag in fitting]).mean()


def working_set(probabilities: Tensor, window: int) -> Tensor:
    """Return L_WS = mean over windows of H(mean_{t in window} P_t), in nats.

    Windows of `window` tokens do not overlap; a shorter rest is left out.
    """
    layers, batch, tokens, experts = probabilities.shape
    window = min(window, tokens)
    whole = tokens // window * window
    mean = probabilities[:, :, :whole].reshape(layers, batch, -1, window, experts).mean(3)
    return -(mean * (mean + _EPSILON).log()).sum(-1).mean()


def soft_choice(logits: Tensor, top_k: int, temperature: float) -> Tensor:
    """Return w = sigmoid((z_e - theta) / temperature), a soft version of the top-K choice.

    theta lies midway between a token's K-th and K+1-th logit; its gradient is the one that keeps
    sum_e w_e, so that pushing one expert out of the choice pulls the next one in.
    """
    z = logits / temperature
    with torch.no_grad():
        theta = z.topk(top_k + 1, dim=-1).values[..., top_k - 1 :].mean(-1, keepdim=True)
        slope = torch.sigmoid(z - theta)
        slope = slope * (1 - slope)
        slope = slope / slope.sum(-1, keepdim=True).clamp_min(_EPSILON)
    # One term of value zero whose gradient is d theta / d z (implicit differentiation).
    moved = (slope * (z - z.detach())).sum(-1, keepdim=True)
    return torch.sigmoid(z - theta - moved)


def straight_through(soft: Tensor, chosen: Tensor) -> Tensor:
    """Return the hard choice (0 or 1 per expert) with the soft one's gradient."""
    hard = torch.zeros_like(soft).scatter(-1, chosen, 1.0)
    return hard + (soft - soft.detach())


def overlap(logits: Tensor, chosen: Tensor, temperature: float = 1.0) -> Tensor:
    """Return L_Overlap = 1 - mean_t 1/K sum_e w_t(e) w_{t-1}(e), whose value is 1 - EOR.

    w is the straight-through choice (`soft_choice` at `temperature`), of both tokens: near the
    threshold, what one of two neighbours chose is pulled into the other's choice.
    """
    top_k = chosen.shape[-1]
    choice = straight_through(soft_choice(logits, top_k, temperature), chosen)
    return 1 - (choice[:, :, 1:] * choice[:, :, :-1]).sum(-1).mean() / top_k


@torch.no_grad()  # type: ignore[untyped-decorator]
def ages(chosen: Tensor, n_experts: int, horizon: int = 256) -> Tensor:
    """Return the tokens since each expert's last use, at the start of each token.

    int64 [layers, batch, tokens, experts], 1 for an expert the token before used; `horizon` (or the
    length, if shorter) for one not used within it.
    """
    layers, batch, tokens, _ = chosen.shape
    used = torch.zeros(layers, batch, tokens, n_experts, device=chosen.device, dtype=torch.bool)
    used.scatter_(-1, chosen, True)
    position = torch.arange(tokens, device=chosen.device)[None, None, :, None]
    last = torch.where(used, position, -1).cummax(2).values
    # At the start of token t only the tokens before it have been used.
    before = F.pad(last[:, :, :-1], (0, 0, 1, 0), value=-1)
    horizon = min(horizon, tokens)
    return torch.where(before < 0, horizon, (position - before).clamp_max(horizon))


@torch.no_grad()  # type: ignore[untyped-decorator]
def recency_rank(age: Tensor) -> Tensor:
    """Return how many experts, over all layers, were used more recently than each one.

    float32, shaped as `age`: an LRU cache of C slots holds the experts of rank below C. Experts
    used by the same token share the middle of their ranks; those at the horizon rank behind all.
    """
    layers, batch, tokens, experts = age.shape
    horizon = int(age.max())
    flat = age.permute(1, 2, 0, 3).reshape(batch, tokens, layers * experts)
    counts = torch.zeros(batch, tokens, horizon + 1, device=age.device)
    counts.scatter_add_(-1, flat, torch.ones_like(flat, dtype=counts.dtype))
    middle = counts.cumsum(-1) - (counts + 1) / 2
    middle[..., horizon] = layers * experts
    return middle.gather(-1, flat).view(batch, tokens, layers, experts).permute(2, 0, 1, 3)


@torch.no_grad()  # type: ignore[untyped-decorator]
def lifetime(age: Tensor, n_slots: int) -> int:
    """Return tau, the tokens that an unused expert lasts in an LRU cache of C slots.

    The number of tokens whose distinct experts fill the cache, on average over the second half of
    the sequences (Che's approximation).
    """
    late = age[:, :, age.shape[2] // 2 :]
    distinct = torch.bincount(late.reshape(-1)).cumsum(0) / (late.shape[1] * late.shape[2])
    return max(1, int((distinct[:-1] < n_slots).sum()))


def soft_residency(rank: Tensor, n_slots: int, softness: float) -> Tensor:
    """Return sigmoid((C - 1/2 - rank) / (softness C)): how surely an LRU cache of C slots holds an
    expert."""
    return torch.sigmoid((n_slots - 0.5 - rank) / max(softness * n_slots, 1e-3))


def windowed_occupancy(choice: Tensor, tau: int) -> Tensor:
    """Return r_t(e) = 1 - prod_{i=1..tau} (1 - w_{t-i}(e)), differentiable in the past choices."""
    absent = torch.log1p(-choice.clamp(max=1 - 1e-4))
    total = F.pad(absent.cumsum(2), (0, 0, 1, 0))
    tokens = choice.shape[2]
    end = torch.arange(tokens, device=choice.device)
    start = (end - tau).clamp_min(0)
    return -torch.expm1(total[:, :, end] - total[:, :, start])


def miss_rate(
    logits: Tensor,
    chosen: Tensor,
    n_slots: int,
    *,
    temperature: float = 1.0,
    softness: float = 0.25,
    through_past: bool = False,
) -> Tensor:
    """Return L_Miss = mean_t 1/K sum_e w_t(e) (1 - s_t(e)), the share of choices an LRU cache
    misses.

    w is the straight-through choice (`soft_choice` at `temperature`); s_t(e) is the soft residency
    of expert e in one LRU cache of `n_slots` over all layers, from the choices of the tokens before
    t: `soft_residency` of `recency_rank` under a stop-gradient, or with `through_past` the
    `windowed_occupancy` over the cache's `lifetime`, which also credits a choice for the tokens
    after.
    """
    top_k = chosen.shape[-1]
    soft = soft_choice(logits, top_k, temperature)
    age = ages(chosen, logits.shape[-1])
    if through_past:
        resident = windowed_occupancy(soft, lifetime(age, n_slots))
    else:
        resident = soft_residency(recency_rank(age), n_slots, softness)
    choice = straight_through(soft, chosen)
    # The first token of a sequence meets an empty cache whatever it chooses.
    return (choice * (1 - resident))[:, :, 1:].sum(-1).mean() / top_k


@torch.no_grad()  # type: ignore[untyped-decorator]
def overlap_ratio(chosen: Tensor) -> float:
    """Return EOR = mean |E_t and E_{t-1}| / K over layers and tokens."""
    now, before = chosen[:, :, 1:, :, None], chosen[:, :, :-1, None, :]
    return float((now == before).any(-1).float().mean())
