"""Experts that a worker computes change no bit, and a worker that fails costs no answer.

Workers run here, or in a process of their own where a signal ends or stops them; both over loopback.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tiny_moe
from command_line import run
from functions import placement_of
from remoe_edge import BudgetError, Engine, EngineSettings, InputError, UnsupportedError
from remoe_edge.cli import cli
from remoe_edge.cli.stats_lines import stats_lines
from remoe_edge.native import _core
from remoe_edge.placement import placement_file
from remoe_edge.remote.experts import parse_experts
from remotes import check, engine, expected, floor_of, open_files, process, prompt, remote, worker
from waiting import wait_until

ROTATION = ("Q4_K", "MXFP4", "Q8_0", "IQ4_NL", "Q6_K", "F16", "Q4_0", "Q5_K")
CASES = [
    (arch, quant)
    for arch in ("qwen3moe", "olmoe", "gpt-oss")
    for quant in ("Q4_K", "Q8_0", "MXFP4")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "model.gguf", "qwen3moe", "Q4_K")


@pytest.mark.parametrize(("arch", "quant"), CASES)
def test_lossless(folder: Path, arch: str, quant: str) -> None:
    path = tiny_moe.make(folder / f"{arch}-{quant}.gguf", arch, quant)
    for share in (None, "30%", "100%"):
        with contextlib.ExitStack() as stack:
            peers = []
            if share is not None:
                peers.append(stack.enter_context(worker(path, share)).address)
            made = stack.enter_context(engine(path, *peers))
            for length in (1, 7, 60):
                check(made, expected(path, length), length)
            if share is None:
                assert "remote" not in made.stats().to_dict()
            else:
                remote = made.stats()["remote"]
                assert remote["peers"][0]["state"] == "serving", made.notes
                assert remote["remote_rows"] > 0
                assert remote["remote_mismatches"] == 0
    path.unlink()


def test_lossless_where_weights_are_repacked(folder: Path) -> None:
    path = tiny_moe.make(folder / "repacked.gguf", "qwen3moe", "Q4_0")
    with worker(path, repack=True) as serving, engine(path, serving.address, repack=True) as made:
        check(made, expected(path, 7, repack=True), 7)
        assert made.stats()["remote"]["remote_rows"] > 0
    # One that does not repack is told apart where repacking changes anything.
    with worker(path) as serving, engine(path, serving.address, repack=True) as made:
        check(made, expected(path, 7, repack=True), 7)
        state = made.stats()["remote"]["peers"][0]
        assert state["state"] == ("refused" if made.native.repacked else "serving")
    path.unlink()


def test_three_workers(model: Path) -> None:
    shares = ("*:0-2", "*:3-5", "*:4-7")
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(model, share)) for share in shares]
        made = stack.enter_context(engine(model, *(each.address for each in workers)))
        check(made, expected(model, 7), 7)
        assert all(each.counts()["answers"] > 0 for each in workers)


@pytest.mark.parametrize("when", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_ends_or_stops_in_an_answer(model: Path, when: signal.Signals) -> None:
    reference = expected(model, 7, n=12)
    with process(model) as (running, address), engine(model, address) as made:
        rows = [made.evaluate(prompt(7))]
        for i, token in enumerate(reference.tokens):
            if i == 4:
                running.send_signal(when)
            rows.append(made.evaluate([token], reset=False))
        assert (np.stack(rows).view(np.uint32) == reference.logits.view(np.uint32)).all()
        remote = made.stats()["remote"]
        assert remote["remote_rows"] > 0
        if when == signal.SIGKILL:
            for _ in range(
                200
            ):  # whoever reads its answers notices, which may be after the last token
                if any("does not answer" in note for note in made.notes):
                    break
                time.sleep(0.05)
                check(made, expected(model, 7), 7)
            assert any("does not answer" in note for note in made.notes)
        else:
            assert remote["remote_hedges"] > 0
            # Once it goes on, what comes late is dropped, and later it is asked again.
            running.send_signal(signal.SIGCONT)
            check(made, expected(model, 7), 7)


def test_a_worker_that_comes_back_is_used_again(model: Path) -> None:
    with process(model) as (running, address), engine(model, address) as made:
        check(made, expected(model, 7), 7)
        running.kill()
        running.wait()
        check(made, expected(model, 7), 7)
        with process(model, port=int(address.rpartition(":")[2])):
            before = made.stats()["remote"]["remote_experts"]
            for _ in range(200):
                check(made, expected(model, 7), 7)
                if made.stats()["remote"]["remote_experts"] > before:
                    break
                time.sleep(0.05)
            assert made.stats()["remote"]["remote_experts"] > before
            assert any("serves" in note for note in made.notes)


def test_sigterm_is_polite(model: Path) -> None:
    with process(model) as (running, address), engine(model, address) as made:
        check(made, expected(model, 7), 7)
        running.terminate()
        assert running.wait(timeout=600) == 0
        assert running.stderr is not None
        assert "stopped after" in running.stderr.read()
        check(made, expected(model, 7), 7)


def test_nobody_there(model: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with engine(model, f"127.0.0.1:{port}") as made:
        check(made, expected(model, 7), 7)
        assert any("does not answer" in note for note in made.notes)
        assert made.stats()["remote"]["remote_asked"] == 0


def test_one_flipped_weight_bit(model: Path, folder: Path) -> None:
    other = folder / "flipped.gguf"
    shutil.copy(model, other)
    matrix = _core.ModelFile.open(str(model)).expert_layers[0].matrices[0]
    at = matrix.offset + matrix.expert_bytes * 2 + matrix.expert_bytes // 2
    with other.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    with worker(other) as serving, engine(model, serving.address) as made:
        check(made, expected(model, 7), 7)
        assert any("layer 0, expert 2 are not those of our file" in note for note in made.notes)
        assert made.stats()["remote"]["remote_asked"] == 0
    other.unlink()


def test_another_model(model: Path, folder: Path) -> None:
    other = tiny_moe.make(folder / "other.gguf", "olmoe", "Q4_K")
    with worker(other) as serving, engine(model, serving.address) as made:
        check(made, expected(model, 7), 7)
        assert any("its model is" in note for note in made.notes)
        assert serving.counts()["refused"] > 0
    other.unlink()


def test_noise_hurts_nobody_else(model: Path) -> None:
    random = np.random.default_rng(1)
    with worker(model) as serving, engine(model, serving.address) as made:
        host, _, port = serving.address.rpartition(":")
        for n_bytes in (0, 1, 55, 56, 300, 70_000):
            with socket.create_connection((host, int(port))) as stranger:
                with contextlib.suppress(OSError):
                    stranger.sendall(random.bytes(n_bytes))
                check(made, expected(model, 7), 7)
        assert made.stats()["remote"]["remote_rows"] > 0


def test_no_descriptor_and_no_thread_is_left(model: Path) -> None:
    with worker(model) as serving:
        with engine(model, serving.address):
            pass
        before = open_files()
        for _ in range(3):
            with engine(model, serving.address) as made:
                made.evaluate(prompt(7))
        wait_until(lambda: serving.counts()["clients"] == 0, "the end of the last client")
        wait_until(lambda: open_files() <= before, "closing files")


def test_the_budget_pays_for_checking(model: Path) -> None:
    with worker(model) as serving:
        with engine(model, serving.address, cache="100%") as made:
            native = made.native
            check_bytes = _core.peer_check_bytes(native)
            assert native.budget_bytes + check_bytes <= native.budget_for(native.total_experts)
        with pytest.raises(BudgetError, match="beside the cache"):
            Engine(model, peers=[serving.address], cache=floor_of(model, checking=False))


def test_a_worker_keeps_to_its_memory(model: Path) -> None:
    with worker(model, "50%", memory="4MiB") as serving:
        assert serving.budget_bytes <= 4 << 20
    with pytest.raises(BudgetError, match="--memory"):
        worker(model, memory="64KiB")


def test_which_experts(model: Path) -> None:
    file = _core.ModelFile.open(str(model))
    n = file.expert_layers[0].n_experts
    n_layers = len(file.expert_layers)
    assert parse_experts("all", file) == list(range(n * n_layers))
    assert len(parse_experts("50%", file)) == n * n_layers // 2
    assert parse_experts("0:1-2, 1:0", file) == [1, 2, n]
    assert parse_experts("*:3", file) == [3 + n * layer for layer in range(n_layers)]
    for wrong in ("", "some", "0%", "101%", "x%", "0:9999", "77:0", "0:3-1", "0-3"):
        with pytest.raises(InputError):
            parse_experts(wrong, file)


def test_the_experts_of_a_plan(model: Path, folder: Path) -> None:
    placement = placement_of(model, n_local=3)
    plan = folder / "plan.json"
    placement_file.save(placement, plan)
    with worker(model, str(plan)) as serving, engine(model, serving.address) as made:
        n_layers, n_experts = made.native.n_layers, made.native.n_experts
        assert serving.n_experts == n_layers * (n_experts - 3)
        check(made, expected(model, 7), 7)
        assert remote(made)["remote_rows"] > 0
    placement_file.save(placement_of(model, n_local=n_experts), plan)
    with pytest.raises(InputError, match="keeps every expert on the main host"):
        worker(model, str(plan))
    other = tiny_moe.make(folder / "other-shape.gguf", "qwen3moe", "Q4_K", n_expert=4)
    placement_file.save(placement_of(other, n_local=1), plan)
    with pytest.raises(InputError, match=r"places \d+ layers of 4 experts, and the model has"):
        worker(model, str(plan))
    plan.write_text("{}")
    with pytest.raises(InputError, match="plan.json"):
        worker(model, str(plan))
    with pytest.raises(InputError, match="nowhere.json"):
        worker(model, str(folder / "nowhere.json"))


@pytest.mark.slow
def test_a_bench_with_peers(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = folder / "bench.json"
    arms = "stream:reuse-biased,stream:reuse-biased+peers=off"
    with worker(model) as one, worker(model) as other:
        peers = f"{one.address},{other.address}"
        asked = ["bench", str(model), "--arms", arms, "--peers", peers, "--cache", floor_of(model),
                 "--raw", "--limit", "1", "-n", "4", "--warm", "1", "--rounds", "1", "--workload",
                 "gsm8k", "-t", "1", "--probe-seconds", "0", "-o", str(record)]  # fmt: skip
        done = run(capsys, *asked)
    assert done.code == 0, done
    helped, alone = json.loads(record.read_text())["runs"]
    assert len(helped["remote"]["peers"]) == 2
    assert helped["remote"]["remote_experts"] > 0
    assert alone["remote"] is None
    assert helped["prompts"][0]["chosen"] == alone["prompts"][0]["chosen"]
    assert "by peers" in done.out


def test_only_this_machine_without_keys(model: Path) -> None:
    for beyond in ("10.0.0.1:7700", "0.0.0.0:7700", "example.org:7700", "[::]:7700"):
        with pytest.raises(UnsupportedError, match="remoe-edge keys"):
            EngineSettings(peers=[beyond])
        with pytest.raises(UnsupportedError, match="remoe-edge keys"):
            worker(model, listen=beyond)
    for wrong in ("127.0.0.1", "127.0.0.1:x", ":1", "127.0.0.1:70000", "", "a b:1", "http://x:1"):
        with pytest.raises(InputError):
            EngineSettings(peers=[wrong])
    assert EngineSettings(peers="127.0.0.1:1,localhost:2").peers == ("127.0.0.1:1", "127.0.0.1:2")
    for wrong in ([7], None, 3, ["127.0.0.1:1", "localhost:1"]):
        with pytest.raises(InputError, match="peers"):
            EngineSettings(peers=wrong)  # type: ignore[arg-type]


def test_stats_tell_of_peers(model: Path) -> None:
    with worker(model) as serving, engine(model, serving.address) as made:
        made.evaluate(prompt(1))
        lines = stats_lines("m", made.stats().to_dict())
        assert any(line.startswith("peers") and "serving" in line for line in lines)
        assert any("came from them" in line for line in lines)


def test_the_command_line(model: Path) -> None:
    with worker(model) as serving:
        asked = ["chat", str(model), "--raw", "-p", "x", "-n", "4", "--temp", "0", "--json"]
        alone = CliRunner().invoke(cli, asked)
        helped = CliRunner().invoke(cli, [*asked, "--peers", serving.address])
        assert helped.exit_code == 0, helped.output
        assert "serves" in helped.stderr
        assert '"remote_asked"' in helped.stdout
        first = re.search(r'"text": "[^"]*"', alone.stdout)
        assert first is not None
        assert first[0] in helped.stdout
    refused = CliRunner().invoke(cli, ["worker", str(model), "--memory", "1KiB"])
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: ")


@pytest.mark.parametrize("index", range(len(tiny_moe.ARCHS)), ids=lambda i: tiny_moe.ARCHS[i])
def test_every_architecture_has_a_recipe(folder: Path, index: int) -> None:
    arch, quant = tiny_moe.ARCHS[index], ROTATION[index % len(ROTATION)]
    path = tiny_moe.make(folder / f"{arch}.gguf", arch, quant)
    with worker(path) as serving, engine(path, serving.address) as made:
        for length in (1, 7):
            check(made, expected(path, length), length)
        remote = made.stats()["remote"]
        assert remote["remote_rows"] > 0, made.notes
        assert remote["remote_mismatches"] == 0
    path.unlink()
