"""Names of files and models that mean something to JSON, to rich, to matplotlib or to a terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench_record import made_up
from command_line import run
from remoe_edge.bench import record as records
from remoe_edge.bench.page import page
from remoe_edge.bench.tokens_csv import tokens_csv
from remoe_edge.cli.results import write_json
from remoe_edge.files.atomic import write_text
from remoe_edge.files.pictures import drawn_name

NO_UTF8 = os.fsdecode(b"r\xff.gguf")
MARKED_UP = "a [/x] [bold]model :car: \x1b[31mred"
FORMULA = "_a$x$_^.gguf"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Routing of 2 layers, 60 tokens, 2 of 8 experts, in a file whose name is no UTF-8."""
    made = np.random.default_rng(1).permuted(np.tile(np.arange(8), (2, 60, 1)), axis=-1)[..., :2]
    path = tmp_path / os.fsdecode(b"t\xff.npz")
    with path.open("wb") as file:
        np.savez(file, experts=made)
    return path


def test_a_result_holds_names_that_are_no_utf8(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    done = run(capsys, "simulate", trace, "--cache", "50%", "--json", "-o", output)
    assert done.code == 0, done
    for text in (done.out, output.read_text()):
        assert json.loads(text)["trace"] == str(trace)
    write_json({NO_UTF8: NO_UTF8}, output)
    assert json.loads(output.read_bytes()) == {NO_UTF8: NO_UTF8}


def test_a_bench_holds_names_that_are_no_utf8(tmp_path: Path) -> None:
    record = made_up((f"stream:lru routers={NO_UTF8}",), rounds=1)
    records.write(record, tmp_path / "record.json")
    assert records.read(tmp_path / "record.json") == record
    for text in (page(record), tokens_csv(record)):
        write_text(text, tmp_path / "text")
        assert b"r\\udcff.gguf" in (tmp_path / "text").read_bytes()


def test_tables_show_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from remoe_edge.cli.bench.shown import show_record

    record = made_up(("stock-mmap", "stream:lru routers=[i]r.gguf"))
    record["model"]["name"] = MARKED_UP
    show_record(record)
    shown = capsys.readouterr().out
    assert MARKED_UP.replace("\x1b", "\\x1b") in shown
    assert "routers=[i]r.gguf" in shown
    odd = tmp_path / "[a"
    (odd / "b]").mkdir(parents=True)
    records.write(record, odd / "b]" / "c.json")
    done = run(capsys, "bench", "compare", odd / "b]" / "c.json", odd / "b]" / "c.json")
    assert done.code == 0, done
    assert "/[a/b]/c.json" in done.out.replace("\n", "").replace(" ", "")


def test_pictures_show_names_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from remoe_edge.tune.plots import draw_pareto

    changed = {"misses_per_token": {"lru@0.25": {"value": -3}}, "perplexity": {"value": 1}}
    names = (NO_UTF8, FORMULA, "$\\frac$")
    draw_pareto({name: {"all": {"change_percent": changed}} for name in names}, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size > 0


def test_a_name_that_is_drawn_is_no_formula() -> None:
    assert drawn_name("plain.gguf") == "plain.gguf"
    assert drawn_name(FORMULA) == r" _a\$x\$_^.gguf"
    assert drawn_name(NO_UTF8) == r"r\udcff.gguf"
