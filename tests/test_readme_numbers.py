"""The numbers in the README are those of the records, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import readme_numbers
from bench_record import made_up

RESULTS = readme_numbers.ROOT / "docs" / "results"


def test_the_readme_says_what_the_records_say() -> None:
    text = (readme_numbers.ROOT / "README.md").read_text()
    assert readme_numbers.replaced(text, readme_numbers.section(RESULTS)) == text


def test_a_row_for_each_streamed_arm(tmp_path: Path) -> None:
    record = made_up(arms=("stock-mmap", "stream:lru cache=30%", "stream:lru cache=60%"))
    (tmp_path / "bench-a.json").write_text(json.dumps(record))
    (tmp_path / "other.json").write_text('{"heldout": {}}')
    lines = readme_numbers.section(tmp_path).splitlines()
    rows = [line for line in lines if line.startswith("| made up")]
    assert len(rows) == 2
    # Disturbed, 103.5 against 83.5 ms: see tests/bench_record.py.
    assert rows[0] == (
        "| made up, Q4_0, 0.31 GB | 100 MiB | `stream:lru cache=30%`, 30% cache \\* | "
        "103.5 (stock-mmap) | 83.5 | 1.24 × [1.24–1.24] | 1.5 → 1.5 s |"
    )
    assert f"{record['command']}   # bench-a.json" in lines


def test_half_a_run_is_no_number(tmp_path: Path) -> None:
    record = made_up(arms=("stock-mmap", "stream:lru"))
    record["complete"] = False
    (tmp_path / "bench-a.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="not complete"):
        readme_numbers.section(tmp_path)


def test_a_number_that_was_touched_is_noticed() -> None:
    text = (readme_numbers.ROOT / "README.md").read_text()
    table = readme_numbers.section(RESULTS)
    digit = next(each for each in reversed(table) if each.isdigit())
    other = readme_numbers.replaced(text, table.replace(digit, "x"))
    assert readme_numbers.replaced(other, table) == text
    assert other != text
