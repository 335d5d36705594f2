"""The planner's parts by hand and against exhaustive search, and the command on a small model."""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import command_line
import compare_pools as compare_pools_tool
import small_moe
import tiny_dense
from remoe_edge import Engine, EngineSettings
from remoe_edge.engine import budget
from remoe_edge.errors import BudgetError, InputError
from remoe_edge.machine.storage import ProbePoint
from remoe_edge.placement.allocate import continuous, whole_slots
from remoe_edge.placement.fit import Fit, fit_latency
from remoe_edge.plan import compute as computing
from remoe_edge.plan import measure
from remoe_edge.plan import reads as reading
from remoe_edge.plan.compute import ComputeModel
from remoe_edge.plan.kept_misses import keep, recall
from remoe_edge.plan.latency import Machine, touched_at_worst, touched_by_chance
from remoe_edge.plan.layers import compare_pools
from remoe_edge.plan.misses import (
    NoReuse,
    Published,
    Replayed,
    expert_load,
    mean_misses,
    prepare,
)
from remoe_edge.plan.planner import Predictor, Targets, fixed_bytes, make_plan, meets
from remoe_edge.plan.reads import ReadModel
from remoe_edge.plan.sizes import LayerSizes, ModelSizes
from remoe_edge.routing.replay import misses_by_event
from remoe_edge.routing.simulate import simulate
from remoe_edge.routing.trace import Trace, from_routed
from remoe_edge.units import MIB, parse_ms

COMPUTE = ComputeModel(
    dense_ms=10, whole_ms=4, pair_ms=3, sample_ms=1, prefill_dense_base_ms=5,
    prefill_dense_each_ms=1, prefill_ffn_base_ms=8, prefill_ffn_each_ms=2, compute_bytes=MIB,
    depth=4, prefetches=False, n_cold=0, cold_misses=0, cold_ffn_ms=0, cold_stall_ms=0,
)  # fmt: skip


def a_machine(
    n_layers: int = 4, n_experts: int = 16, top_k: int = 2, mib_per_s: float = 100
) -> Machine:
    """Make a machine that reads at one rate whatever the depth: 1 MiB, one read, an expert."""
    layer = LayerSizes(n_experts, MIB, 1, MIB)
    sizes = ModelSizes(
        "model", "print", top_k, (layer,) * n_layers, dense_bytes=8 * MIB, kv_bytes=4 * MIB,
        price=lambda n: n * MIB + 4096,
    )  # fmt: skip
    points = tuple(ProbePoint(MIB, depth, 100, 100 / mib_per_s) for depth in (1, 4))
    return Machine(sizes, COMPUTE, ReadModel(points, 4))


def topical(seed: int = 3, n_tokens: int = 400, n_layers: int = 4, n_experts: int = 16) -> Trace:
    """Make routing that keeps part of a slowly changing taste; layers differ in how much."""
    rng = np.random.default_rng(seed)
    routed = np.empty((n_layers, n_tokens, 2), np.int64)
    strength = np.linspace(0.2, 3, n_layers)[:, None]
    taste = rng.normal(size=(n_layers, n_experts))
    for token in range(n_tokens):
        if token % 40 == 0:
            taste = rng.normal(size=(n_layers, n_experts))
        scores = strength * taste + rng.normal(size=(n_layers, n_experts))
        routed[:, token] = np.argsort(-scores, axis=1)[:, :2]
    return from_routed(routed, n_experts)


# --- the fit ---


@settings(max_examples=40, deadline=None)
@given(
    st.floats(1, 1e3), st.floats(0.2, 20), st.floats(0, 500), st.floats(0.1, 1e4), st.floats(0, 20)
)
def test_the_fit_finds_the_curve_that_made_the_points(
    theta1: float, decay: float, theta3: float, span: float, start: float
) -> None:
    y = np.linspace(start * span, (start + 1) * span, 9)
    t = theta1 * np.exp(-decay * (y - y[0]) / span) + theta3
    fit = fit_latency(y, t)
    assert fit.rmse < 1e-4 * theta1
    for at, value in zip(y, t, strict=True):
        assert fit(at) == pytest.approx(value, abs=1e-3 * theta1)


