"""Memory of functions: the Lagrangian and the search of sizes against every combination of sizes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from remoe_edge.errors import InputError
from remoe_edge.placement.dual import least_prices
from remoe_edge.placement.fit import Fit
from remoe_edge.placement.latency_curve import (
    GIB,
    Curve,
    Exponential,
    Points,
    Steps,
    by_processors,
    curve,
)
from remoe_edge.placement.memory import MemoryProblem, convex_from, lagrangian
from remoe_edge.placement.planner import solve
from remoe_edge.placement.price import load
from remoe_edge.placement.sizes import by_sizes

MIB = 1 << 20
SIZES = np.arange(256, 2049, 256) * float(MIB)


def smooth(theta1: float = 3.0, theta2: float = 3.0, theta3: float = 0.3) -> Exponential:
    return Exponential("made up", Fit(theta1, theta2, theta3, 0, 0, 0))


def steps() -> Steps:
    times = (4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 0.9)
    return Steps("made up", Points("made up", tuple(int(y) for y in SIZES), times))


def problem(seed: int = 0, t: Curve | None = None, n: int = 3, **changed: object) -> MemoryProblem:
    """Make a problem whose main host is dear enough for the cost to be convex everywhere."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(5, 50, n)
    made = MemoryProblem(
        curve=t or smooth(),
        wait_rows=rows, billed_rows=rows, held_ms=np.zeros(n),
        ttft_rows=rows / 4, ttft_offset_ms=rng.uniform(-5, 5, n),
        tpot_rows=rng.uniform(1, 2, n), tpot_offset_ms=rng.uniform(-1, 1, n),
        tpot_weight=rng.uniform(0.2, 1, n),
        low=np.full(n, SIZES[0]), high=np.full(n, SIZES[-1]),
        ttft_room_ms=np.inf, tpot_room_ms=np.inf, main_rate=1.0, byte_rate=1 / GIB,
    )  # fmt: skip
    return replace(made, **changed)  # type: ignore[arg-type]


def limited(made: MemoryProblem, share: float, which: str) -> MemoryProblem:
    """Tighten limits to a share of the way between the fastest and the slowest sizes."""
    changed = {}
    for name in ("ttft", "tpot"):
        if name in which:
            fast, slow = (
                float(getattr(made, f"{name}_ms")(y).sum()) for y in (made.high, made.low)
            )
            changed[f"{name}_room_ms"] = fast + share * (slow - fast)
    return replace(made, **changed)


def exhaustive(made: MemoryProblem) -> float:
    """Try every combination of sizes; give the least cost that keeps the limits."""
    best = np.inf
    for chosen in itertools.product(SIZES, repeat=len(made.low)):
        y = np.asarray(chosen)
        if (y >= made.low).all() and made.keeps(y):
            best = min(best, float(made.cost(y).sum()))
    return best


CASES = [
    (seed, share, which)
    for seed in range(3)
    for share, which in ((1.0, ""), (0.5, "ttft"), (0.2, "tpot"), (0.3, "ttft tpot"))
]


@pytest.mark.parametrize(("seed", "share", "which"), CASES)
def test_the_lagrangian_is_optimal_where_the_cost_is_convex(
    seed: int, share: float, which: str
) -> None:
    made = limited(problem(seed), share, which)
    found = lagrangian(made)
    assert found is not None
    assert found.convex
    assert made.keeps(found.y)
    # Strong duality: the bound meets the cost; and no combination of whole sizes is below it.
    assert found.cost == pytest.approx(found.bound, rel=1e-5)
    best = exhaustive(made)
    assert found.cost <= best * (1 + 1e-6)
    # In sizes that can be had, nearly the best of all combinations.
    method, whole = solve(made, SIZES)
    assert method == "lagrangian"
    assert whole is not None
    assert made.keeps(whole.y)
    assert best * (1 - 1e-9) <= whole.cost <= best * 1.02
    assert set(whole.y) <= set(SIZES)


@pytest.mark.parametrize(("seed", "share", "which"), CASES)
def test_the_search_of_sizes_takes_steps(seed: int, share: float, which: str) -> None:
    made = limited(problem(seed, steps()), share, which)
    method, found = solve(made, SIZES)
    assert method == "sizes"
    assert found is not None
    assert made.keeps(found.y)
    best = exhaustive(made)
    assert found.bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= found.cost <= best * 1.10


def test_without_limits_the_search_of_sizes_is_exact() -> None:
    for seed in range(5):
        made = problem(seed, steps(), main_rate=0.3)
        found = by_sizes(made, SIZES)
        assert found is not None
        assert found.cost == pytest.approx(exhaustive(made))


