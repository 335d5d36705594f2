"""A Mixture-of-Experts language model, all of it frozen, whose routers come as an argument.

The same code runs the base model and the tuned one, and what the losses need (each router's logits,
the reference router's logits on the same hidden state, the chosen experts) comes back beside the
hidden states. Attention, norms and experts keep the dtype the weights were loaded in; routers are
always float32, as in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from remoe_edge.errors import ModelError
from remoe_edge.tune.architecture import Shape, Yarn, gguf_router_name
from remoe_edge.tune.experts import FrozenExperts
from remoe_edge.tune.weights import WeightSource

# One router for each MoE layer, float32 [experts, d].
Routers = list[Tensor]

_DENSE = ("ffn_gate", "ffn_up", "ffn_down")
_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
_GATE_UP = "gate and up, one above the other"  # of all experts; no tensor of a file
# Elements of the vocabulary-sized logits alive at once.
_LOGITS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Routing:
    """What every router did: logits and reference [layers, batch, tokens, experts] float32, chosen
    [layers, batch, tokens, k] int64, best first."""

    logits: Tensor
    reference: Tensor
    chosen: Tensor


class Decoder:
    """A frozen model on one device; `routers` are its own, float32 [experts, d], one per MoE
    layer."""

    def __init__(
        self,
        source: WeightSource,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        on_layer: Callable[[int, int], None] | None = None,
    ) -> None:
        """Load layer by layer; `on_layer(done, total)` is told of each."""
        self.shape = source.shape
        self.path = source.path
        self.device = torch.device(device)
        self.dtype = dtype
        self._source = source
        shape = self.shape
        self.routers = [self._router(layer) for layer in shape.router_layers]
        self._embed = self._take("token_embd.weight")
        self._norm = self._take("output_norm.weight")
        output = source.tensor("output.weight")
        self._output = self._embed if output is None else self._place(output)
        self._layers: list[dict[str, Tensor]] = []
        for layer in range(shape.n_layers):
            self._layers.append(self._load_layer(layer))
            if on_layer is not None:
                on_layer(layer + 1, shape.n_layers)
        frequencies = _rope_frequencies(shape.rope_base, shape.rope_dim, shape.yarn)
        self._frequencies = frequencies.to(self.device)
        self._rotation_scale = shape.yarn.rotation_scale if shape.yarn else 1.0
        score = shape.yarn.score_scale if shape.yarn else 1.0
        self._score_scale = score / math.sqrt(shape.key_dim)

    @property
    def n_vocab(self) -> int:
        """Return the number of rows of the token embedding."""
        return int(self._embed.shape[0])

    def hidden(
        self, tokens: Tensor, routers: Sequence[Tensor] | None = None, recompute: bool = False
    ) -> tuple[Tensor, Routing]:
        """Return the normed last hidden states [batch, tokens, d] and the routing.

        With `recompute`, each layer's activations are computed again in the backward pass.
        """
        routers = self.routers if routers is None else routers
        cos, sin = self._rotation(tokens.shape[1])
        x = F.embedding(tokens, self._embed)
        logits: list[Tensor] = []
        reference: list[Tensor] = []
        chosen: list[Tensor] = []
        for number, weights in enumerate(self._layers):
            index = number - self.shape.dense_layers
            if index < 0:
                x = self._attend(x, weights, cos, sin)
                x = x + self._feed(self._normed(x, weights["ffn_norm.weight"]), weights, _DENSE)
                continue
            if recompute and torch.is_grad_enabled():
                step = checkpoint(
                    self._moe_layer,
                    x,
                    weights,
                    routers[index],
                    index,
                    cos,
                    sin,
                    use_reentrant=False,
                )
            else:
                step = self._moe_layer(x, weights, routers[index], index, cos, sin)
            x = step[0]
            logits.append(step[1])
            reference.append(step[2])
            chosen.append(step[3])
        routing = Routing(torch.stack(logits), torch.stack(reference), torch.stack(chosen))
        return self._normed(x, self._norm), routing

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits over the vocabulary for normed hidden states."""
        return F.linear(hidden, self._output).float()

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return each token's cross entropy in nats, [batch, tokens], a slice of logits at a
        time."""

        def losses(part: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(part), wanted, reduction="none")

        return self._by_slices(losses, hidden, targets)

    def token_divergences(self, hidden: Tensor, base_hidden: Tensor) -> Tensor:
        """Return each token's KL(base || tuned) of the next-token distributions, [batch,
        tokens]."""

        def divergences(part: Tensor, base: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.logits(base).log_softmax(-1)
            ours = self.logits(part).log_softmax(-1)
            return F.kl_div(ours, target, log_target=True, reduction="none").sum(-1)

        return self._by_slices(divergences, hidden, base_hidden)

    def _by_slices(
        self, function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, other: Tensor
    ) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        others = other.reshape(rows.shape[0], *other.shape[2:])
        size = max(1, _LOGITS_AT_ONCE // self.n_vocab)
        parts = []
        for start in range(0, rows.shape[0], size):
            pair = rows[start : start + size], others[start : start + size]
            if rows.shape[0] > size and torch.is_grad_enabled():
                parts.append(checkpoint(function, *pair, use_reentrant=False))
            else:
                parts.append(function(*pair))
        return torch.cat(parts).view(hidden.shape[:2])

    def _moe_layer(
        self,
        x: Tensor,
        weights: dict[str, Tensor],
        router: Tensor,
        index: int,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self._attend(x, weights, cos, sin)
        h = self._normed(x, weights["ffn_norm.weight"])
        seen = h.float()
        logits = F.linear(seen, router)
        reference = F.linear(seen.detach(), self.routers[index])
        weight, chosen = logits.softmax(-1).topk(self.shape.top_k, dim=-1)
        if self.shape.normalise_weights:
            weight = weight / weight.sum(-1, keepdim=True)
        weight = weight * self.shape.weights_scale
        flat = h.reshape(-1, h.shape[-1])
        y = FrozenExperts.apply(
            flat,
            chosen.view(flat.shape[0], -1),
            weight.reshape(flat.shape[0], -1),
            weights[_GATE_UP],
            weights["ffn_down_exps.weight"],
        )
        y = y.view_as(h)
        if f"{_SHARED[0]}.weight" in weights:
            shared = self._feed(h, weights, _SHARED)
            gate = weights.get("ffn_gate_inp_shexp.weight")
            if gate is not None:
                shared = shared * torch.sigmoid(F.linear(h, gate.view(1, -1)))
            y = y + shared
        return x + y, logits, reference, chosen

    def _attend(self, x: Tensor, w: dict[str, Tensor], cos: Tensor, sin: Tensor) -> Tensor:
        h = self._normed(x, w["attn_norm.weight"])
        parts = self._latent(h, w, cos, sin) if self.shape.kv_rank else self._plain(h, w, cos, sin)
        q, k, v = (part.transpose(1, 2) for part in parts)
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._score_scale)
        y = y.transpose(1, 2).reshape(*x.shape[:2], -1)
        return x + _affine(y, w, "attn_output")

    def _plain(
        self, h: Tensor, w: dict[str, Tensor], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = self.shape
        q, k, v = (_affine(h, w, f"attn_{name}") for name in "qkv")
        if "attn_q_norm.weight" in w and w["attn_q_norm.weight"].numel() != s.key_dim:
            q, k = (self._normed(y, w[f"attn_{n}_norm.weight"]) for y, n in ((q, "q"), (k, "k")))
        if s.clamp_qkv:
            q, k, v = (y.clamp(-s.clamp_qkv, s.clamp_qkv) for y in (q, k, v))
        q = q.view(*h.shape[:2], s.n_heads, s.key_dim)
        k = k.view(*h.shape[:2], s.n_kv_heads, s.key_dim)
        v = v.view(*h.shape[:2], s.n_kv_heads, s.value_dim)
        if "attn_q_norm.weight" in w and w["attn_q_norm.weight"].numel() == s.key_dim:
            q, k = (self._normed(y, w[f"attn_{n}_norm.weight"]) for y, n in ((q, "q"), (k, "k")))
        return _rotate_halves(q, cos, sin), _rotate_halves(k, cos, sin), v

    def _latent(
        self, h: Tensor, w: dict[str, Tensor], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = self.shape
        plain = s.key_dim - s.rope_dim
        if "attn_q.weight" in w:
            q = F.linear(h, w["attn_q.weight"])
        else:
            q = self._normed(F.linear(h, w["attn_q_a.weight"]), w["attn_q_a_norm.weight"])
            q = F.linear(q, w["attn_q_b.weight"])
        q = q.view(*h.shape[:2], s.n_heads, s.key_dim)
        q = torch.cat((q[..., :plain], _rotate_pairs(q[..., plain:], cos, sin)), dim=-1)
        latent, rotated = F.linear(h, w["attn_kv_a_mqa.weight"]).split([s.kv_rank, s.rope_dim], -1)
        latent = self._normed(latent, w["attn_kv_a_norm.weight"])
        rotated = _rotate_pairs(rotated[:, :, None], cos, sin).expand(-1, -1, s.n_heads, -1)
        both = F.linear(latent, w["attn_kv_b.weight"]).view(*h.shape[:2], s.n_heads, -1)
        k, v = both.split([plain, s.value_dim], dim=-1)
        return q, torch.cat((k, rotated), dim=-1), v

    def _feed(self, h: Tensor, w: dict[str, Tensor], names: Sequence[str]) -> Tensor:
        gate, up, down = (w[f"{name}.weight"] for name in names)
        return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.shape.norm_epsilon)
        return y.to(x.dtype) * weight

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self.device, dtype=torch.float32)
        angles = (positions[:, None] * self._frequencies)[None, :, None, :]
        return angles.cos() * self._rotation_scale, angles.sin() * self._rotation_scale

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype).contiguous()

    def _take(self, name: str) -> Tensor:
        tensor = self._source.tensor(name)
        if tensor is None:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        return self._place(tensor)

    def _router(self, layer: int) -> Tensor:
        name = gguf_router_name(layer)
        tensor = self._source.tensor(name)
        if tensor is None:
            raise ModelError(f"{self.path}: layer {layer} has no router ({name})")
        check_router(tensor, self.shape, layer, self.path)
        return tensor.to(self.device, torch.float32).contiguous()

    def _load_layer(self, layer: int) -> dict[str, Tensor]:
        prefix = f"blk.{layer}."
        names = ["attn_norm.weight", "ffn_norm.weight", "attn_output.weight"]
        optional = ["attn_output.bias"]
        if self.shape.kv_rank:
            names += ["attn_kv_a_mqa.weight", "attn_kv_a_norm.weight"]
            optional += ["attn_q.weight"]
            optional += ["attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight"]
        else:
            names += [f"attn_{n}.weight" for n in "qkv"]
            optional += [f"attn_{n}.bias" for n in "qkv"]
            optional += ["attn_q_norm.weight", "attn_k_norm.weight"]
        if layer < self.shape.dense_layers:
            names += [f"{name}.weight" for name in _DENSE]
        else:
            names += [f"{name}.weight" for name in _EXPERTS]
            optional += [f"{name}.weight" for name in (*_SHARED, "ffn_gate_inp_shexp")]
        weights = {name: self._take(prefix + name) for name in names}
        if layer >= self.shape.dense_layers:
            pair = [weights.pop(f"{name}.weight") for name in _EXPERTS[:2]]
            weights[_GATE_UP] = torch.cat(pair, dim=1)
        for name in optional:
            tensor = self._source.tensor(prefix + name)
            if tensor is not None:
                weights[name] = self._place(tensor)
        if self.shape.kv_rank:
            weights["attn_kv_b.weight"] = self._place(self._kv_b(prefix))
        return weights

    def _kv_b(self, prefix: str) -> Tensor:
        whole = self._source.tensor(prefix + "attn_kv_b.weight")
        if whole is not None:
            return whole
        # llama.cpp splits it by head, keys transposed, to multiply in the compressed space.
        keys = self._source.tensor(prefix + "attn_k_b.weight")
        values = self._source.tensor(prefix + "attn_v_b.weight")
        if keys is None or values is None:
            raise ModelError(f"{self.path}: tensor {prefix}attn_kv_b.weight is missing")
        return torch.cat((keys.transpose(1, 2), values), dim=1).reshape(-1, self.shape.kv_rank)


def check_router(router: Tensor, shape: Shape, layer: int, path: str) -> None:
    """Refuse a router that is transposed, of another size, or not finite."""
    expected = (shape.n_experts, shape.n_embd)
    if tuple(router.shape) != expected:
        turned = " (it is transposed)" if tuple(router.shape) == expected[::-1] else ""
        raise ModelError(
            f"{path}: router of layer {layer} has shape {list(router.shape)}, "
            f"expected {list(expected)}{turned}"
        )
    bad = int((~torch.isfinite(router)).sum())
    if bad:
        raise ModelError(
            f"{path}: router of layer {layer} has {bad} values that are NaN or infinite"
        )


def _affine(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _rope_frequencies(base: float, dim: int, yarn: Yarn | None) -> Tensor:
    steps = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    frequencies = base**-steps
    if yarn is not None:

        def pair_turning(turns: float) -> float:
            length = yarn.original_context / (turns * 2 * math.pi)
            return dim * math.log(length) / (2 * math.log(base))

        low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
        high = min(math.ceil(pair_turning(yarn.beta_slow)), dim - 1)
        ramp = (torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)
        slow = ramp.clamp(0, 1)
        frequencies = frequencies * (1 - slow) + frequencies / yarn.factor * slow
    return frequencies.float()


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    y = x.float()
    a, b = y[..., 0::2], y[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)