def test_the_fit_is_the_best_of_a_fine_grid() -> None:
    y = np.array([1.0, 2, 3, 5, 8, 13])
    t = np.array([90.0, 61, 50, 33, 31, 24])
    fit = fit_latency(y, t)
    best = math.inf
    for theta2 in np.linspace(0.01, 3, 1500):
        columns = np.stack([np.exp(-theta2 * y), np.ones(6)], 1)
        weights, *_ = np.linalg.lstsq(columns, t, rcond=None)
        best = min(best, float(np.sqrt(np.mean((columns @ weights - t) ** 2))))
    assert fit.rmse <= best * 1.0001
    errors = [abs(fit(a) / b - 1) for a, b in zip(y, t, strict=True)]
    assert fit.worst == pytest.approx(max(errors))
    assert fit.relative == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_a_fit_never_rises_nor_goes_below_nothing() -> None:
    rising = fit_latency([1, 2, 3, 4], [1.0, 2, 3, 4])
    assert rising.theta1 == 0
    assert rising(2) == pytest.approx(2.5)
    falling = fit_latency([0, 1, 2, 3], [8.0, 4, 0.5, 0])
    assert falling.theta3 >= 0
    far = fit_latency([1e6, 1e6 + 1, 1e6 + 2], [3.0, 2, 1])
    assert math.isfinite(far.theta1)
    with pytest.raises(ValueError, match="three points"):
        fit_latency([1, 1, 1], [1, 2, 3])


# --- sharing out ---


curve = st.builds(lambda a, b: Fit(a, b, 0.0, 0.0, 0.0, 0.0), st.floats(0, 100), st.floats(0.01, 2))


@settings(max_examples=150, deadline=None)
@given(st.lists(curve, min_size=1, max_size=4), st.integers(0, 100), st.data())
def test_whole_slots_are_the_best_of_all_shares(
    fits: list[Fit], share: int, data: st.DataObject
) -> None:
    high = [data.draw(st.integers(2, 9)) for _ in fits]
    low = 1
    total = len(fits) * low + (sum(high) - len(fits) * low) * share // 100
    got = whole_slots(fits, total, low, high)
    assert sum(got) == total
    assert all(low <= y <= top for y, top in zip(got, high, strict=True))
    choices = itertools.product(*(range(low, top + 1) for top in high))
    best = min(
        sum(fit(y) for fit, y in zip(fits, choice, strict=True))
        for choice in choices
        if sum(choice) == total
    )
    mine = sum(fit(y) for fit, y in zip(fits, got, strict=True))
    assert mine == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_the_lagrangian_prices_every_layer_alike() -> None:
    fits = [Fit(80, 0.3, 5, 0, 0, 0), Fit(40, 0.1, 9, 0, 0, 0), Fit(200, 0.9, 1, 0, 0, 0)]
    shares = continuous(fits, 30, 2, [64, 64, 64])
    assert sum(shares) == pytest.approx(30)
    gains = [fit.gain(y) for fit, y in zip(fits, shares, strict=True)]
    assert gains == pytest.approx([gains[0]] * 3, rel=1e-6)
    # Bounds hold, and what they leave goes to the others.
    tight = continuous(fits, 30, 2, [5, 64, 64])
    assert tight[0] == pytest.approx(5)
    assert fits[1].gain(tight[1]) == pytest.approx(fits[2].gain(tight[2]), rel=1e-6)
    with pytest.raises(ValueError, match="cannot be shared out"):
        continuous(fits, 5, 2, [64, 64, 64])


# --- reads and times ---


