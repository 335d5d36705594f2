"""The elastic budget: decisions on a clock of our own, the sensor on a tree, slots in a model."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_moe
from recorded.trees import change, plant
from remoe_edge import Engine, errors
from remoe_edge.engine import budget
from remoe_edge.engine import elastic as elastic_module
from remoe_edge.engine.elastic import Elastic
from remoe_edge.engine.elastic_budget import CGROUP_RESERVE_BYTES, ElasticBudget, Sight
from remoe_edge.machine import cgroups, memory
from remoe_edge.machine.memory_sensor import MemorySensor, Seen
from remoe_edge.native import _core
from remoe_edge.units import MIB

ROOT = Path(__file__).parent.parent
SLOT = 3 * MIB
RESERVE = 64 * MIB


class Box:
    """A cache beside a neighbour in a box, seen once every 20 ms."""

    def __init__(self, *, limit: int = 900 * MIB, least: int = 8, most: int = 300) -> None:
        self.limit, self.taken, self.n_slots = limit, 0, 0
        self.budget = ElasticBudget(SLOT, least, most)
        self.now_s, self.stalled = 0.0, 0.0

    @property
    def free(self) -> int:
        return self.limit - self.taken - self.n_slots * SLOT

    def look(self, seconds: float = 0.02) -> int:
        self.now_s += seconds
        sight = Sight(self.now_s, self.free, RESERVE, self.stalled, self.n_slots)
        self.n_slots = self.budget.decide(sight)
        return self.n_slots

    def run(self, seconds: float) -> int:
        for _ in range(round(seconds / 0.02)):
            self.look()
        return self.n_slots


# --- decisions --------------------------------------------------------------------------------------


def test_it_grows_into_what_is_free_and_leaves_the_reserve() -> None:
    box = Box()
    box.n_slots = 100
    before = box.run(0.9)
    assert before == 100  # calm has to last
    assert box.run(0.5) > 100
    assert box.run(30) > 270
    assert box.free >= RESERVE
    assert box.free < RESERVE + 3 * SLOT


def test_it_never_grows_beyond_what_was_promised() -> None:
    box = Box(limit=10_000 * MIB, most=300)
    assert box.run(60) == 300


def test_a_neighbour_gets_its_memory_at_the_next_look() -> None:
    box = Box()
    box.run(30)
    box.taken += 200 * MIB
    box.look()
    assert box.free >= RESERVE
    box.run(0.2)
    assert box.free >= RESERVE


def test_what_falls_fast_is_met_ahead() -> None:
    slow, fast = Box(), Box()
    for box, step in ((slow, 5), (fast, 15)):
        box.run(30)
        for _ in range(3):
            box.taken += step * MIB
            box.look()
    # Both have the reserve free; where more is about to be gone, more than that.
    assert slow.free >= RESERVE * 0.75
    assert fast.free > RESERVE + 60 * MIB


def test_at_the_floor_it_stays() -> None:
    box = Box(least=8)
    box.run(30)
    box.taken = 890 * MIB
    assert box.look() == 8
    assert box.run(5) == 8


def test_it_grows_again_after_a_calm_second_and_in_steps() -> None:
    box = Box()
    box.run(30)
    box.taken = 500 * MIB
    low = box.look()
    box.taken = 0
    assert box.run(0.9) == low
    grown = [box.look() for _ in range(300)]
    assert grown[-1] > low
    steps = [b - a for a, b in itertools.pairwise(grown) if b != a]
    assert all(0 < step <= 300 // 8 for step in steps)
    assert len(steps) >= 4


def test_noise_moves_nothing() -> None:
    box = Box()
    still = box.run(30)
    for i in range(500):
        box.taken = (3 * MIB) * (i % 2)
        box.look()
    assert box.n_slots == still


def test_a_sudden_neighbour_is_remembered_for_a_while() -> None:
    box = Box()
    before = box.run(30)
    box.taken = 60 * MIB
    box.look()
    box.taken = 0
    after = box.run(20)
    assert before * SLOT - after * SLOT >= 40 * MIB
    assert box.budget.remembered_bytes >= 40 * MIB
    assert box.run(1800) == before
    assert box.budget.remembered_bytes == 0


def test_stalls_shrink_it_where_memory_is_short_and_nowhere_else() -> None:
    short, plenty = Box(), Box(limit=5000 * MIB)
    for box in (short, plenty):
        box.run(60)
        box.stalled = 0.5
    before = short.n_slots, plenty.n_slots
    assert short.look() < before[0]
    assert plenty.look() == before[1]
    # While everybody waits nothing grows.
    low = short.n_slots
    short.limit += 500 * MIB
    assert short.run(3) <= low
    short.stalled = 0.0
    assert short.run(10) > low


def test_what_the_cache_does_itself_is_no_neighbour() -> None:
    box = Box()
    box.run(60)
    assert box.budget.remembered_bytes == 0


# --- the sensor -------------------------------------------------------------------------------------

V2 = {
    "proc/self/cgroup": "0::/user.slice/app.scope\n",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemFree: 100000 kB\nMemAvailable: 6000000 kB\n",
    "proc/pressure/memory": "some avg10=0 total=9\nfull avg10=0.00 total=0\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory io\n",
    "sys/fs/cgroup/user.slice/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/memory.high": f"{900 * MIB}\n",
    "sys/fs/cgroup/user.slice/memory.current": f"{500 * MIB}\n",
    "sys/fs/cgroup/user.slice/memory.stat": f"inactive_file {60 * MIB}\nactive_file {50 * MIB}\n"
    f"file_mapped {30 * MIB}\nfile_dirty {10 * MIB}\n",
    "sys/fs/cgroup/user.slice/memory.pressure": "some avg10=0 total=0\nfull avg10=0 total=1000\n",
    "sys/fs/cgroup/user.slice/app.scope/memory.max": f"{2000 * MIB}\n",
    "sys/fs/cgroup/user.slice/app.scope/memory.high": "max\n",
    "sys/fs/cgroup/user.slice/app.scope/memory.current": f"{100 * MIB}\n",
    "sys/fs/cgroup/user.slice/app.scope/memory.stat": "inactive_file 0\n",
    "sys/fs/cgroup/user.slice/app.scope/memory.pressure": "full avg10=0 total=0\n",
    "sys/fs/cgroup/user.slice/app.scope/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/app.scope/cpuset.cpus.effective": "0-3\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/a/b\n2:cpu,cpuacct:/a\n3:cpuset:/\n0::/\n",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemFree: 100000 kB\nMemAvailable: 6000000 kB\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{700 * MIB}\n",
    "sys/fs/cgroup/memory/a/memory.usage_in_bytes": f"{400 * MIB}\n",
    "sys/fs/cgroup/memory/a/memory.stat": f"inactive_file 0\ntotal_inactive_file {50 * MIB}\n"
    f"total_active_file {10 * MIB}\ntotal_mapped_file {20 * MIB}\n",
    "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{800 * MIB}\n",
    "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": f"{10 * MIB}\n",
    "sys/fs/cgroup/memory/a/b/memory.stat": "",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7\n",
}


@pytest.mark.parametrize(
    ("tree", "free_mib", "limit_mib", "name"),
    [(V2, 900 - 500 + 60 + 50 - 30 - 10, 900, "memory.high"),
     (V1, 700 - 400 + 60 - 20, 700, "memory.limit_in_bytes")],
    ids=["v2", "v1"],
)  # fmt: skip
def test_the_tightest_group_counts_whatever_its_version_and_level(
    tmp_path: Path, tree: dict[str, str], free_mib: int, limit_mib: int, name: str
) -> None:
    plant(tmp_path, tree)
    found = memory.available(tmp_path)
    assert found.available_bytes == free_mib * MIB
    assert found.cgroup_limit_bytes == limit_mib * MIB == memory.cgroup_limit_bytes(tmp_path)
    assert memory.total_bytes(tmp_path) == limit_mib * MIB
    tightest = min(cgroups.memory_groups(tmp_path), key=lambda each: each.limit_bytes)
    assert tightest.limit_name == name
    sensor = MemorySensor(tmp_path)
    assert sensor.read(0.0) == Seen(free_mib * MIB, True, 0.0)
    sensor.close()


def test_the_sensor_sees_changes_and_reads_the_costly_files_when_due(tmp_path: Path) -> None:
    plant(tmp_path, V2)
    sensor = MemorySensor(tmp_path)
    group = "sys/fs/cgroup/user.slice/"
    before = sensor.read(0.0).free_bytes
    change(tmp_path, group + "memory.current", 502 * MIB)
    change(tmp_path, group + "memory.stat", "inactive_file 0\n")
    assert sensor.read(0.01).free_bytes == before - 2 * MIB  # what is reclaimable is as it was
    assert sensor.read(0.3).free_bytes == (900 - 502) * MIB
    change(tmp_path, group + "memory.current", 600 * MIB)
    change(tmp_path, group + "memory.stat", f"inactive_file {7 * MIB}\n")
    assert sensor.read(0.31).free_bytes == (900 - 600 + 7) * MIB  # so much has changed
    change(tmp_path, group + "memory.high", "max\n")
    change(tmp_path, group + "memory.max", 700 * MIB)
    assert sensor.read(1.5).free_bytes == (700 - 600 + 7) * MIB
    change(tmp_path, "proc/meminfo", "MemAvailable: 1024 kB\n")
    assert sensor.read(1.51).cgroup  # it was far from tight a moment ago
    assert sensor.read(1.7) == Seen(MIB, False, 0.0)
    change(tmp_path, "proc/meminfo", "MemAvailable: 2048 kB\n")
    assert sensor.read(1.71).free_bytes == 2 * MIB  # and is tight now
    sensor.close()


def test_stalls_are_those_of_the_own_group(tmp_path: Path) -> None:
    plant(tmp_path, V2)
    group = "sys/fs/cgroup/user.slice/app.scope/"
    sensor = MemorySensor(tmp_path)
    assert sensor.read(10.0).stalled == 0.0
    change(tmp_path, group + "memory.pressure", "some total=0\nfull avg10=0 total=500000\n")
    assert sensor.read(10.1).stalled == 0.0  # not yet a quarter of a second
    assert sensor.read(11.0).stalled == 0.5
    assert sensor.read(12.0).stalled == 0.0
    sensor.close()
    bare = MemorySensor(tmp_path / "nothing")
    assert bare.read(0.0) is None
    bare.close()


def test_quotas_and_cpusets_of_both_versions(tmp_path: Path) -> None:
    two, one = plant(tmp_path / "v2", V2), plant(tmp_path / "v1", V1)
    assert cgroups.cpu_quota(two) == 1.5
    assert cgroups.cpuset(two) == "0-3"
    assert cgroups.cpu_quota(one) == 3.0
    assert cgroups.cpuset(one) == "0-7"
    assert cgroups.cpu_quota(tmp_path / "none") is None


# --- a model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("elastic") / "m.gguf", "qwen3moe", "Q8_0")


class Told:
    """A sensor that sees what it is told."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def read(self, now_s: float) -> Seen | None:
        return None if self.free_bytes < 0 else Seen(self.free_bytes, True, 0.0)

    def close(self) -> None:
        pass


