"""Storage that fails in the middle of a token: a clear error, a living process, and no wrong bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tiny_moe
from remoe_edge import Engine, errors
from remoe_edge.native import _core

PROMPT = [11, 48, 85, 122, 159, 196, 38]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")


@pytest.fixture(params=["pread", "io_uring"])
def engine(request: pytest.FixtureRequest, model: Path):
    try:
        opened = Engine(model, cache="25%", io=request.param)
    except errors.UnsupportedError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def expected(model: Path) -> np.ndarray:
    with Engine(model, cache="100%") as engine:
        return engine.evaluate(PROMPT)


def test_error_names_file_layer_expert_and_offset(engine: Engine, model: Path) -> None:
    engine.native.set_faults(_core.FaultPlan(fail_operation=2))
    with pytest.raises(errors.ReadError) as caught:
        engine.evaluate(PROMPT)
    message = str(caught.value)
    assert str(model) in message
    for word in ("layer", "expert", "offset", os.strerror(5)):
        assert word in message
    # The disk recovers, and so does the engine: same engine, same bits.
    engine.native.set_faults(_core.FaultPlan())
    assert np.array_equal(engine.evaluate(PROMPT), expected(model))


def test_every_read_failing_is_survived(engine: Engine, model: Path) -> None:
    for operation in range(12):
        engine.native.set_faults(_core.FaultPlan(fail_operation=operation))
        with pytest.raises(errors.ReadError):
            for _ in range(20):
                engine.evaluate(PROMPT)
                engine.evaluate([200 - operation] * 3, reset=False)
    engine.native.set_faults(_core.FaultPlan())
    assert np.array_equal(engine.evaluate(PROMPT), expected(model))


def test_failure_in_the_middle_of_an_answer(engine: Engine) -> None:
    stream = engine.generate(PROMPT, max_tokens=200, temperature=0)
    next(stream)
    engine.native.set_faults(_core.FaultPlan(range_file=0, range_bytes=1 << 40))
    with pytest.raises(errors.ReadError):
        list(stream)
    engine.native.set_faults(_core.FaultPlan())
    assert "".join(engine.generate(PROMPT, max_tokens=4, temperature=0))


def test_down_fails_after_its_expert_was_begun(model: Path) -> None:
    # One slow read after the other, at the floor: gate and up have computed when down fails.
    token = PROMPT[:1]
    with Engine(model, cache="100%") as whole:
        wanted = whole.evaluate(token)
    floor = _core.StreamedModel.open(str(model))
    downs = [t for t in _core.ModelFile.open(str(model)).tensors if "ffn_down_exps" in t.name]
    with Engine(
        model, cache=str(floor.budget_for(floor.n_experts_used)), depth=1, prefetch="off"
    ) as engine:
        for down in downs:
            engine.native.set_faults(
                _core.FaultPlan(
                    delay_us=20000, range_file=0, range_offset=down.offset, range_bytes=down.n_bytes
                )
            )
            before = engine.native.counts()["begun_misses"]
            with pytest.raises(errors.ReadError, match="down"):
                engine.evaluate(token)
            assert engine.native.counts()["begun_misses"] > before
            engine.native.set_faults(_core.FaultPlan())
            assert np.array_equal(engine.evaluate(token), wanted)


@pytest.mark.parametrize(
    "plan",
    [{"short_bytes": 4096}, {"interruptions": 2}, {"delay_us": 300}],
    ids=["short reads", "EINTR", "slow reads"],
)
def test_hindrances_change_no_bit(engine: Engine, model: Path, plan: dict[str, int]) -> None:
    engine.native.set_faults(_core.FaultPlan(**plan))
    assert np.array_equal(engine.evaluate(PROMPT), expected(model))


def test_file_truncated_under_us(model: Path) -> None:
    with Engine(model, cache="25%") as engine:
        os.truncate(model, model.stat().st_size // 2)
        with pytest.raises(errors.ReadError, match="tiny.gguf"):
            engine.evaluate(PROMPT)


def test_file_replaced_under_us(model: Path, tmp_path: Path) -> None:
    with Engine(model, cache="25%") as engine:
        other = tiny_moe.make(tmp_path / "other.gguf", "qwen3moe", "Q8_0", seed=7)
        os.replace(other, model)
        with pytest.raises(errors.ReadError, match="tiny.gguf"):
            engine.evaluate(PROMPT)


def test_file_touched_or_put_there_again(model: Path, tmp_path: Path) -> None:
    with Engine(model, cache="25%") as engine:
        before = engine.evaluate(PROMPT)
        os.utime(model, (1, 1))
        assert np.array_equal(engine.evaluate(PROMPT), before)
        copy = tmp_path / "copy.gguf"
        copy.write_bytes(model.read_bytes())
        os.replace(copy, model)  # what copy-up looks like: another inode
        assert np.array_equal(engine.evaluate(PROMPT), before)


def test_truncated_file_is_refused_before_llama_sees_it(model: Path) -> None:
    os.truncate(model, model.stat().st_size - 100_000)
    with pytest.raises(errors.ModelError, match="tiny.gguf"):
        Engine(model, cache="25%")
