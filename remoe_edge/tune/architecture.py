"""What a decoder must know of a model beside its weights, read from GGUF keys or an HF config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remoe_edge.errors import ModelError, UnsupportedError

# HF model_type -> GGUF architecture, for the architectures whose routing the decoder reproduces.
HF_ARCHITECTURES = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
    "deepseek_v2": "deepseek2",
}
# llama.cpp divides the chosen probabilities by their sum for these; deepseek2 says so in a key.
NORMALISES_WEIGHTS = {"qwen2moe": False, "qwen3moe": True, "olmoe": False}


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071), as DeepSeek-V2 uses it."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    rotation_scale: float = 1.0  # multiplies cosines and sines
    score_scale: float = 1.0  # multiplies the attention scores


@dataclass(frozen=True)
class Shape:
    """The sizes and rules of one model; `architecture` is GGUF's name for it."""

    architecture: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    key_dim: int  # of one head, rotated and unrotated parts together
    value_dim: int
    rope_dim: int
    rope_base: float
    norm_epsilon: float
    n_experts: int
    top_k: int
    dense_layers: int  # leading layers without experts
    normalise_weights: bool
    weights_scale: float
    context: int
    kv_rank: int = 0  # of latent attention; 0: plain grouped-query attention
    clamp_qkv: float = 0.0
    yarn: Yarn | None = None

    @property
    def router_layers(self) -> range:
        """Return the blocks that have a router."""
        return range(self.dense_layers, self.n_layers)

    @property
    def n_slots_all(self) -> int:
        """Return how many slots hold every expert of every layer."""
        return len(self.router_layers) * self.n_experts


def hf_router_name(layer: int) -> str:
    """Return the safetensors key of a layer's router; the same in all supported architectures."""
    return f"model.layers.{layer}.mlp.gate.weight"


def gguf_router_name(layer: int) -> str:
    """Return the GGUF name of a layer's router."""
    return f"blk.{layer}.ffn_gate_inp.weight"


