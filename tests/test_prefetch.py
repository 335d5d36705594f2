"""Reading ahead: no bit changes, every byte is accounted for, and the cache decides as without it."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import psutil
import pytest

import command_line
import tiny_moe
from remoe_edge import Engine, errors
from remoe_edge.native import _core
from test_interrupt import press_while_computing
from waiting import wait_until

ARCHS = ("qwen3moe", "olmoe", "gpt-oss", "deepseek2-v3", "llama4", "grovemoe")
BUDGETS = ("100%", "50%", "25%")


def prompt(length: int) -> list[int]:
    return [(37 * i + 11) % 200 + 5 for i in range(length)]


def expert_bytes(engine: Engine) -> int:
    model = engine.native
    assert model is not None
    return int(model.expert_bytes) // int(model.total_experts)


def rows(engine: Engine, length: int, n_steps: int = 12) -> np.ndarray:
    """The logits of a prompt and of steps after it, as bits."""
    after = [engine.evaluate(prompt(length))]
    after += [engine.evaluate([7 + 5 * i], reset=False) for i in range(n_steps)]
    return np.stack(after).view(np.uint32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prefetch") / "m.gguf"
    return tiny_moe.make(path, "qwen3moe", "Q8_0", n_layer=6, n_expert=16, n_expert_used=4)


@pytest.mark.parametrize("arch", ARCHS)
def test_it_changes_no_bit_and_counts_every_byte(tmp_path: Path, arch: str) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", arch, "Q4_0" if arch != "gpt-oss" else "MXFP4")
    wanted: dict[int, np.ndarray] = {}
    begun = 0
    for prefetch in ("off", "on"):
        for budget in BUDGETS:
            with Engine(path, cache=budget, prefetch=prefetch, n_ctx=1024, threads=2) as engine:
                for length in (1, 7, 40, 600):
                    got = rows(engine, length)
                    assert np.array_equal(wanted.setdefault(length, got), got), (budget, length)
                counts = engine.native.counts()
                assert counts["bytes_read"] == counts["misses"] * expert_bytes(engine)
                assert counts["prefetch_useful_bytes"] <= counts["bytes_read"]
                assert counts["prefetched_misses"] <= counts["misses"]
                begun += counts["prefetched_misses"]
                if prefetch == "off":
                    assert not any(counts[key] for key in counts if key.startswith("ahead"))
                    assert engine.stats()["cache"]["prefetch"]["state"] == "off"
    assert begun > 0


@pytest.mark.parametrize("policy", ["lru", "reuse-biased"])
def test_residents_are_those_of_a_cache_without_it(model: Path, policy: str) -> None:
    tokens = [(11 * i * i + 3 * i) % 250 + 5 for i in range(120)]

    def misses(n_slots: int, prefetch: str) -> tuple[int, int]:
        cache = str(_core.StreamedModel.open(str(model)).budget_for(n_slots))
        with Engine(model, cache=cache, prefetch=prefetch, policy=policy, n_ctx=256) as engine:
            assert engine.stats()["cache"]["slots"] == n_slots
            for token in tokens:
                engine.evaluate([token], reset=False)
            spare = engine.stats()["cache"]["prefetch"]["spare_slots"]
            assert (spare > 0) == (prefetch == "on")
            return engine.native.counts()["misses"], spare

    with_it, spare = misses(40, "on")
    assert with_it == misses(40 - spare, "off")[0]


def test_a_small_model_needs_none(model: Path) -> None:
    with Engine(model, cache="50%", prefetch="auto") as engine:
        engine.evaluate(prompt(40))
        assert engine.stats()["cache"]["prefetch"]["state"] == "off"
        assert engine.stats()["cache"]["prefetch"]["spare_slots"] == 0


def test_predictions_are_measured(model: Path) -> None:
    with Engine(model, cache="50%", prefetch="on") as engine:
        for i in range(60):
            engine.evaluate([5 + 3 * i], reset=False)
        # Its routers are random, but the stream changes little between its layers.
        assert 0.55 < engine.stats()["cache"]["prefetch"]["first_rank_certainty"] < 1


def test_batches_are_foreseen_as_well_as_tokens(model: Path) -> None:
    def certainty(length: int) -> float:
        with Engine(model, cache="100%", prefetch="on", n_ctx=1024) as engine:
            for i in range(800 // length):
                engine.evaluate([(37 * j + 11 * i) % 200 + 5 for j in range(length)])
            return float(engine.stats()["cache"]["prefetch"]["first_rank_certainty"])

    assert abs(certainty(1) - certainty(40)) < 0.15


@pytest.mark.parametrize("backend", ["pread", "io_uring"])
def test_failing_reads_ahead_harm_nobody(model: Path, backend: str) -> None:
    with Engine(model, cache="100%", prefetch="off") as engine:
        wanted = rows(engine, 40, 30)
    try:
        opened = Engine(model, cache="30%", prefetch="on", io=backend)
    except errors.UnsupportedError as error:
        pytest.skip(str(error))
    failures = []
    with opened as engine:
        for operation in range(24):
            engine.native.set_faults(_core.FaultPlan(fail_operation=operation * 3, delay_us=50))
            try:
                got = rows(engine, 40, 30)
            except errors.ReadError as error:
                failures.append(str(error))  # a demand read: the engine goes on
                continue
            # One that nobody had asked for: nobody hears of it.
            assert np.array_equal(got, wanted)
        engine.native.set_faults(_core.FaultPlan())
        assert np.array_equal(rows(engine, 40, 30), wanted)
    assert failures
    assert all("expert" in failure and "offset" in failure for failure in failures)


def test_control_c_in_the_middle_of_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(model, cache="30%", prefetch="on") as engine:
        wanted = rows(engine, 40)
        engine.native.set_faults(_core.FaultPlan(delay_us=500))
        for length in (40, 1):
            engine.evaluate(prompt(length))
            press_while_computing(engine, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                engine.evaluate(prompt(7), reset=False)
        engine.native.set_faults(_core.FaultPlan())
        assert np.array_equal(rows(engine, 40), wanted)


def test_closing_in_the_middle_of_it(model: Path) -> None:
    with Engine(model, cache="60%", prefetch="on") as engine:
        wanted = rows(engine, 40)
    process = psutil.Process()
    gc.collect()
    # Threads of tests before this one may still be ending, here and below.
    files, threads = process.num_fds(), process.num_threads()
    for length in (1, 40):
        n_bytes = 0
        for _ in range(
            20
        ):  # where others use the processors, a step may end before anything is read ahead
            engine = Engine(model, cache="60%", prefetch="on")
            assert engine.native is not None
            engine.native.set_faults(_core.FaultPlan(delay_us=2000))
            engine.evaluate(prompt(length))
            counts = engine.counts()
            n_bytes = counts["prefetch_useful_bytes"] + counts["prefetch_wasted_bytes"]
            if n_bytes:
                break
            engine.close()
        assert n_bytes > 0, length
        engine.close()
        wait_until(lambda: process.num_fds() <= files, "closing files")
        wait_until(lambda: process.num_threads() <= threads, "the end of reading")
    with Engine(model, cache="60%", prefetch="on") as engine:
        assert np.array_equal(rows(engine, 40), wanted)


def test_a_model_that_cannot_be_foreseen_says_so(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "llama4", "Q8_0")
    with Engine(path, cache="50%", prefetch="on") as engine:
        notes = [note for note in engine.notes if "prefetched" in note]
        assert len(notes) == 1
        assert "other activations" in notes[0]
    with Engine(path, cache="50%", prefetch="off") as engine:
        assert not any("prefetched" in note for note in engine.notes)


def test_the_cli_takes_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = (
        "chat",
        "-m",
        model,
        "-p",
        "hello " * 20,
        "-n",
        "24",
        "--raw",
        "--json",
        "--cache",
        "40%",
    )
    found = {}
    for mode in ("on", "off"):
        outcome = command_line.run(capsys, *ask, "--temp", "0", "--prefetch", mode)
        found[mode] = json.loads(outcome.out)
    on, off = (found[mode]["cache"]["prefetch"] for mode in ("on", "off"))
    assert (on["state"], off["state"]) == ("on", "off")
    assert on["useful_bytes"] + on["wasted_bytes"] > 0 == off["useful_bytes"] + off["wasted_bytes"]
    assert found["on"]["text"] == found["off"]["text"]


def test_an_unknown_mode_is_refused(model: Path) -> None:
    with pytest.raises(errors.InputError, match="auto, off, on"):
        Engine(model, prefetch="sometimes")
