"""What sets each Mixture-of-Experts architecture apart in the eyes of llama.cpp's loader.

One row per architecture, read from src/models/*.cpp of llama-cpp-python 0.3.36; `build` turns a
row and a `Shape` into keys and tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf import MODEL_TENSOR as T
from gguf import Keys

from .layout import Layout

SOFTMAX, SIGMOID = 1, 2  # llama.cpp's expert gating functions


@dataclass(frozen=True)
class Architecture:
    """Name what sets one architecture apart; defaults are those of `llama`.

    `name` is the value of general.architecture, several rows may share it.
    """

    name: str
    # Mixing tokens
    qk_norm: str = ""  # "head": one weight per head element, "row": one per row element
    fused_qkv: bool = False
    equal_heads: bool = False  # the loader takes as many key-value heads as heads
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False
    gate: str = ""  # gates the attention's output: "apart", or "fused" with the queries
    half_rope: bool = False
    rope_factors: bool = False
    window: bool = False
    latent: str = ""  # multi-head latent attention: "split" into k_b and v_b, or old "whole" kv_b
    other: str = ""  # in layers that are not attention: "convolution", "delta" or "mamba"
    delta_parts: bool = False  # beta and alpha of a delta net are two matrices
    alone: bool = False  # a layer mixes tokens or has experts, never both
    nextn: bool = False  # the graph has one for layers that predict further tokens
    # Normalisation and output
    ffn_norm: T | None = T.FFN_NORM
    more_norms: tuple[T, ...] = ()
    norm_bias: bool = False  # biases beside every normalisation weight and the output
    output_norm: T = T.OUTPUT_NORM
    scaled_embedding: bool = False  # the graph multiplies it by the root of its length
    tied_output: bool = False  # the loader asks for no output matrix
    # Experts
    expert_length: str = "own"  # beside the dense length, "equal" to it, or "none"
    expert_bias: bool = False
    selection_bias: bool = False  # added to the probabilities before the top-k only
    ungated: bool = False  # experts of two matrices
    merged_gate_up: bool = False  # the loader takes gate and up as one tensor, too
    scales: bool = False  # a factor per expert may come with each matrix
    chunks: bool = False  # small experts that groups of experts share
    beside: str = ""  # dense feed-forward beside the experts: "square", or of the "own" length
    router_scale: bool = False  # a factor per element of the router's input
    shared: str = ""  # shared expert: "count" of experts, "length", or "equal" to one expert
    shared_router: bool = False
    dense_lead: bool = False
    moe_step: int = 0  # every how many layers one has experts, as a key
    gating: int = 0
    weighting: bool = False  # has keys for scale and norm of the routed weights
    extra: Callable[[Layout], None] | None = None


def _granite(layout: Layout) -> None:
    layout.put(Keys.LLM.LOGIT_SCALE, 4.0)
    layout.put(Keys.LLM.RESIDUAL_SCALE, 0.7)
    layout.put(Keys.LLM.EMBEDDING_SCALE, 3.0)
    layout.put(Keys.Attention.SCALE, 1.0 / layout.shape.head_dim**0.5)


def _dbrx(layout: Layout) -> None:
    layout.put(Keys.Attention.LAYERNORM_EPS, layout.shape.norm_eps)
    layout.put(Keys.Attention.CLAMP_KQV, 8.0)


def _grok(layout: Layout) -> None:
    layout.put(Keys.LLM.EMBEDDING_SCALE, 1.0)
    layout.put(Keys.LLM.LOGIT_SCALE, 1.0)


def _qwen35(layout: Layout) -> None:
    layout.put(Keys.LLM.FULL_ATTENTION_INTERVAL, 2)
    part = layout.shape.head_dim // 8
    layout.put(Keys.Rope.DIMENSION_SECTIONS, [part, part, 2 * part, 0])


def _gemma4(layout: Layout) -> None:
    s = layout.shape
    layout.put(Keys.Attention.SLIDING_WINDOW_PATTERN, [i % 2 == 0 for i in range(s.n_layer)])
    layout.put(Keys.Attention.KEY_LENGTH_SWA, s.head_dim)
    layout.put(Keys.Attention.VALUE_LENGTH_SWA, s.head_dim)
    layout.put(Keys.LLM.EMBD_LENGTH_PER_LAYER_INP, 0)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", expert_length="none", scales=True),
    "qwen2moe": Architecture("qwen2moe", qkv_bias=True, shared="length", shared_router=True),
    "qwen3moe": Architecture("qwen3moe", qk_norm="head", scales=True),
    "olmoe": Architecture("olmoe", qk_norm="row", equal_heads=True, expert_length="none"),
    "deepseek": Architecture("deepseek", shared="count", dense_lead=True, weighting=True),
    "deepseek2": Architecture(
        "deepseek2", latent="split", shared="count", dense_lead=True, weighting=True, nextn=True,
        gating=SOFTMAX, merged_gate_up=True,
    ),
    "deepseek2-v3": Architecture(
        "deepseek2", latent="split", shared="count", dense_lead=True, weighting=True, nextn=True,
        gating=SIGMOID, selection_bias=True, merged_gate_up=True,
    ),
    "deepseek2-whole": Architecture(
        "deepseek2", latent="whole", shared="count", dense_lead=True, weighting=True,
        gating=SOFTMAX, merged_gate_up=True,
    ),
    "granitemoe": Architecture(
        "granitemoe", expert_length="none", shared="length", extra=_granite
    ),
    "gpt-oss": Architecture(
        "gpt-oss", qkv_bias=True, out_bias=True, sinks=True, ffn_norm=T.ATTN_POST_NORM,
        expert_bias=True, window=True,
    ),
    "glm4moe": Architecture(
        "glm4moe", qk_norm="head", qkv_bias=True, ffn_norm=T.ATTN_POST_NORM, half_rope=True,
        selection_bias=True, shared="count", dense_lead=True, gating=SIGMOID, weighting=True,
        nextn=True,
    ),
    "ernie4_5-moe": Architecture(
        "ernie4_5-moe", selection_bias=True, shared="length", dense_lead=True, moe_step=1
    ),
    "bailingmoe": Architecture("bailingmoe", shared="count", weighting=True),
    "bailingmoe2": Architecture(
        "bailingmoe2", fused_qkv=True, qk_norm="head", selection_bias=True, shared="count",
        dense_lead=True, gating=SIGMOID, weighting=True,
    ),
    "dots1": Architecture(
        "dots1", qk_norm="head", equal_heads=True, selection_bias=True, shared="count",
        dense_lead=True, gating=SIGMOID, weighting=True,
    ),
    "hunyuan-moe": Architecture(
        "hunyuan-moe", qk_norm="head", expert_length="equal", shared="length"
    ),
    "phimoe": Architecture(
        "phimoe", qkv_bias=True, out_bias=True, norm_bias=True, expert_length="none"
    ),
    "lfm2moe": Architecture(
        "lfm2moe", qk_norm="head", output_norm=T.TOKEN_EMBD_NORM, tied_output=True,
        selection_bias=True, dense_lead=True, other="convolution", gating=SIGMOID,
    ),
    "llama4": Architecture("llama4", shared="equal", moe_step=2),
    "qwen3next": Architecture(
        "qwen3next", qk_norm="head", gate="fused", ffn_norm=T.ATTN_POST_NORM, other="delta",
        shared="length", shared_router=True, merged_gate_up=True,
        extra=lambda layout: layout.put(Keys.LLM.FULL_ATTENTION_INTERVAL, 2),
    ),
    "nemotron_h_moe": Architecture(
        "nemotron_h_moe", other="mamba", alone=True, ungated=True, scales=True, selection_bias=True,
        shared="length", weighting=True,
        extra=lambda layout: layout.put(Keys.Attention.LAYERNORM_EPS, layout.shape.norm_eps),
    ),
    "minimax-m2": Architecture(
        "minimax-m2", qk_norm="row", expert_length="equal", selection_bias=True, gating=SIGMOID
    ),
    "cohere2moe": Architecture(
        "cohere2moe", ffn_norm=None, tied_output=True, window=True, shared="count",
        dense_lead=True, gating=SIGMOID, weighting=True, merged_gate_up=True, nextn=True,
        extra=lambda layout: layout.put(Keys.LLM.LOGIT_SCALE, 0.5),
    ),
    "afmoe": Architecture(
        "afmoe", qk_norm="head", scaled_embedding=True, gate="apart",
        more_norms=(T.ATTN_POST_NORM, T.FFN_POST_NORM), window=True,
        selection_bias=True, shared="count", dense_lead=True, gating=SIGMOID, weighting=True,
    ),
    "exaone-moe": Architecture(
        "exaone-moe", qk_norm="head", window=True, selection_bias=True, shared="count",
        dense_lead=True, gating=SIGMOID, weighting=True,
    ),
    "mellum": Architecture("mellum", qk_norm="head", window=True, scales=True),
    "smallthinker": Architecture("smallthinker", gating=SIGMOID),
    "grovemoe": Architecture("grovemoe", qk_norm="head", chunks=True),
    "dbrx": Architecture(
        "dbrx", fused_qkv=True, ffn_norm=T.ATTN_OUT_NORM, expert_length="none", extra=_dbrx
    ),
    "grok": Architecture(
        "grok", more_norms=(T.ATTN_OUT_NORM, T.LAYER_OUT_NORM), extra=_grok
    ),
    "arctic": Architecture(
        "arctic", more_norms=(T.FFN_NORM_EXP,), expert_length="none", beside="square"
    ),
    "mistral3": Architecture("mistral3", expert_length="none", scales=True),
    "granitehybrid": Architecture(
        "granitehybrid", other="mamba", expert_length="none", shared="length", extra=_granite
    ),
    "qwen35moe": Architecture(
        "qwen35moe", qk_norm="head", gate="fused", ffn_norm=T.ATTN_POST_NORM, other="delta",
        delta_parts=True, shared="length", shared_router=True, merged_gate_up=True,
        extra=_qwen35,
    ),
    "hy_v3": Architecture(
        "hy_v3", qk_norm="head", shared="length", gating=SIGMOID, weighting=True,
        merged_gate_up=True, nextn=True,
    ),
    "gemma4": Architecture(
        "gemma4", qk_norm="head", scaled_embedding=True, window=True, rope_factors=True,
        more_norms=(
            T.ATTN_POST_NORM, T.FFN_POST_NORM, T.FFN_PRE_NORM_2, T.FFN_POST_NORM_1,
            T.FFN_POST_NORM_2,
        ),
        beside="own", router_scale=True, merged_gate_up=True, scales=True, extra=_gemma4,
    ),
}  # fmt: skip
