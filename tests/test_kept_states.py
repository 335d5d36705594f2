"""Conversations that outlive their engine: the same bits, bounded, and no harm from damaged files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from conversations import alone, batch_of, end_alone, join, prompt, run
from remoe_edge import Engine
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


def first_turn(
    model: Path,
    folder: Path,
    which: int = 0,
    most_bytes: int = 1 << 30,
    length: int = 100,
    **settings: Any,
) -> list[int]:
    """Have a conversation and end the engine; give what a next turn begins with."""
    with batch_of(model, 2, **settings) as batch:
        batch.keep_states(folder, most_bytes)
        answer = join(batch, prompt(length, which), N)[0]
        run(batch)
    return [*prompt(length, which), *answer.token_ids, 9, 8, 7]


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


@pytest.mark.parametrize(
    "settings", [{"skip_small": 0.4}, {"skip_cold": 0.4}, {"threads": 2}], ids=str
)
def test_a_conversation_with_other_bits_is_not_gone_on_with(
    models: dict[str, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Its answer may have been made with loss, and what is computed after it would have that, too."""
    model = models["qwen3moe"]
    turn = first_turn(model, tmp_path, **settings)
    assert next_turn(model, tmp_path, turn, **settings)[0].n_reused == 100 + N - 1
    assert next_turn(model, tmp_path, turn)[0].n_reused == 0


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


def _header(text: bytes) -> Callable[[Path, bytes], None]:
    return lambda path, data: path.write_bytes(text + b"\n" + data.partition(b"\n")[2]) and None


def _in_its_place(make: Callable[[Path], object]) -> Callable[[Path, bytes], None]:
    def damage(path: Path, data: bytes) -> None:
        path.unlink()
        make(path)

    return damage


def _flipped(path: Path, data: bytes) -> None:
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "short": lambda path, data: path.write_bytes(data[:-100]),
    "long": lambda path, data: path.write_bytes(data + bytes(100)),
    "flipped": _flipped,
    "empty": lambda path, data: path.write_bytes(b""),
    "text": lambda path, data: path.write_text('{"n_tokens": "many"}\n'),
    "infinite": _header(b'{"version": 1, "n_tokens": Infinity, "n_prompt": 0, "state_bytes": 1e999}'),
    "negative": _header(b'{"version": 1, "n_tokens": -1, "n_prompt": 0, "state_bytes": 4}'),
    "huge": _header(b'{"version": 1, "n_tokens": 1' + b"0" * 30 + b', "n_prompt": 0, "state_bytes": 4}'),
    "deep": _header(b"[" * 4000),
    "list": _header(b"[1, 2]"),
    "sparse": lambda path, data: os.truncate(path, 1 << 40),
    "pipe": _in_its_place(os.mkfifo),
    "folder": _in_its_place(Path.mkdir),
    "device": _in_its_place(lambda path: path.symlink_to("/dev/zero")),
    "loop": _in_its_place(lambda path: path.symlink_to(path.name)),
    "gone": lambda path, data: path.unlink(),
}  # fmt: skip


@pytest.fixture(scope="module")
def running(models: dict[str, Path]) -> Iterator[Engine]:
    """An engine for many batches, each of which begins with nothing."""
    with Engine(
        models["qwen3moe"], parallel=2, cache="50%", n_ctx=512, threads=1, prefetch="off"
    ) as engine:
        engine._loaded.is_end = lambda token: False  # type: ignore[method-assign]
        yield engine


def reused_from(engine: Engine, folder: Path, turn: list[int]) -> tuple[int, list[str], list[int]]:
    """Go on with a conversation; tell what was not computed again, what was said, and the answer."""
    batch = engine.batch()
    _, said_before = engine.notes_since(0)
    try:
        batch.keep_states(folder, 1 << 30)
        answer = join(batch, turn, N)[0]
        run(batch)
    finally:
        batch.close()
    return (
        answer.n_reused,
        [each for each in engine.notes_since(said_before)[0] if "is not used" in each],
        answer.token_ids,
    )


def test_a_damaged_file_is_one_note(
    models: dict[str, Path], running: Engine, tmp_path: Path
) -> None:
    turn = first_turn(models["qwen3moe"], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "first")
    right = reused_from(running, tmp_path / "first", turn)
    assert right[:2] == (100 + N - 1, [])
    for name, damage in DAMAGES.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        (path,) = folder.glob("*/*.state")
        damage(path, path.read_bytes())
        n_reused, said, tokens = reused_from(running, folder, turn)
        assert (n_reused, len(said)) == (0, name != "gone"), (name, said)
        assert all("\n" not in note for note in said)
        assert tokens == right[2], name


def _resealed(path: Path, tokens: bytes | None = None, state: bytes | None = None) -> None:
    """Put other tokens or another state into a file, as whoever writes one does."""
    line, _, rest = path.read_bytes().partition(b"\n")
    head = json.loads(line)
    n = 4 * head["n_tokens"]
    tokens, state = tokens or rest[:n], state or rest[n:]
    digest = hashlib.blake2b(tokens + state).hexdigest()
    head |= {"n_tokens": len(tokens) // 4, "state_bytes": len(state), "digest": digest}
    path.write_bytes(json.dumps(head).encode() + b"\n" + tokens + state)


def _state(path: Path) -> bytes:
    line, _, rest = path.read_bytes().partition(b"\n")
    return rest[4 * json.loads(line)["n_tokens"] :]


def test_a_whole_file_with_another_state_is_one_note(
    models: dict[str, Path], running: Engine, tmp_path: Path
) -> None:
    model = models["qwen3moe"]
    turn = first_turn(model, tmp_path / "own")
    first_turn(model, tmp_path / "short", length=80)
    first_turn(models["qwen3next"], tmp_path / "model")
    (own,) = (tmp_path / "own").glob("*/*.state")
    whole = own.read_bytes()
    right = alone(model, [(turn, {"max_tokens": N})]).token_ids
    others = [_state(next((tmp_path / name).glob("*/*.state"))) for name in ("short", "model")]
    for state in (*others, b"\xff" * 5000, bytes(64)):
        for path in (tmp_path / "own").glob("*/*.state"):
            path.unlink()  # among them what the last batch has kept
        own.write_bytes(whole)
        _resealed(own, state=state)
        n_reused, said, tokens = reused_from(running, tmp_path / "own", turn)
        assert (n_reused, len(said), tokens) == (0, 1, right)


def test_a_file_that_is_replaced_while_an_engine_runs_is_not_taken_for_the_old_one(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model = models["qwen3moe"]
    turn = first_turn(model, tmp_path)
    (path,) = tmp_path.glob("*/*.state")
    with batch_of(model, 2) as batch:
        batch.keep_states(tmp_path, 1 << 30)
        first_turn(model, tmp_path / "other", which=3)
        path.write_bytes(next((tmp_path / "other").glob("*/*.state")).read_bytes())
        answer = join(batch, turn, N)[0]
        run(batch)
        notes = list(batch._loaded.notes)
    assert answer.n_reused == 0
    assert sum("is not used: it was replaced" in note for note in notes) == 1
    assert answer.token_ids == alone(model, [(turn, {"max_tokens": N})]).token_ids


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
