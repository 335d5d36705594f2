"""Write small random qwen3moe GGUF files for tests, real enough to run in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

Q4_0 = GGMLQuantizationType.Q4_0
Q8_0 = GGMLQuantizationType.Q8_0
F16 = GGMLQuantizationType.F16
F32 = GGMLQuantizationType.F32


def _byte_letters() -> list[str]:
    # The printable stand-ins that byte-level BPE gives to all 256 bytes.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write_small_moe(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 3,
    embed: int = 64,
    heads: int = 2,
    head: int = 32,
    experts: int = 16,
    top_k: int = 4,
    expert_ffn: int = 32,
    kind: GGMLQuantizationType = Q8_0,
    is_tied: bool = False,
    router_scale: float = 2.0,
    branch_scale: float = 1.0,
    arch: str = "qwen3moe",
) -> Path:
    """Write a random model; matrices are of type `kind`, norms and routers F32.

    `branch_scale` below 1 makes layers add less to the stream, as trained ones do: random layers at
    full strength blow up the smallest rounding.
    """
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, arch)
    writer.add_name("random small moe")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(embed)
    writer.add_feed_forward_length(expert_ffn * top_k)
    writer.add_expert_feed_forward_length(expert_ffn)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(top_k)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    letters = [*_byte_letters(), "th", "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(letters)
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(257)
    writer.add_chat_template("{{ messages[0].content }}")

    def add(name: str, *shape: int, scale: float | None = None, plain: bool = False) -> None:
        spread = scale if scale is not None else shape[-1] ** -0.5
        weights = rng.standard_normal(shape).astype(np.float32) * np.float32(spread)
        if name.endswith(("attn_output.weight", "ffn_down_exps.weight")):
            weights *= np.float32(branch_scale)
        if name.endswith("norm.weight"):
            weights = 1 + weights
        if plain:
            writer.add_tensor(name, weights)
        else:
            writer.add_tensor(name, quantize(weights, kind), raw_dtype=kind)

    add("token_embd.weight", len(letters), embed, scale=1.0)
    add("output_norm.weight", embed, scale=0.1, plain=True)
    if not is_tied:
        add("output.weight", len(letters), embed, scale=2 * embed**-0.5)
    for i in range(layers):
        add(f"blk.{i}.attn_norm.weight", embed, scale=0.1, plain=True)
        add(f"blk.{i}.attn_q.weight", heads * head, embed)
        add(f"blk.{i}.attn_k.weight", head, embed)
        add(f"blk.{i}.attn_v.weight", head, embed)
        add(f"blk.{i}.attn_q_norm.weight", head, scale=0.1, plain=True)
        add(f"blk.{i}.attn_k_norm.weight", head, scale=0.1, plain=True)
        add(f"blk.{i}.attn_output.weight", embed, heads * head)
        add(f"blk.{i}.ffn_norm.weight", embed, scale=0.1, plain=True)
        add(
            f"blk.{i}.ffn_gate_inp.weight",
            experts,
            embed,
            scale=router_scale * embed**-0.5,
            plain=True,
        )
        add(f"blk.{i}.ffn_gate_exps.weight", experts, expert_ffn, embed)
        add(f"blk.{i}.ffn_up_exps.weight", experts, expert_ffn, embed)
        add(f"blk.{i}.ffn_down_exps.weight", experts, embed, expert_ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
