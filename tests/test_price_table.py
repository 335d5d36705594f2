"""Price tables: what is refused, and what the meter makes of them."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placements
from remoe_edge.errors import InputError
from remoe_edge.placement import price
from remoe_edge.placement.bill import Bill, Meter
from remoe_edge.placement.cost import cost_of
from remoe_edge.placement.functions import groups, load
from remoe_edge.placement.times import Timing
from remoe_edge.placement.utility import split

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize("name", price.shipped())
def test_the_tables_that_come_along_are_whole(name: str) -> None:
    table = price.load(name)
    assert table.name == name
    assert price.from_dict(json.loads(json.dumps(table.as_dict()))) == table
    sizes = table.function.sizes()
    assert sizes[0] == table.function.min_bytes
    assert all(
        table.function.vcpus(a) <= table.function.vcpus(b) for a, b in itertools.pairwise(sizes)
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.pop("version"), "version None, this reads 1"),
        (lambda t: t.update(version=True), "version True"),
        (lambda t: t.update(main=3), "`main` is missing, or no object"),
        (lambda t: t.pop("egress_gb"), "`egress_gb` is missing"),
        (lambda t: t.update(egres_gb=1), "`egres_gb` is nothing that a price table has"),
        (lambda t: t.update(gb_bytes=0), "`gb_bytes` is 0; it must be a whole number above 0"),
        (lambda t: t.update(name=" "), "`name` is"),
        (lambda t: t["main"].update(gpu_gb_s=-1), "`main.gpu_gb_s` is -1"),
        (lambda t: t["main"].update(step_bytes=1.5), "`main.step_bytes` is 1.5"),
        (lambda t: t["function"].update(gb_s=float("nan")), "`function.gb_s` is NaN"),
        (lambda t: t["function"].update(gb_s="1"), '`function.gb_s` is "1"; it must be a number'),
        (lambda t: t["function"].update(billing="monthly"), "it must be per_call or lifetime"),
        (lambda t: t["function"].update(cold_start_billed=1), "it must be true or false"),
        (lambda t: t["function"].update(min_bytes=1 << 50), "min_bytes is more than"),
        (lambda t: t["function"].update(vcpu_steps=[[2, 1], [1, 2]]), "both rising"),
        (lambda t: t["function"].update(vcpu_steps=[[0, 0]]), "both rising"),
        (lambda t: t["function"].update(vcpu_steps=[1]), "both rising"),
        (lambda t: t["function"].update(max_vcpus=0), "a number above 0"),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_refused(change: Any, line: str, tmp_path: Path) -> None:
    held = copy.deepcopy(price.load("per-call").as_dict())
    change(held)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(held))
    with pytest.raises(InputError, match=line) as error:
        price.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for text in ("", "[]", "{", "[" * 100_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match="no price table"):
            price.load(path)
    with pytest.raises(InputError, match=r"these come along: lifetime, paper, per-call, steps"):
        price.load("papr")
    with pytest.raises(InputError, match="it is no regular file"):
        price.load(tmp_path)


def test_processors_and_sizes() -> None:
    function = placements.table("steps").function
    assert [function.vcpus(n * GIB) for n in (0, 0.5, 1, 1.9, 2, 4.9, 5, 10, 99)] == [
        0.5, 0.5, 1, 1, 2, 2, 4, 8, 8,
    ]  # fmt: skip
    proportional = placements.table("paper").function
    assert proportional.vcpus(2 * GIB) == 2
    assert proportional.vcpus(99 * GIB) == 10
    assert proportional.sizes(129 * MIB)[0] == 192 * MIB
    assert proportional.sizes(128 * MIB)[0] == 128 * MIB
    assert len(proportional.sizes(11 * GIB)) == 0
    main = price.load("paper").main
    assert main.size(1) == MIB
    with pytest.raises(InputError, match="the largest in the price table has"):
        main.size(main.max_bytes + 1)


def test_the_meter_counts_each_part() -> None:
    table = price.from_dict(
        {
            "version": 1, "name": "t", "source": "s", "currency": "c", "gb_bytes": 1000, "egress_gb": 7,
            "main": {"cpu_gb_s": 2, "gpu_gb_s": 3, "step_bytes": 1, "max_bytes": 10},
            "function": {
                **price.load("paper").as_dict()["function"], "gb_s": 5, "idle_gb_s": 0.5,
                "request": 11, "granularity_ms": 100, "minimum_ms": 250,
            },
        }
    )  # fmt: skip
    meter = Meter(table)
    meter.main(1000, 2000, 500)
    meter.calls(1000, 20, 3)  # 250 ms at least, and that is 300 ms by the granularity
    meter.calls(1000, 301)
    meter.idle(2000, 1000)
    meter.cold_start(1000, 1000)
    meter.egress(500)
    meter.lifetime(1000, 1e9)  # free: calls are billed
    bill = meter.bill()
    assert bill == Bill(
        main_cpu=pytest.approx(1), main_gpu=pytest.approx(3), functions=pytest.approx(5 * 1.3),
        idle=pytest.approx(1), cold_starts=pytest.approx(5), requests=44, egress=pytest.approx(3.5),
    )  # fmt: skip
    assert bill.total == pytest.approx(1 + 3 + 6.5 + 1 + 5 + 44 + 3.5)
    assert table.without_fee().function.request == 0


def test_a_lifetime_is_billed_whole_and_calls_are_not() -> None:
    meter = Meter(price.load("lifetime"))
    meter.calls(GIB, 1000, 5)
    meter.idle(GIB, 1000)
    meter.cold_start(GIB, 1000)
    assert meter.bill().total == 0
    meter.lifetime(GIB, 2000)
    assert meter.bill() == Bill(functions=2.0)


def test_the_expected_bill_by_hand() -> None:
    """One layer of two experts, top-1, half of the tokens remote: 5 prompt rows and 0.5 a token."""
    asked = placements.request(
        n_layers=1, n_experts=2, top_k=1, n_prompt=10, n_answer=21, row_bytes=2_000_000
    )
    table = placements.table("paper", request=2.0, payload_bytes=2_000_000)
    matrix = np.asarray([[0.5, 0.5]])
    local = split(matrix, 1)
    found = groups(~local, matrix)
    loads = [load(g, matrix, asked.shape, asked.workload) for g in found]
    timed = Timing(asked, matrix, local, found, loads, table.function.payload_bytes)
    times = timed.times([10.0], [1])
    bill = cost_of(timed, table, 512 * MIB, [GIB], [1], [10.0], times)
    # 5 MB one way in calls of 2 MB: three calls; 20 further tokens call every other time.
    assert bill.requests == pytest.approx(2 * (3 + 10))
    assert bill.functions == pytest.approx(0.05 + 10 * 0.01)
    ms = times.ttft_ms + 20 * times.tpot_ms
    assert bill.main_cpu == pytest.approx((512 - 64) / 1024 * ms / 1000)
    assert bill.main_gpu == pytest.approx(3 * 64 / 1024 * ms / 1000)
