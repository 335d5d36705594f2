"""The model as GGUF: names and keys from the gguf package, routers and norms in float32."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from .config import MoeConfig
from .model import MoeModel

_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
# Our module names to the gguf package's tensor kinds.
_KINDS = {
    "attention_norm": gguf.MODEL_TENSOR.ATTN_NORM,
    "attention.q": gguf.MODEL_TENSOR.ATTN_Q,
    "attention.k": gguf.MODEL_TENSOR.ATTN_K,
    "attention.v": gguf.MODEL_TENSOR.ATTN_V,
    "attention.o": gguf.MODEL_TENSOR.ATTN_OUT,
    "attention.q_norm": gguf.MODEL_TENSOR.ATTN_Q_NORM,
    "attention.k_norm": gguf.MODEL_TENSOR.ATTN_K_NORM,
    "experts_norm": gguf.MODEL_TENSOR.FFN_NORM,
    "experts.router": gguf.MODEL_TENSOR.FFN_GATE_INP,
    "experts.gate": gguf.MODEL_TENSOR.FFN_GATE_EXP,
    "experts.up": gguf.MODEL_TENSOR.FFN_UP_EXP,
    "experts.down": gguf.MODEL_TENSOR.FFN_DOWN_EXP,
    "embed": gguf.MODEL_TENSOR.TOKEN_EMBD,
    "norm": gguf.MODEL_TENSOR.OUTPUT_NORM,
    "output": gguf.MODEL_TENSOR.OUTPUT,
}

# Fields of MoeConfig to the keys that `_write_shape` leaves them in.
_KEYS = {
    "vocab": "vocab_size",
    "embed": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "experts": "expert_count",
    "top_k": "expert_used_count",
    "expert_ffn": "expert_feed_forward_length",
    "context": "context_length",
    "rope_theta": "rope.freq_base",
    "norm_eps": "attention.layer_norm_rms_epsilon",
}


def tensor_name(parameter: str) -> str:
    """Return the GGUF name of one of our parameters."""
    stem = parameter.removesuffix(".weight")
    block = None
    if stem.startswith("blocks."):
        _, number, stem = stem.split(".", 2)
        block = int(number)
    name = gguf.TENSOR_NAMES[_KINDS[stem]]
    return (name.format(bid=block) if block is not None else name) + ".weight"


def write_gguf(
    model: MoeModel, tokenizer_json: Path, path: Path, kind: str, trained_length: int
) -> None:
    """Write `model` to `path`, its matrices in `kind`: "f32", "f16", "q8_0" or "q4_0".

    `trained_length` is written into the description; 0 says that the weights are random.
    Q4_0 keeps the embeddings and the output matrix in Q8_0: they are small and matter most.
    """
    quantisation, file_type = _TYPES[kind]
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3MOE])
    _write_shape(writer, config, trained_length)
    writer.add_file_type(file_type)
    if kind.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_tokenizer(writer, tokenizer_json)
    for parameter, tensor in model.state_dict().items():
        data = tensor.float().cpu().numpy()
        chosen = quantisation
        if data.ndim == 1 or "router" in parameter:
            chosen = gguf.GGMLQuantizationType.F32
        elif kind == "q4_0" and parameter.split(".")[0] in ("embed", "output"):
            chosen = gguf.GGMLQuantizationType.Q8_0
        packed: npt.NDArray[np.generic] = gguf.quants.quantize(data, chosen)
        writer.add_tensor(tensor_name(parameter), packed, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> MoeModel:
    """Return the model that `write_gguf` wrote, as its quantisation left it.

    Raises what `widen.source.Source` raises of a file that is not such a model, whole.
    """
    # Needs the package; a trainer without --start does not.
    sys.path.append(str(Path(__file__).resolve().parents[2] / "test_models"))
    from widen.source import ARCH, Source

    source = Source(path)
    config = MoeConfig(
        **{
            field.name: type(field.default)(source.key(f"{ARCH}.{_KEYS[field.name]}"))
            for field in fields(MoeConfig)
        }
    )
    model = MoeModel(config)
    for parameter, tensor in model.state_dict().items():
        found = source.tensor(tensor_name(parameter))
        data = gguf.quants.dequantize(found.data, found.fmt.kind)
        tensor.copy_(torch.from_numpy(data.astype(np.float32)).view_as(tensor))
    return model


def _write_shape(writer: gguf.GGUFWriter, c: MoeConfig, trained_length: int) -> None:
    untrained = trained_length == 0
    writer.add_name("remoe-small" + ("-untrained" if untrained else ""))
    writer.add_description(
        "random weights: for loading and speed only, its text and routing mean nothing"
        if untrained
        else f"a small mixture of experts, trained on sequences of {trained_length} tokens"
    )
    writer.add_license("apache-2.0")
    writer.add_size_label(f"{c.experts}x1M")
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.embed)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.expert_ffn * c.top_k)
    writer.add_expert_feed_forward_length(c.expert_ffn)
    writer.add_expert_count(c.experts)
    writer.add_expert_used_count(c.top_k)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_vocab_size(c.vocab)


def _write_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    from data.tokens import CHAT_TEMPLATE, END_OF_TEXT, IM_END

    spec = json.loads(path.read_text("utf-8"))
    vocab: dict[str, int] = dict(spec["model"]["vocab"])
    specials = {t["content"]: t["id"] for t in spec["added_tokens"] if t["special"]}
    vocab.update(specials)
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in specials else gguf.TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(specials[END_OF_TEXT])
    writer.add_eos_token_id(specials[IM_END])
    writer.add_pad_token_id(specials[END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
