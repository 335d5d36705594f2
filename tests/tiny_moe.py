"""Tiny random models that stock llama.cpp loads and runs, made in milliseconds.

    first = make(tmp_path / "m.gguf", "qwen3moe", "Q4_K")

Same arguments, same bytes. Outputs are finite and depend on every routed expert.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "test_models"))

from random_moe import writer
from random_moe.architectures import ARCHITECTURES
from random_moe.blocks import FLOATS, NARROW
from random_moe.build import build
from random_moe.shape import Shape

ARCHS = tuple(ARCHITECTURES)
MERGED_ARCHS = tuple(name for name, row in ARCHITECTURES.items() if row.merged_gate_up)
SCALED_ARCHS = tuple(name for name, row in ARCHITECTURES.items() if row.scales)
QUANTS = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4")

N_VOCAB = 320

# Rows of 128 and 96: expert matrices of no round number of pages, heads of 32.
NARROW_SHAPE = Shape(
    n_layer=3, n_embd=128, n_head=4, n_head_kv=2, head_dim=32, n_ff=160, n_ff_exp=96,
    n_expert=8, n_expert_used=2, n_vocab=N_VOCAB, n_ff_shared=64, n_dense_lead=1,
    kv_lora=64, value_dim=32, attention_layers=(1,),
)  # fmt: skip
# Rows of 256, which k-quants need.
WIDE_SHAPE = replace(
    NARROW_SHAPE, n_embd=256, n_head=8, n_ff=256, n_ff_exp=256, n_ff_shared=256, kv_lora=256
)

OWN_SIZES: dict[str, dict[str, Any]] = {
    "qwen2moe": {"n_expert": 10, "n_expert_used": 4},
    "qwen3moe": {"n_expert": 10, "n_expert_used": 4},
    "deepseek2": {"rope_dim": 16, "head_dim": 48},
    "deepseek2-v3": {
        "rope_dim": 16, "head_dim": 48, "q_lora": 64, "n_expert_used": 3,
        "n_group": 4, "n_group_used": 2, "weights_scale": 2.5, "weights_norm": True,
    },
    "deepseek2-whole": {"rope_dim": 16, "head_dim": 48},
    "deepseek": {"n_shared": 2},
    "glm4moe": {"weights_norm": True},
    "dots1": {"weights_norm": True, "n_expert": 12, "n_expert_used": 3},
    "bailingmoe2": {"weights_norm": True, "weights_scale": 2.5},
    "llama4": {"n_layer": 4, "n_expert": 12, "n_expert_used": 1},
    "granitehybrid": {"attention_layers": (1,), "n_conv": 4},
    "qwen35moe": {"attention_layers": (1,), "n_conv": 4, "ssm_inner": 128},
    "qwen3next": {"attention_layers": (1,), "n_conv": 4, "ssm_inner": 128},
    "grovemoe": {"n_layer": 2},
    "nemotron_h_moe": {"n_layer": 5, "attention_layers": (2,), "n_conv": 4, "weights_norm": True},
    "lfm2moe": {"n_layer": 4, "n_expert_used": 3, "attention_layers": (2,)},
}  # fmt: skip


def shape_of(arch: str, quant: str, **sizes: Any) -> Shape:
    """Return the sizes `make` uses; `sizes` replace fields of `Shape`."""
    if GGMLQuantizationType[quant] not in NARROW:
        return replace(NARROW_SHAPE, **{**OWN_SIZES.get(arch, {}), **sizes})
    # Wide experts are few, to keep the files small.
    few = {"n_expert": WIDE_SHAPE.n_expert}
    return replace(WIDE_SHAPE, **{**OWN_SIZES.get(arch, {}), **few, **sizes})


def make(
    path: Path,
    arch: str,
    quant: str,
    *,
    n_split: int = 1,
    merged_gate_up: bool = False,
    expert_scales: bool = False,
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a tiny random model and return the file to load (the first shard).

    `arch` is one of ARCHS, `quant` (one of QUANTS) the experts' format; other matrices are F32,
    F16 or Q8_0. With `n_split` above one, NAME.gguf becomes NAME-00001-of-0000N.gguf and so on.
    """
    expert = GGMLQuantizationType[quant]
    dense = expert if expert in FLOATS else GGMLQuantizationType.Q8_0
    model = build(
        arch,
        shape_of(arch, quant, **sizes),
        merged_gate_up=merged_gate_up,
        expert_scales=expert_scales,
    )
    table = writer.formats(expert, dense)
    return writer.write(path, model, table, seed=seed, n_split=n_split)[0]
