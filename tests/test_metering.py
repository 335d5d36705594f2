"""What a run used, priced: by hand-worked sums, and as `bench` and /metrics show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tiny_moe
from placements import table
from remoe_edge import Engine
from remoe_edge.bench.cost import add_costs, of_run
from remoe_edge.cli import cli
from remoe_edge.deploy.metering import Metering, families
from remoe_edge.placement import price
from remoe_edge.placement.metered import FunctionUse, GbSeconds, MainUse, metered
from remoe_edge.remote.worker import Worker
from remoe_edge.telemetry import exposition

GB = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("meter") / "model.gguf", "qwen3moe", "Q4_K")


def test_calls_are_rounded_and_starts_and_idling_are_billed_apart() -> None:
    prices = table("paper", gb_s=2.0, idle_gb_s=0.5, request=0.25, granularity_ms=10, minimum_ms=20)
    held = prices.as_dict()
    held["egress_gb"] = 8.0
    prices = price.from_dict(held)
    main = MainUse(2 * GB, GB, busy_ms=3000, life_ms=99_000, start_ms=1000, answers=2)
    use = FunctionUse(
        GB, held_ms=5000, start_ms=2004, starts=2, calls=4, compute_ms=100, egress_bytes=GB / 2
    )
    found = metered(prices, main, {"f0": use})
    bill = found.bill
    assert bill.main_cpu == pytest.approx(2 * 4)  # 3 s and the start, at 1 for each GB·s
    assert bill.main_gpu == pytest.approx(3 * 4)
    assert bill.functions == pytest.approx(2.0 * 4 * 0.030)  # 25 ms are 30
    assert bill.idle == pytest.approx(0.5 * 4.9)
    assert bill.cold_starts == pytest.approx(2.0 * 2 * 1.010)  # 1002 ms each are 1010
    assert bill.requests == pytest.approx(1.0)
    assert bill.egress == pytest.approx(4.0)
    assert found.gb_s["f0"] == GbSeconds(*map(pytest.approx, (0.12, 4.9, 2.02)))
    assert found.as_dict()["cost_an_answer"] == pytest.approx(bill.total / 2)
    # A short call costs the least there is to pay.
    short = FunctionUse(GB, calls=3, compute_ms=0.3)
    assert metered(prices, MainUse(0), {"f": short}).bill.functions == pytest.approx(2.0 * 3 * 0.02)
    free = table("paper", cold_start_billed=False)
    assert metered(free, main, {"f0": use}).bill.cold_starts == 0
    assert metered(free, main, {"f0": use}).bill.main_cpu == pytest.approx(2 * 3)


def test_lives_are_billed_from_start_to_end() -> None:
    main = MainUse(2 * GB, busy_ms=3000, life_ms=9000, start_ms=1000, answers=1)
    use = FunctionUse(GB, held_ms=5000, start_ms=2000, starts=1, calls=4, compute_ms=100)
    found = metered(table("lifetime"), main, {"f0": use})
    assert found.bill.main_cpu == pytest.approx(2 * 9)
    assert found.bill.functions == pytest.approx(7.0)
    assert (found.bill.idle, found.bill.cold_starts) == (0, 0)
    assert found.gb_s["f0"] == GbSeconds(5.0, 0.0, 2.0)
    unused = metered(table("lifetime", minimum_ms=1000), main, {"f0": FunctionUse(GB)})
    assert unused.bill.functions == 0


def test_nothing_is_billed_twice() -> None:
    """Adding up uses and billing them together is the same, as long as nothing is rounded."""
    one = FunctionUse(GB, 100, 50, 1, 3, 6, 1000)
    for name in ("paper", "lifetime"):
        prices = table(name)
        apart = metered(prices, MainUse(0), {"a": one}).bill.total
        both = metered(prices, MainUse(0), {"a": one, "b": one}).bill.total
        assert both == pytest.approx(2 * apart)


def test_an_engine_with_a_worker_is_metered(model: Path) -> None:
    meter = Metering(table("per-call"))
    assert meter.families() == []
    with (
        Worker(model, experts="all", memory="64MiB", listen="127.0.0.1:0", threads=1) as worker,
        Engine(
            model, peers=[worker.address], cache="50%", n_ctx=256, threads=1, telemetry=[meter]
        ) as made,
    ):
        meter.watch(made)
        for _ in made.generate([7, 44, 81], max_tokens=6, temperature=0):
            pass
        found = meter.read()
        assert found is not None
        remote = made.stats()["remote"]
        use = found.functions[worker.address]
        assert use.calls == remote["remote_asked"] > 0
        assert found.bill.requests == pytest.approx(use.calls * 2e-7)
        assert use.egress_bytes == remote["remote_received_bytes"] > 0
        cache = made.stats().cache
        assert cache is not None
        assert use.memory_bytes == worker.n_experts * cache.expert_bytes
        assert found.answers == 1
        assert found.bill.main_cpu > 0
        text = exposition.text(meter.families())
        for line in (
            'remoe_edge_cost_total{currency="USD",part="main_cpu",prices="per-call"}',
            'remoe_edge_cost_total{currency="USD",part="idle",prices="per-call"}',
            'remoe_edge_memory_gb_seconds_total{kind="busy",of="main_cpu"}',
            f'remoe_edge_function_calls_total{{function="{worker.address}"}} {float(use.calls)}',
            "remoe_edge_function_start_seconds_total",
        ):
            assert line in text
    assert meter.families() == []  # the engine is closed
    assert [each.kind for each in families(found)] == ["counter"] * 8


def test_the_bench_shows_what_an_answer_costs(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    with Worker(model, experts="all", memory="64MiB", listen="127.0.0.1:0", threads=1) as worker:
        asked = [
            "bench", str(model), "--arms", f"stream:lru+peers={worker.address}", "--cache", "50%",
            "--prompts", str(_prompts(tmp_path)), "--raw", "-n", "4", "--warm", "1", "--rounds", "1",
            "--limit", "1", "-t", "1", "--probe-seconds", "0", "--price", "per-call", "-o", str(record),
        ]  # fmt: skip
        done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    assert "USD/answer" in done.stdout
    held = json.loads(record.read_text())
    (run,) = held["runs"]
    assert run["remote"]["remote_asked"] > 0
    (figures,) = held["summary"].values()
    assert figures["cost_an_answer"] == run["metered"]["cost_an_answer"] > 0
    assert run["metered"]["functions"][worker.address]["calls"] == run["remote"]["remote_asked"]
    again: dict[str, Any] = json.loads(record.read_text())
    add_costs(again, price.from_dict(held["prices"]))
    assert again == held
    assert of_run(price.load("paper"), run).table.name == "paper"
    wrong = CliRunner().invoke(cli, ["bench", str(model), "--price", "papr"])
    assert wrong.exit_code == 1
    assert "no price table at papr" in wrong.stderr


def _prompts(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("some words to begin with\n")
    return path
