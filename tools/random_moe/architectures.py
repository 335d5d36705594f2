"""Which keys and tensors llama.cpp expects of each Mixture-of-Experts architecture.

One row of `ARCHITECTURES` per architecture names what sets it apart; `layout` turns a row and a
`Shape` into metadata and tensors. Names come from the `gguf` package; which of them an
architecture has was read from llama.cpp's loader (src/models/*.cpp of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import TypeAlias

from gguf import MODEL_TENSOR as T
from gguf import TENSOR_NAMES, Keys

from .shape import Shape

Value: TypeAlias = bool | int | float | str | list[int] | list[bool] | list[str]
SOFTMAX, SIGMOID = 1, 2  # llama.cpp's expert gating functions


@dataclass(frozen=True)
class Tensor:
    """Describe one tensor.

    `ne` is in ggml's order (row length first). `role` decides the storage format: "expert",
    "dense", "embedding", "output" are quantised as asked, "plain" is always F32. Values are
    `mean` plus noise of deviation `std`.
    """

    name: str
    ne: tuple[int, ...]
    role: str
    std: float
    mean: float = 0.0

    @property
    def n_elements(self) -> int:
        """Return the number of elements."""
        return prod(self.ne)


@dataclass
class Layout:
    """Collect the metadata and tensors of one model, in file order."""

    arch: str
    shape: Shape
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def put(self, key: str, value: Value) -> None:
        """Set a metadata key, given as one of `gguf.Keys` with its {arch} still open."""
        self.metadata[key.format(arch=self.arch)] = value

    def _name(self, tensor: T, layer: int | None, suffix: str) -> str:
        return f"{TENSOR_NAMES[tensor].format(bid=layer)}.{suffix}"

    def matrix(
        self,
        tensor: T,
        layer: int | None,
        *ne: int,
        role: str = "dense",
        gain: float = 1.0,
    ) -> None:
        """Add a weight whose output has about `gain` times the deviation of its input."""
        name = self._name(tensor, layer, "weight")
        self.tensors.append(Tensor(name, ne, role, gain / sqrt(ne[0])))

    def plain(self, tensor: T, layer: int | None, *ne: int, std: float) -> None:
        """Add a weight that is no matrix, kept in F32."""
        self.tensors.append(Tensor(self._name(tensor, layer, "weight"), ne, "plain", std))

    def norm(self, tensor: T, layer: int | None, *ne: int) -> None:
        """Add a normalisation weight, near one."""
        self.tensors.append(Tensor(self._name(tensor, layer, "weight"), ne, "plain", 0.1, 1.0))

    def bias(self, tensor: T, layer: int | None, *ne: int, std: float = 0.1) -> None:
        """Add a bias."""
        self.tensors.append(Tensor(self._name(tensor, layer, "bias"), ne, "plain", std))


@dataclass(frozen=True)
class Architecture:
    """Name what sets one architecture apart; defaults are those of `llama`.

    `name` is the value of general.architecture, several rows may share it.
    """

    name: str
    qk_norm: str = ""  # "head": one weight per head element, "row": one per row element
    fused_qkv: bool = False
    equal_heads: bool = False  # the loader takes as many key-value heads as heads
    qkv_bias: bool = False
    out_bias: bool = False
    norm_bias: bool = False  # biases beside every normalisation weight and the output
    sinks: bool = False
    latent: str = ""  # multi-head latent attention: "split" into k_b and v_b, or old "whole" kv_b
    ffn_norm: T = T.FFN_NORM
    output_norm: T = T.OUTPUT_NORM
    tied_output: bool = False  # the loader asks for no output matrix
    half_rope: bool = False
    expert_length: bool = True  # experts have a length of their own beside the dense one
    expert_bias: bool = False
    selection_bias: bool = False  # added to the probabilities before the top-k only
    merged_gate_up: bool = False  # the loader takes gate and up as one tensor, too
    shared: str = ""  # shared expert: "count" of experts, "length", or "equal" to one expert
    shared_router: bool = False
    dense_lead: bool = False
    moe_step: int = 0  # every how many layers one has experts, as a key
    swa: bool = False
    convolution: bool = False
    gating: int = 0
    weighting: bool = False  # has keys for scale and norm of the routed weights
    extra: Callable[[Layout], None] | None = None


def _granite(layout: Layout) -> None:
    layout.put(Keys.LLM.LOGIT_SCALE, 4.0)
    layout.put(Keys.LLM.RESIDUAL_SCALE, 0.7)
    layout.put(Keys.LLM.EMBEDDING_SCALE, 3.0)
    layout.put(Keys.Attention.SCALE, 1.0 / layout.shape.head_dim**0.5)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", expert_length=False),
    "qwen2moe": Architecture("qwen2moe", qkv_bias=True, shared="length", shared_router=True),
    "qwen3moe": Architecture("qwen3moe", qk_norm="head"),
    "olmoe": Architecture("olmoe", qk_norm="row", equal_heads=True, expert_length=False),
    "deepseek": Architecture("deepseek", shared="count", dense_lead=True, weighting=True),
    "deepseek2": Architecture(
        "deepseek2", latent="split", shared="count", dense_lead=True, weighting=True,
        gating=SOFTMAX, merged_gate_up=True,
    ),
    "deepseek2-v3": Architecture(
        "deepseek2", latent="split", shared="count", dense_lead=True, weighting=True,
        gating=SIGMOID, selection_bias=True, merged_gate_up=True,
    ),
    "deepseek2-whole": Architecture(
        "deepseek2", latent="whole", shared="count", dense_lead=True, weighting=True,
        gating=SOFTMAX, merged_gate_up=True,
    ),
    "granitemoe": Architecture(
        "granitemoe", expert_length=False, shared="length", extra=_granite
    ),
    "gpt-oss": Architecture(
        "gpt-oss", qkv_bias=True, out_bias=True, sinks=True, ffn_norm=T.ATTN_POST_NORM,
        expert_bias=True, swa=True,
    ),
    "glm4moe": Architecture(
        "glm4moe", qk_norm="head", qkv_bias=True, ffn_norm=T.ATTN_POST_NORM, half_rope=True,
        selection_bias=True, shared="count", dense_lead=True, gating=SIGMOID, weighting=True,
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
        "hunyuan-moe", qk_norm="head", expert_length=False, shared="length",
        extra=lambda layout: layout.put(
            Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, layout.shape.n_ff_exp
        ),
    ),
    "phimoe": Architecture(
        "phimoe", qkv_bias=True, out_bias=True, norm_bias=True, expert_length=False
    ),
    "lfm2moe": Architecture(
        "lfm2moe", qk_norm="head", output_norm=T.TOKEN_EMBD_NORM, tied_output=True,
        selection_bias=True, dense_lead=True, convolution=True, gating=SIGMOID,
    ),
    "llama4": Architecture("llama4", shared="equal", moe_step=2),
}  # fmt: skip


def layout(arch: str, shape: Shape, *, merged_gate_up: bool = False) -> Layout:
    """Return the metadata and tensors of architecture `arch` at `shape`, tokenizer apart."""
    row = ARCHITECTURES[arch]
    if merged_gate_up and not row.merged_gate_up:
        raise ValueError(f"llama.cpp loads no merged gate and up experts for {arch}")
    out = Layout(row.name, shape)
    _metadata(out, row)
    tied = row.tied_output or shape.tied_output
    # A tied matrix is the output too, and must not blow the logits up.
    out.matrix(T.TOKEN_EMBD, None, shape.n_embd, shape.n_vocab, role="embedding",
               gain=2.0 if tied else sqrt(shape.n_embd))  # fmt: skip
    for layer in range(shape.n_layer):
        _norm(out, row, T.ATTN_NORM, layer)
        if row.convolution and layer not in shape.attention_layers:
            _convolution(out, layer)
        elif row.latent:
            _latent_attention(out, row, layer)
        else:
            _attention(out, row, layer)
        _norm(out, row, row.ffn_norm, layer)
        if _has_experts(row, shape, layer):
            _experts(out, row, layer, merged_gate_up)
        else:
            _feed_forward(out, layer, shape.n_ff, (T.FFN_GATE, T.FFN_DOWN, T.FFN_UP))
    _norm(out, row, row.output_norm, None)
    if not tied:
        out.matrix(T.OUTPUT, None, shape.n_embd, shape.n_vocab, role="output", gain=2.0)
    if row.norm_bias:
        out.bias(T.OUTPUT, None, shape.n_vocab)
    return out


def _has_experts(row: Architecture, shape: Shape, layer: int) -> bool:
    if row.dense_lead and layer < shape.n_dense_lead:
        return False
    return row.moe_step == 0 or (layer + 1) % row.moe_step == 0


def _metadata(out: Layout, row: Architecture) -> None:
    s = out.shape
    out.put(Keys.LLM.CONTEXT_LENGTH, s.n_ctx)
    out.put(Keys.LLM.EMBEDDING_LENGTH, s.n_embd)
    out.put(Keys.LLM.BLOCK_COUNT, s.n_layer)
    out.put(Keys.LLM.FEED_FORWARD_LENGTH, s.n_ff if row.expert_length else s.n_ff_exp)
    out.put(Keys.LLM.VOCAB_SIZE, s.n_vocab)
    out.put(Keys.LLM.EXPERT_COUNT, s.n_expert)
    out.put(Keys.LLM.EXPERT_USED_COUNT, s.n_expert_used)
    out.put(Keys.Attention.LAYERNORM_RMS_EPS, s.norm_eps)
    out.put(Keys.Rope.FREQ_BASE, s.rope_base)
    out.put(Keys.Attention.HEAD_COUNT, s.n_head)
    if row.latent:
        _latent_metadata(out, row)
    else:
        n_kv = s.n_head if row.equal_heads else s.n_head_kv
        if row.convolution:
            layers = range(s.n_layer)
            out.put(
                Keys.Attention.HEAD_COUNT_KV,
                [n_kv if i in s.attention_layers else 0 for i in layers],
            )
            out.put(Keys.ShortConv.L_CACHE, s.n_conv)
        else:
            out.put(Keys.Attention.HEAD_COUNT_KV, n_kv)
        out.put(Keys.Attention.KEY_LENGTH, s.head_dim)
        out.put(Keys.Attention.VALUE_LENGTH, s.head_dim)
        rope = s.rope_dim or (s.head_dim // 2 if row.half_rope else s.head_dim)
        out.put(Keys.Rope.DIMENSION_COUNT, rope)
    if row.expert_length:
        out.put(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, s.n_ff_exp)
    if row.shared == "count":
        out.put(Keys.LLM.EXPERT_SHARED_COUNT, s.n_shared)
    if row.shared == "length":
        out.put(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, s.n_ff_shared)
    if row.dense_lead:
        out.put(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, s.n_dense_lead)
    if row.moe_step:
        out.put(Keys.LLM.INTERLEAVE_MOE_LAYER_STEP, row.moe_step)
    if row.swa:
        out.put(Keys.Attention.SLIDING_WINDOW, s.n_swa)
    if row.gating:
        out.put(Keys.LLM.EXPERT_GATING_FUNC, row.gating)
    if row.weighting:
        out.put(Keys.LLM.EXPERT_WEIGHTS_SCALE, s.weights_scale)
        out.put(Keys.LLM.EXPERT_WEIGHTS_NORM, s.weights_norm)
    if s.n_group:
        out.put(Keys.LLM.EXPERT_GROUP_COUNT, s.n_group)
        out.put(Keys.LLM.EXPERT_GROUP_USED_COUNT, s.n_group_used)
    if row.extra is not None:
        row.extra(out)


def _norm(out: Layout, row: Architecture, tensor: T, layer: int | None) -> None:
    out.norm(tensor, layer, out.shape.n_embd)
    if row.norm_bias:
        out.bias(tensor, layer, out.shape.n_embd)


def _attention(out: Layout, row: Architecture, layer: int) -> None:
    s = out.shape
    q = s.n_head * s.head_dim
    kv = (s.n_head if row.equal_heads else s.n_head_kv) * s.head_dim
    if row.fused_qkv:
        out.matrix(T.ATTN_QKV, layer, s.n_embd, q + 2 * kv)
    else:
        for tensor, width in ((T.ATTN_Q, q), (T.ATTN_K, kv), (T.ATTN_V, kv)):
            out.matrix(tensor, layer, s.n_embd, width)
            if row.qkv_bias:
                out.bias(tensor, layer, width)
    if row.qk_norm:
        out.norm(T.ATTN_Q_NORM, layer, s.head_dim if row.qk_norm == "head" else q)
        out.norm(T.ATTN_K_NORM, layer, s.head_dim if row.qk_norm == "head" else kv)
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


def _convolution(out: Layout, layer: int) -> None:
    s = out.shape
    out.plain(T.SHORTCONV_CONV, layer, s.n_conv, s.n_embd, std=1.0 / sqrt(s.n_conv))
    out.matrix(T.SHORTCONV_INPROJ, layer, s.n_embd, 3 * s.n_embd)
    out.matrix(T.SHORTCONV_OUTPROJ, layer, s.n_embd, s.n_embd)


def _feed_forward(out: Layout, layer: int, n_ff: int, parts: tuple[T, T, T]) -> None:
    gate, down, up = parts
    n_embd = out.shape.n_embd
    out.matrix(gate, layer, n_embd, n_ff)
    out.matrix(down, layer, n_ff, n_embd)
    out.matrix(up, layer, n_embd, n_ff)


def _experts(out: Layout, row: Architecture, layer: int, merged_gate_up: bool) -> None:
    s = out.shape
    # Gain two spreads the routing; plain, as the loader's files keep routers in F32.
    out.matrix(T.FFN_GATE_INP, layer, s.n_embd, s.n_expert, role="plain", gain=2.0)
    if row.selection_bias:
        out.bias(T.FFN_EXP_PROBS_B, layer, s.n_expert)
    if merged_gate_up:
        out.matrix(T.FFN_GATE_UP_EXP, layer, s.n_embd, 2 * s.n_ff_exp, s.n_expert, role="expert")
    else:
        out.matrix(T.FFN_GATE_EXP, layer, s.n_embd, s.n_ff_exp, s.n_expert, role="expert")
    # Gain two, so that what experts add weighs as much as the residual stream.
    out.matrix(T.FFN_DOWN_EXP, layer, s.n_ff_exp, s.n_embd, s.n_expert, role="expert", gain=2.0)
    if not merged_gate_up:
        out.matrix(T.FFN_UP_EXP, layer, s.n_embd, s.n_ff_exp, s.n_expert, role="expert")
    if row.expert_bias:
        out.bias(T.FFN_GATE_INP, layer, s.n_expert)
        out.bias(T.FFN_GATE_EXP, layer, s.n_ff_exp, s.n_expert)
        out.bias(T.FFN_DOWN_EXP, layer, s.n_embd, s.n_expert)
        out.bias(T.FFN_UP_EXP, layer, s.n_ff_exp, s.n_expert)
    shared = {"count": s.n_ff_exp * s.n_shared, "length": s.n_ff_shared, "equal": s.n_ff_exp}
    if row.shared:
        if row.shared_router:
            out.matrix(T.FFN_GATE_INP_SHEXP, layer, s.n_embd, role="plain")
        parts = (T.FFN_GATE_SHEXP, T.FFN_DOWN_SHEXP, T.FFN_UP_SHEXP)
        _feed_forward(out, layer, shared[row.shared], parts)
