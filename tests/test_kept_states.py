"""Conversations that outlive their engine: the same bits, bounded, and no harm from damaged files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from conversations import alone, batch_of, end_alone, join, prompt, run
from remoe_edge.errors import RemoeError

N = 6
ASKED: dict[str, Any] = {"logprobs": 1 << 20}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("states")
    yield {
        arch: tiny_moe.make(folder / f"{arch}.gguf", arch, "Q8_0")
        for arch in ("qwen3moe", "qwen3next")
    }
    end_alone()


def first_turn(model: Path, folder: Path, which: int = 0, most_bytes: int = 1 << 30) -> list[int]:
    """Have a conversation and end the engine; give what a next turn begins with."""
    with batch_of(model, 2) as batch:
        batch.keep_states(folder, most_bytes)
        answer = join(batch, prompt(100, which), N)[0]
        run(batch)
    return [*prompt(100, which), *answer.token_ids, 9, 8, 7]


def next_turn(model: Path, folder: Path, turn: list[int], **settings: Any) -> tuple[Any, list[str]]:
    with batch_of(model, 2, **settings) as batch:
        batch.keep_states(folder, 1 << 30)
        answer = join(batch, turn, N, **ASKED)[0]
        run(batch)
        return answer, list(batch._loaded.notes)


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen3next"])
def test_a_conversation_goes_on_after_a_restart(
    models: dict[str, Path], arch: str, tmp_path: Path
) -> None:
    model = models[arch]
    turn = first_turn(model, tmp_path)
    answer, _ = next_turn(model, tmp_path, turn)
    assert answer.n_reused == 100 + N - 1
    reference = alone(model, [(prompt(100), {"max_tokens": N}), (turn, {"max_tokens": N, **ASKED})])
    assert answer.token_ids == reference.token_ids
    assert answer.logprobs == reference.logprobs
    other, _ = next_turn(model, tmp_path, turn, n_batch=64)  # computed in other pieces: not its own
    assert other.n_reused == 0


def test_a_place_that_is_taken_over_is_kept(models: dict[str, Path], tmp_path: Path) -> None:
    with batch_of(models["qwen3moe"], 1) as batch:
        batch.keep_states(tmp_path, 1 << 30)
        first = join(batch, prompt(100), N)[0]
        run(batch)
        join(batch, prompt(90, 1), N)
        run(batch)
        again = join(batch, [*prompt(100), *first.token_ids, 1], N)[0]
        assert again.n_reused == 100 + N - 1
        run(batch)
    assert len(list(tmp_path.glob("*/*.state"))) >= 2


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "text", "gone"])
def test_a_damaged_file_is_one_note(models: dict[str, Path], tmp_path: Path, damage: str) -> None:
    model = models["qwen3moe"]
    turn = first_turn(model, tmp_path)
    (path,) = tmp_path.glob("*/*.state")
    data = bytearray(path.read_bytes())
    if damage == "short":
        path.write_bytes(data[:-100])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text('{"n_tokens": "many"}\n')
    else:
        path.unlink()
    answer, notes = next_turn(model, tmp_path, turn)
    assert answer.n_reused == 0
    said = [note for note in notes if "is not used" in note]
    assert len(said) == (damage != "gone")
    assert all("\n" not in note for note in said)
    reference = alone(model, [(turn, {"max_tokens": N})])
    assert answer.token_ids == reference.token_ids


def test_the_folder_is_bounded(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["qwen3moe"]
    first_turn(model, tmp_path)
    (path,) = tmp_path.glob("*/*.state")
    n_bytes = path.stat().st_size
    os.utime(path, ns=(1, 1))
    for which in (1, 2):
        first_turn(model, tmp_path, which, most_bytes=int(2.5 * n_bytes))
    left = list(tmp_path.glob("*/*.state"))
    assert len(left) == 2
    assert path not in left  # the longest unused
    first_turn(model, tmp_path / "small", most_bytes=100)
    assert list((tmp_path / "small").glob("*/*.state")) == []


def test_a_folder_that_cannot_be_made_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        batch_of(models["qwen3moe"], 2) as batch,
        pytest.raises(RemoeError, match="cannot be kept there"),
    ):
        batch.keep_states(tmp_path / "file" / "below", 1 << 20)
