"""The stages of a placement, each against exhaustive search on small cases, and the whole of it."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placements
from remoe_edge.errors import BudgetError, InputError
from remoe_edge.placement import placement_file
from remoe_edge.placement.activation import activation_matrix, even
from remoe_edge.placement.cost import Starts
from remoe_edge.placement.functions import groups, load
from remoe_edge.placement.planner import Options, cheapest, place
from remoe_edge.placement.pre_allocation import Fastest, most_rows, pre_allocate, worst_case
from remoe_edge.placement.replicas import add_replicas
from remoe_edge.placement.request import Link, Shape, Slo, Speed, Workload
from remoe_edge.placement.schedule import bound, longest_first
from remoe_edge.placement.times import Timing, busiest
from remoe_edge.placement.utility import split, utility

MIB = 1 << 20


# --- s̃ and u ---


def test_an_activation_matrix_is_checked() -> None:
    halves = np.asarray([[0.5, 0.25, 0.25], [0.3, 0.3, 0.41]], np.float16)
    found = activation_matrix(halves, 2, 3)
    assert np.allclose(found.sum(1), 1, atol=1e-12)
    assert (even(2, 4) == 0.25).all()
    with pytest.raises(InputError, match=r"of \(2, 3\) for 2 layers of 4"):
        activation_matrix(halves, 2, 4)
    for broken in ([[0.5, 0.5], [0.5, 0.4]], [[1.5, -0.5], [0.5, 0.5]], [[np.nan, 1], [0.5, 0.5]]):
        with pytest.raises(InputError, match=r"layer [01] of the activation matrix"):
            activation_matrix(broken, 2, 2)
    with pytest.raises(InputError, match="holds numbers"):
        activation_matrix([["a", "b"]], 1, 2)


@pytest.mark.parametrize("n_local", [0, 1, 3, 6])
def test_the_split_keeps_the_most_useful_of_every_layer(n_local: int) -> None:
    matrix, before = placements.skewed(3, 6, seed=1), placements.skewed(3, 6, seed=2)
    rated = utility(matrix, Workload(10, 20), 2, before)
    assert np.allclose(rated, 10 * before + 20 * 2 * matrix)
    local = split(rated, n_local)
    for layer in range(3):
        best = max(
            sum(rated[layer, list(chosen)]) for chosen in itertools.combinations(range(6), n_local)
        )
        assert local[layer].sum() == n_local
        assert rated[layer, local[layer]].sum() == pytest.approx(best)


def test_with_one_prediction_the_order_is_that_of_the_shares() -> None:
    matrix = placements.skewed(3, 8)
    for n_answer in (1, 1000):
        rated = utility(matrix, Workload(100, n_answer), 4)
        assert (np.argsort(rated) == np.argsort(matrix)).all()
    with pytest.raises(InputError, match="9 local experts of 8"):
        split(matrix, 9)


# --- groups ---


def test_groups_hold_every_remote_expert_once() -> None:
    matrix = placements.skewed(3, 10)
    local = split(matrix, 3)
    found = groups(~local, matrix, 3)
    assert [g.layer for g in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for layer in range(3):
        held = [expert for g in found if g.layer == layer for expert in g.experts]
        assert sorted(held) == np.flatnonzero(~local[layer]).tolist()
        assert max(len(g.experts) for g in found) == 3
    assert [len(g.experts) for g in groups(~local, matrix)] == [7, 7, 7]
    assert groups(np.zeros((2, 4), bool), matrix) == []
    with pytest.raises(InputError, match="0 experts in a function"):
        groups(~local, matrix, 0)


def test_a_load_is_what_independent_choices_give() -> None:
    shape, work = Shape(1, 4, 2, 1, 0, 1), Workload(10, 5)
    matrix = np.asarray([[0.4, 0.3, 0.2, 0.1]])
    (group,) = groups(np.asarray([[False, False, True, True]]), matrix)
    found = load(group, matrix, shape, work)
    assert found.prompt_rows == pytest.approx((4.0, 2.0))
    assert found.chance == pytest.approx(1 - 0.7**2)
    assert found.rows == pytest.approx(0.6)


# --- LPT ---


def optimal_makespan(jobs: list[float], z: int) -> float:
    return min(
        max(sum(j for j, r in zip(jobs, given, strict=True) if r == which) for which in range(z))
        for given in itertools.product(range(z), repeat=len(jobs))
    )


@pytest.mark.parametrize("z", [2, 3])
def test_lpt_is_within_its_bound_of_the_optimum(z: int) -> None:
    rng = np.random.default_rng(z)
    ratios = []
    for n in [*range(1, 8)] * 4:
        jobs = rng.integers(1, 20, n).astype(float).tolist()
        found = longest_first(jobs, z)
        loads = [
            sum(j for j, r in zip(jobs, found.replica, strict=True) if r == i) for i in range(z)
        ]
        assert found.makespan == pytest.approx(max(loads))
        ratios.append(found.makespan / optimal_makespan(jobs, z))
    assert max(ratios) <= bound(z) + 1e-12
    assert max(ratios) > 1  # the bound is not idle: some of these are no optimum


def test_lpt_reaches_its_bound() -> None:
    """Graham's own example for two machines: 3, 3, 2, 2, 2."""
    assert longest_first([3, 3, 2, 2, 2], 2).makespan == 7
    assert optimal_makespan([3, 3, 2, 2, 2], 2) == 6
    assert pytest.approx(bound(2)) == 7 / 6
    assert longest_first([], 3).makespan == 0
    with pytest.raises(InputError, match="0 replicas"):
        longest_first([1.0], 0)