def logits(engine: Engine, n_tokens: int) -> np.ndarray:
    prompt = [(37 * i + 11) % 200 + 5 for i in range(n_tokens)]
    rows = [engine.evaluate(prompt)]
    rows += [engine.evaluate([each], reset=False) for each in (7, 99, 123)]
    return np.stack(rows)


@pytest.mark.parametrize("prefetch", ["off", "on"])
def test_bits_are_the_same_however_the_cache_is_resized(model: Path, prefetch: str) -> None:
    with Engine(model, cache="100%", n_ctx=512, prefetch=prefetch) as engine:
        expected = logits(engine, 300)
        native = engine.native
        assert native is not None
        total, floor = native.most_slots, native.n_experts_used
        assert native.n_slots == total
        for wanted in (floor, total, total // 2, floor + 1, total * 5, 0):
            n_slots = native.resize(wanted)
            assert n_slots == native.n_slots == min(total, max(floor, wanted))
            assert native.budget_bytes <= native.budget_for(total)
            assert (logits(engine, 300) == expected).all()
        stats = engine.stats().to_dict()["cache"]
        assert (stats["slots"], stats["most_slots"]) == (floor, total)


def test_a_cache_that_is_resized_all_the_time_gives_the_same_bits(model: Path) -> None:
    with Engine(model, cache="100%", n_ctx=512) as engine:
        expected = logits(engine, 300)
        native = engine.native
        assert native is not None
        stop, resized = threading.Event(), 0

        def disturb() -> None:
            nonlocal resized
            sizes = np.random.default_rng(7).integers(1, native.most_slots + 1, 100_000)
            for size in sizes:
                native.resize(int(size))
                resized += 1
                if stop.wait(0.0005):
                    return

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for _ in range(5):
                assert (logits(engine, 300) == expected).all()
        finally:
            stop.set()
            thread.join()
        assert resized > 10
        native.finish_resize()


def test_a_look_gives_slots_back_and_takes_them_again(model: Path) -> None:
    with Engine(model, cache="100%", n_ctx=512) as engine:
        native = engine.native
        assert native is not None
        logits(engine, 300)
        total = native.n_slots
        clock = [0.0]
        sensor = Told(CGROUP_RESERVE_BYTES * 10)
        elastic = Elastic(native, 0, sensor=sensor, clock=lambda: clock[0])  # type: ignore[arg-type]
        assert elastic.look() == elastic_module.MOVING_S
        assert native.n_slots == total
        sensor.free_bytes = 0
        clock[0] += 0.02
        assert elastic.look() == elastic_module.MOVING_S
        assert native.n_slots == native.n_experts_used
        sensor.free_bytes = CGROUP_RESERVE_BYTES * 10
        for _ in range(200):
            clock[0] += 0.3
            elastic.look()
        assert native.n_slots == total
        clock[0] += 5
        assert elastic.look() == elastic_module.PLENTY_S
        assert elastic.shrunk == elastic.grown == total - native.n_experts_used
        elastic.close()
        short = Told(CGROUP_RESERVE_BYTES * 3)
        elastic = Elastic(native, 0, sensor=short, clock=lambda: clock[0])  # type: ignore[arg-type]
        elastic.look()
        clock[0] += 5
        assert elastic.look() == elastic_module.SHORT_S
        elastic.close()


def test_where_nothing_is_told_nothing_is_done(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(model, cache="100%", n_ctx=512) as engine:
        assert engine.native is not None
        before = engine.native.n_slots
        elastic = Elastic(engine.native, 0, sensor=Told(-1))  # type: ignore[arg-type]
        assert elastic.look() == elastic_module.PLENTY_S
        assert engine.native.n_slots == before
        elastic.close()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Engine(model, cache="auto", n_ctx=512) as engine:
        assert engine._loaded.elastic is None
        assert any("does not follow the memory that is free" in note for note in engine.notes)
        assert len(engine.evaluate([5, 6, 7]))


def test_an_engine_that_rests_gives_its_memory_too(model: Path) -> None:
    with Engine(model, cache="100%", n_ctx=512) as engine:
        native = engine.native
        assert native is not None
        logits(engine, 300)
        held = native.budget_bytes
        elastic = Elastic(native, 0, sensor=Told(0)).start()  # type: ignore[arg-type]
        end = time.monotonic() + 300
        while native.n_slots > native.n_experts_used and time.monotonic() < end:
            time.sleep(0.01)
        elastic.close()
        assert native.n_slots == native.n_experts_used
        assert native.budget_bytes < held
        assert not elastic._thread.is_alive()


def test_what_a_plan_needs_is_the_ceiling(model: Path) -> None:
    with Engine(model, cache="100%", n_ctx=512) as engine:
        assert engine.native is not None
        sensor = Told(CGROUP_RESERVE_BYTES * 100)
        elastic = Elastic(engine.native, 0, sensor=sensor, ceiling=lambda n_slots, room: 9)  # type: ignore[arg-type]
        elastic.look()
        assert engine.native.n_slots == max(9, engine.native.n_experts_used)
        elastic.close()


def test_auto_follows_and_sizes_that_were_asked_for_do_not(model: Path) -> None:
    for cache, follows in (("auto", True), ("50%", False), ("1MiB", False)):
        with Engine(model, cache=cache, n_ctx=512) as engine:
            elastic = engine._loaded.elastic
            assert (elastic is not None) == follows
            assert engine.native is not None
            if not follows:
                assert engine.native.most_slots == engine.native.n_slots
        if elastic is not None:
            assert not elastic._thread.is_alive()


def test_auto_may_grow_to_what_the_box_would_hold_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = _core.StreamedModel.open(str(model))
    slot = native.slot_bytes
    left = memory.Memory(memory.CGROUP_RESERVE_BYTES + 8 * slot + slot // 2, "a test", 1 << 30)
    monkeypatch.setattr(memory, "available", lambda: left)
    monkeypatch.setattr(memory, "cgroup_limit_bytes", lambda: 1 << 30)
    monkeypatch.setattr(memory, "anonymous_bytes", lambda: 0)
    monkeypatch.setattr(memory, "total_bytes", lambda: CGROUP_RESERVE_BYTES + 20 * slot)
    found = budget.resolve("auto", native, 0)
    assert found.n_slots <= 8
    assert found.n_slots < found.most_slots <= 20
    with pytest.raises(errors.BudgetError, match="below the floor"):
        budget.resolve("auto", native, 1 << 30)


def test_counts_add_up_beside_resizes(model: Path) -> None:
    with Engine(model, cache="100%", n_ctx=512) as engine:
        native = engine.native
        assert native is not None
        for wanted in (8, 40, 8):
            native.resize(wanted)
            logits(engine, 100)
        counts = engine.counts()
        one = native.expert_bytes // native.total_experts
        assert counts["bytes_read"] == counts["misses"] * one


# --- beside a neighbour -----------------------------------------------------------------------------


def episodes(tmp_path: Path, n: int, seed: int) -> dict[str, Any]:
    """Run the tool on a model of some 85 MB; skip where no cgroup can be made."""
    sizes = {"n_layer": 3, "n_embd": 512, "n_ff_exp": 512, "n_expert": 32, "n_expert_used": 4}
    model = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0", **sizes)
    out = tmp_path / "episodes.json"
    command = [
        sys.executable, str(ROOT / "tools/memory_episodes.py"), str(model), "--limit", "220MiB",
        "--episodes", str(n), "--seed", str(seed), "--prompt", "16", "--tokens", "6", "--hold", "0.1",
        "--quiet", "3", "--settle", "0.5", "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.exists():
        if "run as root" in done.stderr or "no limit can be set" in done.stderr:
            pytest.skip(done.stderr.strip())
        pytest.fail(done.stderr)
    found: dict[str, Any] = json.loads(out.read_text())
    assert done.returncode == 0, found
    return found


def test_a_neighbour_kills_nobody_and_changes_no_bit(tmp_path: Path) -> None:
    found = episodes(tmp_path, 6, seed=3)
    assert (found["episodes"], found["kills"], found["other_bits"]) == (6, 0, 0)
    assert found["answers"] >= 6


@pytest.mark.slow
def test_no_neighbour_of_two_hundred_kills(tmp_path: Path) -> None:
    found = episodes(tmp_path, 200, seed=4)
    assert (found["episodes"], found["kills"], found["other_bits"]) == (200, 0, 0)
    assert found["slots"]["least"] < found["slots"]["most"]
