"""Functions that come and go: what is deployed, what is woken, and that no answer waits or is lost.

Replicas are worker processes here, without Ray; tests/test_deploy_ray.py has Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny_moe
from functions import Workers, deployment_of, placement_of
from remoe_edge import BudgetError, Engine, InputError, RemoeError
from remoe_edge.cli import cli
from remoe_edge.deploy import local_ray, ray_process, record
from remoe_edge.deploy.deploying import WorkerSizes, bounded, function_jobs
from remoe_edge.deploy.leases import Leases
from remoe_edge.deploy.packing import pack
from remoe_edge.deploy.ray_side import MISSING
from remoe_edge.deploy.replica import NODE
from remoe_edge.deploy.use import Uses
from remoe_edge.deploy.waking import expected_rows, woken
from remoe_edge.deploy.worker_process import WorkerProcess, experts_text, worker_command
from remoe_edge.engine import engine as core
from remoe_edge.native import _core
from remoe_edge.placement import price
from remoe_edge.remote.experts import parse_experts
from remoe_edge.remote.worker import Worker

PROMPT = [(37 * i + 11) % 200 + 5 for i in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("deploy") / "model.gguf", "qwen3moe", "Q4_K")


def until(condition: Callable[[], bool], s: float = 180.0) -> None:
    end = time.monotonic() + s
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@contextlib.contextmanager
def engine(model: Path, functions: Any, **settings: Any) -> Iterator[core.Engine]:
    cache = str(WorkerSizes(model).main_cache_bytes(0))
    given = {"cache": cache, "n_ctx": 512, "threads": 1, "prefetch": "off", **settings}
    with core.Engine(model, functions=functions, **given) as made:
        yield made


def tokens(made: core.Engine, n: int = 24, prompt: list[int] = PROMPT) -> list[int]:
    answer = made.generate(prompt, max_tokens=n, temperature=0, logit_bias={2: -100})
    for _ in answer:
        pass
    return list(answer.token_ids)


class Silent:
    """Look on, and do nothing."""

    def on_load(self, facts: Any) -> None: ...

    def on_begin(self, n_prompt: int) -> None: ...

    def on_step(self, step: Any) -> None: ...

    def on_answer(self, answer: Any) -> None: ...

    def on_close(self) -> None: ...


# --- what is deployed ---


def test_every_remote_expert_is_in_one_function_the_most_used_in_the_first(model: Path) -> None:
    placement = placement_of(model, n_local=2)
    shape = placement.request.shape
    functions = pack(placement, 3, WorkerSizes(model).process_bytes)
    everywhere = [expert for each in functions for expert in each.experts]
    local = {
        layer * shape.n_experts + expert
        for layer, experts in enumerate(placement.local)
        for expert in experts
    }
    assert len(everywhere) == len(set(everywhere))
    assert set(everywhere) | local == set(range(shape.n_layers * shape.n_experts))
    assert not set(everywhere) & local
    # Each function has its tier of every layer.
    for each in functions:
        assert {expert // shape.n_experts for expert in each.experts} == set(range(shape.n_layers))
    rows = [each.rows for each in functions]
    assert rows == sorted(rows, reverse=True)
    planned = sum(each.load.rows for each in placement.functions)
    assert sum(rows) == pytest.approx(planned)
    assert all(
        each.memory_bytes >= WorkerSizes(model).process_bytes(len(each.experts))
        for each in functions
    )
    # More functions than a layer has remote experts: one each.
    assert len(pack(placement, 99, WorkerSizes(model).process_bytes)) == shape.n_experts - 2
    with pytest.raises(InputError, match="--functions"):
        pack(placement, 1, lambda n: placement.table.function.max_bytes + 1)
    assert pack(placement_of(model, n_local=shape.n_experts), 2, lambda n: 1) == []


def test_experts_are_written_as_a_worker_reads_them(model: Path) -> None:
    file = _core.ModelFile.open(str(model))
    blocks = [layer.block for layer in file.expert_layers]
    n = file.expert_layers[0].n_experts
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, n, len(blocks) * n):
        ids = sorted(rng.choice(len(blocks) * n, size, replace=False).tolist())
        assert parse_experts(experts_text(ids, n, blocks), file) == ids


def test_a_record_is_read_as_it_was_written(model: Path, tmp_path: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=2)
    path = record.path_of(tmp_path, "tiny")
    record.save(made, path)
    assert record.load(path) == made
    assert record.load_for(path, model) == made
    assert record.find(tmp_path) == record.find(tmp_path, "tiny") == path
    held = json.loads(path.read_text())
    for change, line in (
        ({"version": 2}, "version 2"),
        ({"functions": [{}]}, "no deployment"),
        ({"name": "../up"}, "no name of a deployment"),
        ({"placement": {}}, "placement of version"),
    ):
        path.write_text(json.dumps({**held, **change}))
        with pytest.raises(InputError, match=line):
            record.load(path)
    path.write_text(json.dumps({**held, "fingerprint": "other"}))
    with pytest.raises(InputError, match="is deployed for"):
        record.load_for(path, model)
    path.unlink()
    with pytest.raises(InputError, match="nothing is deployed"):
        record.find(tmp_path)


def test_a_worker_starts_with_the_least_memory_that_is_said(model: Path) -> None:
    sizes = WorkerSizes(model)
    least = sizes.experts_bytes(5)
    with Worker(model, experts="0:0-4", memory=str(least), listen="127.0.0.1:0", threads=1) as made:
        assert made.budget_bytes <= least
    with pytest.raises(BudgetError, match="--memory"):
        Worker(model, experts="0:0-4", memory=str(least - 1), listen="127.0.0.1:0", threads=1)


def test_a_worker_beyond_this_machine_has_keys(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=2)
    sizes = WorkerSizes(model)
    for job in function_jobs(made, sizes, conversations=3):
        assert job["spec"]["host"] == "127.0.0.1"
        assert job["spec"]["more"] == []
        assert job["most_replicas"] == 3
    for job in function_jobs(made, sizes, conversations=1, worker_keys=Path("/k/worker.pem")):
        spec = dict(job["spec"])
        assert spec.pop("host") == NODE
        assert worker_command(**spec, listen="10.0.0.1:0")[-2:] == ["--keys", "/k/worker.pem"]


def test_memory_of_the_main_host_is_bounded_in_whole_steps() -> None:
    table = price.load("lifetime")
    step = table.main.step_bytes
    assert bounded(table, 10 * step + 5).main.max_bytes == 10 * step
    assert bounded(table, 1 << 50) == table
    with pytest.raises(InputError, match="smallest"):
        bounded(table, step - 1)


# --- what is woken ---


def test_a_prompt_wakes_what_it_is_expected_to_ask(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=3)
    shape = made.placement.request.shape
    shares = np.zeros((shape.n_layers, shape.n_experts))
    shares[:, 0] = 1.0  # local: nothing is woken
    assert woken(expected_rows(made.functions, shares, shape.top_k), 1000) == []
    last = made.functions[-1]
    for expert in last.experts:
        shares[expert // shape.n_experts, expert % shape.n_experts] = 0.01
    rows = expected_rows(made.functions, shares, shape.top_k)
    assert rows[last.name] == pytest.approx(0.01 * shape.top_k * len(last.experts))
    assert woken(rows, 1000) == [last.name]
    assert woken(rows, 1) == []
    planned = expected_rows(made.functions, None, shape.top_k)
    assert woken(planned, 1000)[0] == made.functions[0].name


# --- leases ---


def test_no_answer_waits_for_a_function_and_the_next_ones_use_it(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=2)
    workers = Workers(made)
    workers.gate.clear()
    leases = Leases(made, workers, keep_s=3600)
    with engine(model, None) as alone:
        expected = tokens(alone)
    with engine(model, leases) as helped:
        assert workers.asked == []  # nothing is woken by loading
        assert tokens(helped) == expected
        assert {each[0] for each in workers.asked} == {"hold"}
        assert helped.stats()["remote"]["remote_asked"] == 0
        told = helped.stats()["remote"]["functions"]
        assert [each["starting"] for each in told] == [1, 1]
        workers.gate.set()
        until(leases.ready)
        until(lambda: all(p["state"] == "serving" for p in helped.stats()["remote"]["peers"]))
        assert tokens(helped) == expected
        told = helped.stats()["remote"]["functions"]
        assert sum(each["rows"] for each in told) > 0
        assert sum(each["calls"] for each in told) == helped.stats()["remote"]["remote_asked"]
        assert all(each["start_ms"] > 0 and each["held_ms"] > 0 for each in told)
        assert [each["leased"] for each in told] == [1, 1]
    assert workers.running == {}


class Stepping(Silent):
    """Do something once, after so many steps."""

    def __init__(self, after: int, act: Callable[[], object]) -> None:
        self.left, self.act = after, act

    def on_step(self, step: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def test_what_the_plan_keeps_here_is_read_at_the_start(model: Path) -> None:
    made = deployment_of(model, n_local=6, n_functions=1)
    cache = str(WorkerSizes(model).main_cache_bytes(sum(map(len, made.placement.local))))
    with engine(model, Leases(made, Workers(made), keep_s=3600), cache=cache) as helped:
        assert helped.native is not None
        helped.native.finish_warm_start()
        found = helped.stats().cache
        assert found is not None
        assert found.warm_experts > 0


def test_a_function_that_is_killed_costs_no_answer_and_comes_back(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=1)
    workers = Workers(made, processes=True)
    leases = Leases(made, workers, keep_s=3600)
    with engine(model, leases) as helped:
        expected = tokens(helped, 24)
        until(leases.ready)
        until(lambda: all(p["state"] == "serving" for p in helped.stats()["remote"]["peers"]))
        kill = Stepping(5, lambda: os.kill(workers.running["f0", 0].pid, signal.SIGKILL))
        tell = Stepping(10, lambda: workers.lose("f0", 0))
        helped.add_observer(kill)
        helped.add_observer(tell)
        assert tokens(helped, 24) == expected
        assert kill.left <= 0
        assert tell.left <= 0
        assert any("function f0 is gone (killed)" in note for note in helped.notes)
        until(lambda: workers.asked.count(("hold", "f0", 0)) == 2)
        until(leases.ready)
        until(lambda: all(p["state"] == "serving" for p in helped.stats()["remote"]["peers"]))
        before = helped.stats()["remote"]["functions"][0]
        assert tokens(helped, 24) == expected
        after = helped.stats()["remote"]["functions"][0]
        assert after["rows"] > before["rows"] > 0
        assert after["leases"] == 2
        # Counts of the peer that is gone stay in the sum.
        assert after["calls"] == helped.stats()["remote"]["remote_asked"]


def test_functions_are_given_back_when_nobody_asks(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=2)
    workers = Workers(made)
    leases = Leases(made, workers, keep_s=0.2)
    with engine(model, leases) as helped:
        expected = tokens(helped)
        until(lambda: sum(each[0] == "release" for each in workers.asked) >= 2)
        until(lambda: helped.stats()["remote"]["peers"] == [])
        n = len(workers.asked)
        assert tokens(helped) == expected  # and woken again
        assert len(workers.asked) > n


def test_a_holder_that_ends_is_told_and_costs_nothing(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=1)
    workers = Workers(made)
    leases = Leases(made, workers, keep_s=3600)
    with engine(model, leases) as helped:
        expected = tokens(helped)
        until(leases.ready)
        leases.hear({"error": "the process that holds leases has ended"})
        assert helped.stats()["remote"]["peers"] == []
        assert tokens(helped) == expected
        assert any("functions are not used" in note for note in helped.notes)


def test_peers_that_are_always_there_stay_beside_functions(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=1)
    leases = Leases(made, Workers(made), keep_s=3600)
    with (
        Worker(model, experts="all", memory="64MiB", listen="127.0.0.1:0", threads=1) as always,
        engine(model, leases, peers=always.address) as helped,
    ):
        tokens(helped, 4)
        until(leases.ready)
        until(lambda: len(helped.stats()["remote"]["peers"]) == 2)
        leases.hear({"error": "gone"})
        peers = helped.stats()["remote"]["peers"]
        assert [each["address"] for each in peers] == [always.address]


def test_use_is_counted_by_function() -> None:
    now = [0.0]
    uses = Uses(["a", "b"], clock=lambda: now[0])
    uses.began("a", 0, 250.0)
    peer = {"address": "x:1", "experts": 3, "remote_asked": 2, "remote_compute_us": 1500,
            "remote_rows": 2, "remote_sent_bytes": 10, "remote_received_bytes": 20}  # fmt: skip
    uses.counted({"x:1": "a"}, [peer])
    now[0] = 2.0
    assert uses.read()["a"].held_ms == 2000
    uses.ended("a", 0)
    uses.ended("a", 0)  # told twice
    now[0] = 5.0
    found = uses.read()["a"]
    assert (found.held_ms, found.start_ms, found.starts, found.calls) == (2000, 250, 1, 2)
    assert (found.compute_ms, found.sent_bytes, found.egress_bytes) == (1.5, 10, 20)
    # Another worker at the same address begins at nothing.
    uses.counted({"x:1": "b"}, [{**peer, "remote_asked": 1, "remote_rows": 1}])
    assert uses.read()["b"].calls == 1
    assert uses.read()["a"].calls == 2


# --- replicas ---


def test_a_worker_under_a_supervisor(model: Path) -> None:
    worker = WorkerProcess(worker_command(str(model), "*:0-1", 1 << 24, "127.0.0.1:0", 1))
    worker.check()
    until(lambda: "answers" in worker.counts())
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(0.3)
    with pytest.raises(RemoeError, match="not been heard of"):
        worker.check(silent_s=0.1)
    os.kill(worker.pid, signal.SIGCONT)
    os.kill(worker.pid, signal.SIGKILL)
    worker._process.wait()
    with pytest.raises(RemoeError, match="has ended"):
        worker.check()
    worker.stop()
    with pytest.raises(RemoeError, match="raise it \\(--memory"):
        WorkerProcess(worker_command(str(model), "all", 4096, "127.0.0.1:0", 1))


def test_a_worker_ends_with_its_supervisor(model: Path) -> None:
    worker = WorkerProcess(worker_command(str(model), "*:0", 1 << 24, "127.0.0.1:0", 1))
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker._process.wait(120) == 0


def test_a_canary_finds_what_is_wrong(model: Path) -> None:
    with (
        Worker(model, experts="all", memory="64MiB", listen="127.0.0.1:0", threads=1) as worker,
        core.Engine(model, peers=[worker.address], cache="50%", n_ctx=256, threads=1) as made,
    ):
        n_experts = worker.n_experts
        for _ in range(2 * n_experts):  # every expert's bytes, and a row, again and again
            worker.check()
        tokens(made, 4)
        answers = worker.counts()["answers"]
        worker.check()
        assert worker.counts()["answers"] == answers  # its own rows are nobody's answers


def test_ray_that_is_not_ours_is_left_alone() -> None:
    assert local_ray.started_at(os.getpid()) > 0
    assert local_ray.started_at(1 << 30) == 0
    stranger = record.Ray("x", pid=os.getpid(), started=1)
    assert not local_ray.alive(stranger)
    local_ray.stop(stranger)  # does nothing to us
    mine = record.Ray("x", pid=os.getpid(), started=local_ray.started_at(os.getpid()))
    assert local_ray.alive(mine)


# --- the command line ---


def test_ray_is_started_again_where_it_was_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in Ray's place: its first start takes too long, as Ray says it, the second comes up."""
    script = """
        echo >> "$0"
        if [ $(wc -l < "$0") = 1 ]; then echo 'The current node timed out during startup.'; exit 1; fi
        for word; do case "$word" in --temp-dir=*)
            mkdir "${word#*=}"; echo 10.0.0.1:1 > "${word#*=}/ray_current_cluster";; esac; done
        exec sleep 600
    """
    starts = tmp_path / "starts"
    monkeypatch.setattr(local_ray, "check_installed", lambda: None)
    monkeypatch.setattr(local_ray, "with_token", lambda ray: ["sh", "-c", script, str(starts)])
    found = local_ray.start()
    try:
        assert found.address == "10.0.0.1:1"
        assert len(starts.read_text().splitlines()) == 2
        assert local_ray.alive(found)
    finally:
        local_ray.stop(found)
    assert not local_ray.alive(found)


