"""The byte-level BPE, and token streams on disk.

A stream is little-endian uint16: the low 15 bits are the token, the top bit set means that
this token is context only and carries no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .document import Conversation

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END)
NO_LOSS = np.uint16(1 << 15)
# The pre-tokeniser that llama.cpp calls "qwen2".
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the byte-level BPE; the specials are tokens 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def join_documents(texts: Iterable[str]) -> str:
    """Return documents as one text, divided as the token files divide them."""
    return "".join(f"{text}\n{END_OF_TEXT}\n" for text in texts)


def without_markers(joined: bytes) -> bytes:
    """Return what `join_documents` made without its markers, which are no text to pack."""
    return joined.replace(f"\n{END_OF_TEXT}\n".encode(), b"\n\n")


def encode_documents(
    tokenizer: Tokenizer, texts: list[str], batch: int = 256
) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield each text's tokens, ended by <|endoftext|>."""
    end = np.uint16(tokenizer.token_to_id(END_OF_TEXT))
    for start in range(0, len(texts), batch):
        for encoding in tokenizer.encode_batch(
            texts[start : start + batch], add_special_tokens=False
        ):
            yield np.append(np.asarray(encoding.ids, dtype=np.uint16), end)


def encode_conversation(
    tokenizer: Tokenizer, talk: Conversation, system: str = ""
) -> npt.NDArray[np.uint16]:
    """Return a conversation in ChatML; only assistant replies and their ends carry loss."""
    start, end = tokenizer.token_to_id(IM_START), tokenizer.token_to_id(IM_END)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    parts: list[npt.NDArray[np.uint16]] = []

    def context(tokens: list[int]) -> None:
        parts.append(np.asarray(tokens, dtype=np.uint16) | NO_LOSS)

    if system:
        context([start, *ids("system\n" + system), end, *ids("\n")])
    for user, assistant in talk.turns:
        context([start, *ids("user\n" + user), end, *ids("\n"), start, *ids("assistant\n")])
        parts.append(np.asarray([*ids(assistant), end], dtype=np.uint16))
        context(ids("\n"))
    return np.concatenate(parts)


def pack_rows(
    talks: Iterable[npt.NDArray[np.uint16]], length: int, filler: int, open_rows: int = 64
) -> npt.NDArray[np.uint16]:
    """Pack conversations, each cut at `length` tokens, into rows of `length` tokens.

    A conversation goes into the first of the open rows that has room for it; where none has, the
    fullest is closed for a new one.
    """
    closed: list[npt.NDArray[np.uint16]] = []
    waiting: list[npt.NDArray[np.uint16]] = []
    for talk in talks:
        talk = talk[:length]
        place = next((i for i, r in enumerate(waiting) if len(r) + len(talk) <= length), None)
        if place is not None:
            waiting[place] = np.concatenate([waiting[place], talk])
            continue
        if len(waiting) == open_rows:
            closed.append(waiting.pop(max(range(open_rows), key=lambda i: len(waiting[i]))))
        waiting.append(talk)
    return np.stack([_padded(row, length, filler) for row in closed + waiting])


def _padded(row: npt.NDArray[np.uint16], length: int, filler: int) -> npt.NDArray[np.uint16]:
    rest = np.full(length - len(row), np.uint16(filler) | NO_LOSS, dtype=np.uint16)
    return np.concatenate([row, rest])


def read_stream(path: Path) -> npt.NDArray[np.uint16]:
    """Read a token stream."""
    return np.fromfile(path, dtype="<u2")


def window_hashes(tokens: npt.NDArray[np.uint16], width: int) -> npt.NDArray[np.uint64]:
    """Return a hash of every `width` successive tokens."""
    if len(tokens) < width:
        return np.empty(0, dtype=np.uint64)
    count = len(tokens) - width + 1
    value = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(width):
            value *= np.uint64(0x9E3779B97F4A7C15)
            value += tokens[offset : offset + count].astype(np.uint64) + np.uint64(1)
            value ^= value >> np.uint64(29)
    return value
