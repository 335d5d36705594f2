"""The part of a layer that mixes tokens: attention of several kinds, convolution, recurrence."""

from __future__ import annotations

from math import sqrt

from gguf import MODEL_TENSOR as T
from gguf import Keys

from .architectures import Architecture
from .layout import Layout
from .shape import Shape


def metadata(out: Layout, row: Architecture) -> None:
    """Put the keys that describe attention, and recurrence where there is any."""
    s = out.shape
    out.put(Keys.Attention.LAYERNORM_RMS_EPS, s.norm_eps)
    out.put(Keys.Attention.HEAD_COUNT, s.n_head)
    out.put(Keys.Rope.FREQ_BASE, s.rope_base)
    if row.window:
        out.put(Keys.Attention.SLIDING_WINDOW, s.n_swa)
    if row.latent:
        _latent_metadata(out, row)
        return
    n_kv = s.n_head if row.equal_heads else s.n_head_kv
    # Where no key-value heads mean a layer without attention, they are counted layer by layer.
    if row.other in ("convolution", "mamba"):
        heads = [n_kv if i in s.attention_layers else 0 for i in range(s.n_layer)]
        out.put(Keys.Attention.HEAD_COUNT_KV, heads)
    else:
        out.put(Keys.Attention.HEAD_COUNT_KV, n_kv)
    out.put(Keys.Attention.KEY_LENGTH, s.head_dim)
    out.put(Keys.Attention.VALUE_LENGTH, s.head_dim)
    rope = s.rope_dim or (s.head_dim // 2 if row.half_rope else s.head_dim)
    out.put(Keys.Rope.DIMENSION_COUNT, rope)
    if row.other == "convolution":
        out.put(Keys.ShortConv.L_CACHE, s.n_conv)
    elif row.other:
        out.put(Keys.SSM.CONV_KERNEL, s.n_conv)
        out.put(Keys.SSM.INNER_SIZE, _inner(s))
        out.put(Keys.SSM.STATE_SIZE, s.ssm_state)
        out.put(Keys.SSM.TIME_STEP_RANK, s.ssm_heads)
        out.put(Keys.SSM.GROUP_COUNT, s.ssm_groups)


def tensors(out: Layout, row: Architecture, layer: int) -> None:
    """Add what `layer` mixes tokens with."""
    if row.other and layer not in out.shape.attention_layers:
        kinds = {"convolution": _convolution, "delta": _delta, "mamba": _mamba}
        kinds[row.other](out, row, layer)
    elif row.latent:
        _latent_attention(out, row, layer)
    else:
        _attention(out, row, layer)


def _attention(out: Layout, row: Architecture, layer: int) -> None:
    s = out.shape
    q = s.n_head * s.head_dim
    kv = (s.n_head if row.equal_heads else s.n_head_kv) * s.head_dim
    if row.fused_qkv:
        out.matrix(T.ATTN_QKV, layer, s.n_embd, q + 2 * kv)
    else:
        wide_q = 2 * q if row.gate == "fused" else q
        for tensor, width in ((T.ATTN_Q, wide_q), (T.ATTN_K, kv), (T.ATTN_V, kv)):
            out.matrix(tensor, layer, s.n_embd, width)
            if row.qkv_bias:
                out.bias(tensor, layer, width)
    if row.qk_norm:
        out.norm(T.ATTN_Q_NORM, layer, s.head_dim if row.qk_norm == "head" else q)
        out.norm(T.ATTN_K_NORM, layer, s.head_dim if row.qk_norm == "head" else kv)
    if row.gate == "apart":
        out.matrix(T.ATTN_GATE, layer, s.n_embd, q)
    out.matrix(T.ATTN_OUT, layer, q, s.n_embd)
    if row.out_bias:
        out.bias(T.ATTN_OUT, layer, s.n_embd)
    if row.sinks:
        out.plain(T.ATTN_SINKS, layer, s.n_head, std=0.5)


def _latent_metadata(out: Layout, row: Architecture) -> None:
    s = out.shape
    out.put(Keys.Rope.DIMENSION_COUNT, s.rope_dim)
    out.put(Keys.Attention.KV_LORA_RANK, s.kv_lora)
    out.put(Keys.Attention.Q_LORA_RANK, s.q_lora)
    if row.latent == "split":
        out.put(Keys.Attention.HEAD_COUNT_KV, 1)
        out.put(Keys.Attention.KEY_LENGTH, s.kv_lora + s.rope_dim)
        out.put(Keys.Attention.VALUE_LENGTH, s.kv_lora)
        out.put(Keys.Attention.KEY_LENGTH_MLA, s.head_dim)
        out.put(Keys.Attention.VALUE_LENGTH_MLA, s.value_dim)
    else:
        out.put(Keys.Attention.HEAD_COUNT_KV, s.n_head)
        out.put(Keys.Attention.KEY_LENGTH, s.head_dim)
        out.put(Keys.Attention.VALUE_LENGTH, s.value_dim)


def _latent_attention(out: Layout, row: Architecture, layer: int) -> None:
    s = out.shape
    nope = s.head_dim - s.rope_dim
    if s.q_lora:
        out.norm(T.ATTN_Q_A_NORM, layer, s.q_lora)
        out.matrix(T.ATTN_Q_A, layer, s.n_embd, s.q_lora)
        out.matrix(T.ATTN_Q_B, layer, s.q_lora, s.n_head * s.head_dim)
    else:
        out.matrix(T.ATTN_Q, layer, s.n_embd, s.n_head * s.head_dim)
    out.norm(T.ATTN_KV_A_NORM, layer, s.kv_lora)
    out.matrix(T.ATTN_KV_A_MQA, layer, s.n_embd, s.kv_lora + s.rope_dim)
    if row.latent == "split":
        out.matrix(T.ATTN_K_B, layer, nope, s.kv_lora, s.n_head)
        out.matrix(T.ATTN_V_B, layer, s.kv_lora, s.value_dim, s.n_head)
    else:
        out.matrix(T.ATTN_KV_B, layer, s.kv_lora, s.n_head * (nope + s.value_dim))
    out.matrix(T.ATTN_OUT, layer, s.n_head * s.value_dim, s.n_embd)


def _convolution(out: Layout, row: Architecture, layer: int) -> None:
    s = out.shape
    out.plain(T.SHORTCONV_CONV, layer, s.n_conv, s.n_embd, std=1.0 / sqrt(s.n_conv))
    out.matrix(T.SHORTCONV_INPROJ, layer, s.n_embd, 3 * s.n_embd)
    out.matrix(T.SHORTCONV_OUTPROJ, layer, s.n_embd, s.n_embd)


def _delta(out: Layout, row: Architecture, layer: int) -> None:
    """Add a gated delta net: `ssm_groups` key heads, `ssm_heads` value heads of `ssm_state`."""
    s = out.shape
    keys, values = s.ssm_state * s.ssm_groups, s.ssm_state * s.ssm_heads
    out.matrix(T.ATTN_QKV, layer, s.n_embd, 2 * keys + values)
    out.matrix(T.ATTN_GATE, layer, s.n_embd, values)
    out.plain(T.SSM_CONV1D, layer, s.n_conv, 2 * keys + values, std=1.0 / sqrt(s.n_conv))
    out.bias(T.SSM_DT, layer, s.ssm_heads)
    out.plain(T.SSM_A, layer, s.ssm_heads, std=0.1, mean=-1.0, suffix="")
    if row.delta_parts:
        out.matrix(T.SSM_BETA, layer, s.n_embd, s.ssm_heads)
        out.matrix(T.SSM_ALPHA, layer, s.n_embd, s.ssm_heads)
    else:
        out.matrix(T.SSM_BETA_ALPHA, layer, s.n_embd, 2 * s.ssm_heads)
    out.norm(T.SSM_NORM, layer, s.ssm_state)
    out.matrix(T.SSM_OUT, layer, values, s.n_embd)


def _inner(s: Shape) -> int:
    return s.ssm_inner or 2 * s.n_embd


def _mamba(out: Layout, row: Architecture, layer: int) -> None:
    """Add a Mamba-2 mixer."""
    s = out.shape
    inner = _inner(s)
    mixed = inner + 2 * s.ssm_groups * s.ssm_state
    out.matrix(T.SSM_IN, layer, s.n_embd, inner + mixed + s.ssm_heads)
    out.plain(T.SSM_CONV1D, layer, s.n_conv, mixed, std=1.0 / sqrt(s.n_conv))
    out.bias(T.SSM_CONV1D, layer, mixed)
    out.bias(T.SSM_DT, layer, s.ssm_heads)
    out.plain(T.SSM_A, layer, 1, s.ssm_heads, std=0.1, mean=-1.0, suffix="")
    out.plain(T.SSM_D, layer, 1, s.ssm_heads, std=0.1, mean=1.0, suffix="")
    out.norm(T.SSM_NORM, layer, inner // s.ssm_groups, s.ssm_groups)
    out.matrix(T.SSM_OUT, layer, inner, s.n_embd)
