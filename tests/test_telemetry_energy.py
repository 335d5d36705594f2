"""Joules of an interval, by hand: power over time, counters, idle, tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorded.trees import ORIN_NX, change, plant
from remoe_edge.telemetry import Energy, Idle, Sampler
from remoe_edge.telemetry.energy import EnergyTrack


def track(*points: tuple[float, float]) -> EnergyTrack:
    made = EnergyTrack()
    for t_s, watts in points:
        made.add(t_s, watts, None)
    return made


def test_trapezoids() -> None:
    made = track((0, 10), (1, 20), (3, 20), (4, 0))
    assert made.between(0, 4) == pytest.approx((65.0, 4, 2.0))  # 15 + 40 + 10
    assert made.between(0, 1) == pytest.approx((15.0, 2, 1.0))


def test_an_interval_between_readings() -> None:
    made = track((0, 0), (10, 10))
    found = made.between(2, 4)
    assert found is not None
    assert found[0] == pytest.approx(6.0)  # from 2 W to 4 W in 2 s


def test_counters_are_differences() -> None:
    made = EnergyTrack()
    for t_s, joules in ((0, 100), (1, 104), (2, 110)):
        made.add(t_s, 999.0, joules)  # the power that stands beside it does not count
    assert made.method == "counter"
    assert made.between(0, 2) == pytest.approx((10.0, 3, 1.0))
    found = made.between(0.5, 1.5)
    assert found is not None
    assert found[0] == pytest.approx(5.0)


def test_what_is_not_covered_is_not_guessed() -> None:
    made = track((1, 10), (2, 10))
    assert made.between(0.5, 2) is None
    assert made.between(1, 2.5) is None
    assert made.between(2, 2) is None
    assert EnergyTrack().between(0, 1) is None


def test_a_sensor_that_changes_starts_anew() -> None:
    made = track((0, 10), (1, 10))
    made.add(2, None, 5.0)
    made.add(3, None, 6.0)
    assert made.between(0, 3) is None
    assert made.between(2, 3) == pytest.approx((1.0, 2, 1.0))


def test_readings_that_fail_leave_a_gap_that_is_told() -> None:
    made = track((0, 10))
    made.add(1, None, None)
    made.add(5, 10, None)
    assert made.between(0, 5) == pytest.approx((50.0, 2, 5.0))


def test_only_the_last_are_kept() -> None:
    made = EnergyTrack(keep=10)
    for t_s in range(100):
        made.add(t_s, 1.0, None)
    assert made.between(0, 99) is None
    assert made.between(95, 99) == pytest.approx((4.0, 5, 1.0))


@given(
    st.lists(st.floats(0, 100), min_size=3, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
)
def test_parts_add_up(watts: list[float], a: float, b: float, c: float, counted: bool) -> None:
    made, joules = EnergyTrack(), 0.0
    for t_s, power in enumerate(watts):
        joules += power
        made.add(t_s, power, joules if counted else None)
    first, middle, last = sorted(share * (len(watts) - 1) for share in (a, b, c))
    whole, left, right = (
        made.between(*pair) for pair in ((first, last), (first, middle), (middle, last))
    )
    if whole and left and right:
        assert left[0] + right[0] == pytest.approx(whole[0], abs=1e-6)
        assert -1e-9 <= whole[0] <= 100 * (last - first) + 1e-6


def test_per_token_and_above_idle() -> None:
    energy = Energy(60.0, 4.0, "trapezoid", "hwmon: VDD_IN", 9, 0.5, Idle(5.0, 3.0, 7))
    assert energy.net_joules == 40.0
    assert energy.as_json(20) == {
        "energy_j": 60.0,
        "net_energy_j": 40.0,
        "window_s": 4.0,
        "mean_power_w": 15.0,
        "method": "trapezoid",
        "source": "hwmon: VDD_IN",
        "n_samples": 9,
        "longest_gap_s": 0.5,
        "idle": {"idle_w": 5.0, "window_s": 3.0, "n_samples": 7},
        "joules_per_token": 3.0,
        "net_joules_per_token": 2.0,
        "tokens_per_joule": 0.33333,
        "net_tokens_per_joule": 0.5,
    }


def test_without_idle_nothing_is_said_above_it() -> None:
    told = Energy(60.0, 4.0, "counter", "rapl: package-0", 2, 4.0).as_json(20)
    assert (told["net_energy_j"], told["net_tokens_per_joule"], told["idle"]) == (None,) * 3
    assert "joules_per_token" not in Energy(1.0, 1.0, "counter", "x", 2, 1.0).as_json(0)


def test_a_run_below_idle_is_told_as_it_is() -> None:
    told = Energy(10.0, 4.0, "counter", "x", 2, 4.0, Idle(5.0, 3.0, 7)).as_json(5)
    assert told["net_energy_j"] == -10.0
    assert told["net_tokens_per_joule"] is None


def test_idle_is_the_mean_of_its_window(tmp_path: Path) -> None:
    plant(tmp_path, ORIN_NX)
    with Sampler(root=tmp_path, jtop=False) as sampler:
        idle = sampler.measure_idle(0.05)
        assert idle is not None
        assert idle.watts == pytest.approx(10.144)
        assert idle.n_samples >= 2
        change(tmp_path, "sys/class/hwmon/hwmon1/curr1_input", 4000)
        start = sampler.edge()
        energy = sampler.energy(start, sampler.edge())
    assert energy is not None
    assert energy.idle == idle
    assert energy.joules / energy.seconds == pytest.approx(20.288)
    assert energy.net_joules == pytest.approx(energy.joules / 2)
