"""The scripts of the remote experiments run, and what they write adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoe_edge.placement.price import load
from remoe_edge.placement.request import Slo, Workload
from remote_experiments import regret, setting, simulate_placements, time_planner, without_parts
from similar_prompts.evaluate_sps import Prompt


@pytest.mark.parametrize("name", regret.platforms())
def test_the_search_of_sizes_is_never_worse_than_the_fit(name: str) -> None:
    row = regret.compare(name, regret.platforms()[name], 2, seed=5)
    assert row["problems"] == 2
    assert row["sizes"]["limits_broken"] == 0
    assert 0 <= row["sizes"]["worst_regret"] < 0.05
    fitted = row["exponential"]
    if fitted["worst_regret"] is not None:
        assert fitted["worst_regret"] >= -1e-9
    if name.startswith("exponential"):
        assert row["fit_worst"] < 1e-3
        assert row["convex"] == 2


def test_the_timing_covers_every_stage() -> None:
    found = time_planner.once(3, 16, 4, seed=0)
    assert found["functions"] == 3 * 3
    assert set(found["seconds"]) >= {"MMP", "memory by sizes", "memory by Lagrangian", "all stages"}
    assert all(seconds >= 0 for seconds in found["seconds"].values())


def test_arms_are_simulated_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate_placements, "shape", lambda: setting.shape(3, 16, 4))
    monkeypatch.setattr(
        simulate_placements, "request",
        lambda slo, work: setting.request(slo, work, setting.shape(3, 16, 4)),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    scores = rng.random((3, 96, 16)) * np.arange(1, 17)
    meta = json.dumps({"num_experts": 16})
    np.savez(tmp_path / "t.npz", experts=np.argsort(-scores, axis=2)[..., :4], meta=meta)
    out = tmp_path / "out.json"
    arguments = [
        str(tmp_path / "t.npz"), "--requests", "3", "--prompt", "8", "--answer", "4", "--no-scale",
        "--arrivals", "poisson:0.5", "-o", str(out),
    ]  # fmt: skip
    assert simulate_placements.main(arguments) == 0
    record = json.loads(out.read_text())
    assert {row["prices"] for row in record["rows"]} == {
        "paper", "per-call", "per-call, no fee per call", "lifetime",
    }  # fmt: skip
    for row in record["rows"]:
        assert row["requests"] == 3
        assert row["bill"]["total"] == pytest.approx(3 * row["cost_a_request"], rel=1e-4)
        if row["arm"] == "all local":
            assert row["missing"] == row["calls_a_request"] == 0
    assert len(record["networks"]) == 10
    assert "out of range" not in capsys.readouterr().err


def made_up(n: int) -> list[Prompt]:
    """Route prompts that prefer a few experts, others for each."""
    rng = np.random.default_rng(n)
    found = []
    for i in range(n):
        scores = rng.random((2, 20, 16)) + 0.5 * (np.arange(16) // 4 == i % 4)
        routed = np.argsort(-scores, axis=2)[..., :2].astype(np.int32)
        found.append(Prompt("made up", [i], routed[:, :12], routed[:, 12:]))
    return found


def test_parts_are_left_out_one_by_one() -> None:
    def truth(prompt: Prompt) -> Any:
        whole = np.concatenate([prompt.prompt, prompt.answer], 1).reshape(2, -1)
        return np.stack([np.bincount(row, minlength=16) / len(row) for row in whole])

    ways = dict.fromkeys(("SPS", "oracle"), truth)
    ways |= {name: (lambda prompt: np.full((2, 16), 1 / 16)) for name in ("frequency", "even")}
    asked = setting.request(Slo(1000, 10_000), Workload(12, 9), setting.shape(2, 16, 2))
    rows = without_parts.judge(asked, load("paper"), ways, made_up(4))
    by_case = {row["case"]: row for row in rows}
    assert set(by_case) == set(without_parts.cases(16, 1))
    assert all(row["prompts"] == 4 for row in rows)
    # Who knows the truth sends less away, and everything local sends nothing.
    assert by_case["all parts"]["remote_rows"] < by_case["without SPS: even"]["remote_rows"]
    assert by_case["without MMP: all local"]["remote_rows"] == 0
    smallest = by_case["without Lagrangian: smallest"]
    assert smallest["ttft_ms"] > by_case["all parts"]["ttft_ms"]
