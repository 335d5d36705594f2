"""From an architecture's row and a shape to every key and tensor of a model."""

from __future__ import annotations

from math import sqrt

from gguf import MODEL_TENSOR as T
from gguf import Keys

from . import mixing
from .architectures import ARCHITECTURES, Architecture
from .layout import Layout
from .shape import Shape


def build(
    arch: str, shape: Shape, *, merged_gate_up: bool = False, expert_scales: bool = False
) -> Layout:
    """Return the metadata and tensors of architecture `arch` at `shape`, tokenizer apart.

    `merged_gate_up` stores gate and up experts as one tensor, `expert_scales` adds a factor per
    expert and matrix. Raises ValueError for what llama.cpp does not load or use with `arch`.
    """
    row = ARCHITECTURES[arch]
    if merged_gate_up and not row.merged_gate_up:
        raise ValueError(f"llama.cpp loads no merged gate and up experts for {arch}")
    if expert_scales and not row.scales:
        raise ValueError(f"llama.cpp uses no expert scales for {arch}")
    if expert_scales and merged_gate_up:
        raise ValueError("llama.cpp scales no merged gate and up experts")
    if shape.n_nextn and not row.nextn:
        raise ValueError(f"llama.cpp computes no further tokens with {arch}")
    out = Layout(row.name, shape)
    _metadata(out, row)
    tied = row.tied_output or shape.tied_output
    # A tied matrix is the output too, and must not blow the logits up.
    gain = 1.0 if tied or row.scaled_embedding else sqrt(shape.n_embd)
    out.matrix(T.TOKEN_EMBD, None, shape.n_embd, shape.n_vocab, role="embedding", gain=gain)
    if row.rope_factors:
        out.plain(T.ROPE_FREQS, None, shape.head_dim // 2, std=0.1, mean=1.0)
    for layer in range(shape.n_layer + shape.n_nextn):
        _norm(out, row, T.ATTN_NORM, layer)
        if not (row.alone and _only_experts(shape, layer)):
            mixing.tensors(out, row, layer)
        if not row.alone or _only_experts(shape, layer):
            _feed_forward(out, row, layer, merged_gate_up)
            if expert_scales:
                _scales(out, layer)
        if layer >= shape.n_layer:
            _further_token(out, layer)
    _norm(out, row, row.output_norm, None)
    if not tied:
        out.matrix(T.OUTPUT, None, shape.n_embd, shape.n_vocab, role="output", gain=2.0)
    if row.norm_bias:
        out.bias(T.OUTPUT, None, shape.n_vocab)
    return out


def _only_experts(shape: Shape, layer: int) -> bool:
    """Say whether `layer` is for experts alone, in architectures whose layers do one thing."""
    return layer % 2 == 1 and layer not in shape.attention_layers


def _further_token(out: Layout, layer: int) -> None:
    """Add what makes a layer predict the token after the next one, beside the layer itself."""
    n_embd = out.shape.n_embd
    out.matrix(T.NEXTN_EH_PROJ, layer, 2 * n_embd, n_embd)
    for tensor in (T.NEXTN_ENORM, T.NEXTN_HNORM, T.NEXTN_SHARED_HEAD_NORM):
        out.norm(tensor, layer, n_embd)


def _metadata(out: Layout, row: Architecture) -> None:
    s = out.shape
    out.put(Keys.LLM.CONTEXT_LENGTH, s.n_ctx)
    out.put(Keys.LLM.EMBEDDING_LENGTH, s.n_embd)
    out.put(Keys.LLM.BLOCK_COUNT, s.n_layer + s.n_nextn)
    if s.n_nextn:
        out.put(Keys.LLM.NEXTN_PREDICT_LAYERS, s.n_nextn)
    out.put(Keys.LLM.VOCAB_SIZE, s.n_vocab)
    out.put(Keys.LLM.EXPERT_COUNT, s.n_expert)
    out.put(Keys.LLM.EXPERT_USED_COUNT, s.n_expert_used)
    length = s.n_ff if row.expert_length == "own" else s.n_ff_exp
    if row.alone:
        lengths = [length if _only_experts(s, i) else 0 for i in range(s.n_layer)]
        out.put(Keys.LLM.FEED_FORWARD_LENGTH, lengths)
    else:
        out.put(Keys.LLM.FEED_FORWARD_LENGTH, length)
    if row.expert_length != "none":
        out.put(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, s.n_ff_exp)
    if row.shared == "count":
        out.put(Keys.LLM.EXPERT_SHARED_COUNT, s.n_shared)
    if row.shared == "length":
        out.put(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, s.n_ff_shared)
    if row.dense_lead:
        out.put(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, s.n_dense_lead)
    if row.moe_step:
        out.put(Keys.LLM.INTERLEAVE_MOE_LAYER_STEP, row.moe_step)
    if row.gating:
        out.put(Keys.LLM.EXPERT_GATING_FUNC, row.gating)
    if row.weighting:
        out.put(Keys.LLM.EXPERT_WEIGHTS_SCALE, s.weights_scale)
        out.put(Keys.LLM.EXPERT_WEIGHTS_NORM, s.weights_norm)
    if s.n_group:
        out.put(Keys.LLM.EXPERT_GROUP_COUNT, s.n_group)
        out.put(Keys.LLM.EXPERT_GROUP_USED_COUNT, s.n_group_used)
    if row.chunks:
        out.put(Keys.LLM.EXPERT_CHUNK_FEED_FORWARD_LENGTH, s.n_ff_shared)
        out.put(Keys.LLM.EXPERTS_PER_GROUP, s.n_chunk)
        out.put(Keys.LLM.EXPERT_GROUP_SCALE, 0.5)
    mixing.metadata(out, row)
    if row.extra is not None:
        row.extra(out)


def _norm(out: Layout, row: Architecture, tensor: T, layer: int | None) -> None:
    out.norm(tensor, layer, out.shape.n_embd)
    if row.norm_bias:
        out.bias(tensor, layer, out.shape.n_embd)


def _feed_forward(out: Layout, row: Architecture, layer: int, merged_gate_up: bool) -> None:
    s = out.shape
    if not row.alone and row.ffn_norm is not None:
        _norm(out, row, row.ffn_norm, layer)
    for tensor in row.more_norms:
        _norm(out, row, tensor, layer)
    lead = row.dense_lead and layer < s.n_dense_lead
    if lead or (row.moe_step and (layer + 1) % row.moe_step != 0):
        _dense(out, layer, s.n_ff)
        return
    if row.beside:
        _dense(out, layer, s.n_embd if row.beside == "square" else s.n_ff)
    _router(out, row, layer)
    _experts(out, row, layer, merged_gate_up)
    if row.chunks:
        _chunk_experts(out, layer)
    if row.shared:
        _shared_expert(out, row, layer)


def _dense(out: Layout, layer: int, n_ff: int) -> None:
    n_embd = out.shape.n_embd
    out.matrix(T.FFN_GATE, layer, n_embd, n_ff)
    out.matrix(T.FFN_DOWN, layer, n_ff, n_embd)
    out.matrix(T.FFN_UP, layer, n_embd, n_ff)


def _router(out: Layout, row: Architecture, layer: int) -> None:
    s = out.shape
    # Gain two spreads the routing; plain, as real files keep routers in F32.
    out.matrix(T.FFN_GATE_INP, layer, s.n_embd, s.n_expert, role="plain", gain=2.0)
    if row.router_scale:
        root = sqrt(s.n_embd)  # what the graph divides by
        out.plain(T.FFN_GATE_INP, layer, s.n_embd, std=0.1 * root, mean=root, suffix="scale")
    if row.selection_bias:
        out.bias(T.FFN_EXP_PROBS_B, layer, s.n_expert)
    if row.expert_bias:
        out.bias(T.FFN_GATE_INP, layer, s.n_expert)


def _experts(out: Layout, row: Architecture, layer: int, merged_gate_up: bool) -> None:
    s = out.shape
    into = [(T.FFN_GATE_EXP, s.n_ff_exp), (T.FFN_UP_EXP, s.n_ff_exp)]
    if merged_gate_up:
        into = [(T.FFN_GATE_UP_EXP, 2 * s.n_ff_exp)]
    elif row.ungated:
        del into[0]
    for tensor, width in into:
        out.matrix(tensor, layer, s.n_embd, width, s.n_expert, role="expert")
        if row.expert_bias:
            out.bias(tensor, layer, width, s.n_expert)
    # Gain two, so that what experts add weighs as much as the residual stream.
    out.matrix(T.FFN_DOWN_EXP, layer, s.n_ff_exp, s.n_embd, s.n_expert, role="expert", gain=2.0)
    if row.expert_bias:
        out.bias(T.FFN_DOWN_EXP, layer, s.n_embd, s.n_expert)


def _scales(out: Layout, layer: int) -> None:
    for tensor in (T.FFN_GATE_EXP, T.FFN_UP_EXP, T.FFN_DOWN_EXP):
        if out.has(tensor, layer):
            out.plain(tensor, layer, out.shape.n_expert, std=0.2, mean=1.0, suffix="scale")


def _chunk_experts(out: Layout, layer: int) -> None:
    s = out.shape
    n_chunk = s.n_expert // s.n_chunk
    out.matrix(T.FFN_GATE_CHEXP, layer, s.n_embd, s.n_ff_shared, n_chunk)
    out.matrix(T.FFN_DOWN_CHEXP, layer, s.n_ff_shared, s.n_embd, n_chunk)
    out.matrix(T.FFN_UP_CHEXP, layer, s.n_embd, s.n_ff_shared, n_chunk)


def _shared_expert(out: Layout, row: Architecture, layer: int) -> None:
    s = out.shape
    lengths = {"count": s.n_ff_exp * s.n_shared, "length": s.n_ff_shared, "equal": s.n_ff_exp}
    n_ff = lengths[row.shared]
    if row.shared_router:
        out.matrix(T.FFN_GATE_INP_SHEXP, layer, s.n_embd, role="plain")
    if not row.ungated:
        out.matrix(T.FFN_GATE_SHEXP, layer, s.n_embd, n_ff)
    out.matrix(T.FFN_DOWN_SHEXP, layer, n_ff, s.n_embd)
    out.matrix(T.FFN_UP_SHEXP, layer, s.n_embd, n_ff)