# --- MMP ---


def test_hardly_more_tokens_than_the_bound_reach_one_expert() -> None:
    """Draw routing without preference: in at most 5 % of the prompts one given expert gets more."""
    rng = np.random.default_rng(0)
    for n, e, k in ((8, 16, 2), (128, 64, 8), (1000, 128, 8)):
        reached = rng.binomial(n, k / e, 4000)
        assert (reached > most_rows(n, e, k)).mean() <= 0.05
        assert most_rows(n, e, k) <= n


@pytest.mark.parametrize("slo", [(20, 900), (16, None), (None, 150), (12.5, 250), (None, 40)])
def test_pre_allocation_is_the_end_of_the_walk(slo: tuple[float | None, float | None]) -> None:
    asked = placements.request(tpot_ms=slo[0], ttft_ms=slo[1])
    fastest = Fastest(0.3, 4)
    holds = [
        asked.slo.holds(times.tpot_ms, times.ttft_ms)
        for times in (worst_case(asked, n, fastest) for n in range(17))
    ]
    if not any(holds):
        with pytest.raises(BudgetError, match="wherever experts are: with 16 of 16"):
            pre_allocate(asked, fastest, 1 << 40)
        return
    found = pre_allocate(asked, fastest, 1 << 40)
    start = max(n for n in range(17) if holds[n])
    assert all(holds[found.n_local : start + 1])
    assert found.n_local == 0 or not holds[found.n_local - 1]
    assert found.main_bytes == (256 + 4 * 32 * found.n_local) * MIB
    assert found.worst == worst_case(asked, found.n_local, fastest)


def test_pre_allocation_starts_from_what_the_main_host_may_have() -> None:
    asked = placements.request(tpot_ms=100, ttft_ms=5000)
    assert pre_allocate(asked, Fastest(0.3, 4), 256 * MIB).n_local == 0
    with pytest.raises(BudgetError, match=r"needs 256 MiB without any expert, and may have 100"):
        pre_allocate(asked, Fastest(0.3, 4), 100 * MIB)
    slow = placements.request(tpot_ms=20)
    with pytest.raises(BudgetError, match="with 3 of 16 experts"):
        pre_allocate(slow, Fastest(50.0, 4), (256 + 4 * 32 * 3) * MIB)


