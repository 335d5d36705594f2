"""The reference: unmodified llama.cpp, alone in a process of its own.

    result = run(path, prompt=[1, 2, 3], n_greedy=8)

The process registers no backend of ours, so what it returns is what stock llama.cpp computes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

# Waiting threads sleep: spinning on shared cores costs minutes over a test session.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class Settings:
    """Hold what a run depends on besides the model."""

    prompt: tuple[int, ...]
    n_greedy: int
    n_threads: int = 2
    use_extra_bufts: bool = True  # repacked weights, stock's default
    n_ubatch: int = 512
    n_ctx: int = 1024


@dataclass(frozen=True)
class Result:
    """Hold float32 logits and the greedy continuation.

    `logits` has shape (1 + n_greedy, n_vocab): after the prompt, then after each greedy token.
    `tokens` are the n_greedy tokens fed, each the argmax of the row before it.
    """

    logits: npt.NDArray[np.float32]
    tokens: tuple[int, ...]


class StockError(Exception):
    """Carry what the process said before it failed."""


_results: dict[tuple[str, int, int, Settings], Result] = {}


def run(model: Path, prompt: Sequence[int], n_greedy: int = 8, **settings: Any) -> Result:
    """Run stock llama.cpp on `prompt` and `n_greedy` greedy steps.

    Equal runs of a session are computed once. Keywords are the other fields of `Settings`.
    Raises StockError when llama.cpp refuses the model or dies.
    """
    chosen = Settings(prompt=tuple(prompt), n_greedy=n_greedy, **settings)
    status = model.stat()
    key = (str(model.resolve()), status.st_mtime_ns, status.st_ino, chosen)
    if key not in _results:
        _results[key] = _spawn(model, chosen)
    return _results[key]


def _spawn(model: Path, settings: Settings) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.npz"
        request = {"model": str(model), "answer": str(answer), "settings": asdict(settings)}
        process = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        if process.returncode != 0:
            tail = process.stderr.strip().splitlines()[-12:]
            raise StockError(f"{model}: exit {process.returncode}\n" + "\n".join(tail))
        with np.load(answer) as data:
            return Result(data["logits"], tuple(data["tokens"].tolist()))


def _compute(model_path: str, settings: Settings) -> tuple[npt.NDArray[np.float32], list[int]]:
    import llama_cpp as lib

    lib.llama_backend_init()
    model_params = lib.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_extra_bufts = settings.use_extra_bufts
    model = lib.llama_model_load_from_file(model_path.encode(), model_params)
    if not model:
        raise SystemExit("llama.cpp refused the model")
    params = lib.llama_context_default_params()
    params.n_ctx = settings.n_ctx
    params.n_batch = settings.n_ctx
    params.n_ubatch = settings.n_ubatch
    params.n_threads = params.n_threads_batch = settings.n_threads
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp made no context")
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def decode(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        array = (lib.llama_token * len(tokens))(*tokens)
        status = lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise SystemExit(f"llama_decode returned {status}")
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,)).copy()

    rows = [decode(settings.prompt)]
    tokens: list[int] = []
    for _ in range(settings.n_greedy):
        tokens.append(int(rows[-1].argmax()))
        rows.append(decode(tokens[-1:]))
    lib.llama_free(context)
    lib.llama_model_free(model)
    return np.stack(rows), tokens


def _main() -> None:
    request = json.load(sys.stdin)
    chosen = request["settings"]
    chosen["prompt"] = tuple(chosen["prompt"])
    logits, tokens = _compute(request["model"], Settings(**chosen))
    np.savez(request["answer"], logits=logits, tokens=np.array(tokens, dtype=np.int64))


if __name__ == "__main__":
    _main()
