"""Run a model whose experts stream from storage: generate, chat, evaluate, and say what it cost."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from remoe_edge.engine import chat_template, embedding, generation, report, request
from remoe_edge.engine.answer import Answer, Produced
from remoe_edge.engine.batching import ContinuousBatch
from remoe_edge.engine.budget import Budget
from remoe_edge.engine.channels import AnswerForm
from remoe_edge.engine.chat_template import Message
from remoe_edge.engine.extensions import (
    FeatureFile,
    Functions,
    Planner,
    Profile,
    PromptMemory,
    StartObservers,
    TraceRecording,
)
from remoe_edge.engine.loaded import abandon
from remoe_edge.engine.loading import Extensions, load
from remoe_edge.engine.observers import Observer
from remoe_edge.engine.prompt import Prompt
from remoe_edge.engine.schedule import Schedule
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.engine.stats import AnswerStats, EngineStats
from remoe_edge.engine.step_batch import StepBatch
from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from remoe_edge._core import StreamedModel
    from remoe_edge.engine.settings import SettingsKeywords


class Engine:
    """Hold one loaded model; generate from it, one answer at a time.

    path: a GGUF, or the first of its split shards.
    settings: how to run it; keywords of `EngineSettings` may be given instead, or on top.
    progress: called with a fraction while loading; returning False cancels.
    profile, past_prompts, trace, planner, functions, observers: see engine/extensions.py.
    `remoe_edge.Engine` is this class, and takes the names of the features' files instead.

    Threads: every method may be called from any thread. While an answer runs, or while a thread
    computes, whatever else would compute raises InputError; `close` waits for the step and ends it
    early. After `close` everything but plain facts (path, settings, notes, threads, n_ctx, load_ms,
    budget, streamed, `answer`) raises InputError, in a forked child UnsupportedError.

    Raises RemoeError, of a kind that says what to do: ModelError, BudgetError, UnsupportedError,
    ReadError, InputError.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        settings: EngineSettings | None = None,
        *,
        profile: FeatureFile[Profile] | None = None,
        past_prompts: FeatureFile[PromptMemory] | None = None,
        trace: FeatureFile[TraceRecording] | None = None,
        planner: Planner | None = None,
        functions: Functions | None = None,
        observers: StartObservers | None = None,
        progress: Callable[[float], bool] | None = None,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        self._settings = EngineSettings.of(settings, keywords)
        extensions = Extensions(profile, past_prompts, trace, planner, functions, observers)
        self._loaded = load(path, self._settings, extensions, progress)
        self._life = self._loaded.life
        weakref.finalize(self, abandon, self._loaded)

    # --- what it is ---

    @property
    def path(self) -> Path:
        """Give the model's path."""
        return self._loaded.path

    @property
    def settings(self) -> EngineSettings:
        """Give the settings that were asked for."""
        return self._settings

    @property
    def notes(self) -> list[str]:
        """List what the user should know: what is off, and why. See `notes_since`."""
        return list(self._loaded.notes)

    def notes_since(self, number: int) -> tuple[list[str], int]:
        """List what stands of the notes after the first `number` that were made; count all made."""
        return self._loaded.notes.since(number)

    @property
    def threads(self) -> int:
        """Give the compute threads."""
        return self._settings.n_cores

    @property
    def streamed(self) -> bool:
        """Say whether experts come from storage."""
        return self._loaded.streamed

    @property
    def n_ctx(self) -> int:
        """Give the context length in tokens: what was asked for, where llama.cpp has rounded it up."""
        return self._loaded.n_ctx

    @property
    def parallel(self) -> int:
        """Count the conversations that may be answered at a time, see `batch`."""
        return self._loaded.n_places

    @property
    def load_ms(self) -> float:
        """Give the time of loading in ms."""
        return self._loaded.load_ms

    @property
    def budget(self) -> Budget | None:
        """Give the cache's budget; None where nothing is streamed."""
        return self._loaded.budget

    @property
    def llama(self) -> Any:
        """Give the llama-cpp-python object underneath, for what this class does not wrap."""
        self._life.check()
        return self._loaded.llama

    @property
    def native(self) -> StreamedModel | None:
        """Give the native model underneath; None where nothing is streamed."""
        self._life.check()
        return self._loaded.native

    @property
    def chat_template(self) -> str | None:
        """Give the model's chat template, None if it has none."""
        with self._life.reading():
            return chat_template.of(self._loaded.llama)

    @property
    def trace_failure(self) -> str | None:
        """Say what cut the recording short, None while nothing did."""
        with self._life.reading():
            native = self._loaded.native
            return (native.trace_failure or None) if native is not None else None

    @property
    def router_probabilities(self) -> bool:
        """Say whether the last step's graph showed the router's probabilities."""
        with self._life.reading():
            native = self._loaded.native
            return native is not None and native.router_probabilities

    @property
    def recording_ns(self) -> int:
        """Count the nanoseconds spent on recording a trace."""
        return self.counts().get("trace_ns", 0)

    def counts(self) -> dict[str, int]:
        """Give the core's counts (engine/counters.py; times in ns); {} where nothing is streamed."""
        with self._life.reading():
            return self._loaded.counts()

    def is_end(self, token: int) -> bool:
        """Say whether a token ends an answer."""
        with self._life.reading():
            (known,) = request.token_ids([token], int(self._loaded.llama.n_vocab()))
            return self._loaded.is_end(known)

    def stats(self) -> EngineStats:
        """Tell what the last answer cost, and how the engine runs. Times in ms, sizes in bytes."""
        with self._life.reading():
            return report.stats_of(self._loaded)

    # --- running it ---

    def tokenize(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Turn text into token ids.

        special: control tokens may be written in it; in what `render` returns, only by the template.
        bos: begin with BOS, and end a plain text with EOS, if the model wants them; never twice.
        """
        request.check_text(text, special=special, bos=bos)
        with self._life.reading():
            return self._loaded.words().encode(text, special=special, bos=bos)

    def evaluate(
        self, tokens: Sequence[int], *, reset: bool = True, every: bool = False
    ) -> npt.NDArray[np.float32]:
        """Run tokens through the model and return the logits [n_vocab] after the last one.

        reset: start from an empty context; otherwise go on after what came before. every: have the
        last layer too run every token, not just the last one, so that a trace has them all.

        Raises InputError for tokens the model does not have, more than the context holds, and a context
        to go on from that was lost with a failed step; ReadError where storage fails; UnsupportedError
        for a model that writes no text.
        """
        request.flags(reset=reset, every=every)
        with self._life.running():
            loaded = self._loaded
            request.check_writes(loaded)
            ids = request.token_ids(tokens, int(loaded.llama.n_vocab()))
            if not ids:
                raise InputError("there are no tokens to evaluate")
            if reset:
                loaded.empty()
            elif loaded.lost:
                raise InputError(
                    "the context went with the step that failed or was stopped (this model's layers "
                    "cannot take tokens back): begin anew with reset=True"
                )
            loaded.check_room(loaded.llama.n_tokens + len(ids))
            if loaded.native is not None:
                loaded.native.check_unchanged()
            before = loaded.counts() if loaded.observers else {}
            clock = time.perf_counter()
            with loaded.computing():
                if every:
                    loaded.evaluate_every(ids)
                else:
                    loaded.llama.eval(ids)
            if loaded.observers:
                phase = "prefill" if reset or len(ids) > 1 else "decode"
                loaded.tell(phase, len(ids), clock, time.perf_counter(), before)
            loaded.check_finite()
            return loaded.logits()

    def embed(self, text: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """Compute the vector [n_embd] of a text, or of its tokens, as llama.cpp gives it: not normalised.

        For models whose header says how tokens are pooled; others raise UnsupportedError. Forgets the
        context. Raises InputError for a text that is empty or too long for one step (`n_ubatch`).
        """
        with self._life.running():
            loaded = self._loaded
            if isinstance(text, str):
                ids = loaded.words().encode(text, special=False, bos=True)
            else:
                ids = request.token_ids(text, int(loaded.llama.n_vocab()))
            embedding.check(loaded, len(ids))
            loaded.empty()
            try:
                return embedding.compute(loaded, StepBatch(len(ids)), 0, ids)
            finally:
                if loaded.llama is not None:
                    loaded.empty()

    @property
    def longest_embedded(self) -> int:
        """Give the tokens that a text to be embedded may have. Raises UnsupportedError as `embed`."""
        with self._life.reading():
            embedding.require_pooling(self._loaded)
            return embedding.longest(self._loaded)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 256,
        temperature: float = request.TEMPERATURE,
        top_k: int = 40,
        top_p: float = request.TOP_P,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        logprobs: int | None = None,
        grammar: Any = None,
        special: bool = False,
        bos: bool = True,
        form: AnswerForm | None = None,
        on_reasoning: Callable[[str], object] | None = None,
    ) -> Answer:
        """Return the continuation of a prompt, which is computed as its pieces are read.

        prompt: text, or token ids. max_tokens: None goes on until the context is full. temperature: 0
        is greedy. top_k: 0 chooses among all. logit_bias: what to add to the logits of token ids; -100
        bans one. stop: a string or several, at the first of which the answer ends, before it.
        logprobs: keep each token's log probability, and of so many of the likeliest in its place.
        grammar: a `llama_cpp.LlamaGrammar`. special: the prompt may have special tokens. form: how the
        model writes an answer, `form` of what `render` returned. on_reasoning: called with the
        reasoning, which is not in the pieces but in `Answer.reasoning`.

        Raises InputError for an argument that makes no sense, a prompt that does not fit the context,
        and while another answer runs.
        """
        self._life.check_free()
        with self._life.reading():
            asked = request.asked(
                self._loaded, prompt, special=special, bos=bos, form=form, grammar=grammar,
                max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                min_p=min_p, repeat_penalty=repeat_penalty, frequency_penalty=frequency_penalty,
                presence_penalty=presence_penalty, logit_bias=logit_bias, seed=seed, stop=stop,
                logprobs=logprobs,
            )  # fmt: skip
            produced = Produced.of(asked, on_reasoning)
            pieces = generation.pieces(self._loaded, asked, produced)
            return Answer(produced, pieces, self._life, self)

    def batch(self, schedule: Schedule | None = None) -> ContinuousBatch:
        """Answer several requests at a time (`parallel` in the settings), a step at a time.

        schedule: decides whose step is next. Until it is closed, the engine gives no other answer.
        Raises InputError while another answer runs.
        """
        self._life.check_free()
        return ContinuousBatch(self._loaded, schedule or Schedule(), engine=self)

    def chat(self, messages: Sequence[Message], **settings: Any) -> Answer:
        """Return the answer to a conversation of {"role", "content"} messages.

        It goes on from a last message of the assistant's. Settings are those of `generate`. Raises as
        that, and UnsupportedError when the model has no chat template, ModelError when it fails.
        """
        prompt, stop, bos = self.render(messages)
        settings.setdefault("stop", stop)
        return self.generate(prompt, special=True, bos=bos, **settings)

    def render(
        self, messages: Sequence[Message], **settings: Any
    ) -> tuple[Prompt, list[str], bool]:
        """Write a conversation as the model's template does: (text, stop strings, add a BOS token?).

        Settings are those of `ChatTemplate.render`. Give the text whole to `tokenize` or `generate`.
        """
        with self._life.reading():
            return self._loaded.templates().write(messages, **settings)

    def misses_by_layer(self) -> list[int] | None:
        """Count the misses of each layer with experts since loading; None where nothing is streamed."""
        with self._life.reading():
            native = self._loaded.native
            return None if native is None else list(native.counts_by_layer()["misses"])

    def reset(self) -> None:
        """Forget the conversation so far; the experts stay resident."""
        with self._life.running():
            self._loaded.empty()

    @property
    def answer(self) -> AnswerStats:
        """Tell what the last answer cost. It goes with version 0.3: ask the `Answer` itself."""
        return self._loaded.last

    # --- being observed ---

    def add_observer(self, observer: Observer) -> None:
        """Tell `observer` of every step from now on; what it raises ends that, and is noted."""
        with self._life.reading():
            self._loaded.observers.add(observer, self._loaded.facts())

    def remove_observer(self, observer: Observer) -> None:
        """Tell `observer` no more."""
        self._loaded.observers.remove(observer)

    watch, unwatch = add_observer, remove_observer  # their names until version 0.3

    # --- its end ---

    def close(self) -> None:
        """Free the model, its context and the cache, and write what features keep. Idempotent.

        An answer that runs is cut off. From another thread, the step that is being computed is stopped
        and waited for; from within a step (an observer, a signal handler) it takes effect after it. In
        a forked child it does nothing. Raises ReadError where a file cannot be written.
        """
        self._life.close(lambda: self._loaded.free(save=True), self._loaded.interrupt)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise InputError("an engine cannot be copied or sent to another process: make one there")
