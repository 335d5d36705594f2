"""A llama-architecture GGUF as a batched text generator: a few hundred answers at once on a CPU."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Teacher:
    """The network, in bfloat16, with a KV cache for prompts of one length."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)

        def value(key: str) -> float:
            return float(reader.fields[f"llama.{key}"].contents())

        self.layers = int(value("block_count"))
        self.heads = int(value("attention.head_count"))
        self.kv_heads = int(value("attention.head_count_kv"))
        self.eps = value("attention.layer_norm_rms_epsilon")
        self.rope_base = value("rope.freq_base")
        w: dict[str, Tensor] = {}
        for tensor in reader.tensors:
            data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            x = torch.from_numpy(data)
            w[tensor.name.removesuffix(".weight")] = x if x.ndim == 1 else x.bfloat16()
        for i in range(self.layers):
            w[f"{i}.qkv"] = torch.cat([w.pop(f"blk.{i}.attn_{x}") for x in "qkv"])
            w[f"{i}.gate_up"] = torch.cat([w.pop(f"blk.{i}.ffn_{x}") for x in ("gate", "up")])
        self.w = w
        self.embed = w["token_embd"]
        self.output = w.get("output", self.embed)
        self.width = self.embed.shape[1]
        self.head_dim = self.width // self.heads

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x.float(), (self.width,), self.w[name], self.eps).bfloat16()

    def _rotate(self, x: Tensor, at: int) -> Tensor:
        """Rotate pairs of neighbours, as llama.cpp orders them: x is [batch, length, heads, dim]."""
        half = self.head_dim // 2
        place = torch.arange(at, at + x.shape[1])[:, None]
        angle = place * self.rope_base ** (-torch.arange(half) / half)
        cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
        a, b = x.float().unflatten(-1, (half, 2)).unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).bfloat16()

    def forward(self, ids: Tensor, k_cache: Tensor, v_cache: Tensor, at: int) -> Tensor:
        """Return the last position's logits; ids [batch, length], caches [layer, row, head, ...]."""
        rows, length = ids.shape
        end, group = at + length, self.heads // self.kv_heads
        sizes = [self.heads * self.head_dim] + 2 * [self.kv_heads * self.head_dim]
        x = F.embedding(ids, self.embed)
        for i in range(self.layers):
            qkv = F.linear(self._norm(x, f"blk.{i}.attn_norm"), self.w[f"{i}.qkv"])
            q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in qkv.split(sizes, -1))
            k_cache[i, :rows, :, at:end] = self._rotate(k, at).transpose(1, 2)
            v_cache[i, :rows, :, at:end] = v.transpose(1, 2)
            q, keys, values = (
                self._rotate(q, at),
                k_cache[i, :rows, :, :end],
                v_cache[i, :rows, :, :end],
            )
            if length == 1:  # a KV head's queries are rows of one product: nothing is repeated
                y = F.scaled_dot_product_attention(
                    q.view(rows, self.kv_heads, group, self.head_dim), keys, values
                ).reshape(rows, 1, -1)
            else:
                assert at == 0  # a prompt is read at once
                y = F.scaled_dot_product_attention(
                    q.transpose(1, 2),
                    keys.repeat_interleave(group, 1),
                    values.repeat_interleave(group, 1),
                    is_causal=True,
                )
                y = y.transpose(1, 2).reshape(rows, length, -1)
            x = x + F.linear(y, self.w[f"blk.{i}.attn_output"])
            gate, up = F.linear(self._norm(x, f"blk.{i}.ffn_norm"), self.w[f"{i}.gate_up"]).chunk(
                2, -1
            )
            x = x + F.linear(F.silu(gate) * up, self.w[f"blk.{i}.ffn_down"])
        return F.linear(self._norm(x[:, -1], "output_norm"), self.output).float()

    @torch.inference_mode()
    def answer(
        self,
        prompts: Tensor,
        limit: int,
        stop: int,
        generator: torch.Generator,
        temperature: float = 0.6,
        top_k: int = 40,
        top_p: float = 0.9,
    ) -> tuple[list[list[int]], list[bool]]:
        """Return for [row, length] prompts the tokens of each row's answer, and whether it ended.

        At most `limit` tokens each, without the token `stop` that ends an answer.
        """
        rows, length = prompts.shape
        shape = (self.layers, rows, self.kv_heads, length + limit, self.head_dim)
        k_cache, v_cache = (torch.empty(shape, dtype=torch.bfloat16) for _ in range(2))
        answers: list[list[int]] = [[] for _ in range(rows)]
        ended = [False] * rows
        alive = list(range(rows))
        logits = self.forward(prompts, k_cache, v_cache, 0)
        for n in range(limit):
            best, token = logits.topk(top_k, -1)
            share = (best / temperature).softmax(-1)
            share = share.masked_fill(share.cumsum(-1) - share > top_p, 0)
            drawn = token.gather(1, torch.multinomial(share, 1, generator=generator))[:, 0]
            going = []
            for place, (row, taken) in enumerate(zip(alive, drawn.tolist(), strict=True)):
                if taken == stop:
                    ended[row] = True
                elif not ended[row]:
                    answers[row].append(taken)
                    going.append(place)
            if not going:
                break
            if len(going) < 0.8 * len(alive):  # moving the others up costs a copy of the cache
                k_cache, v_cache = k_cache[:, going], v_cache[:, going]
                alive, drawn = [alive[p] for p in going], drawn[going]
            if n + 1 < limit:
                logits = self.forward(drawn[:, None], k_cache, v_cache, length + n)
        return answers, ended
