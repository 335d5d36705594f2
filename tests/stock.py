"""The reference: unmodified llama.cpp, alone in a process of its own.

    result = run(path, prompt=[1, 2, 3], n_greedy=8)

The process registers no backend of ours, so what it returns is what stock llama.cpp computes.
"""

from __future__ import annotations

import ctypes
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
    from collections.abc import Mapping, Sequence

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
    gpu_layers: int = 0  # none: llama.cpp is told of no GPU
    experts_on_cpu: bool = False  # as llama.cpp's --cpu-moe and --no-op-offload have it
    beside: tuple[
        tuple[int, ...], ...
    ] = ()  # prompts of other conversations, in places of their own


@dataclass(frozen=True)
class Result:
    """Hold float32 logits and the greedy continuation.

    `logits` has shape (1 + n_greedy, n_vocab): after the prompt, then after each greedy token.
    `tokens` are the n_greedy tokens fed, each the argmax of the row before it. With other
    conversations beside it, there is one more axis, of conversations, after the first of both: each
    prompt is computed by itself, then a token of each in one batch.
    """

    logits: npt.NDArray[np.float32]
    tokens: tuple[Any, ...]


class StockError(Exception):
    """Carry what llama.cpp said before it refused or died."""


class _Refused(Exception):
    """Say in the process what could not be done."""