# --- times and replicas ---


def timing(
    seed: int = 0, n_local: int = 6, per_function: int | None = None, **asked: Any
) -> Timing:
    request = placements.request(**asked)
    shape = request.shape
    matrix = placements.skewed(shape.n_layers, shape.n_experts, seed, power=0.6)
    local = split(matrix, n_local)
    found = groups(~local, matrix, per_function)
    loads = [load(g, matrix, shape, request.workload) for g in found]
    return Timing(request, matrix, local, found, loads)


def test_times_add_up_by_hand() -> None:
    """One layer of 2 experts, top-1, one of them remote: every term can be written down."""
    request = placements.request(n_layers=1, n_experts=2, top_k=1, n_prompt=10, row_bytes=10**6)
    matrix = np.asarray([[0.7, 0.3]])
    local = np.asarray([[True, False]])
    found = groups(~local, matrix)
    loads = [load(found[0], matrix, request.shape, request.workload)]
    whole = Timing(request, matrix, local, found, loads).times([2.0], [1])
    # 3 rows of 1 MB at 100 MB/s, a round trip, and 2 ms a row; the local 7 rows take 1.4 ms.
    assert whole.ttft_ms == pytest.approx(20 + 5 + 0.6 + 30 + 6)
    # In 3 of 10 tokens 10 ms of transfer, 0.6 and 2; in 7 of 10 the local row.
    assert whole.tpot_ms == pytest.approx(10 + 0.7 * 1 + 0.3 * 12.6)
    alone = Timing(request, matrix, np.ones((1, 2), bool), (), ()).times((), ())
    assert alone.ttft_ms == pytest.approx(20 + 5 + 2)
    assert alone.tpot_ms == pytest.approx(10 + 1)
    assert alone.request_ms(3) == pytest.approx(27 + 22)


def test_the_busiest_of_several_functions_is_counted() -> None:
    for n_rows, n in ((1, 5), (3, 2), (4, 3)):
        most = [
            max(given.count(i) for i in range(n))
            for given in itertools.product(range(n), repeat=n_rows)
        ]
        assert busiest(n_rows, n) == pytest.approx(np.mean(most))
    assert busiest(8, 1) == pytest.approx(8)