def test_reads_are_interpolated_between_what_was_probed() -> None:
    points = (
        ProbePoint(4096, 1, 100, 1.0), ProbePoint(4096, 4, 300, 1.0),
        ProbePoint(65536, 1, 50, 1.0), ProbePoint(65536, 4, 100, 1.0),
    )  # fmt: skip
    reads = ReadModel(points, depth=4)
    assert reads.bytes_per_s(4096, 1) == pytest.approx(100 * 4096)
    assert reads.bytes_per_s(65536, 4) == pytest.approx(100 * 65536)
    assert reads.bytes_per_s(4096, 2) == pytest.approx(math.sqrt(100 * 300) * 4096)
    assert reads.bytes_per_s(1 << 20, 64) == pytest.approx(100 * 65536)
    assert reads.seconds(0, 4096) == 0
    # Few reads do not fill the queue.
    assert reads.seconds(1, 4096) == pytest.approx(1 / 100)
    assert reads.seconds(4, 4096) == pytest.approx(4 / 300)
    assert reading.from_dict(json.loads(json.dumps(reading.as_dict(reads)))) == reads


def test_an_event_takes_what_binds_it() -> None:
    # Reading an expert takes 10 ms, computing one 3: storage binds.
    slow = a_machine()._row(a_machine().sizes.layers[0])
    assert slow == pytest.approx([4, 13, 23])
    # Reading takes 1 ms: computing binds, behind the first arrival where all are missing.
    fast = a_machine(mib_per_s=1000)._row(a_machine().sizes.layers[0])
    assert fast == pytest.approx([4, 6, 7])


def test_a_token_adds_up() -> None:
    machine = a_machine()
    nothing = np.tile([1.0, 0, 0], (4, 1))
    assert machine.tpot_ms(nothing) == machine.resident_ms == 10 + 1 + 4 * 4
    mixed = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert machine.tpot_ms(mixed) == pytest.approx(11 + (4 + 13) / 2 + 4 + 23 + 13)
    assert machine.bytes_per_token(mixed) == pytest.approx(3.5 * MIB)
    assert machine.floor_ms(mixed) == pytest.approx(35)
    assert machine.floor_ms(nothing) == machine.resident_ms


def test_a_prompt_adds_up() -> None:
    machine = a_machine()
    assert touched_at_worst(16, 2)(3) == 6
    assert touched_by_chance(16, 2)(1) == pytest.approx(2)
    dense, ffn = 5 + 3 * 1, (8 + 3 * 2) / 4
    cold = machine.ttft_ms(3, 0.0, touched_at_worst(16, 2))
    assert cold == pytest.approx(dense + 1 + 4 * (60 + ffn / 6))
    ahead = Machine(machine.sizes, replace(COMPUTE, prefetches=True), machine.reads)
    assert ahead.ttft_ms(3, 0.0, touched_at_worst(16, 2)) == pytest.approx(240 + ffn / 6 + 1)
    quick = Machine(
        machine.sizes, replace(COMPUTE, prefetches=True), a_machine(mib_per_s=1e4).reads
    )
    assert quick.ttft_ms(3, 0.0, touched_at_worst(16, 2)) == pytest.approx(
        dense + 4 * ffn + 0.6 + 1
    )
    warm = machine.ttft_ms(3, 1.0, touched_at_worst(16, 2))
    assert warm == pytest.approx(dense + 1 + 4 * ffn)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_calibration_finds_how_much_slower_the_engine_reads(scale: float) -> None:
    machine = a_machine()
    slower = Machine(machine.sizes, COMPUTE, ReadModel(machine.reads.points, 4, scale))
    row = np.array([0.25, 0.5, 0.25])  # two of two missing by halves
    seen = ComputeModel(
        **{
            **computing.as_dict(COMPUTE),
            "n_cold": 3,
            "cold_misses": 4.0,
            "cold_ffn_ms": slower.ffn_ms(np.tile(row, (4, 1))),
        }
    )
    found = Machine(machine.sizes, seen, machine.reads).calibrated()
    assert found.reads.scale == pytest.approx(scale, rel=0.03)


