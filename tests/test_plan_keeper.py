"""A plan that is kept: the keeper against models, disks and memories of our own making."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

import check_plan_kept
import remoe_edge as core
import tiny_moe
from pieces import NOT_DONE
from remoe_edge.bench.box import Limits
from remoe_edge.engine.observers import Step
from remoe_edge.plan.keeper import JUDGED_AFTER, PROMISE, PlanKeeper
from remoe_edge.plan.misses import SHAPE

CHOICES, TOTAL, FLOOR = 192, 1500, 6


class Heard(PlanKeeper):
    """A keeper whose lines are kept."""

    def __init__(self, *what: float) -> None:
        super().__init__(*what)  # type: ignore[arg-type]
        self.lines: list[str] = []
        self.says_to(self.lines.append)


class Engine:
    """A token takes computing + misses · read, and misses follow the slots that are filled."""

    def __init__(
        self, *, exponent: float, computing_ms: float, read_ms: float, memory_slots: int = TOTAL,
        noise: float = 0.0, seed: int = 1,
    ) -> None:  # fmt: skip
        self.exponent, self.computing_ms, self.read_ms = exponent, computing_ms, read_ms
        self.memory_slots, self.noise = memory_slots, noise
        self.dice = random.Random(seed)
        self.filled = 0.0
        self.owed = 0.0

    def misses(self, slots: float) -> float:
        x, y = [x for x, _ in SHAPE], [math.log(y) for _, y in SHAPE]
        return CHOICES * math.exp(self.exponent * float(np.interp(slots / TOTAL, x, y)))

    def steady_ms(self, slots: float) -> float:
        return self.computing_ms + self.misses(slots) * self.read_ms

    def token(self, slots: int) -> Step:
        self.filled = min(self.filled, slots)
        self.owed += self.misses(self.filled) * self.dice.uniform(1 - self.noise, 1 + self.noise)
        missed = int(self.owed)
        self.owed -= missed
        evicted = max(0, int(self.filled + missed - slots))
        self.filled = min(float(slots), self.filled + missed)
        ms = self.computing_ms + missed * self.read_ms * self.dice.uniform(
            1 - self.noise, 1 + self.noise
        )
        return Step("decode", 1, 0.0, ms / 1000, misses=missed, evictions=evicted)

    def run(self, keeper: PlanKeeper, n_tokens: int, slots: int) -> tuple[list[float], int]:
        """Decode, the elastic budget following the keeper as far as memory goes."""
        times = []
        for _ in range(n_tokens):
            room = slots < self.memory_slots
            slots = max(FLOOR, min(self.memory_slots, keeper.wanted(slots, room)))
            keeper.wanted(slots, slots < self.memory_slots)
            step = self.token(slots)
            times.append(step.ms)
            keeper.on_step(step)
        return times, slots


def keep(engine: Engine, target_ms: float, start: int, n_tokens: int = 128) -> tuple[float, Heard]:
    keeper = Heard(target_ms, engine.computing_ms, CHOICES, TOTAL, start, FLOOR)
    keeper.on_begin(32)
    engine.filled = start * 0.8  # a prompt has filled most of it
    times, _ = engine.run(keeper, n_tokens, start)
    return sum(times[JUDGED_AFTER:]) / (n_tokens - JUDGED_AFTER), keeper


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.4])
@pytest.mark.parametrize("read_ms", [0.5, 8.0])
def test_within_a_fifth_of_the_promise_after_64_tokens_or_said(
    exponent: float, read_ms: float, noise: float
) -> None:
    engine = Engine(exponent=exponent, computing_ms=40, read_ms=read_ms, noise=noise)
    for share in (0.1, 0.6):
        start = int(share * TOTAL)
        for wanted_share in (0.15, 0.35, 0.7):
            target = engine.steady_ms(wanted_share * TOTAL)
            measured, keeper = keep(engine, target, start)
            if measured > PROMISE * target:
                assert keeper.lines, (share, wanted_share, measured, target)
            else:
                assert keeper.state == "kept"


def test_the_published_figures_of_another_model_are_corrected() -> None:
    # What happened on the twin: 60 ms promised by published figures, 114 measured.
    engine = Engine(exponent=0.7, computing_ms=45, read_ms=1.0, noise=0.2)
    start = 450
    assert engine.steady_ms(start) > 90
    measured, keeper = keep(engine, 60.0, start)
    assert measured <= PROMISE * 60
    assert keeper.state == "kept"


def test_memory_that_is_not_needed_is_given_up() -> None:
    engine = Engine(exponent=2.0, computing_ms=40, read_ms=1.0)
    keeper = PlanKeeper(80.0, 40.0, CHOICES, TOTAL, 1200, FLOOR)
    engine.filled = 1200
    times, slots = engine.run(keeper, 400, 1200)
    assert slots < 700
    assert sum(times[-64:]) / 64 <= 80.0 * 1.1


def test_what_cannot_be_is_said_once_and_why() -> None:
    engine = Engine(exponent=0.5, computing_ms=40, read_ms=2.0, memory_slots=300)
    measured, keeper = keep(engine, 60.0, 300)
    assert measured > PROMISE * 60
    line = keeper.lines[-1]
    assert line.startswith(
        "60 ms per token cannot be kept: with all the memory that is free (20% of"
    )
    assert "of which 40 are computing" in line
    assert len(keeper.lines) == len(set(keeper.lines))
    assert keeper.to_dict()["state"] == "out of reach"
    # With more memory later it is kept after all, once the cache has filled.
    engine.memory_slots = TOTAL
    times, _ = engine.run(keeper, 400, 300)
    assert sum(times[-64:]) / 64 <= PROMISE * 60
    assert keeper.state == "kept"


def test_a_cache_that_cannot_fill_so_soon_is_said_to_be_filling() -> None:
    engine = Engine(exponent=1.6, computing_ms=40, read_ms=8.0)
    measured, keeper = keep(engine, engine.steady_ms(900), 300)
    assert measured > PROMISE * engine.steady_ms(900)
    (line,) = keeper.lines
    assert "are not kept yet" in line


def test_computing_alone_above_the_target_wants_everything() -> None:
    engine = Engine(exponent=1.0, computing_ms=90, read_ms=1.0)
    _, keeper = keep(engine, 60.0, 300, n_tokens=400)
    assert keeper.wanted(TOTAL, True) == TOTAL
    assert "90 are computing" in keeper.lines[-1]


def test_what_says_nothing_changes_nothing() -> None:
    keeper = Heard(60.0, 40.0, CHOICES, TOTAL, 500, FLOOR)
    for _ in range(200):
        keeper.on_step(Step("prefill", 32, 0.0, 9.0, misses=900, evictions=900))
        keeper.on_step(Step("decode", 8, 0.0, 9.0, misses=900, evictions=900))
    assert keeper.wanted(500, True) == 500
    assert keeper.state == "learning"
    assert keeper.lines == []
    for _ in range(200):  # on the promise
        keeper.on_step(Step("decode", 1, 0.0, 0.058, misses=18, evictions=18))
    assert keeper.wanted(500, True) == 500
    assert keeper.state == "kept"
    keeper.on_load({})
    keeper.on_answer(None)
    keeper.on_close()


def test_from_a_handful_of_slots_it_gets_there_too() -> None:
    engine = Engine(exponent=0.5, computing_ms=20, read_ms=1.0)
    measured, keeper = keep(engine, engine.steady_ms(700), FLOOR)
    assert measured <= PROMISE * engine.steady_ms(700)
    assert keeper.state == "kept"


def test_a_cache_that_still_fills_gets_time_and_no_slots() -> None:
    keeper = PlanKeeper(60.0, 40.0, CHOICES, TOTAL, 500, FLOOR)
    for _ in range(100):
        keeper.on_step(Step("decode", 1, 0.0, 0.3, misses=100, evictions=0))
    assert keeper.wanted(500, True) == 500
    assert keeper.state == "not yet"
    for _ in range(40):
        keeper.on_step(Step("decode", 1, 0.0, 0.3, misses=100, evictions=90))
    assert keeper.wanted(500, True) > 500


def test_slots_that_have_not_come_yet_are_no_memory_that_is_missing() -> None:
    # Tokens of a millisecond: all of them pass before a cache may grow, which takes a calm second.
    keeper = Heard(3.0, 1.0, CHOICES, TOTAL, 300, FLOOR)
    slow = Step("decode", 1, 0.0, 0.01, misses=60, evictions=60)
    for _ in range(200):
        keeper.on_step(slow)
        assert keeper.wanted(300, True) >= 300
    assert keeper.wanted(300, True) > 300
    assert keeper.state == "not yet"
    (line,) = keeper.lines
    assert line.startswith("3 ms per token are not kept yet: a token takes about 10 ms while")
    share = keeper.wanted(300, True) / TOTAL
    assert f"grows to {share:.0%} of the experts" in line
    for _ in range(200):
        keeper.on_step(slow)
        keeper.wanted(300, False)
    assert keeper.state == "out of reach"
    assert "cannot be kept: with all the memory that is free (20% of" in keeper.lines[-1]


def test_a_cache_that_grows_all_the_time_does_not_put_off_the_verdict() -> None:
    # Every step of growth begins a window anew: no window ends, and the promise is judged all the same.
    keeper = Heard(60.0, 40.0, CHOICES, TOTAL, 300, FLOOR)
    slots = 300
    for token in range(JUDGED_AFTER + 32):
        if token % 8 == 0:
            slots += 20
            keeper.wanted(slots, True)
        keeper.on_step(Step("decode", 1, 0.0, 0.08, misses=20, evictions=20))
    (line,) = keeper.lines
    assert line.startswith("60 ms per token are not kept yet: a token takes about 80 ms")


def test_tokens_before_the_first_64_are_nobodys_promise() -> None:
    keeper = Heard(60.0, 40.0, CHOICES, TOTAL, 500, FLOOR)
    for token in range(JUDGED_AFTER + 64):
        took_s = 0.5 if token < JUDGED_AFTER else 0.058
        keeper.on_step(Step("decode", 1, 0.0, took_s, misses=18, evictions=1))
    assert keeper.lines == []
    assert keeper.state == "kept"


def test_a_promise_that_is_no_longer_kept_is_said_again() -> None:
    keeper = Heard(60.0, 40.0, CHOICES, TOTAL, 500, FLOOR)

    def tokens(ms: float) -> None:
        for _ in range(100):
            keeper.on_step(Step("decode", 1, 0.0, ms / 1000, misses=18, evictions=1))

    tokens(90.0)
    assert len(keeper.lines) == 1
    keeper.on_begin(32)
    tokens(90.0)
    assert len(keeper.lines) == 1  # it was never kept: nothing new
    tokens(58.0)
    assert keeper.state == "kept"
    keeper.on_begin(32)
    tokens(90.0)
    assert len(keeper.lines) == 2


def test_the_shape_is_the_published_one(tmp_path: Path) -> None:
    assert [x for x, _ in SHAPE] == sorted(x for x, _ in SHAPE)
    assert [y for _, y in SHAPE] == sorted((y for _, y in SHAPE), reverse=True)
    assert SHAPE[0] == (0.0, 1.0)


def test_the_check_tells_a_broken_promise_from_one_that_was_taken_back() -> None:
    kept = {"target_ms": 60.0, "measured_ms": 71.0, "said": []}
    late = {**kept, "measured_ms": 90.0}
    assert check_plan_kept.judge(kept) == "kept"
    assert check_plan_kept.judge(late) == "BROKEN"
    assert check_plan_kept.judge({**late, "said": ["reads were slow"]}) == "BROKEN"
    keeper = Heard(60.0, 90.0, CHOICES, TOTAL, 300, FLOOR)
    for _ in range(100):
        keeper.on_step(Step("decode", 1, 0.0, 0.09, misses=10, evictions=9))
    assert keeper.lines
    assert check_plan_kept.judge({**late, "said": keeper.lines}) == "said"
    assert check_plan_kept.judge({**kept, "measured_ms": None, "said": ["out of reach"]}) == "said"


def test_the_check_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, int | None, float]] = []

    def boxed(options: object, model: Path, limits: Limits, factor: float) -> dict[str, object]:
        ran.append((model.name, limits.read_bytes_per_s, factor))
        return {"target_ms": 60.0, "measured_ms": 50.0, "resident_ms": 40.0, "said": []}

    monkeypatch.setattr(check_plan_kept, "_boxed", boxed)
    out = tmp_path / "kept.json"
    asked = ["a.gguf", "b.gguf", "--text", "t", "--read-bandwidth", "100MB,1GB", "--targets", "2,4",
             "-o", str(out), "--at-most", "0"]  # fmt: skip
    for n in range(1, 8):  # at most no seconds: one run each time
        with pytest.raises(SystemExit) as ended:
            check_plan_kept.main(asked)
        assert ended.value.code == NOT_DONE
        assert len(ran) == n
        assert not out.exists()
    assert "7 pieces are kept" in capsys.readouterr().err
    assert check_plan_kept.main(asked) == 0
    assert len(set(ran)) == 8
    assert check_plan_kept.main(asked) == 0
    assert len(ran) == 8
    assert check_plan_kept.main([*asked, "--targets", "3", "--at-most", "60"]) == 0
    found = json.loads(out.read_text())
    assert [row["factor"] for row in found["rows"]] == 4 * [2.0] + 4 * [4.0] + 4 * [3.0]
    assert found["broken"] == 0
    assert str(tmp_path) not in out.read_text()
    assert list(tmp_path.iterdir()) == [out]
    found["rows"][3]["outcome"] = "BROKEN"
    out.write_text(json.dumps(found))
    assert check_plan_kept.main(asked) == 1
    out.write_text("{}")
    with pytest.raises(SystemExit, match="no record of this tool"):
        check_plan_kept.main(asked)
    with pytest.raises(SystemExit):
        check_plan_kept.parse(["a.gguf", "--text", "t", "--at-most", "60"])


def test_a_plan_is_followed_in_a_running_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    with core.Engine(model, cache="plan:3600s", n_ctx=256) as engine:
        keeper = engine._loaded.keeper
        assert isinstance(keeper, PlanKeeper)
        assert engine._loaded.elastic is not None
        assert engine.native is not None
        begun = engine.native.n_slots
        engine.evaluate([5, 6, 7, 8])
        for token in range(40):
            engine.evaluate([10 + token], reset=False)
        plan = engine.stats().to_dict()["cache"]["plan"]
        assert plan["target_ms"] == 3_600_000
        assert plan["tokens"] == 40
        # An hour a token takes no more than the floor, whatever it began with.
        assert plan["wanted_slots"] <= begun
        assert plan["measured_ms"] is not None
