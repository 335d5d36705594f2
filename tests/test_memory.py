"""The memory promise, by the kernel's account: dense + KV + compute buffers + budget + 64 MiB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_moe
from remoe_edge import errors
from remoe_edge.bench.box import Cgroup, Limits, NoBoxError, boxed
from remoe_edge.engine import budget
from remoe_edge.machine import memory
from remoe_edge.native import _core
from remoe_edge.units import parse_bytes

SLACK_BYTES = 64 << 20

PROGRAM = """
import json, sys
from remoe_edge import Engine
with Engine(sys.argv[1], cache=sys.argv[2], prefetch=sys.argv[3], n_ctx=1024) as engine:
    for length in (600, 40):
        prompt = [(37 * i + 11) % 200 + 5 for i in range(length)]
        list(engine.generate(prompt, max_tokens=12, temperature=0))
    print(json.dumps(engine.stats().to_dict()))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 340 MB, nearly all of it experts."""
    path = tmp_path_factory.mktemp("memory") / "medium.gguf"
    sizes = {"n_layer": 6, "n_embd": 512, "n_ff_exp": 512, "n_expert": 64, "n_expert_used": 6}
    return tiny_moe.make(path, "qwen3moe", "Q8_0", **sizes)


def promise(stats: dict) -> int:
    buffers = stats["buffers"]
    parts = stats["cache"]["dense_bytes"] + stats["cache"]["budget_bytes"]
    return parts + buffers["KV"] + buffers["compute"] + buffers["output"] + SLACK_BYTES


@pytest.mark.parametrize(("cache", "prefetch"), [("60%", "on"), ("20%", "on"), ("20%", "off")])
def test_peak_stays_within_the_promise(model: Path, cache: str, prefetch: str) -> None:
    def run(limit_bytes: int) -> tuple[dict, int]:
        with boxed(Limits(limit_bytes)) as box:
            if not isinstance(box, Cgroup):
                pytest.skip("the account of a scope is gone with its process; run as root")
            done = subprocess.run(
                box.command([sys.executable, "-c", PROGRAM, str(model), cache, prefetch]),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-500:]}"
            peak_bytes = box.account().peak_bytes
            assert peak_bytes is not None
            return json.loads(done.stdout), peak_bytes

    try:
        stats, peak = run(4 << 30)
    except NoBoxError as error:
        pytest.skip(str(error))
    assert peak <= promise(stats)
    # With the sum as the limit, the kernel kills nothing.
    run(promise(stats))


def test_auto_respects_what_is_left(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = _core.StreamedModel.open(str(model))
    untouched = 10 << 20
    # A cgroup's limit is this process' own; the machine's memory is not.
    for limit, reserve in ((None, memory.RESERVE_BYTES), (1 << 30, memory.CGROUP_RESERVE_BYTES)):
        left = memory.Memory(300 << 20, "a test", limit)
        monkeypatch.setattr(memory, "available", lambda left=left: left)
        room = (300 << 20) - reserve - untouched
        chosen = budget.resolve("auto", native, untouched)
        assert room - native.slot_bytes * 2 < chosen.n_bytes <= room


def test_auto_below_the_floor_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = _core.StreamedModel.open(str(model))
    monkeypatch.setattr(memory, "available", lambda: memory.Memory(256 << 20, "a test", None))
    with pytest.raises(errors.BudgetError, match="below the floor"):
        budget.resolve("auto", native, 0)


def test_a_size_that_the_limit_has_no_room_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = _core.StreamedModel.open(str(model))
    whole = native.budget_for(native.total_experts)
    left = memory.Memory(whole - 1, "the cgroup limit of 1,180 MiB", 1180 << 20)
    monkeypatch.setattr(memory, "available", lambda: left)
    for asked in ("100%", f"{whole}"):
        with pytest.raises(errors.BudgetError, match="the cgroup limit of 1,180 MiB leaves"):
            budget.resolve(asked, native, 0)
    assert budget.resolve("50%", native, 0).n_slots == round(native.total_experts / 2)
    # Without a limit the kernel may give it swap, or take others' memory: the user's to decide.
    left = memory.Memory(whole - 1, "MemAvailable", None)
    assert budget.resolve("100%", native, 0).n_slots == native.total_experts


def test_more_budget_is_never_fewer_slots(model: Path) -> None:
    native = _core.StreamedModel.open(str(model))
    slots = [native.slots_for(mebibytes << 20) for mebibytes in range(1, 400, 3)]
    assert slots == sorted(slots)
    for n in (6, 50, native.total_experts):
        assert native.slots_for(native.budget_for(n)) == n


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1500MiB", 1500 << 20), ("1.5G", 3 << 29), ("800MB", 800_000_000), ("4096", 4096)],
)
def test_sizes_as_people_write_them(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes
