"""Published shapes that a twin can come near to, and what it cannot follow."""

from __future__ import annotations

from dataclasses import dataclass

from widen.plan import Plan
from widen.source import Source


@dataclass(frozen=True)
class Shape:
    """A published model: layer, expert and width counts from its own config.json."""

    title: str
    moe_layers: int
    dense_layers: int
    experts: int
    top_k: int
    embed: int
    expert_ffn: int
    shared_ffn: int


SHAPES = {
    "deepseek-v2-lite": Shape("DeepSeek-V2-Lite", 26, 1, 64, 6, 2048, 1408, 2816),
    "qwen1.5-moe": Shape("Qwen1.5-MoE-A2.7B", 24, 0, 60, 4, 2048, 1408, 5632),
    "olmoe": Shape("OLMoE-1B-7B", 16, 0, 64, 8, 2048, 1024, 0),
    "qwen3-30b-a3b": Shape("Qwen3-30B-A3B", 48, 0, 128, 8, 2048, 768, 0),
}


def differences(shape: Shape, source: Source, plan: Plan) -> list[str]:
    """Say in one line each where the twin is not the published shape."""
    found: list[str] = []
    if source.experts != shape.experts:
        found.append(f"{source.experts} experts a layer, not {shape.experts}")
    if source.top_k != shape.top_k:
        found.append(f"top-{source.top_k}, not top-{shape.top_k}")
    if len(plan.layers) != shape.moe_layers:
        found.append(f"{len(plan.layers)} MoE layers, not {shape.moe_layers}")
    if shape.dense_layers:
        found.append(f"no dense layer, where it has {shape.dense_layers}")
    if shape.shared_ffn:
        found.append(f"no shared experts, where it has {shape.shared_ffn} shared units a layer")
    if (plan.hidden.wide, plan.units.wide) != (shape.embed, shape.expert_ffn):
        found.append(
            f"experts of {plan.hidden.wide} x {plan.units.wide}, "
            f"not {shape.embed} x {shape.expert_ffn}"
        )
    each = plan.expert_bytes / 2**20
    mine = len(plan.layers) * source.top_k * each
    theirs = shape.moe_layers * shape.top_k * each
    if mine != theirs:
        found.append(f"{mine:.0f} MiB of routed experts a token, not {theirs:.0f} (same quant)")
    mine = len(plan.layers) * source.experts * each
    theirs = shape.moe_layers * shape.experts * each
    if mine != theirs:
        found.append(f"{mine:.0f} MiB of experts in all, not {theirs:.0f} (same quant)")
    found.append(f"attention, vocabulary and tokenizer stay the source's ({source.heads} heads)")
    return found
