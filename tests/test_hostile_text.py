"""Bytes that are no text: llama.cpp's tokeniser ends the process over some, so none get there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tiny_moe
from remoe_edge.bench.questions import Vocabulary
from remoe_edge.engine.long_runs import LONGEST
from remoe_edge.engine.tokenizer import Tokenizer
from remoe_edge.errors import InputError
from remoe_edge.files.prompts import read_prompts
from remoe_edge.files.reading import read_whole
from test_hostile_files import little_memory
from vocabularies import bpe, spm

# Cut short, over-long, a surrogate half, beyond Unicode, a continuation alone, Latin-1.
NO_TEXT = (
    b"a\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf", b"\xfe\xff",
    b"\x80", b"caf\xe9 au lait", b"\xff" * 4000,
)  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("text") / "m.gguf"
    return Vocabulary(tiny_moe.make(path, "qwen3moe", "Q8_0"))


@pytest.mark.parametrize("data", NO_TEXT)
def test_what_is_no_utf8_is_refused_where_it_comes_in(
    vocabulary: Vocabulary, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc " * 50 + data)
    with pytest.raises(InputError, match="text: at offset 20.: no UTF-8"):
        vocabulary.follow(path, 2, 2)
    with pytest.raises(InputError, match="no UTF-8"):
        vocabulary._tokenizer.encode(path.read_bytes())
    with pytest.raises(InputError, match="no UTF-8"):
        vocabulary._tokenizer.encode(os.fsdecode(b"\xff"))
    with pytest.raises(InputError, match="no UTF-8"):
        read_prompts(path)


def test_only_a_newline_ends_a_line_of_json(tmp_path: Path) -> None:
    """JSON's texts may hold what Python takes for ends of lines, and editors write a mark before it."""
    from remoe_edge.tune.data import _documents

    held = "one\u2028two\u2029three\x85four"
    path = tmp_path / "a.jsonl"
    for name, read in (("prompt", read_prompts), ("text", lambda path: [*_documents(path, 0)])):
        line = f'{{"{name}": "{held}"}}'
        for mark, end in (("", "\n"), ("\ufeff", "\r\n")):
            path.write_bytes(f"{mark}{line}{end}{end}{line}".encode())
            assert read(path) == [held, held]
        path.write_text("[" * 100_000)
        with pytest.raises(InputError, match=r"a\.jsonl(, line |:)1: no"):
            read(path)
    text = tmp_path / "a.txt"
    text.write_bytes(b"\xef\xbb\xbfone\r\n---\r\ntwo")
    assert read_prompts(text) == ["one", "two"]


def test_any_text_is_tokenised(vocabulary: Vocabulary) -> None:
    for text in (
        "\0",
        "\ufffe\uffff",
        "\U0010ffff",
        "\u202e",
        "\ufeff",
        "e\u0301" * 500,
        "\x1b[0m",
    ):
        assert vocabulary._tokenizer.encode(text) == vocabulary._tokenizer.encode(text.encode())


LONG = ("a", "\u6f22", "\u0301", "7", " ", "\n", "!", "\U0001f600", "\x01")


@pytest.mark.parametrize("pre", ["deepseek-v3", "gpt-4o"])
def test_runs_that_would_end_the_process_are_refused(tmp_path: Path, pre: str) -> None:
    words = Tokenizer(bpe(tmp_path / "v.gguf", [], pre=pre))
    for each in LONG:
        with pytest.raises(InputError, match="in a row"):
            words.encode("x1 " + each * (LONGEST + 1) + " y")
    longest = "!" * LONGEST + "\n" * LONGEST
    for text in (longest, "a" * LONGEST, "ab1 " * LONGEST, ("x1" * 9 + ".") * LONGEST):
        assert words.encode(text)


def test_other_vocabularies_take_runs_of_any_length(tmp_path: Path) -> None:
    for llama in (bpe(tmp_path / "v.gguf", []), spm(tmp_path / "s.gguf", [])):
        assert Tokenizer(llama).encode("a" * 100_000)


def test_a_file_larger_than_memory_is_a_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(b"")
    os.truncate(path, 1 << 30)
    with little_memory(), pytest.raises(InputError, match="larger than memory"):
        read_whole(path, "text")