def test_nothing_is_learned_of_storage_that_computing_hides() -> None:
    machine = a_machine(mib_per_s=1e6)
    seen = {"n_cold": 2, "cold_misses": 4.0, "cold_ffn_ms": 1.0}
    hidden = Machine(
        machine.sizes, ComputeModel(**{**computing.as_dict(COMPUTE), **seen}), machine.reads
    )
    assert hidden.calibrated().reads.scale == 1


# --- misses ---


@pytest.mark.parametrize("policy", ["lru", "reuse-biased"])
def test_a_replay_counts_what_the_simulator_counts(policy: str) -> None:
    trace = topical()
    for n_slots in (8, 20, 40):
        (outcome,) = simulate(trace, [policy], [n_slots])
        assert int(misses_by_event(trace, n_slots, policy).sum()) == outcome.misses
        # 133 of 400 tokens warm the cache: a third of them.
        (warm,) = simulate(trace, [policy], [n_slots], warm_tokens=133)
        assert mean_misses(Replayed(trace, policy).chances(n_slots)) == pytest.approx(
            warm.misses_per_token
        )


def test_the_experts_that_a_stretch_of_tokens_touches() -> None:
    routed = np.array([[[0, 1], [1, 2], [0, 1], [1, 2]]])
    misses = Replayed(from_routed(routed, 4), "lru")
    assert misses.touched(1) == 2
    assert misses.touched(2) == misses.touched(100) == 3


def test_the_bound_is_the_papers() -> None:
    case = NoReuse(n_layers=3, n_experts=64, top_k=6, n_tokens=150)
    assert expert_load(case) == pytest.approx(15 + 150 * 6 / 64)
    # 8 of 64 are not resident, in each layer.
    chances = case.chances(3 * 56)
    np.testing.assert_allclose(chances.sum(1), 1)
    assert mean_misses(chances) == pytest.approx(3 * 8 * expert_load(case) / 150)
    assert mean_misses(case.chances(3 * 64)) == 0
    assert mean_misses(case.chances(6)) == 3 * 6


def test_published_misses_fall_from_all_to_none() -> None:
    misses = Published(n_layers=2, top_k=4, total_experts=100)
    found = [mean_misses(misses.chances(n)) for n in (0, 10, 25, 50, 75, 100)]
    assert found == pytest.approx([8, 8 * 0.495, 8 * 0.201, 8 * 0.0475, 8 * 0.02375, 0])
    np.testing.assert_allclose(misses.chances(30).sum(1), 1)
    assert "no trace" in misses.source


def test_a_trace_of_another_model_is_refused() -> None:
    trace = topical(n_tokens=60)
    assert prepare(trace, 4, 16, 2, "any").total_tokens == 60
    with pytest.raises(InputError, match="another model: 4 layers of 16 experts, top-2; this one"):
        prepare(trace, 4, 32, 2, "")
    trace.fingerprint = "a" * 64
    with pytest.raises(InputError, match="fingerprint aaaaaaaaaaaa, this one's is bbbbbbbbbbbb"):
        prepare(trace, 4, 16, 2, "b" * 64)
    with pytest.raises(InputError, match="31 tokens; a plan wants 32"):
        prepare(topical(n_tokens=31), 4, 16, 2, "")


def test_misses_are_kept_for_a_model_and_a_policy(tmp_path: Path) -> None:
    sizes = a_machine().sizes
    misses = Replayed(topical(), "lru")
    for n_slots in (8, 16, 48):
        misses.chances(n_slots)
    keep(tmp_path, sizes, misses)
    kept = recall(tmp_path, sizes, "lru")
    assert kept is not None
    for n_slots in (8, 16, 48):
        np.testing.assert_allclose(kept.chances(n_slots), misses.chances(n_slots), atol=1e-5)
    between = (misses.chances(8) + misses.chances(16)) / 2
    np.testing.assert_allclose(kept.chances(12), between, atol=1e-5)
    assert mean_misses(kept.chances(64)) == 0
    assert recall(tmp_path, sizes, "arc") is None
    (file,) = tmp_path.iterdir()
    for damage in ("", "{", "[]", '{"source": "", "slots": [1, 2], "chances": [[1], [2]]}'):
        file.write_text(damage)
        assert recall(tmp_path, sizes, "lru") is None


