"""The tools that judge the planner and the prediction run, and what they write adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import check_plan
import small_moe
from similar_prompts import evaluate_sps

WORDS = ("cache", "expert", "router", "token", "slot", "budget", "miss", "hit", "layer", "read")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "small.gguf"
    small_moe.write_small_moe(path, embed=128, expert_ffn=64)
    return path


def text(path: Path, step: int, n_words: int) -> Path:
    """Write words in an order of their own."""
    path.write_text(" ".join(WORDS[i * step % 10] + str(i % 7) for i in range(n_words)))
    return path


def test_check_plan_compares_at_every_budget(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    out = tmp_path / "out.json"
    arguments = [
        str(model), "--text", str(text(tmp_path / "t.txt", 3, 200)), "--policy", "lru",
        "--budgets", "20%,100%", "--prompt", "40", "--warm", "4", "--tokens", "6", "--rounds", "2",
        "-o", str(out),
    ]  # fmt: skip
    assert check_plan.main(arguments) == 0
    found = json.loads(out.read_text())
    assert [round(row["share"], 1) for row in found["rows"]] == [0.2, 1.0]
    for row in found["rows"]:
        assert len(row["runs"]) == 2
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)
        # The same tokens from the same start: the counts are the same in every run.
        assert row["runs"][0]["misses"] == row["runs"][1]["misses"] == row["measured_misses"]
    assert found["worst_error"] == max(abs(row["error"]) for row in found["rows"])
    assert "published figures" in found["misses_from"]
    capsys.readouterr()
    assert check_plan.main([*arguments, "--skip", "100000"]) == 1
    assert capsys.readouterr().err.startswith("error: 50 tokens are to be read")


def test_evaluate_sps_judges_every_way(model: Path, tmp_path: Path) -> None:
    texts = [text(tmp_path / f"{name}.txt", step, 260) for name, step in (("a", 1), ("b", 3))]
    out = tmp_path / "out.json"
    arguments = [str(model), *map(str, texts), "--prompt", "10", "--answer", "5", "-o", str(out)]
    assert evaluate_sps.main([*arguments, "--past", "20", "--judged", "5", "--threads", "1"]) == 0
    found = json.loads(out.read_text())
    assert found["n_past"] == 40
    assert found["n_judged"] == 10
    for row in found["jensen_shannon_bits"].values():
        assert row["mean"] == pytest.approx((row["a"] + row["b"]) / 2, abs=2e-5)
        assert 0 <= row["mean"] <= 1
    # One leaf holds all forty: the tree finds what searching everything finds.
    bits = found["jensen_shannon_bits"]
    assert found["leaves"] == 1
    assert bits["sps"] == bits["sps, all searched"]
    for by_name in found["misses"].values():
        cold, true = by_name["nothing"], by_name["load by truth"]
        assert true["prompt"] <= cold["prompt"]
        assert by_name["keep by truth"]["prompt"] == cold["prompt"]
        assert "reuse-biased" in by_name
        assert by_name["reuse-biased, expecting sps"]["prompt"] > 0
