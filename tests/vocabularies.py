"""GGUF files of a vocabulary and nothing else, and tiny models with special tokens of one's choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGUFWriter, TokenType
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

import tiny_moe
from random_moe import vocabulary, writer
from remoe_edge.engine.metadata import Llama
from remoe_edge.engine.tokenizer import Tokenizer

CONTROL, USER_DEFINED = TokenType.CONTROL, TokenType.USER_DEFINED
Specials = Sequence[tuple[str, TokenType]]


def bpe(
    path: Path,
    specials: Specials,
    *,
    bos: int | None = None,
    eos: int | None = None,
    pre: str = "qwen2",
    **flags: bool,
) -> Llama:
    """Load a byte-level BPE vocabulary; `bos` and `eos` count among the specials, from 256."""
    out = GGUFWriter(path, "qwen3moe")
    words = vocabulary.vocabulary(320)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    tokens = words.tokens[:256] + [text for text, _ in specials] + words.tokens[259:]
    out.add_token_list(tokens)
    normal = [TokenType.NORMAL] * 256
    types = normal + [kind for _, kind in specials]
    out.add_token_types([*types, *[TokenType.NORMAL] * (len(tokens) - len(types))])
    out.add_token_merges(words.merges)
    return _close(out, path, 256, bos, eos, flags)


def spm(path: Path, specials: Specials, *, prefix: bool = True, **flags: bool) -> Llama:
    """Load a SentencePiece vocabulary; its first tokens are <unk>, <s>, </s> and the specials."""
    out = GGUFWriter(path, "llama")
    first = [("<unk>", TokenType.UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), *specials]
    letters = [chr(code) for code in range(33, 127)]
    words = ["\u2581", "\u2581a", "\u2581x", "he", "ll", "hell", "hello", "\u2581hello", "</", "s>"]
    tokens = [text for text, _ in first] + [f"<0x{i:02X}>" for i in range(256)] + letters + words
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_types(
        [kind for _, kind in first]
        + [TokenType.BYTE] * 256
        + [TokenType.NORMAL] * (len(tokens) - len(first) - 256)
    )
    out.add_token_scores([-float(i) for i in range(len(tokens))])
    out.add_add_space_prefix(prefix)
    return _close(out, path, 0, 1, 2, flags)


def _close(
    out: GGUFWriter, path: Path, base: int, bos: int | None, eos: int | None, flags: dict[str, bool]
) -> Llama:
    if bos is not None:
        out.add_bos_token_id(base + bos)
    if eos is not None:
        out.add_eos_token_id(base + eos)
    for name, value in flags.items():
        out.add_bool(f"tokenizer.ggml.{name}", value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return Llama(str(path), vocab_only=True, verbose=False)


def ids(llama: Llama, text: str, *, special: bool = True) -> list[int]:
    """Tokenise as llama.cpp does, without BOS."""
    tokens: list[int] = llama.tokenize(text.encode(), add_bos=False, special=special)
    return tokens


def tokenizer(llama: Llama) -> Tokenizer:
    """Make the tokenizer of a vocabulary."""
    return Tokenizer(llama)


def model(path: Path, template: str, *more: str, arch: str = "qwen3moe") -> Path:
    """Write a tiny model with a template, and special tokens besides those it always has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "SPECIAL", (*vocabulary.SPECIAL, *more))
        patch.setattr(vocabulary, "MIN_VOCAB", 256 + len(vocabulary.SPECIAL) + 1)
        patch.setattr(writer, "CHAT_TEMPLATE", template)
        return tiny_moe.make(path, arch, "Q8_0")


def remade(source: Path, target: Path, new: dict[str, tuple[str, Any]]) -> Path:
    """Copy a model with other metadata, {key: (type, value)}; a type of "" takes the key away."""
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    out = gguf.GGUFWriter(target, arch, endianess=reader.endianess)
    kinds = gguf.GGUFValueType
    details = {
        key: MetadataDetails(kinds[kind], value) for key, (kind, value) in new.items() if kind
    }
    copy_with_new_metadata(
        reader, out, details, [key for key, (kind, _) in new.items() if not kind]
    )
    return target


def wrapped(tokens: list[int], bos: int, eos: int, wants: bool) -> list[int]:
    """Put BOS before and EOS after some tokens, if the model wants them."""
    return [bos, *tokens, eos] if wants else tokens
