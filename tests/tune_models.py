"""Tiny random models for the tuning tests: as transformers makes them, and the same as a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

N_VOCAB = 260
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
_SIZES = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 24}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
}
ARCHITECTURES = ("qwen3moe", "qwen2moe", "olmoe", "deepseek2")


def _config(arch: str, q_lora_rank: int | None) -> Any:
    import transformers as t

    if arch == "qwen3moe":
        return t.Qwen3MoeConfig(
            **_SIZES, **_EXPERTS, num_experts=8, num_key_value_heads=2, head_dim=16,
            intermediate_size=40, norm_topk_prob=True,
        )  # fmt: skip
    if arch == "qwen2moe":
        return t.Qwen2MoeConfig(
            **_SIZES, **_EXPERTS, num_experts=8, num_key_value_heads=2, intermediate_size=40,
            shared_expert_intermediate_size=20,
        )  # fmt: skip
    if arch == "olmoe":
        return t.OlmoeConfig(
            **_SIZES, num_experts=8, num_experts_per_tok=3, num_key_value_heads=4,
            intermediate_size=24,
        )  # fmt: skip
    return t.DeepseekV2Config(
        **_SIZES, **_EXPERTS, n_routed_experts=8, n_shared_experts=2, first_k_dense_replace=1,
        num_key_value_heads=4, intermediate_size=40, kv_lora_rank=16, q_lora_rank=q_lora_rank,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12, routed_scaling_factor=1.5,
        norm_topk_prob=False, rope_parameters=_YARN,
    )  # fmt: skip


def hf_model(arch: str, seed: int = 0, q_lora_rank: int | None = 12) -> Any:
    """Make a random model of 3 layers, 8 experts, top-3 whose routers choose decidedly."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(_config(arch, q_lora_rank)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.endswith("mlp.gate.weight"):
                parameter.copy_(torch.randn_like(parameter))
    return model


def byte_tokens() -> list[str]:
    """Return the 256 printable stand-ins of byte-level BPE, then the specials and one filler."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {byte: chr(byte) for byte in plain}
    for number, byte in enumerate(b for b in range(256) if b not in stand_in):
        stand_in[byte] = chr(256 + number)
    return [stand_in[byte] for byte in range(256)] + [*SPECIALS, "<|filler|>"]


def write_gguf(model: Any, arch: str, path: Path) -> Path:
    """Write the model as a float32 GGUF with a byte-level vocabulary, in llama.cpp's terms."""
    import gguf

    c = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_expert_count(8)
    writer.add_expert_used_count(3)
    writer.add_vocab_size(N_VOCAB)
    if arch == "deepseek2":
        writer.add_head_count_kv(1)
        writer.add_leading_dense_block_count(c.first_k_dense_replace)
        writer.add_q_lora_rank(c.q_lora_rank)
        writer.add_kv_lora_rank(c.kv_lora_rank)
        writer.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
        writer.add_value_length(c.kv_lora_rank)
        writer.add_key_length_mla(c.qk_nope_head_dim + c.qk_rope_head_dim)
        writer.add_value_length_mla(c.v_head_dim)
        writer.add_rope_dimension_count(c.qk_rope_head_dim)
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
        writer.add_expert_shared_count(c.n_shared_experts)
        writer.add_expert_weights_scale(c.routed_scaling_factor)
        writer.add_expert_weights_norm(False)
        rope = c.rope_parameters
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    else:
        writer.add_head_count_kv(c.num_key_value_heads)
        ffn = c.intermediate_size if arch == "olmoe" else c.moe_intermediate_size
        writer.add_expert_feed_forward_length(ffn)
        if arch == "qwen3moe":
            writer.add_key_length(c.head_dim)
            writer.add_value_length(c.head_dim)
        if arch == "qwen2moe":
            writer.add_expert_shared_feed_forward_length(c.shared_expert_intermediate_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(byte_tokens())
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3
    writer.add_token_types([*kinds, gguf.TokenType.UNUSED])
    # The vocabulary is bytes alone; llama.cpp wants the list to be there all the same.
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_chat_template(CHAT)
    for name, values in _gguf_tensors(model, arch):
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(model: Any, arch: str) -> list[tuple[str, Any]]:
    import gguf

    c = model.config
    number = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch)
    names = gguf.get_tensor_name_map(number, c.num_hidden_layers)
    found = []
    for key, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if key.endswith("experts.gate_up_proj"):
            stem = key.removesuffix("gate_up_proj")
            gate, up = np.split(values, 2, axis=1)
            found.append((names.get_name(stem + "gate_proj") + ".weight", gate))
            found.append((names.get_name(stem + "up_proj") + ".weight", up))
        elif key.endswith("experts.down_proj"):
            found.append((names.get_name(key) + ".weight", values))
        elif key.endswith("kv_b_proj.weight"):
            by_head = values.reshape(c.num_attention_heads, -1, c.kv_lora_rank)
            keys, rest = np.split(by_head, [c.qk_nope_head_dim], axis=1)
            block = names.get_name(key, try_suffixes=(".weight",)).rsplit(".", 2)[0]
            found.append((f"{block}.attn_k_b.weight", keys.transpose(0, 2, 1)))
            found.append((f"{block}.attn_v_b.weight", rest))
        else:
            found.append((names.get_name(key, try_suffixes=(".weight", ".bias")), values))
    return found
