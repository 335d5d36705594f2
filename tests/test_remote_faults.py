"""Whatever happens to a worker or the line to it: equal logits, no step that hangs, a line that says so.

The ends themselves are fuzzed in csrc/remote/remote_fuzz_test.cc, and frames in csrc/wire.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import stock
import tiny_moe
from remoe_edge import Engine
from remoe_edge.native import _core
from remoe_edge.remote import worker as worker_module
from remote_experiments.many_engines import BUSY
from remotes import (
    CLOSE,
    Line,
    Spoil,
    answers_only,
    as_kind,
    check,
    engine,
    expected,
    flipped,
    process,
    prompt,
    remote,
    worker,
)
from router_cases import Case
from waiting import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "model.gguf", "qwen3moe", "Q4_K")


def says(made: Engine, text: str) -> bool:
    """Say whether the notes tell of it, after a step that takes what peers had to say."""
    made.evaluate(prompt(1))
    return any(text in note for note in made.notes)


# In an answer: also tests/test_remote.py.
@pytest.mark.parametrize(
    "when", ["before", *(pytest.param(at, marks=pytest.mark.slow) for at in ("during", "after"))]
)
def test_a_worker_is_killed(model: Path, when: str) -> None:
    reference = expected(model, 7, n=8)
    with process(model) as (running, address), engine(model, address) as made:
        if when == "before":
            running.kill()
            running.wait()
        rows = [made.evaluate(prompt(7))]
        for i, token in enumerate(reference.tokens):
            if when == "during" and i == 3:
                running.kill()
            rows.append(made.evaluate([token], reset=False))
        if when == "after":
            running.kill()
            running.wait()
            check(made, expected(model, 7), 7)
        assert (np.stack(rows).view(np.uint32) == reference.logits.view(np.uint32)).all()
        wait_until(lambda: says(made, "does not answer"))
        assert made.native.budget_bytes + _core.peer_check_bytes(made.native) <= made.budget.n_bytes


def test_every_worker_is_gone(model: Path) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(process(model, share)) for share in ("*:0-4", "*:3-7")]
        made = stack.enter_context(engine(model, *(address for _, address in workers)))
        check(made, expected(model, 7), 7)
        assert remote(made)["remote_rows"] > 0
        for running, _ in workers:
            running.kill()
        check(made, expected(model, 60), 60)
        for _, address in workers:
            wait_until(lambda address=address: says(made, f"peer {address} does not answer"))
        check(made, expected(model, 7), 7)


def test_the_line_goes_down_and_comes_up(model: Path) -> None:
    with (
        worker(model) as serving,
        Line(serving.address) as line,
        engine(model, line.address) as made,
    ):
        check(made, expected(model, 7), 7)
        line.down.set()
        for _ in range(3):
            check(made, expected(model, 7), 7)
        assert remote(made)["remote_hedges"] > 0
        wait_until(lambda: says(made, "silent for 3 s"))
        line.down.clear()
        before = remote(made)["remote_experts"]

        def used() -> bool:
            check(made, expected(model, 7), 7)
            return remote(made)["remote_experts"] > before

        wait_until(used)


class Harm:
    """Do harm to every n-th answer beyond the first twenty, the canaries' among them; count it."""

    def __init__(self, n: int, do: Callable[[int, bytes], list[bytes]]) -> None:
        self._n, self._do, self._seen = n, do, 0
        self.done = 0
        self.spoil: Spoil = answers_only(self._spoil)

    def _spoil(self, kind: int, frame: bytes) -> list[bytes]:
        self._seen += 1
        if self._seen <= 20 or self._seen % self._n:
            return [frame]
        self.done += 1
        return self._do(self._seen, frame)


HELD: list[bytes] = []


def late(at: int, frame: bytes) -> list[bytes]:
    """Hold an answer back until the next one is late."""
    HELD.append(frame)
    return [HELD.pop(0)] if len(HELD) > 1 else []