def least_replicas(timed: Timing, row_ms: list[float], slo: Slo, most: int) -> int | None:
    """Enumerate every choice of replicas; give the fewest in all that keep the targets."""
    kept = []
    for z in itertools.product(range(1, most + 1), repeat=len(timed.groups)):
        times = timed.times(row_ms, z)
        if slo.holds(times.tpot_ms, times.ttft_ms):
            kept.append(sum(z))
    return min(kept, default=None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("per_function", [None, 5])
def test_replicas_hold_the_targets_with_about_the_fewest(
    seed: int, per_function: int | None
) -> None:
    timed = timing(seed, n_layers=2 if per_function else 3, per_function=per_function)
    row_ms = [1.0 + 0.4 * i for i in range(len(timed.groups))]
    slowest, fastest = (timed.times(row_ms, [z] * len(row_ms)) for z in (1, 4))
    for share in (0.2, 0.5, 0.9):
        limit = slowest.ttft_ms + share * (fastest.ttft_ms - slowest.ttft_ms)
        slo = Slo(ttft_ms=limit)
        found = add_replicas(timed, row_ms, slo, 4)
        best = least_replicas(timed, row_ms, slo, 4)
        assert found is not None
        assert best is not None
        assert timed.times(row_ms, found).ttft_ms <= limit * (1 + 1e-6)
        assert best <= sum(found) <= best + 1


def test_replicas_stop_where_nothing_helps() -> None:
    timed = timing()
    row_ms = [1.0] * len(timed.groups)
    assert add_replicas(timed, row_ms, Slo(ttft_ms=1.0), 4) is None
    assert add_replicas(timed, row_ms, Slo(ttft_ms=1e9), 4) == [1] * len(row_ms)
    assert add_replicas(timed, row_ms, Slo(), 4) == [1] * len(row_ms)


def test_replicas_pass_ties() -> None:
    """Two functions of a layer that are equally slow: only a replica of both saves anything."""
    request = placements.request(n_layers=1, n_experts=4, top_k=1, n_prompt=400)
    matrix = even(1, 4)
    local = np.zeros((1, 4), bool)
    found = groups(~local, matrix, 2)
    loads = [load(g, matrix, request.shape, request.workload) for g in found]
    timed = Timing(request, matrix, local, found, loads)
    both = timed.times([1.0, 1.0], [2, 2]).ttft_ms
    assert add_replicas(timed, [1.0, 1.0], Slo(ttft_ms=both), 2) == [2, 2]


# --- the whole ---


@pytest.mark.parametrize("name", ["paper", "per-call", "lifetime", "steps"])
@pytest.mark.parametrize("per_function", [None, 4])
def test_a_placement_keeps_targets_and_places_every_expert(
    name: str, per_function: int | None, tmp_path: Path
) -> None:
    table = placements.table(name)
    asked = placements.request(tpot_ms=24, ttft_ms=400)
    found = place(
        asked, table, placements.measured(table), placements.skewed(4, 16),
        Options(experts_per_function=per_function),
    )  # fmt: skip
    assert asked.slo.holds(found.times.tpot_ms, found.times.ttft_ms)
    assert found.functions
    assert found.main_bytes >= found.pre_allocation.main_bytes
    for each in found.functions:
        assert each.memory_bytes in table.function.sizes(len(each.group.experts) * 32 * MIB)
    path = tmp_path / "placement.json"
    placement_file.save(found, path)
    assert placement_file.load(path) == found  # which also checks that every expert has one place


def test_cheapest_tries_more_memory_than_pre_allocation() -> None:
    table = placements.table("per-call", request=1e-3)  # a fee that nothing can pay for
    asked = placements.request(tpot_ms=24, ttft_ms=400)
    best, tried = cheapest(asked, table, placements.measured(table), placements.skewed(4, 16))
    assert len(tried) > 3
    assert best.n_local == 16
    assert not best.pays
    free = table.without_fee()
    best, _ = cheapest(asked, free, placements.measured(free), placements.skewed(4, 16))
    assert best.bill.total <= min(each.bill.total for each in tried)
    assert best.bill.requests == 0


def test_starts_that_are_billed_make_functions_smaller() -> None:
    table = placements.table("paper")
    asked = placements.request(tpot_ms=60, ttft_ms=2000)
    curve, matrix = placements.measured(table), placements.skewed(4, 16)
    warm, cold = (
        place(asked, table, curve, matrix, Options(n_local=6, starts=Starts(ms)))
        for ms in (0, 2500)
    )
    sizes = [[each.memory_bytes for each in found.functions] for found in (warm, cold)]
    assert sum(sizes[1]) < sum(sizes[0])
    gb = sum(y * f.replicas for y, f in zip(sizes[1], cold.functions, strict=True)) / (1 << 30)
    assert cold.bill.cold_starts == pytest.approx(2.5 * gb)
    assert warm.bill.cold_starts == 0
    loads = Options(n_local=6, starts=Starts(2500, 1000, 1e9))
    loaded = place(asked, table, curve, matrix, loads)
    ms = 1000 + loaded.main_bytes / 1e6
    dear = (loaded.main_bytes + 2 * 64 * MIB) / (1 << 30) * ms / 1000
    assert loaded.bill.total - cold.bill.total == pytest.approx(dear)
    assert loaded.all_local.total > cold.all_local.total + dear
    assert asked.slo.holds(cold.times.tpot_ms, cold.times.ttft_ms)
    free = placements.table("paper", cold_start_billed=False)
    same = place(asked, free, curve, matrix, Options(n_local=6, starts=Starts(2500)))
    assert [each.memory_bytes for each in same.functions] == sizes[0]


def test_targets_out_of_reach_are_one_line() -> None:
    table = placements.table()
    curve, matrix = placements.measured(table), placements.skewed(4, 16)
    for slo in (Slo(tpot_ms=5), Slo(ttft_ms=10)):
        with pytest.raises(BudgetError, match="out of reach at worst") as error:
            place(replace(placements.request(), slo=slo), table, curve, matrix)
        assert "\n" not in str(error.value)
    with pytest.raises(BudgetError, match="out of reach with 8 replicas"):
        place(
            replace(placements.request(ttft_ms=160), link=Link(100, 1e8)), table, curve, matrix,
            Options(n_local=2),
        )  # fmt: skip
    small = placements.table(max_bytes=256 * MIB)
    with pytest.raises(InputError, match="put fewer into one"):
        place(placements.request(), small, placements.measured(small), matrix)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda p: p.update(version=2), "placement of version 2, this reads 1"),
        (lambda p: p.pop("local"), "no placement: .local. is missing"),
        (lambda p: p["local"][1].append(p["local"][1][0]), "of layer 1 has 2 places"),
        (lambda p: p["local"][0].append(99), "expert 99 of 16 in layer 0"),
        (lambda p: p["local"].pop(), "3 layers are placed of 4"),
        (lambda p: p["functions"][0].update(replicas=0), "has no replica"),
        (lambda p: p["functions"][0].update(memory_bytes=1), "too few for its experts"),
        (lambda p: p["functions"][0].update(layer=4), "a function of layer 4 of 4"),
        (lambda p: p["functions"][0].update(chance="high"), "'high' is no number"),
        (lambda p: p["functions"][0]["prompt_rows"].pop(), "not one number for each"),
        (lambda p: p["functions"].pop(), "has 0 places, not one"),
        (lambda p: p.update(main_bytes=5), "the main host has 5 bytes"),
        (lambda p: p["shape"].update(top_k=17), "top-17 of 16 experts"),
        (lambda p: p["shape"].update(n_layers=1.5), "must be whole"),
        (lambda p: p["price"].update(version=0), "price table of version 0"),
        (lambda p: p["slo"].update(tpot_ms=True), "tpot_ms is True"),
        (lambda p: p["bill"].update(idle=-1), "-1 is no number"),
    ],
)  # fmt: skip
def test_a_damaged_placement_is_refused(change: Any, line: str, tmp_path: Path) -> None:
    table = placements.table()
    asked = placements.request(tpot_ms=24, ttft_ms=400)
    found = place(
        asked, table, placements.measured(table), placements.skewed(4, 16), Options(n_local=6)
    )
    held = copy.deepcopy(placement_file.as_dict(found))
    assert placement_file.from_dict(json.loads(json.dumps(held))) == found
    change(held)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(held))
    with pytest.raises(InputError, match=line) as error:
        placement_file.load(path)
    assert str(path) in str(error.value)


def test_what_is_no_placement_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for text in ("", "[]", "{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match="no placement"):
            placement_file.load(path)
    with pytest.raises(InputError, match="cannot read the placement"):
        placement_file.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shape(0, 8, 2, 1, 1, 1),
        lambda: Shape(2, 8, 9, 1, 1, 1),
        lambda: Shape(2, 8, 2, 1, 1, 1, gpu_bytes=2),
        lambda: Speed(-1, 1, 1, 1, 1),
        lambda: Link(1, 0),
        lambda: Link(float("nan"), 1),
        lambda: Slo(tpot_ms=0),
        lambda: Workload(0, 1),
    ],
)
def test_requests_are_checked(make: Any) -> None:
    with pytest.raises(InputError):
        make()
