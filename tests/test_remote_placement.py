"""Experts go where they are used: hot ones here, warm ones into peers' memory, each in one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_moe
from remoe_edge import InputError
from remoe_edge.native import _core
from remoe_edge.remote.experts import first_experts
from remotes import check, engine, expected, prompt, remote, worker
from waiting import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("placement")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "model.gguf", "qwen3moe", "Q4_K")


def memory_for(path: Path, n: int) -> str:
    """What a worker needs for about so many experts, and to compute."""
    return str(_core.StreamedModel.open(str(path)).budget_for(n) + (1 << 20))


def test_a_worker_holds_what_is_wished_for(model: Path) -> None:
    file = _core.ModelFile.open(str(model))
    total = sum(layer.n_experts for layer in file.expert_layers)
    with worker(model, "AUTO", memory=memory_for(model, total // 2), move_rate="1GiB") as serving:
        assert 0 < serving.capacity < total
        assert serving.n_experts == serving.capacity
        with engine(model, serving.address, cache="40%") as made:

            def moved() -> bool:
                for length in (3, 7):
                    made.evaluate(prompt(length))
                return serving.counts()["moved_bytes"] > 0

            wait_until(moved)
            for length in (1, 7, 60):
                check(made, expected(model, length), length)
            counts = remote(made)
            assert counts["remote_rows"] > 0
            assert counts["remote_mismatches"] == 0
            assert serving.counts()["experts"] <= serving.capacity


def test_two_engines_share_one_worker(model: Path) -> None:
    with worker(model, "AUTO", memory=memory_for(model, 8), move_rate="1GiB") as serving:
        with engine(model, serving.address) as first, engine(model, serving.address) as second:
            for length in (1, 7):
                check(first, expected(model, length), length)
                check(second, expected(model, length), length)
        wait_until(lambda: serving.counts()["clients"] == 0)
        assert serving.counts()["experts"] <= serving.capacity


def test_nothing_moves_beyond_the_allowance(model: Path) -> None:
    with (
        worker(model, "AUTO", memory=memory_for(model, 8), move_rate="1KiB") as serving,
        engine(model, serving.address) as made,
    ):
        wait_until(
            lambda: made.evaluate(prompt(5)) is not None and serving.counts()["answers"] > 20
        )
        file = _core.ModelFile.open(str(model))
        largest = max(sum(m.expert_bytes for m in each.matrices) for each in file.expert_layers)
        assert serving.counts()["moved_bytes"] <= 2 * largest
        check(made, expected(model, 7), 7)


def test_where_a_worker_begins(model: Path) -> None:
    file = _core.ModelFile.open(str(model))
    n = file.expert_layers[0].n_experts
    n_layers = len(file.expert_layers)
    assert first_experts(file)[: n_layers + 1] == [*range(0, n * n_layers, n), 1]
    assert first_experts(file, [5, 3])[:3] == [5, 3, 0]
    assert sorted(first_experts(file, [5, 3])) == list(range(n * n_layers))
    with pytest.raises(InputError, match="--profile"):
        worker(model, "all", profile=model)


def test_a_profile_says_what_comes_first(model: Path, folder: Path) -> None:
    from remoe_edge.profile.kept_profile import KeptProfile

    file = _core.ModelFile.open(str(model))
    n = file.expert_layers[0].n_experts
    kept = KeptProfile(folder / "hot.profile", model)
    uses = np.zeros(len(file.expert_layers) * n)
    uses[[n + 3, 6]] = 5, 4
    kept.save(uses, 1, len(file.expert_layers), n)
    with (
        worker(
            model, "AUTO", memory=memory_for(model, 2), profile=folder / "hot.profile"
        ) as serving,
        engine(model, serving.address) as made,
    ):
        assert serving.capacity >= 2
        check(made, expected(model, 1), 1)
