"""With a GPU beside it, streaming changes no bit either: logits against stock llama.cpp on that GPU.

Stock has the same layers on the GPU, and its experts there too or on the processor (llama.cpp's
--cpu-moe and --no-op-offload). With experts on the GPU, bits are compared where the environment has
GGML_VK_DISABLE_FUSION or GGML_CUDA_DISABLE_FUSION, and else tokens, and logits to a hundred-thousandth.

Needs a llama.cpp with a GPU backend that finds a device. Mesa's lavapipe is one, on the processor:
docs/gpu.md tells how to build for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stock
import tiny_moe
from remoe_edge import Engine
from remoe_edge.files.models import shipped_model
from remoe_edge.machine.gpu import gpus
from remoe_edge.native import _core
from remoe_edge.routing.trace import read_trace
from test_lossless import AHEAD, N_GREEDY, ROTATION, prompt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not gpus(), reason="llama.cpp has no GPU backend here that finds a device"),
]

ALL = 1 << 20  # layers
PROMPT_LENGTHS = (1, 7, 100)
# A backend fuses neighbouring operations, and some fused ones round otherwise. With its experts in the
# middle, llama.cpp's graph has other neighbours than ours, which is cut there.
FUSES = not {"GGML_VK_DISABLE_FUSION", "GGML_CUDA_DISABLE_FUSION"} & os.environ.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


def floor(path: Path, experts_on: str) -> str:
    """The smallest cache that the engine accepts: on a GPU slots lie otherwise."""
    name = gpus()[0].name if experts_on == "gpu" else ""
    model = _core.StreamedModel.open(str(path), experts_on=name)
    return str(model.budget_for(max(1, model.n_experts_used)))


def check(
    path: Path, *, budgets: tuple[str, ...] = ("50%", "floor"), layers: int | str = "all",
    lengths: tuple[int, ...] = PROMPT_LENGTHS, experts_on: str = "cpu",
) -> None:  # fmt: skip
    spec = {"floor": floor(path, experts_on)}
    n_layers = ALL if layers == "all" else int(layers)
    on_gpu = {"gpu_layers": n_layers, "experts_on_cpu": experts_on == "cpu"}
    references = {
        length: stock.run(
            path, prompt(length), N_GREEDY, n_threads=2, use_extra_bufts=False, **on_gpu
        )
        for length in lengths
    }
    ways = [(budget, "off") for budget in budgets] + [(b, "on") for b in budgets if b in AHEAD]
    for budget, prefetch in ways:
        with _engine(
            path, cache=spec.get(budget, budget), layers=layers, prefetch=prefetch,
            experts_on=experts_on,
        ) as engine:  # fmt: skip
            for length, reference in references.items():
                rows = [engine.evaluate(prompt(length))]
                for token in reference.tokens:
                    assert int(rows[-1].argmax()) == token
                    rows.append(engine.evaluate([token], reset=False))
                told = f"{budget}, {length} tokens, prefetch {prefetch}"
                if experts_on == "gpu" and FUSES:
                    assert_close(np.stack(rows), reference.logits, told)
                    continue
                same = np.stack(rows).view(np.uint32) == reference.logits.view(np.uint32)
                assert same.all(), f"{told}: {(~same).sum()} logits differ"


def assert_close(rows: np.ndarray, wanted: np.ndarray, told: str) -> None:
    """Hold greedy tokens equal, and logits up to the last bits."""
    assert (rows.argmax(axis=1) == wanted.argmax(axis=1)).all(), told
    assert np.abs(rows - wanted).max() < 1e-5 * np.abs(wanted).max(), told


def _engine(path: Path, *, cache: str, layers: int | str, **settings: Any) -> Engine:
    return Engine(
        path, cache=cache, n_ctx=1024, n_batch=1024, threads=2, gpu_layers=layers, **settings
    )


@pytest.mark.parametrize("index", range(len(tiny_moe.ARCHS)), ids=lambda i: tiny_moe.ARCHS[i])
def test_architecture(folder: Path, index: int) -> None:
    arch, quant = tiny_moe.ARCHS[index], ROTATION[index % len(ROTATION)]
    path = tiny_moe.make(folder / f"{arch}.gguf", arch, quant)
    check(path)
    path.unlink()


@pytest.mark.parametrize("quant", tiny_moe.QUANTS)
def test_format(folder: Path, quant: str) -> None:
    path = tiny_moe.make(folder / f"{quant}.gguf", "qwen3moe", quant)
    check(path, budgets=("floor",))
    path.unlink()


@pytest.mark.parametrize("index", range(len(tiny_moe.ARCHS)), ids=lambda i: tiny_moe.ARCHS[i])
def test_architecture_with_experts_on_the_gpu(folder: Path, index: int) -> None:
    arch, quant = tiny_moe.ARCHS[index], ROTATION[index % len(ROTATION)]
    path = tiny_moe.make(folder / f"{arch}-on-gpu.gguf", arch, quant)
    # Half of the experts: every layer's fit at once, and some have to be read again.
    check(path, budgets=("100%", "50%"), experts_on="gpu")
    path.unlink()


@pytest.mark.parametrize("quant", tiny_moe.QUANTS)
def test_format_with_experts_on_the_gpu(folder: Path, quant: str) -> None:
    path = tiny_moe.make(folder / f"{quant}-on-gpu.gguf", "qwen3moe", quant)
    check(path, budgets=("50%",), experts_on="gpu")
    path.unlink()


def test_waves_on_the_gpu(folder: Path) -> None:
    # A batch in waves has other shapes than llama.cpp's: kernels may sum otherwise, so tokens are
    # held to be equal, and bits are not. One token at a time has llama.cpp's shapes at any budget.
    path = tiny_moe.make(folder / "waves.gguf", "qwen3moe", "Q8_0")
    reference = stock.run(
        path, prompt(7), N_GREEDY, n_threads=2, use_extra_bufts=False, gpu_layers=ALL
    )
    with _engine(path, cache=floor(path, "gpu"), layers="all", experts_on="gpu") as engine:
        row = engine.evaluate(prompt(7))
        for token, wanted in zip(reference.tokens, reference.logits, strict=False):
            assert int(row.argmax()) == token
            assert np.abs(row - wanted).max() < 1e-3 * np.abs(wanted).max()
            row = engine.evaluate([token], reset=False)
        engine.evaluate(prompt(1))
    check(path, budgets=("floor",), lengths=(1,), experts_on="gpu")
    path.unlink()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_some_layers(folder: Path, layers: int) -> None:
    # Short prompts: llama.cpp computes long ones on the GPU also where weights lie beside it.
    path = tiny_moe.make(folder / f"{layers}.gguf", "qwen3moe", "Q4_K")
    check(path, budgets=("50%",), layers=layers, lengths=(1, 7))
    path.unlink()


@pytest.mark.parametrize("arch", tiny_moe.ARCHS)
def test_nothing_is_lost_silently(folder: Path, arch: str) -> None:
    """What is seen of the routers on the processor is seen of them on the GPU."""
    path = tiny_moe.make(folder / f"{arch}-seen.gguf", arch, "Q8_0")
    seen = []
    for layers in ("off", "all"):
        with _engine(path, cache="50%", layers=layers, prefetch="on") as engine:
            copied = engine.native.router_bytes("on")
            assert (copied > 0) == (layers == "all" and not engine.native.prefetch["why_not"])
            engine.evaluate(prompt(7))
            for token in prompt(12):
                engine.evaluate([token], reset=False)
            prefetch = engine.native.prefetch
            seen.append((engine.native.router_probabilities, prefetch["why_not"]))
    assert seen[0] == seen[1]
    path.unlink()


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "glm4moe", "llama4"])
def test_probabilities_are_those_of_the_processor(folder: Path, arch: str) -> None:
    # Softmax, biases before a softmax, biases after a sigmoid, plain logits. Near enough: a GPU sums
    # the router's inputs in another order, and a trace keeps a byte for each probability.
    path = tiny_moe.make(folder / f"{arch}-probs.gguf", arch, "F32")
    traces = []
    for layers in ("off", "all"):
        with _engine(path, cache="100%", layers=layers) as engine:
            file = folder / f"{arch}-{layers}.trace"
            engine.native.start_trace(str(file))
            engine.evaluate(prompt(7))
            engine.evaluate(prompt(1), reset=False)
            engine.native.stop_trace()
        traces.append(read_trace(file))
    path.unlink()
    assert traces[0].n_events == traces[1].n_events > 0
    for event in range(traces[0].n_events):
        cpu, gpu = (trace.probs(event) for trace in traces)
        assert cpu is not None
        assert gpu is not None
        assert np.abs(cpu - gpu).max() < 0.02


def test_the_shipped_model_says_the_same() -> None:
    path = shipped_model()
    with Engine(path, cache="50%", gpu_layers="off", threads=2) as engine:
        asked = engine.generate("Once upon a time", max_tokens=24)
        expected = str(asked)
    with Engine(path, cache="50%", gpu_layers="all", threads=2) as engine:
        assert str(engine.generate("Once upon a time", max_tokens=24)) == expected
        assert engine.native.router_probabilities
        assert engine.native.prefetch["why_not"] == ""
