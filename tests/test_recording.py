"""Recording a running engine: what stock llama.cpp's routers say is what the trace holds."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import command_line
import stock
import tiny_moe
from remoe_edge import Engine
from remoe_edge.errors import InputError
from remoe_edge.routing.trace import read_trace

# Softmax, sigmoid with a bias and groups, plain logits, logits with a bias, a sort before attention.
ARCHS = ("qwen3moe", "olmoe", "cohere2moe", "deepseek2-v3", "gpt-oss", "llama4", "smallthinker")
TOKENS = [(37 * i + 11) % 200 + 5 for i in range(21)]

# Runs stock llama.cpp with a callback that copies every router's scores and choices.
WATCH = """
import ctypes, json, sys
import numpy as np
import llama_cpp as lib

model_path, tokens, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
base = ctypes.CDLL(lib.llama_cpp._lib._name.replace("libllama.", "libggml-base."))
base.ggml_get_name.restype, base.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
base.ggml_nelements.restype, base.ggml_nelements.argtypes = ctypes.c_int64, [ctypes.c_void_p]
base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2
kept = {}

@lib.llama_cpp.ggml_backend_sched_eval_callback
def watch(tensor, ask, _):
    name = base.ggml_get_name(tensor).decode()
    stem, _, layer = name.rpartition("-")
    if not stem.startswith(("ffn_moe_probs", "ffn_moe_logits", "ffn_moe_argsort")):
        return not ask
    if not layer.isdigit():  # views of them
        return not ask
    if ask:
        return True
    kind = np.int32 if stem.endswith("argsort") else np.float32
    values = np.empty(base.ggml_nelements(tensor), kind)
    base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
    kept.setdefault(name, []).append(values)
    return True

params = lib.llama_model_default_params()
params.use_extra_bufts = False
model = lib.llama_model_load_from_file(model_path.encode(), params)
settings = lib.llama_context_default_params()
settings.n_ctx = settings.n_batch = 256
settings.n_threads = settings.n_threads_batch = 2
settings.cb_eval = watch
context = lib.llama_init_from_model(model, settings)
kept.clear()
for part in (tokens[:-2], tokens[-2:-1], tokens[-1:]):
    array = (lib.llama_token * len(part))(*part)
    assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(part))) == 0
