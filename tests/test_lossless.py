"""Streaming changes no bit: logits against stock llama.cpp in a process of its own.

Every architecture, every expert format, prompts of 1, 7 and 600 tokens, budgets from everything to the
floor, reading ahead and not. Both sides run two threads; stock holds the whole model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stock
import tiny_moe
from remoe_edge import Engine
from remoe_edge.native import _core, llama_cpp

low = llama_cpp.llama_cpp

PROMPT_LENGTHS = (1, 7, 600)
BUDGETS = ("100%", "50%", "25%", "floor")
AHEAD = ("50%", "floor")
N_GREEDY = 3
# The formats that x86 and Arm rearrange take turns over the architectures; each format is also tested
# on its own below.
ROTATION = ("Q4_K", "MXFP4", "Q8_0", "IQ4_NL", "Q6_K", "F16", "Q4_0", "Q5_K")


def prompt(length: int) -> list[int]:
    return [(37 * i + 11) % 200 + 5 for i in range(length)]


def floor_of(path: Path) -> str:
    """The smallest cache that the engine accepts."""
    model = _core.StreamedModel.open(str(path))
    return str(model.budget_for(max(1, model.n_experts_used)))


def check(path: Path, *, repack: bool, budgets: tuple[str, ...] = BUDGETS) -> None:
    spec = {"floor": floor_of(path)}
    references = {
        length: stock.run(path, prompt(length), N_GREEDY, n_threads=2, use_extra_bufts=repack)
        for length in PROMPT_LENGTHS
    }
    # Whether anything is read ahead matters where something has to leave.
    both = [(budget, "off") for budget in budgets] + [(b, "on") for b in budgets if b in AHEAD]
    for budget, prefetch in both:
        with Engine(
            path, cache=spec.get(budget, budget), n_ctx=1024, n_batch=1024, threads=2,
            repack=repack, prefetch=prefetch,
        ) as engine:  # fmt: skip
            for length, reference in references.items():
                rows = [engine.evaluate(prompt(length))]
                for token in reference.tokens:
                    assert int(rows[-1].argmax()) == token
                    rows.append(engine.evaluate([token], reset=False))
                same = np.stack(rows).view(np.uint32) == reference.logits.view(np.uint32)
                told = f"{budget}, {length} tokens, prefetch {prefetch}"
                assert same.all(), f"{told}: {(~same).sum()} logits differ"


def check_begun(path: Path, *, repack: bool = False) -> None:
    """Experts whose gate and up compute while their down is still being read."""
    reference = stock.run(path, prompt(1), N_GREEDY, n_threads=2, use_extra_bufts=repack)
    with Engine(
        path, cache=floor_of(path), n_ctx=64, threads=2, repack=repack, prefetch="off", depth=1
    ) as engine:
        # Reads that are as slow as it takes: on a loaded machine, down may come before anybody computes.
        for delay_us in (200, 2000, 20000):
            engine.native.set_faults(_core.FaultPlan(delay_us=delay_us))
            rows = [engine.evaluate(prompt(1))]
            rows += [engine.evaluate([token], reset=False) for token in reference.tokens]
            assert (np.stack(rows).view(np.uint32) == reference.logits.view(np.uint32)).all()
            counts = engine.native.counts()
            if 2 * counts["begun_misses"] > counts["misses"]:
                break
        assert counts["begun_misses"] > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lossless")


@pytest.mark.parametrize("index", range(len(tiny_moe.ARCHS)), ids=lambda i: tiny_moe.ARCHS[i])
def test_architecture(folder: Path, index: int) -> None:
    arch, quant = tiny_moe.ARCHS[index], ROTATION[index % len(ROTATION)]
    path = tiny_moe.make(folder / f"{arch}.gguf", arch, quant)
    check(path, repack=False)
    check_begun(path)
    path.unlink()


@pytest.mark.parametrize("repack", [False, True], ids=["plain", "repacked"])
@pytest.mark.parametrize("quant", tiny_moe.QUANTS)
def test_format(folder: Path, quant: str, repack: bool) -> None:
    path = tiny_moe.make(folder / f"{quant}-{repack}.gguf", "qwen3moe", quant)
    check(path, repack=repack, budgets=("50%", "floor"))
    check_begun(path, repack=repack)
    path.unlink()


@pytest.mark.parametrize("arch", tiny_moe.MERGED_ARCHS)
def test_merged_gate_and_up(folder: Path, arch: str) -> None:
    path = tiny_moe.make(folder / f"{arch}-merged.gguf", arch, "Q4_K", merged_gate_up=True)
    check(path, repack=False, budgets=("50%", "floor"))
    check_begun(path)
    path.unlink()


@pytest.mark.parametrize("arch", tiny_moe.SCALED_ARCHS)
def test_expert_scales(folder: Path, arch: str) -> None:
    # Scales stand between the products: the FFN comes to the device in pieces.
    path = tiny_moe.make(folder / f"{arch}-scaled.gguf", arch, "Q8_0", expert_scales=True)
    check(path, repack=False, budgets=("100%", "25%", "floor"))
    path.unlink()


def all_rows(engine: Engine, tokens: list[int]) -> np.ndarray:
    """The logits after every token, [len(tokens), n_vocab], as bits."""
    engine.evaluate(tokens, every=True)
    llama = engine.llama
    rows = [
        np.ctypeslib.as_array(low.llama_get_logits_ith(llama.ctx, i), (llama.n_vocab(),)).copy()
        for i in range(len(tokens))
    ]
    return np.stack(rows).view(np.uint32)


@pytest.mark.parametrize("prefetch", ["off", "on"])
def test_more_ready_at_once_than_scratch_holds(folder: Path, prefetch: str) -> None:
    # From eight tokens of an expert on, ggml multiplies K-quants in tiles, which round in another
    # order: an expert's tokens must not be computed in two goes, however many experts are ready.
    wide = {"n_layer": 2, "n_ff_exp": 3072, "n_expert": 64, "n_expert_used": 8}
    path = tiny_moe.make(folder / f"wide-{prefetch}.gguf", "qwen3moe", "Q4_K", **wide)
    with Engine(path, stream=False, n_ctx=256, threads=2) as engine:
        reference = all_rows(engine, prompt(64))
    with Engine(path, cache="90%", n_ctx=256, threads=2, prefetch=prefetch) as engine:
        for _ in range(4):
            same = all_rows(engine, prompt(64)) == reference
            assert same.all(), f"tokens {np.flatnonzero(~same.all(axis=1))} differ"
        counts = engine.native.counts()
        assert counts["hits"] > counts["misses"] > 128  # some stayed, some had to be read again
    path.unlink()


def test_tiles_forced(folder: Path) -> None:
    # Single tokens then round as ggml's tiles do. Read from the environment once a process.
    path = tiny_moe.make(folder / "tiles.gguf", "qwen3moe", "Q4_K")
    script = f"import test_lossless as t; t.check(t.Path({str(path)!r}), repack=False)"
    forced = {**os.environ, "GGML_CPU_TILED_MM_FORCE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, env=forced, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_split_shards(folder: Path) -> None:
    path = tiny_moe.make(folder / "split.gguf", "qwen3moe", "Q4_K", n_split=3)
    assert path.name.endswith("-00001-of-00003.gguf")
    check(path, repack=False)


@pytest.mark.parametrize("backend", ["pread", "io_uring"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_ways_of_reading(folder: Path, backend: str, direct: bool) -> None:
    path = tiny_moe.make(folder / "ways.gguf", "olmoe", "Q8_0")
    reference = stock.run(path, prompt(7), N_GREEDY, n_threads=2, use_extra_bufts=False)
    try:
        engine = Engine(path, cache="25%", io=backend, direct=direct, threads=2)
    except Exception as error:
        if backend == "io_uring":
            pytest.skip(f"no io_uring here: {error}")
        raise
    with engine:
        assert np.array_equal(engine.evaluate(prompt(7)), reference.logits[0])
        assert engine.stats()["io"]["backend"] == backend
