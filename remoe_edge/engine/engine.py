"""Run a model whose experts stream from storage: load, generate, chat, and say what it cost."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from remoe_edge.engine import budget as budgets
from remoe_edge.engine import chat_template
from remoe_edge.engine.interrupt import Interrupts, held_back
from remoe_edge.engine.kv_cache import kv_bytes
from remoe_edge.engine.llama import Buffers, FilePath, loading
from remoe_edge.engine.observers import Step, Watcher, Watchers, since
from remoe_edge.engine.stats import Answer, Stats
from remoe_edge.errors import BudgetError, InputError, ModelError, RemoeError
from remoe_edge.machine import memory
from remoe_edge.native import WAIT_POLICY, _core, llama_cpp
from remoe_edge.units import mib

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile, StreamedModel
    from remoe_edge.predict.past_prompts import PastPrompts
    from remoe_edge.profile.warm_start import KeptProfile

DEFAULT_CONTEXT = 4096
MAX_CONTEXT = 1 << 24  # far above what any model was trained with
MAX_THREADS = 512  # ggml's
PREFETCH = ("auto", "off", "on")
ROUTED_STEP = 64  # tokens that outputs are computed for at once: each takes a row of the vocabulary

Message = Mapping[str, str]


class Engine:
    """Hold one loaded model; generate from it, one answer at a time.

    path: a GGUF, or the first of its split shards.
    cache: "auto", a size ("1500MiB"), a share of the experts ("30%"), or "plan:250ms": the least that
        is expected to keep a token to that time (measured for a few seconds, and remembered).
    routers: a tuned-router overlay made for this model, or None.
    policy: which expert leaves the cache; see `remoe_edge._core.policy_names()`.
    profile: a file that keeps what is known of this model between runs: what `remoe-edge profile` has
        fitted, and which experts are hot. They are read before anything asks for them, while nothing
        else is being read; the file is written anew at `close`. It need not exist.
    past_prompts: a file of what past prompts activated (docs/prediction.md): a new prompt is expected to
        use what similar ones did, and the policy keeps that. Written anew at `close`; it need not exist.
    prefetch: read experts that the next layers will probably want while storage is idle: "off", "on",
        or "auto", which tries both while it runs and keeps what is faster.
    n_ctx: tokens of context; 0 takes the model's, up to 4096.
    n_batch, n_ubatch: tokens of a prompt given to llama.cpp, and computed, at once.
    threads: compute threads; None takes the cores that this process may use.
    repack: rearrange quantised weights for other kernels, as llama.cpp does when a model is resident.
        False gives the bits of stock with `--no-repack`, True those of its default; the work is done
        again for every miss, so it pays only where nearly everything fits.
    flash_attention: "auto" (llama.cpp's default), "on" or "off".
    stream: False loads everything whole, as llama.cpp does.
    io_backend: "auto", "io_uring" or "pread"; direct: O_DIRECT where possible; depth: reads in
        flight, 0 chooses.
    lock: lock the cache in memory where the limit allows it.
    trace: a file to record into: which experts every step of every layer was routed to, and what the
        routers said of the others (docs/policies.md). It takes its name at `close`.
    progress: called with a fraction while loading; returning False cancels.
    telemetry: a file for records of what each token cost and what the machine did meanwhile
        (docs/telemetry.md), or watchers of one's own. Where there is a power sensor, a file begins
        with three seconds of waiting: that is what idle takes.
    publish: let `remoe-edge top` show this engine; a folder instead of the user's own for it.

    Raises RemoeError, of a kind that says what to do: ModelError, BudgetError, UnsupportedError,
    ReadError, InputError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cache: str = "auto",
        routers: str | os.PathLike[str] | None = None,
        policy: str = "reuse-biased",
        prefetch: str = "auto",
        profile: str | os.PathLike[str] | None = None,
        past_prompts: str | os.PathLike[str] | None = None,
        n_ctx: int = 0,
        n_batch: int = 512,
        n_ubatch: int = 512,
        threads: int | None = None,
        repack: bool = False,
        flash_attention: str = "auto",
        stream: bool = True,
        io_backend: str = "auto",
        direct: bool = True,
        depth: int = 0,
        lock: bool = True,
        trace: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        progress: Callable[[float], bool] | None = None,
        telemetry: str | os.PathLike[str] | Sequence[Watcher] | None = None,
        publish: bool | str | os.PathLike[str] = True,
    ) -> None:
        started = time.perf_counter()
        self.path = Path(path)
        self.notes: list[str] = []
        self._watchers = Watchers(self.notes.append)
        self.answer = Answer()
        self._settings = {
            "cache": cache, "routers": None if routers is None else str(routers), "policy": policy,
            "prefetch": prefetch, "n_batch": n_batch, "n_ubatch": n_ubatch, "repack": repack,
            "flash_attention": flash_attention, "stream": stream, "io_backend": io_backend,
            "direct": direct, "depth": depth, "lock": lock,
        }  # fmt: skip
        self._closed = True
        budgets.check(cache)
        if policy not in _core.live_policy_names():
            known = ", ".join(_core.live_policy_names())
            raise InputError(f"no policy '{policy}' for a running engine; there are: {known}")
        if prefetch not in PREFETCH:
            raise InputError(f"prefetch is one of {', '.join(PREFETCH)}, not '{prefetch}'")
        if not self.path.is_file():
            raise InputError(f"no model at {self.path}")
        self.threads = threads or len(os.sched_getaffinity(0))
        if self.threads < 1 or n_ctx < 0 or n_batch < 1 or n_ubatch < 1:
            raise InputError("threads, n_batch and n_ubatch are at least 1, and n_ctx at least 0")
        if self.threads > MAX_THREADS:
            raise InputError(f"{self.threads} threads are more than ggml's {MAX_THREADS}")

        file = _core.ModelFile.open(str(self.path))
        file.check()
        self._model: StreamedModel | None = None
        if not stream:
            self.notes.append("not streamed: the model is loaded whole")
            if routers is not None:
                raise InputError("tuned routers are applied while streaming: they need it on")
        elif file.expert_layers:
            self._model = _core.StreamedModel.open(
                str(self.path),
                backend=io_backend,
                direct=direct,
                depth=depth,
                repack=repack,
                overlay=_overlay(routers, file),
            )
        else:
            self.notes.append("a dense model: there is nothing to stream, it is loaded whole")
            if routers is not None:
                raise InputError(f"{self.path} has no routers for {routers} to replace")
        self._kept: KeptProfile | None = None
        if profile is not None and self._model is None:
            self.notes.append(f"{profile} is not used: no experts are streamed")
        elif profile is not None:
            from remoe_edge.profile.warm_start import KeptProfile

            self._kept = KeptProfile(Path(profile), self.path)
            if self._kept.data is None:
                self.notes.append(f"no profile at {profile} yet: it begins with this run")
        self._past: PastPrompts | None = None
        if past_prompts is not None and self._model is None:
            self.notes.append(f"{past_prompts} is not used: no experts are streamed")
        elif past_prompts is not None and self._model is not None:
            from remoe_edge.predict.past_prompts import PastPrompts

            self._past = PastPrompts(
                Path(past_prompts), self.path, self._model.n_layers, self._model.n_experts,
                None if routers is None else Path(routers),
            )  # fmt: skip
        trained = file.unsigned(f"{file.architecture}.context_length") or DEFAULT_CONTEXT
        self._n_ctx = n_ctx or min(trained, DEFAULT_CONTEXT)
        _check_context(file, self._n_ctx, self.streamed)

        if self._model is not None and budgets.is_plan(cache):
            cache = self._plan(
                cache, policy, routers=routers, n_ubatch=n_ubatch, threads=self.threads,
                repack=repack, flash_attention=flash_attention, io_backend=io_backend,
                direct=direct, depth=depth,
            )  # fmt: skip
        before = time.perf_counter()
        watchers = _watchers(telemetry, self.path, self.notes.append)
        started += time.perf_counter() - before  # the idle window is no loading
        self._buffers = Buffers()
        self._stack = contextlib.ExitStack()
        try:
            with held_back() as pressed:

                def go_on(fraction: float) -> bool:
                    return not pressed() and (progress is None or progress(fraction))

                self._llama = self._load(
                    go_on, n_batch, n_ubatch, flash_attention, repack=repack, verbose=verbose
                )
                self._closed = False
                self.budget = self._attach(cache, policy, prefetch, n_ubatch, lock=lock)
                self._check_past(policy)
                if trace is not None:
                    self._start_trace(Path(trace))
                self._warm()
        except BaseException:
            for watcher in watchers:
                watcher.on_close()
            self.close()
            raise
        self.load_ms = (time.perf_counter() - started) * 1000
        for watcher in (*watchers, *_published(publish, self.notes.append)):
            self.watch(watcher)

    def _plan(self, cache: str, policy: str, **settings: Any) -> str:
        from remoe_edge.plan.choose import choose_cache

        choice = choose_cache(cache, self.path, policy=policy, n_ctx=self._n_ctx, **settings)
        self.notes.append(choice.why)
        return str(choice.cache_bytes)

    def _load(
        self,
        progress: Callable[[float], bool],
        n_batch: int,
        n_ubatch: int,
        flash_attention: str,
        *,
        repack: bool,
        verbose: bool,
    ) -> Any:
        try:
            with loading(
                self._loader(progress),
                progress=progress,
                flash_attention=flash_attention,
                repack=repack,
                buffers=self._buffers,
                verbose=verbose,
            ):
                return llama_cpp.Llama(
                    model_path=FilePath(self.path),
                    n_ctx=self._n_ctx,
                    n_batch=min(n_batch, self._n_ctx),
                    n_ubatch=min(n_ubatch, self._n_ctx),
                    n_threads=self.threads,
                    n_threads_batch=self.threads,
                    verbose=verbose,
                )
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"llama.cpp refused {self.path}: {error}") from error

    def _loader(self, progress: Callable[[float], bool]) -> Callable[[Any], int] | None:
        model = self._model
        if model is None:
            return None

        def load(params: Any) -> int:
            return int(model.load(ctypes.addressof(params), progress))

        return load

    def _attach(
        self, cache: str, policy: str, prefetch: str, n_ubatch: int, *, lock: bool
    ) -> budgets.Budget | None:
        if self._model is None:
            return None
        # KV and output buffers are cleared as they are made; compute buffers are not touched yet.
        scratch = self._model.scratch_bytes(min(n_ubatch, self._n_ctx))
        compute = self._buffers.n_bytes.get("compute", 0) + scratch
        self._buffers.n_bytes["compute"] = compute
        budget = budgets.resolve(cache, self._model, compute)
        data = None if self._kept is None else self._kept.data
        self._model.attach(
            n_slots=budget.n_slots, policy=policy, lock=lock, profile=data, prefetch=prefetch
        )
        self.notes.extend(self._model.notes)
        ahead = self._model.prefetch
        if ahead["state"] != "off" and ahead["why_not"]:
            self.notes.append(f"nothing is read ahead while answering: {ahead['why_not']}")
        return budget

    def _warm(self) -> None:
        """Begin to read hot experts into what is free of the cache; the next step ends it."""
        if self._kept is not None and self._model is not None:
            self._model.warm(self._kept.hot())

    def _keep_profile(self) -> None:
        if self._kept is None or self._model is None:
            return
        uses = self._model.uses()
        if uses.any():
            n_layers, n_experts = self._model.n_layers, self._model.n_experts
            steps = self._counts()["events"] / n_layers
            self._kept.save(uses, steps, n_layers, n_experts)

    def _check_past(self, policy: str) -> None:
        if self._past is not None and self._model is not None and not self._model.expect(None):
            self.notes.append(f"policy {policy} takes no notice of past prompts")

    def _foreseen(self, tokens: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        if self._past is None or self._model is None:
            return contextlib.nullcontext()
        return self._past.beside(self._model, tokens)

    def _start_trace(self, path: Path) -> None:
        model = self._model
        if model is None:
            raise InputError(f"{path}: there is nothing to record, the model is not streamed")
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"cannot record into {path}: give the path of a file")
        from remoe_edge.files.fingerprint import fingerprint

        meta = {
            "model": self.path.name,
            "expert_bytes": model.expert_bytes / model.total_experts,
        }
        model.start_trace(
            str(path), fingerprint(_core.ModelFile.open(str(self.path))), json.dumps(meta)
        )

    # --- what it is ---

    @property
    def streamed(self) -> bool:
        """Say whether experts come from storage."""
        return self._model is not None

    @property
    def llama(self) -> Any:
        """Give the llama-cpp-python object underneath, for what this class does not wrap."""
        return self._llama

    @property
    def n_ctx(self) -> int:
        """Give the context length in tokens."""
        # What was asked for: llama.cpp rounds its own up, `Llama` does not.
        return min(self._n_ctx, int(self._llama.n_ctx()))

    @property
    def chat_template(self) -> str | None:
        """Give the model's chat template, None if it has none."""
        return chat_template.of(self._llama)

    @property
    def native(self) -> StreamedModel | None:
        """Give the native model underneath; None when nothing is streamed."""
        return self._model

    @property
    def trace_failure(self) -> str | None:
        """Say what cut the recording short, None while nothing did."""
        return (self._model.trace_failure or None) if self._model is not None else None

    @property
    def router_probabilities(self) -> bool:
        """Say whether the last step's graph showed the router's probabilities."""
        return self._model is not None and self._model.router_probabilities

    @property
    def recording_ns(self) -> int:
        """Count the nanoseconds spent on recording a trace."""
        return self._counts().get("trace_ns", 0)

    def is_end(self, token: int) -> bool:
        """Say whether a token ends an answer."""
        return bool(llama_cpp.llama_cpp.llama_vocab_is_eog(self._llama._model.vocab, token))

    # --- running it ---

    def tokenize(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Turn text into token ids."""
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=bos, special=special)
        return tokens

    def evaluate(
        self, tokens: Sequence[int], *, reset: bool = True, every: bool = False
    ) -> npt.NDArray[np.float32]:
        """Run tokens through the model and return the logits [n_vocab] after the last one.

        reset: start from an empty context; otherwise go on after what came before. every: have the
        last layer too run every token, not just the last one, so that a trace has them all.
        """
        self._check_open()
        if reset:
            self.reset()
        if not tokens:
            raise InputError("there are no tokens to evaluate")
        self._check_room(self._llama.n_tokens + len(tokens))
        before = self._counts() if self._watchers else {}
        clock = time.perf_counter()
        with self._running() as interrupts, interrupts.computing():
            if every:
                self._evaluate_every(tokens)
            else:
                self._llama.eval(list(tokens))
        if self._watchers:
            phase = "prefill" if reset or len(tokens) > 1 else "decode"
            self._tell(phase, len(tokens), clock, time.perf_counter(), before)
        low = llama_cpp.llama_cpp
        row = low.llama_get_logits_ith(self._llama.ctx, -1)
        logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(
            row, (self._llama.n_vocab(),)
        ).copy()
        return logits

    def _evaluate_every(self, tokens: Sequence[int]) -> None:
        llama = self._llama
        step = min(ROUTED_STEP, llama.n_batch)
        for begin in range(0, len(tokens), step):
            some = list(tokens[begin : begin + step])
            at = llama.n_tokens
            llama._batch.set_batch(batch=some, n_past=at, logits_all=True)
            llama._ctx.decode(llama._batch)
            llama.input_ids[at : at + len(some)] = some
            llama.n_tokens = at + len(some)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float = 0.7,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        grammar: Any = None,
        special: bool = False,
        bos: bool = True,
    ) -> Generator[str, None, None]:
        """Yield the continuation of a prompt, piece by piece, as whole characters.

        temperature 0 is greedy. `special`: special tokens may be written in the prompt. `grammar`: a
        `llama_cpp.LlamaGrammar`. `stats()` tells afterwards what it cost, also when it was cut short.
        """
        self._check_open()
        tokens = (
            self.tokenize(prompt, special=special, bos=bos)
            if isinstance(prompt, str)
            else list(prompt)
        )
        if not tokens:
            raise InputError("the prompt is empty")
        self._check_room(len(tokens) + 1)
        if max_tokens < 0:
            raise InputError("max_tokens is below 0")
        settings = {
            "temp": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "grammar": grammar,
        }
        self._llama.set_seed(llama_cpp.LLAMA_DEFAULT_SEED if seed is None else seed)
        return self._generate(tokens, max_tokens, tuple(stop), settings)

    def _generate(
        self, tokens: list[int], max_tokens: int, stop: tuple[str, ...], settings: dict[str, Any]
    ) -> Generator[str, None, None]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        answer = self.answer = Answer(n_prompt=len(tokens), stop="length")
        held = ""  # text that may be the start of a stop string
        start = self._counts()
        first: dict[str, int] = start
        counts = start
        self._watchers.begin(len(tokens))
        clock = time.perf_counter()
        produced: list[int] = []
        try:
            with self._running() as interrupts, self._foreseen(tokens):
                stream = self._llama.generate(tokens, **settings) if max_tokens else iter(())
                while True:
                    with interrupts.computing():
                        token = next(stream, None)
                    if token is None:
                        break
                    now = time.perf_counter()
                    if answer.n_generated == 0:
                        answer.ttft_ms = (now - clock) * 1000
                        first = self._counts()
                    else:
                        answer.token_ms.append((now - clock) * 1000)
                    answer.n_generated += 1
                    if self._watchers:
                        phase, n = ("decode", 1) if answer.token_ms else ("prefill", len(tokens))
                        counts = self._tell(phase, n, clock, now, counts)
                    if self.is_end(token):
                        answer.stop = "end"
                        break
                    piece = self._llama.detokenize([token], prev_tokens=tokens + produced)
                    produced.append(token)
                    held += decoder.decode(piece)
                    cut = min((at for s in stop if (at := held.find(s)) >= 0), default=-1)
                    if cut >= 0:
                        answer.stop = "stop"
                        held = held[:cut]
                        break
                    ready = len(held) - _partial(held, stop)
                    if ready:
                        given = time.perf_counter()
                        yield held[:ready]
                        # The time of the caller between two pieces is not the model's.
                        now += time.perf_counter() - given
                        held = held[ready:]
                    if answer.n_generated >= max_tokens:
                        break
                    if self._llama.n_tokens >= self.n_ctx:
                        answer.stop = "context"
                        break
                    clock = now
            held += decoder.decode(b"", final=True) if answer.stop != "stop" else ""
            if held:
                yield held
        except (GeneratorExit, KeyboardInterrupt):
            answer.stop = "cancelled"
            raise
        finally:
            self._account(answer, start, first)
            self._warm()
            self._watchers.answer(answer)

    def chat(self, messages: Sequence[Message], **settings: Any) -> Generator[str, None, None]:
        """Yield the answer to a conversation of {"role", "content"} messages.

        Settings are those of `generate`. Raises UnsupportedError when the model has no chat template.
        """
        prompt, stop, bos = self.render(messages)
        settings.setdefault("stop", stop)
        return self.generate(prompt, special=True, bos=bos, **settings)

    def render(self, messages: Sequence[Message]) -> tuple[str, list[str], bool]:
        """Write a conversation as the model's template does: (text, stop strings, add a BOS token?)."""
        return chat_template.render(self._llama, messages, self.path)

    def stats(self) -> Stats:
        """Tell what the last answer cost, and how it was run. Times in ms, sizes in bytes."""
        answer = self.answer
        stats: Stats = {
            "n_prompt": answer.n_prompt,
            "n_generated": answer.n_generated,
            "stop": answer.stop,
            "load_ms": round(self.load_ms, 3),
            "ttft_ms": round(answer.ttft_ms, 3) if answer.n_generated else None,
            "tpot_ms": answer.tpot_ms(),
            "peak_rss_bytes": memory.peak_rss_bytes(),
            "streamed": self.streamed,
            "threads": self.threads,
            "n_ctx": self.n_ctx,
            "energy": answer.energy,
            "buffers": dict(self._buffers.n_bytes),
            "wait_policy": WAIT_POLICY,
            "notes": list(self.notes),
            "router_probabilities": None,
            "cache": None,
            "io": None,
        }
        if self._model is not None and self.budget is not None:
            stats["cache"] = {
                "budget_bytes": self._model.budget_bytes,
                "slots": self.budget.n_slots,
                "hits": answer.hits,
                "misses": answer.misses,
                "bytes_read": answer.bytes_read,
                "device_bytes": answer.device_bytes,
                "stall_ms": round(answer.stall_ms, 3),
                "ffn_ms": round(answer.ffn_ms, 3),
                "policy": self._model.policy,
                "warm_experts": self._counts()["warm_experts"],
                "warm_bytes": self._counts()["warm_bytes"],
                "prefetch": self._prefetch(),
                "decode": {
                    "hits": answer.decode_hits,
                    "misses": answer.decode_misses,
                    "bytes_read": answer.decode_bytes,
                },
                "why": self.budget.why,
                "expert_bytes": self._model.expert_bytes,
                "dense_bytes": self._model.dense_bytes,
                "dense_bytes_read": self._model.dense_bytes_read,
                "repacked": self._model.repacked,
                "locked": self._model.locked,
                "huge_pages": self._model.huge_pages,
            }
            stats["io"] = dict(self._model.io)
            stats["router_probabilities"] = self._model.router_probabilities
        return stats

    def reset(self) -> None:
        """Forget the conversation so far; the experts stay resident."""
        self._llama.reset()
        self._llama._ctx.kv_cache_clear()

    # --- being watched ---

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of every step from now on; what it raises ends that, and is noted."""
        self._watchers.add(watcher, self._facts())

    def unwatch(self, watcher: Watcher) -> None:
        """Tell `watcher` no more."""
        self._watchers.remove(watcher)

    def _facts(self) -> dict[str, Any]:
        """Tell what holds as long as this engine lives. Times in ms, sizes in bytes."""
        facts: dict[str, Any] = {
            "model": str(self.path),
            "model_bytes": self.path.stat().st_size,
            "architecture": self._llama.metadata.get("general.architecture"),
            "settings": dict(self._settings),
            "streamed": self.streamed,
            "threads": self.threads,
            "n_ctx": self.n_ctx,
            "load_ms": round(self.load_ms, 3),
            "wait_policy": WAIT_POLICY,
            "notes": list(self.notes),
        }
        if self._model is not None and self.budget is not None:
            facts |= {
                "budget_bytes": self._model.budget_bytes,
                "slots": self.budget.n_slots,
                "policy": self._model.policy,
                "expert_bytes": self._model.expert_bytes,
                "dense_bytes": self._model.dense_bytes,
                "io": dict(self._model.io),
            }
        return facts

    def _tell(
        self, phase: str, n_tokens: int, start: float, end: float, before: Mapping[str, int]
    ) -> dict[str, int]:
        """Tell the watchers of a step; return the counts after it."""
        counts = self._counts()
        self._watchers.step(Step(phase, n_tokens, start, end, **since(before, counts)))
        return counts

    # --- inner workings ---

    def _counts(self) -> dict[str, int]:
        return self._model.counts() if self._model is not None else {}

    def _prefetch(self) -> Stats:
        assert self._model is not None
        answer, now = self.answer, self._model.prefetch
        return {
            **{
                name: round(each, 4) if isinstance(each, float) else each
                for name, each in now.items()
            },
            "misses": answer.ahead_misses,
            "useful_bytes": answer.ahead_useful_bytes,
            "wasted_bytes": answer.ahead_wasted_bytes,
            "given_up": answer.ahead_given_up,
            "predict_ms": round(answer.predict_ms, 3),
        }

    def _account(self, answer: Answer, start: Mapping[str, int], first: Mapping[str, int]) -> None:
        if self._model is None:
            return
        end = self._counts()

        def since(name: str, base: Mapping[str, int]) -> int:
            return end[name] - base[name]

        answer.hits, answer.misses = since("hits", start), since("misses", start)
        answer.bytes_read = since("bytes_read", start)
        answer.device_bytes = since("device_bytes", start)
        answer.stall_ms = since("stall_ns", start) / 1e6
        answer.ffn_ms = since("ffn_ns", start) / 1e6
        answer.ahead_misses = since("ahead_misses", start)
        answer.ahead_useful_bytes = since("ahead_useful_bytes", start)
        answer.ahead_wasted_bytes = since("ahead_wasted_bytes", start)
        answer.ahead_given_up = since("ahead_given_up", start)
        answer.predict_ms = since("predict_ns", start) / 1e6
        answer.decode_hits, answer.decode_misses = since("hits", first), since("misses", first)
        answer.decode_bytes = since("bytes_read", first)

    @contextlib.contextmanager
    def _running(self) -> Iterator[Interrupts]:
        """Turn llama.cpp's bare return codes into the failure that the core has kept."""
        model = self._model
        if model is not None:
            model.check_unchanged()
        try:
            with Interrupts(model) as interrupts:
                yield interrupts
        except RuntimeError as error:
            if isinstance(error, RemoeError) or "llama_decode" not in str(error):
                raise
            if model is not None:
                if model.interrupted:
                    raise KeyboardInterrupt from None
                model.raise_failure()
            raise RemoeError(f"llama.cpp could not compute: {error}") from error

    def _check_room(self, n_tokens: int) -> None:
        if n_tokens > self.n_ctx:
            raise InputError(
                f"{n_tokens} tokens do not fit the context of {self.n_ctx}: raise --ctx or shorten the "
                "prompt"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the engine is closed")

    def close(self) -> None:
        """Free the model, its context and the cache. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._watchers.close()
        try:
            if self._model is not None:
                try:
                    self._keep_profile()
                    if self._past is not None:
                        self._past.save()
                finally:
                    self._model.stop_trace()
        finally:
            self._llama.close()
            # After the llama_model: its buffers lead back to this.
            self._model = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check_context(file: ModelFile, n_ctx: int, streamed: bool) -> None:
    """Refuse what memory cannot hold: llama.cpp would be killed while it fills it."""
    if n_ctx > MAX_CONTEXT:
        raise InputError(f"a context of {n_ctx} tokens is more than {MAX_CONTEXT}: lower --ctx")
    windowed = file.unsigned(f"{file.architecture}.attention.sliding_window")
    cache_bytes = 0 if windowed else kv_bytes(file, n_ctx) or 0
    dense_bytes = file.dense_bytes if streamed else 0  # else mapped, and read as it is used
    room = memory.available()
    if cache_bytes + dense_bytes > room.available_bytes:
        dense = f" and the dense weights {mib(dense_bytes)}" if streamed else ""
        raise BudgetError(
            f"a context of {n_ctx} tokens takes {mib(cache_bytes)}{dense}, but "
            f"{mib(room.available_bytes)} are left by {room.limited_by}: lower --ctx"
        )


def _watchers(
    telemetry: str | os.PathLike[str] | Sequence[Watcher] | None,
    path: Path,
    note: Callable[[str], None],
) -> Sequence[Watcher]:
    if telemetry is None:
        return ()
    if isinstance(telemetry, str | os.PathLike):
        from remoe_edge.telemetry.recording import Recording

        return (Recording.start(telemetry, model=path, note=note),)
    return telemetry


def _published(
    where: bool | str | os.PathLike[str], note: Callable[[str], None]
) -> Sequence[Watcher]:
    if where is False:
        return ()
    from remoe_edge.telemetry.status import Status, default_folder

    try:
        return (Status(default_folder() if where is True else Path(where)),)
    except OSError as error:
        note(f"not shown by `remoe-edge top`: {error}")
        return ()


def _overlay(routers: str | os.PathLike[str] | None, file: Any) -> dict[str, bytes]:
    if routers is None:
        return {}
    from remoe_edge.convert.overlay import load_overlay

    return load_overlay(Path(routers), file)


def _partial(text: str, stop: Sequence[str]) -> int:
    """Count the characters at the end of `text` that a stop string could begin with."""
    longest = 0
    for each in stop:
        for n in range(min(len(each) - 1, len(text)), longest, -1):
            if text.endswith(each[:n]):
                longest = n
                break
    return longest