# --- the search ---


@pytest.mark.parametrize("tpot_ms", [30.0, 45.0, 60.0, 80.0])
def test_the_answer_is_the_smallest_that_holds(tpot_ms: float) -> None:
    machine, misses = a_machine(), Replayed(topical(), "lru")
    targets = Targets(tpot_ms=tpot_ms)
    plan = make_plan(machine, misses, 1 << 40, targets)
    predict = Predictor(machine, misses, targets)
    # Walking down from the most, slot by slot, as far as it holds.
    n_slots = 64
    while n_slots > 2 and meets(predict(n_slots - 1), targets):
        n_slots -= 1
    assert plan.expected is not None
    assert plan.expected.n_slots == n_slots
    assert plan.bound is not None
    assert plan.bound.n_slots >= plan.expected.n_slots
    assert plan.bound.bound_tpot_ms <= tpot_ms
    assert plan.expected.total_bytes == n_slots * MIB + 4096 + fixed_bytes(machine)


def test_a_first_token_wants_its_memory_too() -> None:
    machine, misses = a_machine(), Replayed(topical(), "lru")
    loose = make_plan(machine, misses, 1 << 40, Targets(tpot_ms=90, n_prompt=8))
    assert loose.expected is not None
    wanted = loose.points[-3].warm_ttft_ms
    both = make_plan(machine, misses, 1 << 40, Targets(tpot_ms=90, ttft_ms=wanted, n_prompt=8))
    assert both.expected is not None
    assert both.expected.n_slots > loose.expected.n_slots
    assert both.expected.warm_ttft_ms <= wanted
    assert both.bound is None  # cold, nothing is resident: no budget helps


def test_what_cannot_be_is_said_in_a_line() -> None:
    machine, misses = a_machine(), Published(4, 2, 64)
    with pytest.raises(BudgetError, match=r"20 ms per token .* best is 27 ms .* computing alone"):
        make_plan(machine, misses, 1 << 40, Targets(tpot_ms=20))
    room = fixed_bytes(machine) + machine.sizes.cache_bytes(8)
    with pytest.raises(BudgetError, match=r"out of reach.*misses a token read .* more memory"):
        make_plan(machine, misses, room, Targets(tpot_ms=30))
    with pytest.raises(BudgetError, match="below the floor of 79.00 MiB: dense weights 8.00 MiB"):
        make_plan(machine, misses, 70 * MIB, Targets())
    with pytest.raises(BudgetError, match="first token after 10 ms is out of reach"):
        make_plan(machine, misses, 1 << 40, Targets(ttft_ms=10))


def test_memory_bounds_the_curve() -> None:
    machine = a_machine()
    room = fixed_bytes(machine) + machine.sizes.cache_bytes(40)
    plan = make_plan(machine, Replayed(topical(), "lru"), room, Targets())
    assert plan.points[-1].n_slots == 40
    assert plan.points[-1].total_bytes == room
    assert plan.expected is None
    assert plan.fit is not None
    assert plan.fit.relative < 0.2


def test_pools_are_judged_by_replay() -> None:
    machine, trace = a_machine(), topical()
    found = compare_pools(machine, trace, "lru", 24)
    assert found is not None
    times = [each.tpot_ms for each in found.outcomes]
    assert times == sorted(times)
    by_name = {each.name: each for each in found.outcomes}
    shares = by_name["lagrangian per layer"].slots
    assert sum(shares) == sum(by_name["even per layer"].slots) == 24
    # The last layer repeats itself most, the first hardly: slots go where they help.
    assert len(set(shares)) > 1
    (total,) = simulate(trace, ["lru"], [24], warm_tokens=266)
    assert by_name["one pool"].misses == pytest.approx(total.misses_per_token)
    assert compare_pools(machine, trace, "lru", 7) is None
    assert compare_pools(machine, trace, "lru", 64) is None


