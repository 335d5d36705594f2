"""Published sizes of well-known Mixture-of-Experts models, from their config.json files.

Each entry names the model card its numbers come from. Nothing but sizes is taken: weights and
vocabulary of a model made from them are random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf import Keys

from .layout import Value
from .shape import Shape


@dataclass(frozen=True)
class Published:
    """Tie a size to its architecture, its model card and the format it is usually run in."""

    card: str
    arch: str
    shape: Shape
    quant: str = "q4_k"
    metadata: Mapping[str, Value] = field(default_factory=dict)


def _yarn(arch: str, factor: float, n_ctx: int) -> dict[str, Value]:
    return {
        Keys.Rope.SCALING_TYPE.format(arch=arch): "yarn",
        Keys.Rope.SCALING_FACTOR.format(arch=arch): factor,
        Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch): n_ctx,
    }


PUBLISHED: dict[str, Published] = {
    "deepseek-v2-lite": Published(
        card="deepseek-ai/DeepSeek-V2-Lite",
        arch="deepseek2",
        shape=Shape(
            n_layer=27, n_embd=2048, n_head=16, n_head_kv=16, head_dim=192, n_ff=10944,
            n_ff_exp=1408, n_expert=64, n_expert_used=6, n_vocab=102400, n_ctx=163840,
            n_shared=2, n_dense_lead=1, rope_base=10000.0, norm_eps=1e-6, rope_dim=64,
            kv_lora=512, value_dim=128,
        ),
        metadata={
            **_yarn("deepseek2", 40.0, 4096),
            Keys.Rope.SCALING_YARN_LOG_MUL.format(arch="deepseek2"): 0.0707,
        },
    ),
    "qwen1.5-moe": Published(
        card="Qwen/Qwen1.5-MoE-A2.7B",
        arch="qwen2moe",
        shape=Shape(
            n_layer=24, n_embd=2048, n_head=16, n_head_kv=16, head_dim=128, n_ff=5632,
            n_ff_exp=1408, n_expert=60, n_expert_used=4, n_vocab=151936, n_ctx=8192,
            n_ff_shared=5632, rope_base=1000000.0, norm_eps=1e-6,
        ),
    ),
    "olmoe": Published(
        card="allenai/OLMoE-1B-7B-0924",
        arch="olmoe",
        shape=Shape(
            n_layer=16, n_embd=2048, n_head=16, n_head_kv=16, head_dim=128, n_ff=1024,
            n_ff_exp=1024, n_expert=64, n_expert_used=8, n_vocab=50304, n_ctx=4096,
            rope_base=10000.0, norm_eps=1e-5,
        ),
    ),
    "qwen3-30b-a3b": Published(
        card="Qwen/Qwen3-30B-A3B",
        arch="qwen3moe",
        shape=Shape(
            n_layer=48, n_embd=2048, n_head=32, n_head_kv=4, head_dim=128, n_ff=6144,
            n_ff_exp=768, n_expert=128, n_expert_used=8, n_vocab=151936, n_ctx=40960,
            rope_base=1000000.0, norm_eps=1e-6,
        ),
    ),
    "gpt-oss-20b": Published(
        card="openai/gpt-oss-20b",
        arch="gpt-oss",
        quant="mxfp4",
        shape=Shape(
            n_layer=24, n_embd=2880, n_head=64, n_head_kv=8, head_dim=64, n_ff=2880,
            n_ff_exp=2880, n_expert=32, n_expert_used=4, n_vocab=201088, n_ctx=131072,
            rope_base=150000.0, norm_eps=1e-5, n_swa=128,
        ),
        metadata=_yarn("gpt-oss", 32.0, 4096),
    ),
}  # fmt: skip