HARMS: dict[str, Callable[[int, bytes], list[bytes]]] = {
    "truncated": lambda at, frame: [frame[: len(frame) * (1 + at % 6) // 7], CLOSE],
    "corrupt": lambda at, frame: [flipped(frame, seed=at)],
    "duplicated": lambda at, frame: [frame, frame],
    "dropped": lambda at, frame: [],
    "late": late,
    "busy": lambda at, frame: [as_kind(frame, BUSY)],
}


def harmed(harm: Harm, times: int, made: Engine, reference: stock.Result) -> bool:
    """Run a step; say whether so much harm has been done by now."""
    check(made, reference, 7)
    return harm.done >= times


@pytest.mark.parametrize("name", HARMS)
def test_answers_that_are(model: Path, name: str) -> None:
    HELD.clear()
    reference = expected(model, 7)
    harm = Harm(4, HARMS[name])
    with (
        worker(model) as serving,
        Line(serving.address, harm.spoil) as line,
        engine(model, line.address) as made,
    ):
        wait_until(lambda: harmed(harm, 4, made, reference), "harm")
        counts = remote(made)
        assert counts["remote_rows"] > 0
        assert counts["remote_mismatches"] == 0
        if name == "busy":
            assert counts["remote_busy"] > 0
        elif name in ("dropped", "late"):
            assert counts["remote_hedges"] > 0
        else:
            wait_until(lambda: says(made, "does not answer"))


def test_a_peer_that_answers_nothing_is_told_of(model: Path) -> None:
    harm = Harm(1, HARMS["dropped"])
    with (
        worker(model) as serving,
        Line(serving.address, harm.spoil) as line,
        engine(model, line.address) as made,
    ):
        wait_until(lambda: harmed(harm, 8, made, expected(model, 7)), "silence")
        wait_until(lambda: says(made, "is late with most answers: their experts come from storage"))
        check(made, expected(model, 7), 7)


def test_a_slow_line(model: Path) -> None:
    """Every answer comes 15 ms later than the one before it: storage is faster, and has the experts."""

    def slow(kind: int, frame: bytes) -> list[bytes]:
        time.sleep(0.015)
        return [frame]

    reference = expected(model, 7)
    with (
        worker(model) as serving,
        Line(serving.address, answers_only(slow)) as line,
        engine(model, line.address) as made,
    ):

        def told() -> bool:
            check(made, reference, 7)
            return says(made, "longer than storage: it is hardly asked")

        wait_until(told)
        assert remote(made)["remote_mismatches"] == 0


def test_a_storm_of_busy(model: Path) -> None:
    harm = Harm(1, HARMS["busy"])
    with (
        worker(model) as serving,
        Line(serving.address, harm.spoil) as line,
        engine(model, line.address) as made,
    ):
        wait_until(lambda: harmed(harm, 20, made, expected(model, 7)), "a storm")
        assert remote(made)["remote_busy"] > 10
        wait_until(lambda: says(made, "turns most asks away"))
        for length in (1, 60):
            check(made, expected(model, length), length)


def test_another_version_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "__version__", "0.0")
    with worker(model) as serving, engine(model, serving.address) as made:
        check(made, expected(model, 7), 7)
        assert any("version of remoe-edge is '0.0'" in note for note in made.notes)


def test_routers_may_differ(tmp_path: Path) -> None:
    """A worker has no routers: an engine with tuned ones gets the bits that it has alone."""
    case = Case(tmp_path)
    case.convert()
    rows = []
    with worker(case.base_path) as serving:
        for peers in ((), (serving.address,)):
            with engine(case.base_path, *peers, routers=case.overlay) as made:
                rows.append(made.evaluate(prompt(7)))
                rows[-1] = np.stack([rows[-1], made.evaluate([9], reset=False)])
                assert not peers or remote(made)["remote_rows"] > 0
    alone, helped = rows
    assert (alone.view(np.uint32) == helped.view(np.uint32)).all()


def test_another_protocol_is_refused(model: Path) -> None:
    def older(kind: int, frame: bytes) -> list[bytes]:
        return [frame[:4] + b"\1\0" + frame[6:]]

    with (
        worker(model) as serving,
        Line(serving.address, older) as line,
        engine(model, line.address) as made,
    ):
        check(made, expected(model, 7), 7)
        assert any("version 1 of the protocol" in note for note in made.notes)
