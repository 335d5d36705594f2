"""A qwen3moe language model: pre-norm attention with QK-norm and grouped KV heads, then experts."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MoeConfig
from .dispatch import FromSlots, ToSlots, plan
from .sorted_experts import sorted_experts


class RouterLoad(NamedTuple):
    """What one layer's router did on one batch."""

    balance: Tensor  # switch-style balance loss, 1 when even
    dropped: Tensor  # share of (token, choice) pairs that found no room
    counts: Tensor  # [experts] pairs routed to each expert


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


def rope_table(config: MoeConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each [length, head_dim / 2], float32."""
    half = config.head_dim // 2
    rates = config.rope_theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates[None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head: x is [batch, heads, length, head_dim]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with a norm on queries and keys."""

    def __init__(self, c: MoeConfig) -> None:
        super().__init__()
        self.c = c
        self.q = nn.Linear(c.embed, c.heads * c.head_dim, bias=False)
        self.k = nn.Linear(c.embed, c.kv_heads * c.head_dim, bias=False)
        self.v = nn.Linear(c.embed, c.kv_heads * c.head_dim, bias=False)
        self.o = nn.Linear(c.heads * c.head_dim, c.embed, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps)
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        c = self.c
        q = self.q_norm(self.q(x).view(batch, length, c.heads, c.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(batch, length, c.kv_heads, c.head_dim)).transpose(1, 2)
        v = self.v(x).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeat = c.heads // c.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        out: Tensor = self.o(y.transpose(1, 2).reshape(batch, length, -1))
        return out


class Experts(nn.Module):
    """The router and its experts: softmax over all, top-k, renormalised, SwiGLU."""

    def __init__(self, c: MoeConfig) -> None:
        super().__init__()
        self.c = c
        self.router = nn.Linear(c.embed, c.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(c.experts, c.expert_ffn, c.embed))
        self.up = nn.Parameter(torch.empty(c.experts, c.expert_ffn, c.embed))
        self.down = nn.Parameter(torch.empty(c.experts, c.embed, c.expert_ffn))

    def forward(self, x: Tensor, capacity_factor: float) -> tuple[Tensor, RouterLoad]:
        """Return [tokens, embed] for [tokens, embed]; capacity_factor 0 drops nothing."""
        c = self.c
        tokens = x.shape[0]
        with torch.autocast(x.device.type, enabled=False):
            probs = F.linear(x.float(), self.router.weight.float()).softmax(-1)
        weight, chosen = probs.topk(c.top_k, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        if x.device.type == "cpu" and not capacity_factor:
            counts = torch.bincount(chosen.reshape(-1), minlength=c.experts)
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            x, gate, up, down = (t.to(dtype) for t in (x, self.gate, self.up, self.down))
            out = sorted_experts(x, weight.to(dtype), chosen, gate, up, down)
            balance = c.experts * (counts.float() / chosen.numel() * probs.mean(0)).sum()
            return out, RouterLoad(balance, x.new_zeros(()), counts)
        if capacity_factor:
            capacity = -(-int(tokens * c.top_k * capacity_factor) // (c.experts * 32)) * 32
        else:
            capacity = int(torch.bincount(chosen.reshape(-1), minlength=c.experts).max())
        p = plan(chosen, c.experts, min(capacity, tokens))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        slots = ToSlots.apply(x, p.token, p.slot, p.kept).view(c.experts, -1, c.embed)
        dtype = slots.dtype
        hidden = F.silu(torch.bmm(slots, self.gate.to(dtype).transpose(1, 2)))
        hidden = hidden * torch.bmm(slots, self.up.to(dtype).transpose(1, 2))
        y = torch.bmm(hidden, self.down.to(dtype).transpose(1, 2)).view(-1, c.embed)
        out = FromSlots.apply(y, (weight * p.kept).to(dtype), p.slot, p.token, p.pair, p.used)
        share = p.counts.float() / (tokens * c.top_k)
        balance = c.experts * (share * probs.mean(0)).sum()
        return out, RouterLoad(balance, 1 - p.kept.float().mean(), p.counts)


class Block(nn.Module):
    """One layer: attention, then experts, each behind a norm and added to the stream."""

    def __init__(self, c: MoeConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.embed, c.norm_eps)
        self.attention = Attention(c)
        self.experts_norm = RMSNorm(c.embed, c.norm_eps)
        self.experts = Experts(c)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, capacity_factor: float
    ) -> tuple[Tensor, RouterLoad]:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        h = self.experts_norm(x)
        y, load = self.experts(h.reshape(-1, h.shape[-1]), capacity_factor)
        return x + y.view_as(x), load


class MoeModel(nn.Module):
    """Token embeddings, blocks, norm and output; embeddings and output are separate."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.embed)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.embed, config.norm_eps)
        self.output = nn.Linear(config.embed, config.vocab, bias=False)
        self.active = config.layers  # later layers are skipped: exact while they are silent
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = rope_table(config, 2 * config.context, torch.device("cpu"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def start(self, seed: int) -> None:
        """Draw fresh weights; what writes into the stream starts silent, at zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() == 1:
                continue
            scale = 0.02 if name.startswith("output") else p.shape[-1] ** -0.5
            if name.startswith("embed"):
                scale = 1.0
            if name.endswith(("attention.o.weight", "experts.down")):
                scale = 0.0
            with torch.no_grad():
                p.copy_(torch.randn(p.shape, generator=generator) * scale)

    def forward(self, ids: Tensor, capacity_factor: float = 0.0) -> tuple[Tensor, list[RouterLoad]]:
        """Return the stream before the output matrix, [batch, length, embed], and the loads."""
        x = self.embed(ids)
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        loads = []
        for block in self.blocks[: self.active]:
            x, load = block(x, cos, sin, capacity_factor)
            loads.append(load)
        return self.norm(x), loads

    @torch.no_grad()
    def routes(self, ids: Tensor) -> list[Tensor]:
        """Return each layer's chosen experts, [tokens, k], best first."""
        found: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Tensor, ...], out: object) -> None:
            logits = F.linear(args[0].float(), module.router.weight.float())
            found.append(logits.topk(self.config.top_k, dim=-1).indices)

        hooks = [block.experts.register_forward_hook(note) for block in self.blocks]
        self(ids)
        for hook in hooks:
            hook.remove()
        return found

    def logits(self, ids: Tensor) -> Tensor:
        """Return float32 logits [batch, length, vocab], no pair dropped."""
        out: Tensor = self.output(self(ids)[0]).float()
        return out