# --- measuring, and the command ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.gguf"
    small_moe.write_small_moe(path, embed=128, expert_ffn=64)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep measurements out of the tester's own cache folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_measuring_runs_the_engine(model: Path) -> None:
    found = measure.measure_machine(model, EngineSettings(n_ctx=128), memory_bytes=1 << 30).machine
    compute = found.compute
    assert compute.n_cold > 0
    assert 0 < compute.cold_misses <= 12
    assert min(compute.dense_ms, compute.whole_ms, compute.pair_ms, compute.sample_ms) > 0
    assert compute.compute_bytes > 0
    assert compute.depth >= 1
    assert found.bandwidth > 0
    assert found.sizes.floor_slots == 4
    assert found.sizes.slots_for(found.sizes.cache_bytes(9)) == 9
    assert found.sizes.slots_for(found.sizes.cache_bytes(9) - 1) == 8


def test_a_measurement_is_kept_until_the_file_or_a_setting_changes(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    curve = ReadModel((ProbePoint(4096, 1, 10, 1.0),), 1)
    monkeypatch.setattr(
        computing, "measure_compute", lambda *args, **settings: runs.append(1) or COMPUTE
    )
    monkeypatch.setattr(reading, "measure_reads", lambda *args, **settings: curve)

    def measured(n_ctx: int = 128, fresh: bool = False, **settings: Any) -> measure.Measured:
        asked = EngineSettings(n_ctx=n_ctx, **settings)
        return measure.measure_machine(model, asked, memory_bytes=1, fresh=fresh)

    first = measured()
    assert (len(runs), first.notes) == (1, ())
    again = measured(threads=len(os.sched_getaffinity(0)), routers=None)
    assert len(runs) == 1
    assert again.machine.compute == first.machine.compute
    assert again.machine.reads == first.machine.reads
    assert "measured before" in again.notes[0]
    measured(fresh=True)
    assert len(runs) == 2
    measured(depth=3)
    assert len(runs) == 3
    measured(n_ctx=256)
    assert len(runs) == 4
    stat = model.stat()
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    measured()
    assert len(runs) == 5
    for record in measure.records_folder().iterdir():
        record.write_text('{"compute": {}, "reads": {}}')
    measured()
    assert len(runs) == 6
    assert str(measure.records_folder()).startswith(str(home))


def test_the_command_answers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    routed = np.argsort(rng.random((3, 200, 16)), axis=2)[..., :4]
    np.savez(tmp_path / "t.npz", experts=routed, meta=json.dumps({"num_experts": 16}))
    done = command_line.run(
        capsys, "plan", model, "--trace", tmp_path / "t.npz", "--tpot", "100s", "--policy", "lru",
        "--ctx", "128", "--json",
    )  # fmt: skip
    assert done.code == 0, done
    plan = json.loads(done.out)
    assert plan["misses_from"].startswith("lru on ")
    assert plan["experts"] == {
        "layers": 3, "per_layer": 16, "used": 4, "total": 48, "bytes": plan["experts"]["bytes"],
    }  # fmt: skip
    assert [p["n_slots"] for p in plan["points"]] == sorted(p["n_slots"] for p in plan["points"])
    assert plan["points"][-1]["misses"] == 0
    assert plan["expected"]["n_slots"] == plan["points"][0]["n_slots"] == 4
    assert plan["fit"]["rmse"] >= 0
    (trace,) = (np.load(tmp_path / "t.npz")["experts"],)
    (outcome,) = simulate(from_routed(trace, 16), ["lru"], [24], warm_tokens=66)
    half = next(p for p in plan["points"] if p["n_slots"] == 24)
    assert half["misses"] == pytest.approx(outcome.misses_per_token)

    assert "has 200 tokens" in plan["notes"][0]
    assert plan["pools"] == []  # the floor is too few for layers

    # What the trace gave is kept, and the machine is not measured again.
    table = command_line.run(
        capsys, "plan", model, "--tpot", "100s", "--policy", "lru", "--ctx", "128"
    )
    assert table.code == 0, table
    assert "replayed by an earlier plan" in table.out
    assert "note: measured before" in table.err
    assert "TPOT ≤ 100000 ms, expected: --cache" in table.out
    assert "T(y) = " in table.out
    other = command_line.run(capsys, "plan", model, "--policy", "arc", "--ctx", "128")
    assert "published figures of another model" in other.out


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--tpot", "soon"], "'soon' is not a time; write for example 250ms"),
        (["--tpot", "0ms"], "'0ms' is not a time"),
        (["--tpot", "0.0001ms"], "0.0001 ms per token are out of reach: the best is"),
        (["--memory", "1MiB"], "1.00 MiB are below the floor of "),
        (["--memory", "much"], "'much' is not a size"),
        (["--policy", "belady"], "no policy 'belady' for a running engine"),
        (["--trace", "none.trace"], "cannot read the trace none.trace"),
    ],
)
def test_errors_are_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    assert line in command_line.run(capsys, "plan", model, "--ctx", "128", *options).error()


