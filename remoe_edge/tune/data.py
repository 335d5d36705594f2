"""Text, chat or token files, as one token stream per domain.

A domain is one file, named by its stem: `.txt` (documents divided by `<|endoftext|>`), `.jsonl`
(`{"text": ...}` or `{"messages": [...]}` per line) or `.npy` (token ids). Tokenising is the model's
own: through llama.cpp for a GGUF, through transformers for a Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError, ModelError
from remoe_edge.files.reading import numbered_lines, read_whole

Tokens = npt.NDArray[np.int64]
DOCUMENT_END = "<|endoftext|>"
SUFFIXES = (".txt", ".jsonl", ".npy")
# More than any tokenizer packs on average: what lies beyond a limit need not be tokenised.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Domain:
    """One domain's tokens, and the hash of the file they came from."""

    name: str
    tokens: Tokens
    n_bytes: int  # of text; 0 when the file held token ids
    sha256: str
    path: str


class Tokenizer(Protocol):
    """The two things data needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, specials not parsed, no BOS or EOS added."""
        ...

    def end(self) -> list[int]:
        """Return the ids that end a document (one or none)."""
        ...

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of a conversation in the model's chat template."""
        ...


class GgufTokenizer:
    """A GGUF's own vocabulary, through llama.cpp."""

    def __init__(self, path: str) -> None:
        from remoe_edge.engine import chat_template, metadata, tokenizer

        try:
            self._llama = metadata.Llama(model_path=path, vocab_only=True, verbose=False)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: llama.cpp cannot read its vocabulary: {error}") from error
        self._tokenizer = tokenizer.Tokenizer(self._llama)
        self._template = chat_template.ChatTemplate(self._llama, self._tokenizer, Path(path))

    def encode(self, text: str) -> list[int]:
        """Encode plain text; see `Tokenizer`."""
        return self._tokenizer.encode(text, special=False, bos=False)

    def end(self) -> list[int]:
        """Return the end-of-text id; see `Tokenizer`."""
        marker: list[int] = self._llama.tokenize(DOCUMENT_END.encode(), add_bos=False, special=True)
        if len(marker) == 1:
            return marker
        eos = int(self._llama.token_eos())
        return [eos] if eos >= 0 else []

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Encode a conversation; see `Tokenizer`."""
        # Whole turns, and no marks of a document's ends: those are put between documents.
        unmarked = {"bos_token": "", "eos_token": ""}
        prompt = self._template.render(messages, variables=unmarked, answering=False)
        return self._tokenizer.encode(prompt, special=True, bos=False)


class HfTokenizer:
    """A Hugging Face folder's tokenizer."""

    def __init__(self, path: str) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        except (ValueError, OSError, KeyError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise ModelError(f"{path}: no usable tokenizer: {line}") from error

    def encode(self, text: str) -> list[int]:
        """Encode plain text; see `Tokenizer`."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def end(self) -> list[int]:
        """Return the end-of-text id; see `Tokenizer`."""
        marker = self._tokenizer.convert_tokens_to_ids(DOCUMENT_END)
        if marker is None or marker == self._tokenizer.unk_token_id:
            marker = self._tokenizer.eos_token_id
        return [] if marker is None else [int(marker)]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Encode a conversation; see `Tokenizer`."""
        if self._tokenizer.chat_template is None:
            raise InputError("the model has no chat template: give it text, not messages")
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def open_tokenizer(model: str | Path) -> Tokenizer:
    """Open the tokenizer of a GGUF file or a Hugging Face folder."""
    return HfTokenizer(str(model)) if Path(model).is_dir() else GgufTokenizer(str(model))


def data_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the data files named, folders replaced by the files in them; refuse what is not
    there."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
            if not inside:
                raise InputError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such data file")
    names = [path.stem for path in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two data files are named {name!r}; a domain is named by its file")
    return found


def load_domains(
    paths: Sequence[str | Path], model: str | Path, window: int, n_vocab: int, limit: int = 0
) -> list[Domain]:
    """Read every domain, refusing an empty file or one with fewer than `window` + 1 tokens.

    With `limit`, only about the first `limit` tokens of each domain are kept.
    """
    files = data_files(paths)
    for path in files:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the data file is empty")
    opened: list[Tokenizer] = []

    def tokenizer() -> Tokenizer:
        if not opened:
            opened.append(open_tokenizer(model))
        return opened[0]

    domains = []
    for path in files:
        tokens, n_bytes = _read(path, tokenizer, limit)
        if limit:
            tokens = tokens[:limit]
        if len(tokens) == 0:
            raise InputError(f"{path}: the data file holds no text")
        if len(tokens) < window + 1:
            raise InputError(
                f"{path}: {len(tokens)} tokens are fewer than one window of {window} + 1; "
                "give more text or a smaller --window"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= n_vocab:
            raise InputError(
                f"{path}: token {low if low < 0 else high} is not in the model's vocabulary "
                f"of {n_vocab}"
            )
        domains.append(Domain(path.stem, tokens, n_bytes, _hash(path), str(path)))
    return domains


def _read(path: Path, tokenizer: Any, limit: int) -> tuple[Tokens, int]:
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{path}: not a readable .npy file: {error}") from error
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise InputError(f"{path}: expected one row of integer token ids, found {array.dtype}")
        return array.astype(np.int64), 0
    ids: list[int] = []
    n_bytes = 0
    encoder = tokenizer()
    end = encoder.end()
    for document in _documents(path, limit):
        if isinstance(document, str):
            ids += encoder.encode(document)
            n_bytes += len(document.encode())
        else:
            ids += encoder.chat(document)
        ids += end
        if limit and len(ids) >= limit:
            break
    return np.asarray(ids, dtype=np.int64), n_bytes


def _documents(path: Path, limit: int) -> Iterator[str | list[dict[str, str]]]:
    try:
        text = (
            read_whole(path, "text").decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}") from error
    if path.suffix == ".txt":
        if limit:
            text = text[: limit * _CHARACTERS_PER_TOKEN]
        for document in text.split(DOCUMENT_END):
            if document.strip():
                # One line end beside the marker is the layout's, not the document's.
                yield document.removeprefix("\n").removesuffix("\n")
        return
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: data files end in {', '.join(SUFFIXES)}")
    for number, line in numbered_lines(text):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", error)
            raise InputError(f"{path}:{number}: not JSON: {why}") from error
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            yield record["text"]
        elif isinstance(record, dict) and isinstance(record.get("messages"), list):
            yield record["messages"]
        else:
            raise InputError(f'{path}:{number}: expected {{"text": ...}} or {{"messages": [...]}}')


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class Batches:
    """Windows of `window` + 1 tokens, the domains taking turns, in an order fixed by the seed.

    Batch n is a function of n and the seed alone, so a resumed run reads what it would have read.
    """

    def __init__(self, domains: Sequence[Domain], window: int, batch: int, seed: int) -> None:
        self._domains = domains
        self._window = window
        self._batch = batch
        self._seed = seed

    def __getitem__(self, step: int) -> Tokens:
        """Return batch number `step`, int64 [batch, window + 1]."""
        random = np.random.default_rng([self._seed, step])
        rows = []
        for number in self.domains(step):
            domain = self._domains[number]
            start = int(random.integers(0, len(domain.tokens) - self._window))
            rows.append(domain.tokens[start : start + self._window + 1])
        return np.stack(rows)

    def domains(self, step: int) -> list[int]:
        """Return the domain of each row of batch number `step`."""
        first = step * self._batch
        return [(first + row) % len(self._domains) for row in range(self._batch)]
