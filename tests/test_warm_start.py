"""What one run learned serves the next: hot experts are there before anything asks for them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import command_line
import tiny_moe
from remoe_edge import Engine
from remoe_edge.errors import InputError, ModelError
from remoe_edge.native import _core
from remoe_edge.profile.kept_profile import KeptProfile

NAMES = _core.feature_names()
PROMPT = [(37 * i + 11) % 200 + 5 for i in range(23)]
NEXT = [(11 * i + 3) % 200 + 5 for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "m.gguf", "olmoe", "Q8_0", n_expert=16, n_expert_used=4)


def run(engine: Engine) -> np.ndarray:
    rows = [engine.evaluate(PROMPT)]
    rows += [engine.evaluate([token], reset=False) for token in NEXT]
    return np.stack(rows)


def counts(engine: Engine) -> dict[str, int]:
    assert engine.native is not None
    return engine.native.counts()


# Experts of whole pages are read in place, the others through staging.
@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_a_second_run_starts_warm_and_computes_the_same(folder: Path, quant: str) -> None:
    path = tiny_moe.make(folder / f"{quant}.gguf", "olmoe", quant, n_expert=16, n_expert_used=4)
    profile = folder / f"{quant}.profile"
    with Engine(path, cache="50%", n_ctx=128, threads=2, profile=profile) as engine:
        assert "it begins with this run" in engine.notes[-1]
        first = run(engine)
        cold = counts(engine)
        assert (cold["warm_experts"], cold["warm_bytes"]) == (0, 0)
        assert engine.native is not None
        expert_bytes = engine.native.expert_bytes // engine.native.total_experts
        used = engine.native.uses().reshape(3, 16)
    with Engine(path, cache="50%", n_ctx=128, threads=2, profile=profile) as engine:
        assert engine.native is not None
        engine.native.finish_warm_start()
        warm = counts(engine)
        n_slots = engine.stats()["cache"]["slots"]
        assert warm["warm_experts"] == min(n_slots, np.count_nonzero(used))
        assert warm["warm_bytes"] == warm["warm_experts"] * expert_bytes
        assert warm["misses"] == warm["bytes_read"] == 0
        again = run(engine)
        after = counts(engine)
    assert np.array_equal(first.view(np.uint32), again.view(np.uint32))
    assert after["bytes_read"] == after["misses"] * expert_bytes
    assert cold["bytes_read"] == cold["misses"] * expert_bytes
    assert after["hits"] + after["misses"] == cold["hits"] + cold["misses"]
    assert after["misses"] < cold["misses"]


def test_the_hottest_come_first(folder: Path, model: Path) -> None:
    profile = folder / "hottest.profile"
    uses = np.zeros(48, np.float32)
    uses[[5, 17, 40, 33, 2]] = [3, 9, 1, 7, 2]
    nothing = np.zeros(0, np.float32)
    profile.write_bytes(
        _core.make_profile(
            3, 16, "", "{}", nothing, nothing, nothing, np.zeros(0, np.int8), uses
        )
    )  # fmt: skip
    budget = _core.StreamedModel.open(str(model)).budget_for(4)
    with Engine(model, cache=str(budget), threads=2, profile=profile) as engine:
        assert engine.native is not None
        engine.native.finish_warm_start()
        assert counts(engine)["warm_experts"] == 4
        assert engine.native.warm([17]) == 0  # there already, and nothing is free
    assert profile.read_bytes() != b""  # nothing was run: the file is as it was
    assert _core.parse_profile(profile.read_bytes(), "p")["fingerprint"] == ""


def test_a_question_that_comes_at_once_ends_the_reading(model: Path, folder: Path) -> None:
    """Whatever has come by then is kept, and what has not is read when it is wanted."""
    profile = folder / "at-once.profile"
    outputs = []
    for _ in range(6):
        with Engine(model, cache="50%", n_ctx=128, threads=2, profile=profile) as engine:
            outputs.append(run(engine))
            after = counts(engine)
            assert after["hits"] + after["misses"] > 0
            assert engine.native is not None
            expert_bytes = engine.native.expert_bytes // engine.native.total_experts
            assert after["bytes_read"] == after["misses"] * expert_bytes
            assert after["warm_bytes"] == after["warm_experts"] * expert_bytes
            # Between answers the free part of the cache goes on filling.
            list(engine.generate(PROMPT, max_tokens=2, temperature=0))
    assert all(np.array_equal(outputs[0], output) for output in outputs)


def test_fitted_weights_are_kept(model: Path, folder: Path) -> None:
    profile = folder / "fitted.profile"
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, len(NAMES))).astype(np.float32)
    links = rng.integers(-127, 127, 3 * 5 * 16 * 16).astype(np.int8)
    profile.write_bytes(
        _core.make_profile(
            3, 16, "", json.dumps({"tokens": 7}), np.array([0.1, 0.5], np.float32), weights,
            np.full(15, 0.01, np.float32), links,
        )
    )  # fmt: skip
    for run_number in (1, 2):
        with Engine(model, cache="25%", n_ctx=128, threads=2, profile=profile) as engine:
            run(engine)
        kept = _core.parse_profile(profile.read_bytes(), "p")
        assert np.array_equal(kept["weights"].reshape(2, -1), weights)
        assert np.array_equal(kept["links"], links)
        assert json.loads(kept["meta"]) == {"tokens": 7, "model": model.name}
        assert kept["uses"].sum() > run_number * 3 * 4
    assert sorted(path.name for path in folder.glob("*fitted.profile*")) == ["fitted.profile"]


def test_several_that_keep_one_profile_all_add_to_it(model: Path, tmp_path: Path) -> None:
    """Whoever closes last adds to what the others have written meanwhile; also all at once."""
    profile = tmp_path / "p"
    kept = [KeptProfile(profile, model) for _ in range(9)]
    uses = 4 * np.eye(9, 48)
    kept[0].save(uses[0], 10, 3, 16)
    with ThreadPoolExecutor(8) as several:
        list(several.map(lambda n: kept[n].save(uses[n], 10, 3, 16), range(1, 9)))
    found = _core.parse_profile(profile.read_bytes(), "p")["uses"]
    assert found[0] == pytest.approx(4 * 0.5 ** (8 * 10 / 1000))
    assert (found[:9] > 3.5).all()
    assert np.count_nonzero(found) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_what_was_put_there_meanwhile_is_not_lost(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    profile, uses = tmp_path / "p", np.ones(48)
    nothing, weights = np.zeros(0, np.float32), np.ones((2, len(NAMES)), np.float32)
    kept = KeptProfile(profile, model)
    fitted = (np.array([0.1, 0.5], np.float32), weights, nothing, np.zeros(0, np.int8))
    profile.write_bytes(_core.make_profile(3, 16, "", "{}", *fitted))
    kept.save(uses, 10, 3, 16)
    found = _core.parse_profile(profile.read_bytes(), "p")
    assert np.array_equal(found["weights"].reshape(2, -1), weights)
    assert (found["uses"] == 1).all()
    others = _core.make_profile(3, 16, "other", "{}", *fitted, uses.astype(np.float32))
    profile.write_bytes(others)
    with pytest.raises(ModelError, match="give each model its own"):
        kept.save(uses, 10, 3, 16)
    assert profile.read_bytes() == others


def test_a_profile_of_another_model_is_refused_by_name(folder: Path, model: Path) -> None:
    other = tiny_moe.make(folder / "other.gguf", "olmoe", "Q8_0", seed=1)
    profile = folder / "other.profile"
    with Engine(other, cache="50%", threads=2, profile=profile) as engine:
        engine.evaluate(PROMPT)
    before = profile.read_bytes()
    with pytest.raises(ModelError, match=r"is a profile of other\.gguf, not of m\.gguf"):
        Engine(model, profile=profile)
    assert profile.read_bytes() == before


def test_damage_is_one_line_and_the_file_stays(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "p"
    with Engine(model, cache="50%", threads=2, profile=profile) as engine:
        engine.evaluate(PROMPT)
    damaged = bytearray(profile.read_bytes())
    damaged[-3] ^= 1
    profile.write_bytes(damaged)
    arguments = ("chat", "-m", model, "--profile", profile, "-p", "hello", "-n", "2")
    assert "damaged" in command_line.run(capsys, *arguments).error()
    assert profile.read_bytes() == bytes(damaged)
    profile.unlink()
    assert command_line.run(capsys, *arguments).code == 0
    assert _core.parse_profile(profile.read_bytes(), "p")["n_layers"] == 3
    with pytest.raises(InputError, match="path of a file"):
        Engine(model, profile=tmp_path)
    with Engine(model, stream=False, threads=2, profile=profile) as engine:
        assert "is not used" in engine.notes[-1]


def test_warming_between_short_answers_that_read_ahead_keeps_every_answer_right(
    folder: Path,
) -> None:
    # Both features take free slots: after a prompt that read ahead there may be none left.
    path = tiny_moe.make(
        folder / "short.gguf", "qwen3moe", "Q4_K", n_layer=4, n_expert=16, n_expert_used=4
    )
    profile = folder / "short.profile"
    with Engine(path, profile=profile, prefetch="off", n_ctx=256, publish=False) as engine:
        engine.evaluate(PROMPT)
    prompts = [[(seed * 7 + 3 * i) % 300 + 5 for i in range(8 + 13 * seed)] for seed in range(7)]
    with Engine(path, cache="100%", n_ctx=256, publish=False) as whole:
        expected = [whole.evaluate(prompt) for prompt in prompts]
    hot = KeptProfile(profile, path).hot()
    assert hot.size
    with Engine(
        path, cache="50%", profile=profile, prefetch="on", n_ctx=256, publish=False
    ) as engine:
        for _ in range(6):
            for prompt, logits in zip(prompts, expected, strict=True):
                list(engine.generate(prompt, max_tokens=1, temperature=0.0))
                np.testing.assert_array_equal(engine.evaluate(prompt), logits)
                engine.native.warm(hot)


def test_an_expert_named_twice_is_warmed_once(model: Path) -> None:
    with Engine(model, cache="50%", n_ctx=128, publish=False) as engine:
        assert engine.native.warm([3, 3, 5, 3, 5]) == 2
        engine.native.finish_warm_start()
        assert counts(engine)["warm_experts"] == 2
        with Engine(model, cache="100%", n_ctx=128, publish=False) as whole:
            np.testing.assert_array_equal(run(engine), run(whole))