def test_the_convex_region_is_where_the_second_difference_is_not_below_zero() -> None:
    """Theorem 2: y ≥ 2/θ2 − H·h/(c·w), against numbers."""
    made = problem(main_rate=0.3, low=np.full(3, 1.0), high=np.full(3, 4 * float(GIB)))
    start = convex_from(made)
    assert (start > 0).all()
    y = np.linspace(0.01, 4, 2000) * GIB
    cost = made.cost(np.broadcast_to(y, (3, len(y))))
    second = cost[:, 2:] - 2 * cost[:, 1:-1] + cost[:, :-2]
    for f in range(3):
        inner = y[1:-1]
        assert (second[f, inner > start[f] * 1.01] >= -1e-9).all()
        assert (second[f, inner < start[f] * 0.99] < 0).all()


def test_outside_the_convex_region_sizes_are_searched() -> None:
    made = problem(main_rate=1e-3)
    assert (convex_from(made) > made.low).any()
    smooth_answer = lagrangian(made)
    assert smooth_answer is not None
    assert not smooth_answer.convex
    method, found = solve(made, SIZES)
    assert method == "sizes"
    assert found is not None
    assert found.cost == pytest.approx(exhaustive(made))


def test_a_lifetime_is_convex_everywhere() -> None:
    rows = np.full(3, 20.0)
    made = problem(
        billed_rows=np.zeros(3), held_ms=np.full(3, 30.0), wait_rows=rows, main_rate=1e-3
    )
    assert (convex_from(made) == 0).all()
    found = lagrangian(made)
    assert found is not None
    assert found.cost <= exhaustive(made)


def test_a_flat_curve_takes_the_least_memory() -> None:
    made = problem(t=smooth(theta1=0.0))
    found = lagrangian(made)
    assert found is not None
    assert (found.y == made.low).all()


def test_limits_out_of_reach_are_told() -> None:
    made = problem(ttft_room_ms=1e-9, ttft_offset_ms=np.zeros(3))
    assert lagrangian(made) is None
    assert by_sizes(made, SIZES) is None
    assert solve(made, SIZES) == ("lagrangian", None)
    stepwise = replace(made, curve=steps())
    assert solve(stepwise, SIZES) == ("sizes", None)


def test_the_fastest_sizes_are_found_where_only_they_keep_a_limit() -> None:
    made = limited(problem(), 0.0, "ttft")
    for found in (lagrangian(made), by_sizes(made, SIZES)):
        assert found is not None
        assert made.keeps(found.y)


def test_prices_are_the_least() -> None:
    """Two excesses that fall with their own price: the least prices that end both are known."""

    class At:
        def __init__(self, ttft: float, tpot: float) -> None:
            self.ttft_excess, self.tpot_excess = 3 - ttft, 5 - tpot - ttft

    found = least_prices(At, 1.0)
    assert found is not None
    assert found.ttft_price == pytest.approx(3, rel=1e-6)
    assert found.tpot_price == pytest.approx(2, rel=1e-6)
    assert least_prices(lambda a, b: At(a - 1e90, b), 1.0) is None


# --- T(y) ---


def test_a_curve_is_fitted_or_kept_by_what_the_points_are() -> None:
    sizes = tuple(int(y) for y in SIZES)
    real = smooth()
    points = Points("k", sizes, tuple(float(t) for t in real(SIZES)))
    fitted = curve(points)
    assert isinstance(fitted, Exponential)
    assert fitted(SIZES) == pytest.approx(real(SIZES), rel=1e-3)
    assert isinstance(curve(points, stepwise=True), Steps)
    jump = Points("k", sizes, (4, 4, 4, 4, 1, 1, 1, 1))
    assert isinstance(curve(jump), Steps)
    assert isinstance(curve(jump, stepwise=False), Exponential)
    assert isinstance(curve(Points("k", sizes[:2], (2, 1))), Steps)
    with pytest.raises(InputError, match="no T"):
        curve(Points("k", sizes[:2], (2, 1)), stepwise=False)


def test_steps_hold_until_the_next() -> None:
    t = Steps("k", Points("k", (100, 200), (4.0, 1.0)))
    assert t([50, 100, 199, 200, 1000]).tolist() == [4, 4, 4, 1, 1]


def test_points_by_processors_follow_the_platform() -> None:
    platform = load("steps").function
    found = by_processors("k", platform, 2.0, parallel=0.5)
    at = dict(zip(found.sizes, found.row_ms, strict=True))
    assert at[128 * MIB] == 4.0  # half a core
    assert at[1024 * MIB] == 2.0
    assert at[2048 * MIB] == pytest.approx(2 * 0.75)
    assert at[2112 * MIB] == at[2048 * MIB]
    with pytest.raises(InputError, match="no function has"):
        by_processors("k", platform, 2.0, least_bytes=1 << 40)


@pytest.mark.parametrize(
    ("sizes", "times"),
    [((), ()), ((2, 1), (1, 1)), ((1, 2), (1,)), ((1, 2), (1, 0)), ((0, 1), (1, 1))],
)
def test_points_are_checked(sizes: tuple[int, ...], times: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        Points("k", sizes, times)
