"""Prompts with experts on other machines: rows or weights, one worker or three, the same bits."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import pytest

import stock
import tiny_moe
from remoe_edge import Engine
from remoe_edge.native import _core
from remotes import check, engine, expected, remote, worker
from waiting import wait_until

THREE = ("*:0-2", "*:3-5", "*:6-7")
# As in test_lossless.py.
ROTATION = ("Q4_K", "MXFP4", "Q8_0", "IQ4_NL", "Q6_K", "F16", "Q4_0", "Q5_K")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefill")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "model.gguf", "qwen3moe", "Q4_K")


@pytest.fixture
def always_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have rows sent for prompts of any length."""
    monkeypatch.setattr(_core, "connect_peers", partial(_core.connect_peers, max_tokens=4096))


@pytest.mark.parametrize("shares", [("30%",), ("100%",), THREE, ("10%", "*:2-3", "*:3-4")], ids=str)
@pytest.mark.usefixtures("always_rows")
def test_rows_of_a_prompt(model: Path, shares: tuple[str, ...]) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(model, share, threads=2)) for share in shares]
        made = stack.enter_context(engine(model, *(each.address for each in workers)))
        for length in (1, 9, 60):
            check(made, expected(model, length), length)
        counts = remote(made)
        assert counts["remote_mismatches"] == 0
        assert counts["remote_rows"] > 100
        assert all(each.counts()["answers"] > 0 for each in workers)


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(), ("30%",), ("100%",), THREE], ids=str)
@pytest.mark.parametrize("quant", ["Q8_0", "MXFP4", "IQ4_NL", "Q6_K", "F16", "Q4_0", "Q5_K"])
@pytest.mark.parametrize("arch", ["qwen3moe", "olmoe", "gpt-oss", "deepseek2"])
@pytest.mark.usefixtures("always_rows")
def test_rows_of_a_long_prompt(
    folder: Path, arch: str, quant: str, shares: tuple[str, ...]
) -> None:
    path = tiny_moe.make(folder / f"{arch}-{quant}-{len(shares)}.gguf", arch, quant)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(path, share)) for share in shares]
        made = stack.enter_context(engine(path, *(each.address for each in workers)))
        for length in (1, 7, 600):
            check(made, expected(path, length), length)
    path.unlink()


# Architecture, format, how the model is made, whether both sides repack.
CASES = [
    *((arch, ROTATION[i % len(ROTATION)], "", False) for i, arch in enumerate(tiny_moe.ARCHS)),
    *(("qwen3moe", quant, "", repack) for quant in tiny_moe.QUANTS for repack in (False, True)),
    *((arch, "Q4_K", "merged_gate_up", False) for arch in tiny_moe.MERGED_ARCHS),
    *((arch, "Q8_0", "expert_scales", False) for arch in tiny_moe.SCALED_ARCHS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "quant", "made_with", "repack"), dict.fromkeys(CASES))
def test_everything_of_test_lossless(
    folder: Path,
    arch: str,
    quant: str,
    made_with: str,
    repack: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """test_lossless.py's architectures and formats: rows where they pay, and rows in any case."""
    more = {made_with: True} if made_with else {}
    room = {"cache": "50%", "repack": True} if repack else {}  # rearranging takes some, too
    path = tiny_moe.make(folder / f"{arch}-{quant}-all.gguf", arch, quant, **more)
    references = {length: expected(path, length, repack=repack) for length in (1, 7, 600)}
    for max_tokens in (8, 4096):
        connect = partial(_core.connect_peers, max_tokens=max_tokens)
        with monkeypatch.context() as patch:
            patch.setattr(_core, "connect_peers", connect)
            for shares in ((), ("30%",), ("100%",), THREE):
                with contextlib.ExitStack() as stack:
                    workers = [
                        stack.enter_context(worker(path, share, repack=repack)) for share in shares
                    ]
                    peers = [each.address for each in workers]
                    made = stack.enter_context(engine(path, *peers, **room))
                    for length, reference in references.items():
                        check(made, reference, length)
                    if peers:
                        counts = remote(made)
                        assert counts["remote_mismatches"] == 0
                        # With scales between the products an FFN comes in pieces: weights, no rows.
                        assert counts["remote_rows"] > 0 or made_with == "expert_scales", made.notes
    path.unlink()


def fetched(made: Engine, reference: stock.Result) -> bool:
    """Run a prompt; say whether a peer has sent more than a few matrices by now."""
    check(made, reference, 60)
    return bool(remote(made)["remote_fetches"] > 10)


def test_weights_come_from_peers_where_storage_is_slow(model: Path) -> None:
    reference = expected(model, 60)
    with worker(model) as serving, engine(model, serving.address) as made:
        check(made, reference, 60)
        made.native.set_faults(_core.FaultPlan(delay_us=5000))
        wait_until(lambda: fetched(made, reference), "weights from a peer")
        counts = remote(made)
        assert counts["remote_fetched_bytes"] > 0
        assert counts["remote_mismatches"] == 0
        assert serving.counts()["weights_bytes"] >= counts["remote_fetched_bytes"]


def test_a_repacked_worker_sends_no_weights(folder: Path) -> None:
    path = tiny_moe.make(folder / "repacked.gguf", "qwen3moe", "Q4_0")
    with worker(path, repack=True) as serving, engine(path, serving.address, repack=True) as made:
        made.native.set_faults(_core.FaultPlan(delay_us=2000))
        for _ in range(3):
            check(made, expected(path, 60, repack=True), 60)
        if made.native.repacked:
            assert remote(made)["remote_fetches"] == 0
    path.unlink()


def test_a_worker_that_goes_while_it_sends_weights(model: Path) -> None:
    reference = expected(model, 60)
    with engine(model) as alone:
        check(alone, reference, 60)
    serving = worker(model)
    with engine(model, serving.address) as made:
        made.native.set_faults(_core.FaultPlan(delay_us=5000))
        wait_until(lambda: fetched(made, reference), "weights from a peer")
        serving.stop()
        check(made, reference, 60)
        serving.wait()
        check(made, reference, 60)
        wait_until(lambda: remote(made)["peers"][0]["state"] == "connecting")
