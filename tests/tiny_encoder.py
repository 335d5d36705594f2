"""Tiny random models that turn texts into vectors: an encoder with experts, and a decoder that pools."""

from __future__ import annotations

from pathlib import Path

from gguf import MODEL_TENSOR as T
from gguf import GGMLQuantizationType, Keys, PoolingType

import tiny_moe
from random_moe import writer
from random_moe.layout import Layout
from vocabularies import remade

ENCODER = "nomic-bert-moe"


def encoder(path: Path) -> Path:
    """Write a nomic-bert-moe model: every second layer has experts, of two matrices."""
    shape = tiny_moe.shape_of("olmoe", "Q8_0", n_layer=4)
    out = Layout(ENCODER, shape)
    n_embd, n_ff = shape.n_embd, shape.n_ff_exp
    values = {
        Keys.LLM.CONTEXT_LENGTH: shape.n_ctx, Keys.LLM.EMBEDDING_LENGTH: n_embd,
        Keys.LLM.BLOCK_COUNT: shape.n_layer, Keys.LLM.FEED_FORWARD_LENGTH: n_ff,
        Keys.Attention.HEAD_COUNT: shape.n_head, Keys.Attention.LAYERNORM_EPS: shape.norm_eps,
        Keys.Attention.CAUSAL: False, Keys.LLM.POOLING_TYPE: int(PoolingType.MEAN),
        Keys.LLM.EXPERT_COUNT: shape.n_expert, Keys.LLM.EXPERT_USED_COUNT: shape.n_expert_used,
        Keys.LLM.MOE_EVERY_N_LAYERS: 2, "tokenizer.ggml.token_type_count": 1,
    }  # fmt: skip
    for key, value in values.items():
        out.put(key, value)
    out.matrix(T.TOKEN_EMBD, None, n_embd, shape.n_vocab, role="embedding", gain=n_embd**0.5)
    _norm(out, T.TOKEN_EMBD_NORM, None)
    for layer in range(shape.n_layer):
        out.matrix(T.ATTN_QKV, layer, n_embd, 3 * n_embd)
        out.matrix(T.ATTN_OUT, layer, n_embd, n_embd)
        _norm(out, T.ATTN_OUT_NORM, layer)
        if layer % 2 == 1:
            out.matrix(T.FFN_GATE_INP, layer, n_embd, shape.n_expert, role="plain", gain=2.0)
            out.matrix(T.FFN_UP_EXP, layer, n_embd, n_ff, shape.n_expert, role="expert")
            out.matrix(T.FFN_DOWN_EXP, layer, n_ff, n_embd, shape.n_expert, role="expert", gain=2.0)
        else:
            out.matrix(T.FFN_UP, layer, n_embd, n_ff)
            out.matrix(T.FFN_DOWN, layer, n_ff, n_embd)
        _norm(out, T.LAYER_OUT_NORM, layer)
    kind = GGMLQuantizationType.Q8_0
    return writer.write(path, out, writer.formats(kind, kind), seed=1)[0]


def _norm(out: Layout, tensor: T, layer: int | None) -> None:
    out.norm(tensor, layer, out.shape.n_embd)
    out.bias(tensor, layer, out.shape.n_embd)


def decoder(folder: Path, pooling: PoolingType) -> Path:
    """Write a qwen3moe model whose header says how it pools."""
    plain = tiny_moe.make(folder / "plain.gguf", "qwen3moe", "Q8_0")
    new = {"qwen3moe.pooling_type": ("UINT32", int(pooling))}
    return remade(plain, folder / f"{pooling.name}.gguf", new)
