"""The counters of the core and the one table that the rest is made from."""

from __future__ import annotations

from pathlib import Path

import tiny_moe
from remoe_edge import Engine
from remoe_edge.bench.tokens_csv import COLUMNS
from remoe_edge.engine.counters import (
    FIELDS,
    METRICS,
    PER_STEP,
    PER_TOKEN,
    Counts,
    core_key,
)


def test_the_table_is_what_the_core_counts(tmp_path: Path) -> None:
    model = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    with Engine(model, cache="50%") as engine:
        counts = engine.counts()
        assert {core_key(each.name) for each in FIELDS} == set(counts)
        before = dict(counts)
        engine.evaluate(list(range(5, 40)))
        spent = Counts(**Counts.between(before, engine.counts()))
        assert spent.misses > 0
        assert spent.bytes_read > 0
        # Times are the core's nanoseconds in milliseconds.
        ffn_ns = engine.counts()["ffn_ns"] - before["ffn_ns"]
        assert spent.ffn_ms == ffn_ns / 1e6 > 0


def test_units_are_in_the_names() -> None:
    for each in FIELDS:
        unit = each.metadata["unit"]
        assert each.name.endswith("_ms") == (unit == "ms"), each.name
        assert ("bytes" in each.name) == (unit == "bytes"), each.name
        assert each.metadata["help"].endswith(".")


def test_what_files_and_metrics_have_stays_as_it_is() -> None:
    assert PER_STEP == ("stall_ms", "ffn_ms", "hits", "misses", "bytes_read")
    assert PER_TOKEN == (
        "stall_ms", "read_ms", "ffn_ms", "hits", "misses", "bytes_read", "prefetch_useful_bytes",
        "prefetch_wasted_bytes",
    )  # fmt: skip
    assert [each.metadata["metric"] for each in METRICS] == [
        "expert_hits", "expert_misses", "expert_read_bytes", "coarse_read_bytes", "stall_seconds",
        "lossy_swaps", "lossy_cold_skips", "lossy_small_skips", "lossy_coarse",
    ]  # fmt: skip
    assert COLUMNS[6:10] == ("token_ms", "stall_ms", "compute_ms", "read_ms")


def test_nothing_streamed_counts_nothing() -> None:
    assert Counts.between({}, {}) == {}
    assert Counts().told() == dict.fromkeys(PER_STEP, 0)
