"""The parts of a bench that need no model: arms, workloads, figures, disturbances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoe_edge.bench import disturbances, summary
from remoe_edge.bench.arms import Arm, arms, without_folders
from remoe_edge.bench.process import _settings_of
from remoe_edge.bench.settings import Settings
from remoe_edge.bench.workloads import NAMES, prompts_file, workload
from remoe_edge.errors import InputError, UnsupportedError

# --- arms ---


def named(*specs: str, **settings: Any) -> list[str]:
    return [arm.name for arm in made(*specs, **settings)]


def made(*specs: str, **settings: Any) -> list[Arm]:
    chosen: dict[str, Any] = {"caches": ["30%"], "threads": [2], "routers": {"off": None}}
    return arms(specs, **{**chosen, **settings})


def test_an_arm_is_named_by_what_varies() -> None:
    assert named("stock-mmap", "stream:lru") == ["stock-mmap", "stream:lru"]
    assert named("stock-mmap", "stream:lru", caches=["30%", "1G"]) == [
        "stock-mmap", "stream:lru cache=30%", "stream:lru cache=1G",
    ]  # fmt: skip
    assert named("stock-resident", "stream:arc", threads=[1, 2]) == [
        "stock-resident threads=1", "stock-resident threads=2",
        "stream:arc threads=1", "stream:arc threads=2",
    ]  # fmt: skip
    assert named("stock-mmap", "stream:lru", routers={"off": None, "on": "/a/r.gguf"}) == [
        "stock-mmap", "stream:lru routers=off", "stream:lru routers=on",
    ]  # fmt: skip


def test_routers_that_are_on_are_named_even_where_nothing_varies() -> None:
    assert named("stream:lru", routers={"on": "/a/r.gguf"}) == ["stream:lru routers=on"]


def test_peers_are_for_all_arms_that_do_not_say_otherwise(tmp_path: Path) -> None:
    keys = tmp_path / "client.pem"
    keys.touch()
    two = ("board2:1", "board3:2")
    stock, all_peers, own, none = made(
        "stock-mmap", "stream:lru", "stream:lru+peers=c:3", "stream:lru+peers=off",
        peers=two, peer_keys=keys,
    )  # fmt: skip
    assert stock.options == none.options == ()
    assert dict(all_peers.options) == {"peers": "board2:1,board3:2", "peer_keys": str(keys)}
    assert dict(own.options) == {"peers": "c:3", "peer_keys": str(keys)}
    assert str(tmp_path) not in str(own.as_json())
    assert all_peers.bits == none.bits  # where experts are computed changes none
    (alone,) = made("stream:lru+peers=off")
    assert alone.options == ()
    with pytest.raises(UnsupportedError, match="--keys"):
        made("stream:lru", peers=two)
    with pytest.raises(InputError, match="HOST:PORT"):
        made("stream:lru", peers=("nonsense",))
    for spec in ("stock-mmap", "stream:lru+peers=off"):
        with pytest.raises(InputError, match="no arm takes them"):
            made(spec, peers=two, peer_keys=keys)


def test_arms_whose_output_may_differ_have_other_bits() -> None:
    plain, repacked, other_sums, stock = made(
        "stream:lru", "stream:lru+repack", "stream:lru+flash_attention=off", "stock-mmap"
    )
    (tuned,) = made("stream:lru", routers={"on": "/a/r.gguf"})
    (alone,) = made("stream:lru", threads=[1])
    elsewhere, guessed, not_guessed = made(
        "stream:lru+depth=1", "stream:lru+draft=on", "stream:lru+draft=off", caches=["1G"]
    )
    assert plain.bits == stock.bits == elsewhere.bits == not_guessed.bits
    others = {each.bits for each in (plain, repacked, other_sums, tuned, alone, guessed)}
    assert len(others) == 6
    assert "/a/" not in str(tuned.as_json())


def test_settings_of_the_engine_come_behind_a_plus() -> None:
    (arm,) = made("stream:lru+io_backend=pread+depth=4+direct=off")
    assert dict(arm.options) == {"io": "pread", "depth": 4, "direct": False}
    assert not arm.repack


def test_files_behind_a_plus_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "x" / "a.profile"
    kept.parent.mkdir()
    kept.touch()
    (arm,) = made("stream:lru+profile=x/a.profile")
    assert _settings_of(arm, Settings())["profile"] == str(kept)
    assert arm.name == "stream:lru+profile=a.profile"
    assert arm.as_json()["options"] == {"profile": "a.profile"}
    (arm,) = made("stream:lru+coarse_below=0.3+coarse=x/a.profile")
    assert _settings_of(arm, Settings())["coarse"] == str(kept)
    assert str(tmp_path) not in json.dumps(arm.as_json())
    assert without_folders(f"stock-mmap,stream:lru+profile={kept}") == (
        "stock-mmap,stream:lru+profile=a.profile"
    )
    assert [without_folders(each) for each in ("a/b.json", "--json=a/b", "off,/r.gguf", "1G")] == [
        "b.json", "--json=b", "off,r.gguf", "1G",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("stock", "no arm 'stock'; there are stock-mmap, stock-resident and stream:POLICY"),
        ("stream", "no arm 'stream'"),
        ("stream:belady", "no policy 'belady'; there are lru"),
        ("stream:lru+speed=2", "no setting 'speed'; there are"),
        ("stream:lru+cache=1G", "no setting 'cache'"),
        ("stream:lru+trace=/tmp/x", "no setting 'trace'"),
        ("stream:lru+profile=none.profile", "no file none.profile"),
        ("stream:lru+depth=", "'+depth=' is no +NAME=VALUE"),
        ("stock-mmap+direct=off", "stock takes no setting but +repack"),
        ("stream:lru+repack=2", "repack is on or off"),
    ],
)
def test_what_is_no_arm(spec: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        made(spec)
    assert said in str(error.value)


def test_the_same_arm_twice_is_refused() -> None:
    with pytest.raises(InputError, match="named twice"):
        made("stream:lru", "stream:lru")


# --- workloads ---


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workload(name: str) -> None:
    prompts = workload(name)
    texts = [prompt.text for prompt in prompts]
    assert len(set(texts)) == len(texts) >= 2
    assert [prompt.name for prompt in prompts] == [f"{name}/{i + 1}" for i in range(len(texts))]
    n_words = [len(text.split()) for text in texts]
    assert (
        all(n >= 700 for n in n_words) if name == "long-prompt" else all(n < 100 for n in n_words)
    )
    assert workload(name, 1) == prompts[:1]


def test_an_unknown_workload_names_the_known() -> None:
    with pytest.raises(InputError, match="gsm8k, humaneval, chat, docs, long-prompt"):
        workload("mmlu")


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_bytes(b"one\r\nline two\r\n---\r\n\r\ntwo\n---\n---\n")
    assert [(p.name, p.text) for p in prompts_file(text)] == [
        ("mine/1", "one\nline two"), ("mine/2", "two"),
    ]  # fmt: skip
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"prompt": "a\\nb"}\n\n{"prompt": "c", "id": 3}\n')
    assert [prompt.text for prompt in prompts_file(lines)] == ["a\nb", "c"]
    assert [prompt.text for prompt in prompts_file(lines, 1)] == ["a\nb"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"text": "y"}\n', "a.jsonl, line 2"),
        ("a.jsonl", b"{\n", "a.jsonl, line 1"),
        ("a.jsonl", b'{"prompt": 4}\n', 'line 1: "prompt" is no text'),
        ("a.txt", b"ok\n\xff\n", "at offset 3: no UTF-8"),
        ("a.txt", b"\n---\n", "holds no prompt"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        prompts_file(path)
    assert said in str(error.value)
    with pytest.raises(InputError, match="missing.txt: No such file"):
        prompts_file(tmp_path / "missing.txt")


# --- figures ---


def run_of(arm: str, round_: int, *prompts: list[float], **fields: Any) -> dict[str, Any]:
    """A run whose prompts took these ms a token; the first of each is not timed."""
    return {
        "arm": arm, "round": round_, "marks": [], "load_ms": 10.0 * round_,
        "first_token_ms": 100.0 * round_, "peak_bytes": 1000 * round_, "peak_source": "test",
        "major_faults": round_, "energy_joules": None, "about": {},
        "prompts": [
            {
                "name": f"p/{i}", "ttft_ms": 5.0, "chosen": list(range(len(each) + 1)),
                "tokens": {
                    "token_ms": each, "stall_ms": [1.0] * len(each), "ffn_ms": [2.0] * len(each),
                    "hits": [3] * len(each), "misses": [1] * len(each),
                    "bytes_read": [64] * len(each), "storage_bytes": [128] * len(each),
                    "major_faults": [0] * len(each), "memory_bytes": [500] * len(each),
                },
            }
            for i, each in enumerate(prompts)
        ],
        **fields,
    }  # fmt: skip


def record_of(*runs: dict[str, Any], bits: dict[str, str] | None = None) -> dict[str, Any]:
    names = list(dict.fromkeys(run["arm"] for run in runs))
    return {
        "settings": {"warm": 1, "seed": 0, "tokens": 3, "rounds": 3},
        "arms": {
            name: {
                "kind": "stream" if name.startswith("stream") else "stock-mmap",
                "bits": (bits or {}).get(name, "plain"),
            }
            for name in names
        },
        "runs": list(runs),
    }


def test_figures_are_medians_of_the_rounds_over_timed_tokens() -> None:
    runs = [
        run_of("stream:lru", 1, [900, 10, 20, 30], [900, 40, 50, 60]),
        run_of("stream:lru", 2, [900, 20, 20, 20], [900, 20, 20, 20]),
        run_of("stream:lru", 3, [900, 90, 90, 90], [900, 90, 90, 90]),
    ]
    figures = summary.summarise(record_of(*runs))["stream:lru"]
    # Means of the rounds: 35, 20, 90. Nearest ranks of round 1: 30, 60, 60.
    assert figures["tpot_ms"]["median"] == 35
    assert figures["tokens_per_s"]["median"] == pytest.approx(1000 / 35)
    assert figures["p50_ms"]["median"] == 30
    assert figures["p90_ms"]["median"] == 60
    assert figures["p99_ms"]["median"] == 60
    assert figures["load_ms"]["median"] == 20
    assert figures["first_token_ms"]["median"] == 200
    assert figures["peak_bytes"] == 3000
    assert figures["stall_ms"] == 1
    assert figures["compute_ms"] == 34
    assert figures["hit_rate"] == 0.75
    assert figures["storage_bytes"] == 128
    assert figures["rounds"] == 3
    assert figures["energy_joules"] is None
    low, high = figures["tpot_ms"]["low"], figures["tpot_ms"]["high"]
    assert 20 <= low < 35 < high <= 90


def test_one_round_of_one_prompt_draws_tokens() -> None:
    figures = summary.summarise(record_of(run_of("stream:lru", 1, [0, 1, 2, 3, 4, 5, 6, 7, 8])))
    spread = figures["stream:lru"]["tpot_ms"]
    assert 1 < spread["low"] < spread["median"] == 4.5 < spread["high"] < 8


def test_a_ratio_pairs_rounds_and_prompts() -> None:
    # Rounds differ a lot, and stock takes twice as long in each: nothing is uncertain about it.
    times = ([0, 10, 10], [0, 50, 50], [0, 200, 200])
    runs = [run_of("stream:lru", i, list(each)) for i, each in enumerate(times, 1)]
    runs += [run_of("stock-mmap", i, [2 * t for t in each]) for i, each in enumerate(times, 1)]
    found = summary.summarise(record_of(*runs))
    against = found["stream:lru"]["against"]
    assert against["arm"] == "stock-mmap"
    assert against["tpot_ratio"] == {"median": 2, "low": 2, "high": 2}
    assert "against" not in found["stock-mmap"]


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(40):
        cells = [[rng.normal(100, 10, 8) for _ in range(4)] for _ in range(8)]
        figure = summary._interval(cells, summary._average, seed=trial)
        covered += figure["low"] <= 100 <= figure["high"]
    assert covered >= 32


def test_where_tokens_differ_is_named() -> None:
    one = run_of("stock-mmap", 1, [0, 1, 1], [0, 1, 1])
    other = run_of("stream:lru", 1, [0, 1, 1], [0, 1, 1])
    assert summary.difference(record_of(one, other)) is None
    other["prompts"][1]["chosen"][2] = 99
    found = summary.difference(record_of(one, other))
    assert found is not None
    assert found["line"] == "stock-mmap and stream:lru part at prompt p/1, token 2: 2 against 99"
    # Of other bits it is no failure, and told.
    record = record_of(one, other, bits={"stream:lru": "repacked"})
    assert summary.difference(record) is None
    (line,) = summary.partings(record)
    assert line.startswith("other bits (repacked against plain): stock-mmap and stream:lru part")
    other["prompts"][1]["chosen"][2] = 2
    assert "chose the same tokens" in summary.partings(record)[0]


# --- disturbances ---


def machine(root: Path, **files: str) -> Path:
    quiet = {
        "proc/stat": "cpu  1000 0 500 8000 100 0 0 0 0 0\ncpu0 1 1\n",
        "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "proc/pressure/memory": (
            "some avg10=0 avg60=0 avg300=0 total=5\nfull avg10=0 avg60=0 avg300=0 total=3\n"
        ),
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "45000\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "70000\n",
        "sys/class/thermal/thermal_zone0/trip_point_1_type": "critical\n",
        "sys/class/thermal/thermal_zone0/trip_point_1_temp": "60000\n",
        "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
        "sys/class/thermal/cooling_device0/cur_state": "0\n",
        "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
        "sys/class/thermal/cooling_device1/cur_state": "0\n",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": "2\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1984000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1984000\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n",
    }
    for name, text in {**quiet, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_quiet_run_has_no_mark(tmp_path: Path) -> None:
    look = disturbances.DisturbanceMeter(machine(tmp_path))
    machine(tmp_path, **{
        "proc/stat": "cpu  1190 0 505 8500 105 0 0 5 0 0\n",  # 7 s of 200 ticks were not ours
        "sys/class/thermal/cooling_device1/cur_state": "3\n",
    })  # fmt: skip
    found = look.finish(own_cpu_s=1.90)
    assert found.marks == []
    assert found.figures["other_load_share"] == pytest.approx(0.05 / 7.05, abs=1e-3)
    assert found.figures["steal_share"] == pytest.approx(0.05 / 7.05, abs=1e-3)
    assert found.figures["celsius_highest"] == {"cpu-thermal": 45.0}


@pytest.mark.parametrize(
    ("name", "text", "mark"),
    [
        ("proc/stat", "cpu  1000 0 500 8000 100 0 0 60 0 0\n", "took 100% of the processors' time"),
        ("proc/stat", "cpu  1300 0 500 8300 100 0 0 0 0 0\n", "other programs used 50%"),
        ("sys/class/thermal/thermal_zone0/temp", "71000", "cpu-thermal reached 71 °C"),
        ("sys/class/thermal/cooling_device0/cur_state", "2", "cpufreq-cpu0 went from state 0 to 2"),
        ("sys/class/hwmon/hwmon3/oc1_event_cnt", "5", "oc1_event_cnt rose by 3"),
        (
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1400000",
            "clock was lowered: sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq from 1984000",
        ),
        (
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "8",
            "core_throttle_count rose by 1",
        ),
        (
            "proc/pressure/cpu", "some avg10=9 avg60=9 avg300=9 total=900000000",
            "something waited for a processor",
        ),
    ],
)  # fmt: skip
def test_what_disturbs_a_run_is_marked(tmp_path: Path, name: str, text: str, mark: str) -> None:
    look = disturbances.DisturbanceMeter(machine(tmp_path))
    machine(tmp_path, **{name: text})
    found = look.finish(own_cpu_s=0)
    assert len(found.marks) == 1
    assert mark in found.marks[0]


def test_who_waits_for_the_run_itself_does_not_disturb_it(tmp_path: Path) -> None:
    look = disturbances.DisturbanceMeter(machine(tmp_path))
    machine(tmp_path, **{
        "proc/stat": "cpu  1400 0 500 8000 100 0 0 0 0 0\n",
        "proc/pressure/cpu": "some avg10=9 avg60=9 avg300=9 total=900000000",
    })  # fmt: skip
    assert look.finish(own_cpu_s=4.0).marks == []


def test_waiting_for_memory_is_a_boxed_runs_own_affair(tmp_path: Path) -> None:
    marks = {}
    for in_box in (False, True):
        look = disturbances.DisturbanceMeter(machine(tmp_path), in_box=in_box)
        starved = "full avg10=0 avg60=0 avg300=0 total=900000000"
        machine(tmp_path, **{"proc/pressure/memory": starved})
        marks[in_box] = look.finish(0).marks
    assert marks[True] == []
    assert len(marks[False]) == 1
    assert "waited for memory" in marks[False][0]


def test_throttling_that_has_passed_is_marked_too(tmp_path: Path) -> None:
    look = disturbances.DisturbanceMeter(machine(tmp_path), every_s=0)
    state = "sys/class/thermal/cooling_device0/cur_state"
    clock = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq"
    machine(tmp_path, **{state: "1", clock: "900000"})
    look.tick()
    machine(tmp_path)
    assert len(look.finish(0).marks) == 2


def test_a_machine_that_shows_nothing_is_no_error(tmp_path: Path) -> None:
    found = disturbances.DisturbanceMeter(tmp_path).finish(0)
    assert found.marks == []
    assert set(found.figures) == {"seconds"}
