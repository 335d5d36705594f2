"""The model as a Hugging Face folder that transformers loads as Qwen3MoeForCausalLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .model import MoeModel

_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "experts_norm.weight": "post_attention_layernorm.weight",
    "experts.router.weight": "mlp.gate.weight",
}
_TOP = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_tensors(model: MoeModel) -> dict[str, Tensor]:
    """Return the weights under transformers' published (per-expert) checkpoint names."""
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in _TOP:
            out[_TOP[name]] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        prefix = f"model.layers.{layer}."
        if rest in _LAYER:
            out[prefix + _LAYER[rest]] = tensor
        else:
            kind = rest.removeprefix("experts.")
            for expert, matrix in enumerate(tensor):
                out[f"{prefix}mlp.experts.{expert}.{kind}_proj.weight"] = matrix
    return out


def write_hf(
    model: MoeModel, tokenizer_json: Path, folder: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into `folder`.

    Routers and norms are float32 whatever `dtype` is, as in the GGUF: a rounded router changes which
    experts a token uses wherever two are nearly equal.
    """
    from data.tokens import CHAT_TEMPLATE, END_OF_TEXT, IM_END

    folder.mkdir(parents=True, exist_ok=True)
    c = model.config
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": c.vocab,
        "hidden_size": c.embed,
        "intermediate_size": c.expert_ffn * c.top_k,
        "moe_intermediate_size": c.expert_ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "num_experts": c.experts,
        "num_experts_per_tok": c.top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "max_position_embeddings": c.context,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    _json(folder / "config.json", config)
    _json(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})
    _json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": c.context,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
    tensors = {
        k: v.to(torch.float32 if v.dim() == 1 or k.endswith(".mlp.gate.weight") else dtype)
        for k, v in hf_tensors(model).items()
    }
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
