"""`gpu_layers`: what it takes, what it chooses, and what it says where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from command_line import run
from remoe_edge import Engine, EngineSettings
from remoe_edge.engine import offload
from remoe_edge.engine.llama import Buffers
from remoe_edge.errors import BudgetError, InputError
from remoe_edge.machine.gpu import Gpu, gpus
from remoe_edge.native import _core
from remoe_edge.units import MIB

CARD = Gpu("CUDA0", "a card", False, 8 << 30, 8 << 30)
BOARD = Gpu("CUDA0", "a board", True, 4 << 30, 8 << 30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("gpu") / "tiny.gguf", "qwen3moe", "Q8_0")


@pytest.fixture(scope="module")
def file(model: Path) -> _core.ModelFile:
    return _core.ModelFile.open(str(model))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("auto", "auto"),
        ("all", "all"),
        ("off", "off"),
        ("12", 12),
        (12, 12),
        (0, "off"),
        ("0", "off"),
    ],
)
def test_what_it_takes(given: str | int, kept: str | int) -> None:
    assert EngineSettings(gpu_layers=given).gpu_layers == kept


@pytest.mark.parametrize("given", ["some", "", "-1", -1, 1.5, True, None, 1 << 31, "1e3", "２"])
def test_what_it_refuses(given: object) -> None:
    with pytest.raises(InputError, match="gpu_layers is auto, all, off or a number"):
        EngineSettings(gpu_layers=given)  # type: ignore[arg-type]


def test_the_command_line_takes_the_same(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run(capsys, "chat", model, "--gpu-layers", "many", "-p", "a")
    assert answer.code == 2
    assert "auto, all, off or a number of layers, not 'many'" in answer.err


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU here")
@pytest.mark.parametrize("asked", [{"gpu_layers": "all"}, {"gpu_layers": 2}, {"experts_on": "gpu"}])
def test_asking_for_a_gpu_that_is_not_there_is_refused(model: Path, asked: Any) -> None:
    with pytest.raises(InputError, match="no GPU here"):
        Engine(model, cache="100%", **asked)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"gpu_layers": "off"}, "needs all layers there"),
        ({"gpu_layers": 3}, "needs all layers there"),
        ({"repack": True}, "and repack do not go together"),
        ({"peers": "127.0.0.1:7700"}, "and peers do not go together"),
        ({"stream": False}, "and no stream do not go together"),
    ],
)
def test_what_experts_on_a_gpu_do_not_go_with(beside: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        EngineSettings(experts_on="gpu", **beside)
    with pytest.raises(InputError, match="experts_on is one of auto, cpu, gpu"):
        EngineSettings(experts_on="CUDA0")


def test_the_gpu_that_has_the_experts_has_all_layers(file: _core.ModelFile) -> None:
    other = Gpu("CUDA1", "another", False, 8 << 30, 8 << 30)
    chosen = offload.resolve("auto", file, 1 << 30, 64, found=[other, CARD], experts_on="CUDA0")
    assert (chosen.n_layers, chosen.gpus, chosen.experts_on) == (chosen.n_in_all, (CARD,), CARD)
    assert chosen.said().endswith("experts on CUDA0")
    with pytest.raises(BudgetError):
        offload.resolve("auto", file, 9 << 30, 64, found=[CARD], experts_on="CUDA0")


def test_auto_takes_what_fits(file: _core.ModelFile) -> None:
    n_in_all = tiny_moe.NARROW_SHAPE.n_layer + 1

    def layers(gpu: Gpu, weight_bytes: int) -> int:
        return offload.resolve("auto", file, weight_bytes, 64, found=[gpu]).n_layers

    assert layers(CARD, 1 << 30) == n_in_all
    assert 0 < layers(CARD, 15 << 30) < n_in_all
    assert layers(CARD, 1 << 40) == 0
    assert offload.resolve("auto", file, 1 << 30, 64, found=[]).n_layers == 0
    assert offload.resolve("off", file, 1 << 30, 64, found=[CARD]).n_layers == 0


def test_a_number_is_taken_as_it_is_or_refused(file: _core.ModelFile) -> None:
    assert offload.resolve(2, file, 1 << 30, 64, found=[CARD]).n_layers == 2
    assert offload.resolve(99, file, 1 << 30, 64, found=[CARD]) == offload.resolve(
        "all", file, 1 << 30, 64, found=[CARD]
    )
    with pytest.raises(BudgetError, match=r"lower --gpu-layers or --ctx"):
        offload.resolve("all", file, 9 << 30, 64, found=[CARD])


def test_a_boards_memory_is_counted_once(file: _core.ModelFile) -> None:
    card, board = (
        offload.resolve("all", file, 1 << 30, 64, found=[each]) for each in (CARD, BOARD)
    )
    assert (card.share_elsewhere, board.share_elsewhere) == (1.0, 0.0)
    line = "llama_context: CUDA0 KV buffer size = 12.00 MiB"
    for chosen, n_here in ((card, 0), (board, 12 * MIB)):
        buffers = Buffers(elsewhere=chosen.names_elsewhere)
        buffers.read(2, line)
        assert buffers.n_bytes.get("KV", 0) == n_here
        assert buffers.gpu_bytes.get("KV", 0) == 12 * MIB - n_here