np.savez(out, **{f"{name}/{step}": each for name, all in kept.items() for step, each in enumerate(all)})
"""


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def expected(arrays: dict[str, np.ndarray], block: str, step: int, n_experts: int) -> np.ndarray:
    """What docs/policies.md says is recorded, from what stock llama.cpp computed."""

    def find(stem: str) -> np.ndarray | None:
        found = arrays.get(f"{stem}-{block}/{step}")
        return None if found is None else found.reshape(-1, n_experts)

    probs = find("ffn_moe_probs")
    for stem in ("ffn_moe_probs_masked", "ffn_moe_probs_biased"):
        chosen_by = find(stem)
        if chosen_by is not None:
            return softmax(4 * chosen_by)
    assert probs is not None
    if (probs < 0).any() or (probs > 1).any():
        return softmax(probs)
    return probs


@pytest.mark.parametrize("arch", ARCHS)
def test_probabilities_are_those_of_stock(tmp_path: Path, arch: str) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", arch, "Q8_0")
    subprocess.run(
        [sys.executable, "-c", WATCH, str(path), json.dumps(TOKENS), str(tmp_path / "stock.npz")],
        check=True, env={**os.environ, **stock.ENVIRONMENT}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with np.load(tmp_path / "stock.npz") as loaded:
        arrays = dict(loaded)
    with Engine(path, cache="50%", n_ctx=256, threads=2, trace=tmp_path / "t") as engine:
        engine.evaluate(TOKENS[:-2])
        engine.evaluate(TOKENS[-2:-1], reset=False)
        engine.evaluate(TOKENS[-1:], reset=False)
        assert engine.stats()["router_probabilities"] is True
    trace = read_trace(tmp_path / "t")
    blocks = sorted({name.split("/")[0].rpartition("-")[2] for name in arrays}, key=int)
    assert len(blocks) == trace.n_layers
    seen = 0
    for event in range(trace.n_events):
        block, step = blocks[trace.layer[event]], int(trace.step[event])
        order = arrays[f"ffn_moe_argsort-{block}/{step}"].reshape(-1, trace.n_experts)
        assert np.array_equal(trace.token_ids(event), order[:, : trace.top_k])
        if arch == "llama4":  # sorts logits, and takes the sigmoid afterwards
            logits = arrays[f"ffn_moe_logits-{block}/{step}"].reshape(-1, trace.n_experts)
            wanted = softmax(logits)
        else:
            wanted = expected(arrays, block, step, trace.n_experts)
        got = trace.probs(event)
        assert got is not None
        assert got.shape == wanted.shape == (trace.n_tokens[event], trace.n_experts)
        np.testing.assert_allclose(got, wanted, rtol=0.033, atol=2e-5)
        seen += got.size
    assert seen > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "m.gguf"
    return tiny_moe.make(path, "olmoe", "Q8_0", n_expert=256, n_expert_used=4)


def many_prompts(path: Path) -> Path:
    """Write prompts that make a trace of several MiB: about 130 KiB each."""
    path.write_text("\n---\n".join(["x" * 180] * 400))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("one two three four\n---\nfive\nsix\n---\n\n---\nseven " + "eight " * 90)
    return path


def test_every_layer_routes_every_token(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    done = command_line.run(
        capsys, "trace", "-m", model, "--prompts", prompts, "-o", out, "-n", "5", "--ctx", "256",
        "--cache", "50%", "--raw",
    )  # fmt: skip
    assert done.code == 0, done
    assert "3 prompts" in done.out
    assert "% of decoding" in done.out
    trace = read_trace(out)
    assert trace.meta["model"] == model.name
    assert trace.expert_bytes is not None
    routed = trace.routed()  # raises where a layer lacks tokens
    assert routed.shape[1] == trace.total_tokens
    flat = trace.per_token()
    assert flat.has_probs()
    assert (flat.probs_at >= 0).all()
    assert (trace.phase == 1).sum() <= 3 * 5 * trace.n_layers


def test_jsonl_prompts_and_their_mistakes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one two"}\n\n{"prompt": "three"}\n')
    arguments = ("trace", "-m", model, "--prompts", path, "-o", tmp_path / "t", "-n", "0")
    assert "2 prompts" in command_line.run(capsys, *arguments).out
    path.write_text('{"prompt": "one two"}\n{"text": "three"}\n')
    assert "line 2" in command_line.run(capsys, *arguments).error()
    path.write_text("")
    assert "holds no prompt" in command_line.run(capsys, *arguments).error()


def test_an_output_that_is_an_input_is_refused(
    model: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = command_line.run(capsys, "trace", "-m", model, "--prompts", prompts, "-o", model)
    assert "is the input" in done.error()


def test_ctrl_c_keeps_what_there_is(model: Path, tmp_path: Path) -> None:
    prompts, out = many_prompts(tmp_path / "p.txt"), tmp_path / "t"
    with command_line.start(
        "trace", "-m", model, "--prompts", prompts, "-o", out, "-n", "0", state=tmp_path
    ) as running:
        part = tmp_path / "t.part"
        while not (part.exists() and part.stat().st_size > 2 << 20):
            assert running.process.poll() is None, running.err
            os.sched_yield()
        running.process.send_signal(signal.SIGINT)
        done = running.end()
    assert done.code == 130, done
    assert "holds the steps before" in done.err
    trace = read_trace(out)
    assert trace.n_events > 0
    assert trace.routed().shape[1] == trace.total_tokens  # no step is half there
    assert not part.exists()


def test_a_full_disk_keeps_the_steps_before(model: Path, tmp_path: Path) -> None:
    prompts, out = many_prompts(tmp_path / "p.txt"), tmp_path / "t"
    limit = 3 << 20

    def small_disk() -> None:
        # Writing past this gives EFBIG, as a full disk gives ENOSPC.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "remoe_edge.cli", "trace", "-m", str(model)]
    done = subprocess.run(
        [*command, "--prompts", str(prompts), "-o", str(out), "-n", "0"],
        preexec_fn=small_disk, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("Error: cannot write")
    assert "holds the steps before it" in error
    trace = read_trace(out)
    assert trace.routed().shape[1] == trace.total_tokens
    assert out.stat().st_size > limit - (2 << 20)


def test_nothing_to_record_is_said(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="not streamed"):
        Engine(model, stream=False, trace=tmp_path / "t")
    with pytest.raises(InputError, match="path of a file"):
        Engine(model, trace=tmp_path)
