"""`remoe-edge plan --price`: a placement of a small model, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import command_line
import small_moe
from remoe_edge.placement import placement_file
from remoe_edge.placement.request import Slo
from remoe_edge.plan.sizes import measure_sizes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.gguf"
    small_moe.write_small_moe(path, embed=128, expert_ffn=64)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep measurements out of the tester's own cache folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_the_command_places_experts_elsewhere(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3, 200, 16)) * np.arange(1, 17) ** -1.0
    routed = np.argsort(-scores, axis=2)[..., :4]
    np.savez(tmp_path / "t.npz", experts=routed, meta=json.dumps({"num_experts": 16}))
    asked = ("--price", "paper", "--slo", "tpot=100s,ttft=1000s", "--ctx", "128", "--policy", "lru")
    out = tmp_path / "placement.json"
    done = command_line.run(
        capsys, "plan", model, *asked, "--trace", tmp_path / "t.npz", "-o", out, "--json"
    )
    assert done.code == 0, done.err
    placed = placement_file.load(out)
    assert json.loads(done.out) == placement_file.as_dict(placed)
    shape = placed.request.shape
    assert (shape.n_layers, shape.n_experts, shape.top_k, shape.row_bytes) == (3, 16, 4, 1024)
    assert shape.expert_bytes == measure_sizes(model, 128).layers[0].expert_bytes
    assert placed.request.slo == Slo(100_000, 1_000_000)
    table = command_line.run(capsys, "plan", model, *asked)
    assert "targets: TPOT ≤ 100000 ms and TTFT ≤ 1e+06 ms; prices: paper" in table.out
    assert "no --trace: every expert counts as equally likely" in table.err
    for options, line in (
        (("--price", "papr", "--tpot", "1s"), "no price table at papr"),
        (("--price", "paper", "--tpot", "1s", "--memory", "1GiB"), "--memory goes without --price"),
        (("--price", "paper", "--tpot", "1s", "--profile", "p"), "--profile goes without --price"),
        (("--price", "paper"), "--price wants a target too"),
        (("--price", "paper", "--slo", "tpot=1s", "--ttft", "1s"), "--slo names both targets"),
        (("--price", "paper", "--slo", "tpt=1s"), "names no targets"),
        (("--price", "paper", "--slo", "tpot=1s,tpot=2s"), "names no targets"),
        (("--price", "paper", "--tpot", "1s", "--link", "1ms"), "is no link"),
        (("--price", "paper", "--tpot", "0.0001ms"), "out of reach at worst"),
        (("-o", out), "--output writes a placement"),
    ):
        said = command_line.run(capsys, "plan", model, "--ctx", "128", *options).error()
        assert line in said