def test_without_ray_the_extra_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(ray_process, "importlib", nothing)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    done = CliRunner().invoke(cli, ["deploy", str(model), "--slo", "tpot=1s"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"Error: {MISSING}\n"
    assert "remoe-edge[remote]" in MISSING


def test_a_ray_that_is_not_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        ray_process.check_reachable(f"127.0.0.1:{port}")
    with pytest.raises(InputError, match=f"no Ray at 127.0.0.1:{port}"):
        ray_process.check_reachable(f"127.0.0.1:{port}")
    with pytest.raises(InputError, match="no Ray at 127.0.0.1:99999"):
        ray_process.check_reachable("127.0.0.1:99999")
    for other in ("auto", "ray://127.0.0.1:1", "HOST"):
        ray_process.check_reachable(other)  # Ray's to understand


def test_nothing_is_deployed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert CliRunner().invoke(cli, ["deploy", "status"]).stdout == "nothing is deployed\n"
    assert json.loads(CliRunner().invoke(cli, ["deploy", "status", "--json"]).stdout) == []
    for words in (["deploy", "down"], ["chat", str(model), "-p", "x", "--deployment", "no"]):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 1
        assert "deploy" in done.stderr
        assert done.stderr.count("\n") == 1


def test_status_of_a_ray_that_has_ended(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    from remoe_edge.cli.deployment_folder import folder

    folder().mkdir(parents=True)
    gone = record.Ray("127.0.0.1:1", pid=1 << 30, started=5)
    made = deployment_of(model, n_local=2, n_functions=2, ray=gone)
    record.save(made, record.path_of(folder(), "tiny"))
    done = CliRunner().invoke(cli, ["deploy", "status"])
    assert "Ray has ended: remoe-edge deploy down" in done.stdout
    assert CliRunner().invoke(cli, ["deploy", "down"]).stdout == "tiny is down\n"
    assert record.everything(folder()) == []


def test_an_engine_takes_a_deployment_of_its_own_model_only(model: Path, tmp_path: Path) -> None:
    other = tiny_moe.make(tmp_path / "other.gguf", "olmoe", "Q4_K")
    path = record.path_of(tmp_path, "tiny")
    record.save(deployment_of(model, n_local=2, n_functions=2), path)
    with pytest.raises(InputError, match="is deployed for"):
        Engine(other, deployment=path)


def test_threads_end(model: Path) -> None:
    made = deployment_of(model, n_local=2, n_functions=1)
    before = set(threading.enumerate())
    with engine(model, Leases(made, Workers(made), keep_s=3600)) as helped:
        tokens(helped, 2)
    until(lambda: not [t for t in set(threading.enumerate()) - before if "lease" in t.name])
