"""Many engines at one worker: everybody is answered, nothing grows (the long run: docs/remote.md)."""

from __future__ import annotations

from pathlib import Path

import tiny_moe
from remote_experiments import many_engines


def test_many_engines(tmp_path: Path) -> None:
    model = tiny_moe.make(tmp_path / "model.gguf", "qwen3moe", "Q4_K")
    record = many_engines.measure(model, n_clients=40, seconds=1, memory="64MiB")
    assert record["clients"] == 40
    assert record["answers"] >= 40
    assert record["wrong"] == 0
    assert record["least_share"] > 0  # everybody was answered
    assert record["descriptors_after"] <= record["descriptors_before"]
