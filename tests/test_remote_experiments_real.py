"""The experiments with real workers run and add up; their times are of no concern here."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_moe
from remoe_edge import InputError
from remoe_edge.placement import times_file
from remoe_edge.placement.latency_curve import Points
from remote_experiments import (
    compare_real,
    cpu_quota,
    expert_latency,
    networks_real,
    payloads,
    real,
    relay,
    similarity_divergence,
    validate_simulator,
)

TEXT = Path(real.__file__).with_name("prompts.txt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("real") / "model.gguf", "qwen3moe", "Q4_K")


# --- 1: similarity against divergence ---


def test_ranks_and_their_correlation() -> None:
    assert similarity_divergence.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    rising = np.arange(20.0)
    assert similarity_divergence.spearman(rising, np.exp(rising)) == pytest.approx(1)
    assert similarity_divergence.spearman(rising, -(rising**3)) == pytest.approx(-1)
    assert math.isnan(similarity_divergence.spearman(rising, np.ones(20)))


def test_correlations_within_and_across_texts() -> None:
    rng = np.random.default_rng(0)
    place = rng.random(30)
    alike = -np.abs(place[:, None] - place[None])
    found = similarity_divergence.correlations(alike, -alike, ["a"] * 15 + ["b"] * 15, 0, draws=20)
    assert {name: each["pairs"] for name, each in found.items()} == {
        "all": 435, "one text": 210, "two texts": 225,
    }  # fmt: skip
    assert all(each["spearman"] == pytest.approx(-1) for each in found.values())
    noise = rng.random((30, 30))
    found = similarity_divergence.correlations(noise, alike, ["a"] * 30, 0, draws=50)
    assert found["all"]["low"] < 0.2
    assert "two texts" not in found


# --- 2: T(y) ---


def test_function_times_are_kept_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    points = Points("board", (1 << 30, 2 << 30), (3.0, 2.0))
    times_file.save(points, path)
    assert times_file.load(path) == points
    held = json.loads(path.read_text())
    for change, line in (
        ({"version": 2}, "version 2"),
        ({"kind": ""}, "names the machine"),
        ({"row_ms": [1.0, "x"]}, "list of numbers"),
        ({"row_ms": [1.0]}, "times are wanted"),
        ({"sizes_bytes": [2, 1]}, "sizes that rise"),
        ({"sizes_bytes": [True, 2]}, "list of numbers"),
    ):
        path.write_text(json.dumps({**held, **change}))
        with pytest.raises(InputError, match=line):
            times_file.load(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="no function times"):
        times_file.load(path)


def test_a_fit_is_judged() -> None:
    sizes = tuple(n << 30 for n in range(1, 9))
    curve = tuple(4 * math.exp(-0.5 * n) + 1 for n in range(1, 9))
    found = expert_latency.judged(Points("made up", sizes, curve))
    assert found["exponential"]["taken"]
    assert found["exponential"]["theta2"] == pytest.approx(0.5, rel=1e-3)
    assert found["exponential"]["convex_from_bytes"] == pytest.approx(4 << 30, rel=1e-3)
    assert found["exponential"]["convex_share_of_points"] in (4 / 8, 5 / 8)
    apart = max(a / b - 1 for a, b in itertools.pairwise(curve))
    assert found["steps"]["worst_between"] == pytest.approx(apart)
    assert expert_latency.threads_of(0.1) == 1


def test_a_quota_is_written_as_either_kind_of_group_has_it(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    with cpu_quota.cpu_quota(0.5, tmp_path) as folder:
        assert (folder / "cpu.cfs_quota_us").read_text() == str(cpu_quota.PERIOD_US // 2)
        for each in folder.iterdir():  # a real group's files go with it
            each.unlink()
    (tmp_path / "cgroup.controllers").touch()
    with cpu_quota.cpu_quota(2, tmp_path) as folder:
        assert (
            folder / "cpu.max"
        ).read_text() == f"{2 * cpu_quota.PERIOD_US} {cpu_quota.PERIOD_US}"
        cpu_quota.join(folder, 7)
        assert (folder / "cgroup.procs").read_text() == "7"
    with (
        pytest.raises(cpu_quota.NoQuotaError, match="no control group"),
        cpu_quota.cpu_quota(1, tmp_path / "nowhere"),
    ):
        pass


# --- 4: payloads ---


@pytest.mark.slow
def test_payloads_are_cut_or_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = [str(model), "--lengths", "1,8,40", "--sizes", "1,6.1,17", "-o", str(out)]
    assert payloads.main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["good"]
    assert [row["tokens"] for row in found["prompts"]] == [1, 8, 40]
    assert found["prompts"][0]["sent_bytes"] > 0
    assert len(found["strangers"]) == 6
    assert all(row["worker_lives"] and row["refused"] for row in found["strangers"])
    assert payloads.HEADER.size == 56


# --- 5: networks ---


def test_a_relay_delays_and_keeps_the_order() -> None:
    async def run() -> tuple[bytes, float]:
        echo = await asyncio.start_server(_echo, "127.0.0.1", 0)
        address = f"127.0.0.1:{echo.sockets[0].getsockname()[1]}"
        between = relay.Relay(address, 20.0, 1.0, 3)
        server = await asyncio.start_server(between.serve, "127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        begin = loop.time()
        sent = b"".join(bytes([i]) * 999 for i in range(20))
        for at in range(0, len(sent), 999):
            writer.write(sent[at : at + 999])
            await writer.drain()
            await asyncio.sleep(0.001)
        back = await reader.readexactly(len(sent))
        took = loop.time() - begin
        writer.close()
        server.close()
        echo.close()
        return back if back == sent else b"", took

    back, took = asyncio.run(run())
    assert back
    assert took > 0.005  # it is late, by however much
    still = relay.Relay("h:1", 5.0, 0.0, 0)
    assert still.delay_s() == 0.005


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


def test_a_relay_runs_as_a_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as echo:
        port = echo.getsockname()[1]
        relays = real.Relays(0.0, 0.0)
        try:
            host, _, there = relays.before(f"127.0.0.1:{port}").rpartition(":")
            threading.Thread(target=lambda: echo.accept()[0].sendall(b"hello"), daemon=True).start()
            with socket.create_connection((host, int(there)), timeout=60) as client:
                assert client.recv(5) == b"hello"
        finally:
            relays.close()


# --- the long ones ---


@pytest.mark.slow
def test_networks_change_no_token(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = [
        "--prompts",
        "2",
        "--tokens",
        "6",
        "--networks",
        "3",
        "--starts",
        "2",
        "-o",
        str(out),
    ]
    assert networks_real.main([str(model), *arguments]) == 0
    found = json.loads(out.read_text())
    assert found["same_tokens"]
    assert len(found["networks"]) == 6
    assert all(row["remote_hedges"] == 0 for row in found["networks"] if not row["hedge"])
    assert len(found["starts"]) == 2


@pytest.mark.slow
def test_placements_are_compared(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--past", "3", "--judged", "2", "--prompt", "8", "--tokens", "6", "--rounds", "1",
                 "--start", "0.1", "--functions", "2", "--price", "per-call"]  # fmt: skip
    assert compare_real.main([str(model), str(TEXT), *arguments, "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["answers_differ"] == []
    arms = found["arms"]
    assert len(arms) == 8
    here = ("all resident", "everything local", "fetch from storage")
    for name, arm in arms.items():
        costs = {prices: cost["mean"] for prices, cost in arm["cost_an_answer"].items()}
        without = {prices for prices in costs if "no fee" in prices}
        assert without
        assert min(costs.values()) > 0
        called = not name.startswith(here)
        assert (sum(arm["remote_rows"]) > 0) == called
        for prices in without if called else ():
            assert costs[prices.partition(", no fee")[0]] > costs[prices]


@pytest.mark.slow
def test_the_simulator_is_held_against_workers(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--prompts", "2", "--tokens", "6", "--workers", "1,2", "--local", "0,0.5"]
    assert validate_simulator.main([str(model), *arguments, "--rounds", "1", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(row["workers"], row["calibrates"]) for row in found["rows"]] == [
        (1, True), (1, False), (2, False), (2, False),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["rows_a_round"] > 0
        assert row["simulated_tpot_ms"]["mean"] > 0
    assert found["judged"] == 3


@pytest.mark.slow
def test_latency_is_measured_in_control_groups(model: Path, tmp_path: Path) -> None:
    try:
        with cpu_quota.cpu_quota(0.5):
            pass
    except cpu_quota.NoQuotaError as error:
        pytest.skip(str(error))
    times = tmp_path / "times.json"
    arguments = ["--quotas", "0.25,0.5,1", "--rounds", "1", "--tokens", "4", "--times", str(times)]
    assert expert_latency.main([str(model), *arguments]) == 0
    points = times_file.load(times)
    assert len(points.sizes) == 3
    assert all(each > 0 for each in points.row_ms)


def test_an_interval_holds_its_mean() -> None:
    found: dict[str, Any] = real.interval([1.0, 2.0, 3.0])
    assert found["low"] <= found["mean"] == 2 <= found["high"]
    assert real.interval([5.0]) == {"mean": 5.0, "low": 5.0, "high": 5.0, "n": 1}