class Process:
    """Own the process that computes; one request at a time, a line each way.

    It is started by the first request, again by the first after it died, and ends with us: its
    standard input closes. `environment` is added to ours.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="stock-")
        self._log = Path(self._folder.name) / "log"

    def ask(self, model: Path, settings: Settings, calls: Calls | None = None) -> Result:
        if self._process is None:
            self._process = self._start()
        answer = Path(self._folder.name) / "answer.npz"
        request = {
            "model": str(model), "answer": str(answer), "settings": asdict(settings), "calls": calls
        }  # fmt: skip
        said = self._log.stat().st_size
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        failure = stdout.readline().strip()
        if not failure:
            failure = f"exit {self._process.wait()}"
            self._process = None
        if failure != DONE:
            tail = self._log.read_bytes()[said:].decode(errors="replace").splitlines()[-12:]
            raise StockError("\n".join([f"{model}: {failure}", *tail]))
        with np.load(answer) as data:
            return Result(data["logits"], tuple(data["tokens"].tolist()))

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
            )


def replay(model: Path, calls: Calls, **settings: Any) -> npt.NDArray[np.float32]:
    """Run calls of llama.cpp; return the logits (n_steps, n_vocab) after each of the "decode"s.

    calls: ["decode", tokens, position of the first, outputs for every token?], ["remove", position from
    which tokens are taken back], or ["clear"]. Other keywords are fields of `Settings`.
    """
    chosen = Settings(prompt=(), n_greedy=0, **settings)
    return _process.ask(model, chosen, calls).logits


DONE = "done"
Calls = list[list[Any]]
_process = Process(ENVIRONMENT)
_results: dict[tuple[str, int, int, Settings], Result] = {}


def run(
    model: Path, prompt: Sequence[int], n_greedy: int = 8, *, fresh: bool = False, **settings: Any
) -> Result:
    """Run stock llama.cpp on `prompt` and `n_greedy` greedy steps.

    Equal runs of a session are computed once, unless `fresh`. Other keywords are fields of
    `Settings`. Raises StockError when llama.cpp refuses the model or dies.
    """
    chosen = Settings(prompt=tuple(prompt), n_greedy=n_greedy, **settings)
    status = model.stat()
    key = (str(model.resolve()), status.st_mtime_ns, status.st_ino, chosen)
    if fresh or key not in _results:
        _results[key] = _process.ask(model, chosen)
    return _results[key]


def _compute(
    model_path: str, settings: Settings, calls: Calls | None
) -> tuple[npt.NDArray[np.float32], list[Any]]:
    import llama_cpp as lib

    from remoe_edge.bench.stock import experts_on_cpu  # brings in no engine

    params = lib.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    no_device = (ctypes.c_void_p * 1)()
    if settings.gpu_layers == 0:
        params.devices = ctypes.addressof(no_device)
    overrides = experts_on_cpu()
    if settings.experts_on_cpu:
        params.tensor_buft_overrides = ctypes.addressof(overrides)
    params.use_extra_bufts = settings.use_extra_bufts
    model = lib.llama_model_load_from_file(os.fsencode(model_path), params)
    if not model:
        raise _Refused("llama.cpp refused the model")
    params = lib.llama_context_default_params()
    params.n_batch = settings.n_ctx
    params.n_seq_max = 1 + len(settings.beside)
    params.n_ctx = settings.n_ctx * params.n_seq_max
    params.n_ubatch = settings.n_ubatch
    params.n_threads = params.n_threads_batch = settings.n_threads
    params.op_offload = not settings.experts_on_cpu
    context = lib.llama_init_from_model(model, params)
    try:
        if not context:
            raise _Refused("llama.cpp made no context")
        n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        if calls is not None:
            return _repeat(lib, context, n_vocab, calls), []
        if settings.beside:
            return _together(lib, context, n_vocab, settings)
        return _continue(lib, context, n_vocab, settings)
    finally:
        if context:
            lib.llama_free(context)
        lib.llama_model_free(model)


def _decode(lib: Any, context: Any, batch: Any) -> None:
    status = lib.llama_decode(context, batch)
    if status != 0:
        raise _Refused(f"llama_decode returned {status}")


def _row(lib: Any, context: Any, n_vocab: int, place: int = -1) -> npt.NDArray[np.float32]:
    logits = lib.llama_get_logits_ith(context, place)
    return np.array(np.ctypeslib.as_array(logits, (n_vocab,)), dtype=np.float32)


def _continue(
    lib: Any, context: Any, n_vocab: int, settings: Settings
) -> tuple[npt.NDArray[np.float32], list[Any]]:
    def decode(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        array = (lib.llama_token * len(tokens))(*tokens)
        _decode(lib, context, lib.llama_batch_get_one(array, len(tokens)))
        return _row(lib, context, n_vocab)

    rows = [decode(settings.prompt)]
    tokens: list[int] = []
    for _ in range(settings.n_greedy):
        tokens.append(int(rows[-1].argmax()))
        rows.append(decode(tokens[-1:]))
    return np.stack(rows), tokens


def _together(
    lib: Any, context: Any, n_vocab: int, settings: Settings
) -> tuple[npt.NDArray[np.float32], list[Any]]:
    def decode_ones(
        places: Sequence[int], positions: Sequence[int], tokens: Sequence[int]
    ) -> list[npt.NDArray[np.float32]]:
        """Compute tokens in the places of conversations; give the logits of all."""
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (place, position, token) in enumerate(zip(places, positions, tokens, strict=True)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = place, True
        try:
            _decode(lib, context, batch)
        finally:
            lib.llama_batch_free(batch)
        return [_row(lib, context, n_vocab, i) for i in range(len(tokens))]

    prompts = [settings.prompt, *settings.beside]
    places = range(len(prompts))
    last = []
    for place, prompt in enumerate(prompts):
        last.append(decode_ones([place] * len(prompt), range(len(prompt)), prompt)[-1])
    steps, tokens = [np.stack(last)], []
    for n in range(settings.n_greedy):
        tokens.append([int(row.argmax()) for row in steps[-1]])
        at = [len(prompt) + n for prompt in prompts]
        steps.append(np.stack(decode_ones(places, at, tokens[-1])))
    return np.stack(steps), tokens


def _repeat(lib: Any, context: Any, n_vocab: int, calls: Calls) -> npt.NDArray[np.float32]:
    memory = lib.llama_get_memory(context)
    rows = [np.empty((0, n_vocab), np.float32)]
    for name, *arguments in calls:
        if name == "clear":
            lib.llama_memory_clear(memory, True)
        elif name == "remove":
            lib.llama_memory_seq_rm(memory, 0, arguments[0], -1)
        else:
            tokens, n_past, every = arguments
            n = len(tokens)
            batch = lib.llama_batch_init(n, 0, 1)
            batch.n_tokens = n
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, n_past + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = every or i == n - 1
            try:
                _decode(lib, context, batch)
            finally:
                lib.llama_batch_free(batch)
            rows.append(_row(lib, context, n_vocab)[None])
    return np.concatenate(rows)


def _main() -> None:
    from remoe_edge import amx  # which brings in no more than llama_cpp

    amx.avoid()
    for line in sys.stdin:
        request = json.loads(line)
        chosen = request["settings"]
        chosen["prompt"] = tuple(chosen["prompt"])
        chosen["beside"] = tuple(map(tuple, chosen.get("beside", ())))
        try:
            logits, tokens = _compute(request["model"], Settings(**chosen), request.get("calls"))
            np.savez(request["answer"], logits=logits, tokens=np.array(tokens, dtype=np.int64))
            print(DONE, flush=True)
        except _Refused as refused:
            print(refused, flush=True)


if __name__ == "__main__":
    _main()