def test_what_is_no_model_of_experts_is_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no model at" in command_line.run(capsys, "plan", tmp_path / "none.gguf").error()
    dense = tiny_dense.make(tmp_path / "dense.gguf")
    assert "is a dense model" in command_line.run(capsys, "plan", dense).error()
    np.savez(tmp_path / "t.npz", experts=np.zeros((2, 50, 1), int))
    trace = ["--trace", str(tmp_path / "t.npz")]
    told = command_line.run(capsys, "plan", model, "--ctx", "128", *trace).error()
    assert "a trace of another model: 2 layers" in told


def test_an_engine_plans_its_own_cache(model: Path) -> None:
    with Engine(model, cache="plan:100s", n_ctx=128, policy="lru") as engine:
        assert engine.budget is not None
        assert engine.budget.n_slots == 4
        assert any("planned for 100000 ms per token" in note for note in engine.notes)
        assert "".join(engine.generate([5, 6, 7], max_tokens=2, temperature=0)) is not None
    with pytest.raises(BudgetError, match="out of reach"):
        Engine(model, cache="plan:0.0001ms", n_ctx=128, policy="lru")
    with pytest.raises(InputError, match="is not a time"):
        Engine(model, cache="plan:quick")


def test_times_as_people_write_them() -> None:
    assert parse_ms("250ms") == parse_ms("0.25s") == parse_ms(" 250 ") == parse_ms(".25 S") == 250
    budget.check("Plan:250ms")
    for text in ("", "ms", "-1s", "1m", "nan", "0"):
        with pytest.raises(InputError):
            parse_ms(text)


def test_the_command_judges_pools(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    routed = np.argsort(rng.random((3, 120, 16)), axis=2)[..., :4]
    np.savez(tmp_path / "t.npz", experts=routed, meta=json.dumps({"num_experts": 16}))
    trace = ["--trace", str(tmp_path / "t.npz"), "--ctx", "128"]
    told = command_line.run(capsys, "plan", model, *trace)
    assert "pools of 24 experts, judged by replay: " in told.out
    assert "pools of" not in command_line.run(capsys, "plan", model, "--no-pools", *trace).out


def test_tools_compare_pools_without_a_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = topical()
    np.savez(tmp_path / "t.npz", experts=trace.routed(), meta=json.dumps({"num_experts": 16}))
    out = tmp_path / "pools.json"
    arguments = [str(tmp_path / "t.npz"), "--policy", "lru", "--cache", "24", "-o", str(out)]
    assert compare_pools_tool.main(arguments) == 0
    (row,) = json.loads(out.read_text())["rows"]
    (total,) = simulate(trace, ["lru"], [24], warm_tokens=266)
    assert row["misses_per_token"]["one pool"] == pytest.approx(total.misses_per_token)
    assert row["winner"] == min(row["misses_per_token"], key=row["misses_per_token"].get)
    assert compare_pools_tool.main([str(tmp_path / "t.npz"), "--cache", "64"]) == 1
    assert "error: --cache 64" in capsys.readouterr().err