def shape_from_gguf(keys: Mapping[str, Any], path: str) -> Shape:
    """Read a shape from GGUF keys; `keys` maps names to plain Python values."""
    arch = str(keys.get("general.architecture", ""))
    if arch not in HF_ARCHITECTURES.values():
        raise UnsupportedError(
            f"{path}: cannot tune architecture {arch!r}; "
            f"supported are {', '.join(HF_ARCHITECTURES.values())}"
        )

    def key(name: str, default: Any = None) -> Any:
        value = keys.get(f"{arch}.{name}", default)
        if value is None:
            raise ModelError(f"{path}: key {arch}.{name} is missing")
        return value

    if int(key("expert_gating_func", 1)) not in (0, 1):
        raise UnsupportedError(f"{path}: only softmax routers can be tuned, not sigmoid ones")
    heads = int(key("attention.head_count"))
    embd = int(key("embedding_length"))
    latent = arch == "deepseek2"
    if latent:
        # Newer files describe the compressed heads, and the true ones under *_mla.
        key_dim = int(key("attention.key_length_mla", key("attention.key_length")))
        value_dim = int(key("attention.value_length_mla", key("attention.value_length")))
        normalise = bool(keys.get(f"{arch}.expert_weights_norm", False))
    else:
        key_dim = int(key("attention.key_length", embd // heads))
        value_dim = int(key("attention.value_length", key_dim))
        normalise = NORMALISES_WEIGHTS[arch]
    yarn = None
    scaling = str(keys.get(f"{arch}.rope.scaling.type", "none"))
    if scaling == "yarn":
        factor = float(key("rope.scaling.factor"))
        log_multiplier = float(keys.get(f"{arch}.rope.scaling.yarn_log_multiplier", 0.0))
        # The key carries 0.1 * mscale_all_dim; with it, rotation and its correction cancel.
        yarn = Yarn(
            factor=factor,
            original_context=int(key("rope.scaling.original_context_length")),
            beta_fast=float(key("rope.scaling.yarn_beta_fast", 32.0)),
            beta_slow=float(key("rope.scaling.yarn_beta_slow", 1.0)),
            rotation_scale=1.0 if log_multiplier else 1.0 + 0.1 * math.log(factor),
            score_scale=(1.0 + log_multiplier * math.log(factor)) ** 2,
        )
    elif scaling not in ("none", ""):
        raise UnsupportedError(f"{path}: rope scaling {scaling!r} is not supported for tuning")
    scale = float(keys.get(f"{arch}.expert_weights_scale", 0.0))
    return Shape(
        architecture=arch,
        n_layers=int(key("block_count")),
        n_embd=embd,
        n_heads=heads,
        n_kv_heads=int(key("attention.head_count_kv", heads)),
        key_dim=key_dim,
        value_dim=value_dim,
        rope_dim=int(key("rope.dimension_count", key_dim)),
        rope_base=float(key("rope.freq_base", 10000.0)),
        norm_epsilon=float(key("attention.layer_norm_rms_epsilon")),
        n_experts=int(key("expert_count")),
        top_k=int(key("expert_used_count")),
        dense_layers=int(keys.get(f"{arch}.leading_dense_block_count", 0)) if latent else 0,
        normalise_weights=normalise,
        weights_scale=scale if scale else 1.0,
        context=int(key("context_length", 1 << 20)),
        kv_rank=int(key("attention.kv_lora_rank")) if latent else 0,
        clamp_qkv=float(keys.get(f"{arch}.attention.clamp_kqv", 0.0)),
        yarn=yarn,
    )


def shape_from_hf(config: Any, path: str) -> Shape:
    """Read a shape from a transformers config object."""
    kind = str(config.model_type)
    if kind not in HF_ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: cannot tune model type {kind!r}; supported are {', '.join(HF_ARCHITECTURES)}"
        )

    def get(name: str, default: Any = None) -> Any:
        value = getattr(config, name, None)
        return default if value is None else value

    for name, plain in (
        ("decoder_sparse_step", 1),
        ("mlp_only_layers", []),
        ("use_sliding_window", False),
        ("moe_layer_freq", 1),
        ("topk_method", "greedy"),
        ("scoring_func", "softmax"),
    ):
        if get(name, plain) != plain:
            raise UnsupportedError(f"{path}: {name} = {get(name)!r} is not supported for tuning")
    latent = kind == "deepseek_v2"
    heads = int(config.num_attention_heads)
    rope = dict(get("rope_parameters") or get("rope_scaling") or {})
    head_dim = int(get("head_dim", config.hidden_size // heads))
    yarn = None
    scaling = str(rope.get("rope_type", rope.get("type", "default")))
    if scaling == "yarn":
        yarn = _yarn_from_hf(rope, latent)
    elif scaling != "default":
        raise UnsupportedError(f"{path}: rope scaling {scaling!r} is not supported for tuning")
    return Shape(
        architecture=HF_ARCHITECTURES[kind],
        n_layers=int(config.num_hidden_layers),
        n_embd=int(config.hidden_size),
        n_heads=heads,
        n_kv_heads=heads if latent else int(get("num_key_value_heads", heads)),
        key_dim=int(config.qk_nope_head_dim + config.qk_rope_head_dim) if latent else head_dim,
        value_dim=int(config.v_head_dim) if latent else head_dim,
        rope_dim=int(config.qk_rope_head_dim) if latent else head_dim,
        rope_base=float(rope.get("rope_theta", get("rope_theta", 10000.0))),
        norm_epsilon=float(config.rms_norm_eps),
        n_experts=int(get("num_experts", get("n_routed_experts"))),
        top_k=int(config.num_experts_per_tok),
        dense_layers=int(get("first_k_dense_replace", 0)) if latent else 0,
        # transformers ignores norm_topk_prob for deepseek_v2, and llama.cpp's key says the same.
        normalise_weights=False if latent else bool(get("norm_topk_prob", False)),
        weights_scale=float(get("routed_scaling_factor", 1.0)) if latent else 1.0,
        context=int(get("max_position_embeddings", 1 << 20)),
        kv_rank=int(config.kv_lora_rank) if latent else 0,
        clamp_qkv=float(get("clip_qkv", 0.0)),
        yarn=yarn,
    )


def _yarn_from_hf(rope: Mapping[str, Any], latent: bool) -> Yarn:
    factor = float(rope["factor"])

    def magnitude(multiplier: float) -> float:
        return 1.0 + 0.1 * multiplier * math.log(factor) if factor > 1 else 1.0

    scale, scale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    rotation = rope.get("attention_factor")
    if rotation is None:
        rotation = magnitude(1.0)
        if scale and scale_all:
            rotation = magnitude(float(scale)) / magnitude(float(scale_all))
    return Yarn(
        factor=factor,
        original_context=int(rope["original_max_position_embeddings"]),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        rotation_scale=float(rotation),
        score_scale=magnitude(float(scale_all)) ** 2 if latent and scale_all else 1.0,
    )
