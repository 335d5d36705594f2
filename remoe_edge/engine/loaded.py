"""A loaded model: everything that an engine and its answers work with, and how it is freed."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from remoe_edge.engine import lifecycle, lossy
from remoe_edge.engine.budget import Budget
from remoe_edge.engine.finite import require_finite
from remoe_edge.engine.interrupt import interruptible
from remoe_edge.engine.llama import Buffers
from remoe_edge.engine.notes import Notes
from remoe_edge.engine.observers import Observers, Step
from remoe_edge.engine.offload import Offload
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.errors import InputError, ModelError, RemoeError
from remoe_edge.native import WAIT_POLICY, _core, llama_cpp

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel
    from remoe_edge.engine.answer import Answer
    from remoe_edge.engine.chat_template import ChatTemplate
    from remoe_edge.engine.draft_governor import Governor
    from remoe_edge.engine.elastic import Elastic
    from remoe_edge.engine.extensions import (
        Functions,
        PlanKeeper,
        Profile,
        PromptMemory,
        TraceRecording,
    )
    from remoe_edge.engine.heads import Heads
    from remoe_edge.engine.settings import EngineSettings
    from remoe_edge.engine.tokenizer import Tokenizer

_low = llama_cpp.llama_cpp

ROUTED_STEP = 64  # tokens that outputs are computed for at once: each takes a row of the vocabulary


class Loaded:
    """Hold one loaded model. Filled in by `loading.load`; used between `life.running` and its end.

    native: None where nothing is streamed. llama: a `llama_cpp.Llama`, None until it is there and after
    `free`. lost: the context had to be emptied, and whoever continues it must know.
    """

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        self.path = path
        self.settings = settings
        self.notes = Notes()
        self.life = lifecycle.Lifecycle()
        self.observers = Observers(self.notes.append, self._cache_now)
        self.buffers = Buffers()
        self.last_words: _core.LastWords | None = None  # where llama.cpp ends the process
        self.native: StreamedModel | None = None
        self.llama: Any = None
        self._row_type: Any = None  # c_float * n_vocab
        self.tokenizer: Tokenizer | None = None  # with `llama`
        self.template: ChatTemplate | None = None
        self.streamed = False  # experts come from storage; holds after `free` too
        self.n_ctx = 0  # of each conversation
        self.n_places = 1  # conversations that the context holds
        self.pooling = ""  # how tokens' vectors become a text's, where the model embeds
        self.budget: Budget | None = None
        self.elastic: Elastic | None = None  # while the cache follows what memory is free
        self.keeper: PlanKeeper | None = None  # while it follows a plan
        self.offload = Offload()
        self.load_ms = 0.0
        self.heads: Heads | None = None  # the model's own, where they guess tokens
        self.governors: list[Governor] = []  # of guesses, once some were made
        self.lossy = ""  # the means by which it does without experts
        self.lost = False
        self.profile: Profile | None = None
        self.past_prompts: PromptMemory | None = None
        self.trace: TraceRecording | None = None
        self.functions: Functions | None = None
        self.answer: Callable[[], Answer | None] = lambda: None  # the last one that was begun
        self.last = AnswerStats()  # its stats

    # --- what it is ---

    def _cache_now(self) -> tuple[int, int]:
        native = self.native
        return (native.n_slots, native.budget_bytes) if native is not None else (0, 0)

    @property
    def recurrent(self) -> bool:
        """Say whether layers keep a state from which tokens cannot be taken back."""
        return bool(self.llama._is_recurrent or self.llama._is_hybrid)

    @property
    def encodes(self) -> bool:
        """Say whether the model keeps no context: it makes vectors of texts, and can continue none."""
        return not _low.llama_get_memory(self.llama.ctx)

    def counts(self) -> dict[str, int]:
        """Give the core's counts so far; none where nothing is streamed."""
        return self.native.counts() if self.native is not None else {}

    def is_end(self, token: int) -> bool:
        """Say whether a token ends an answer."""
        return self.words().is_end(token)

    def words(self) -> Tokenizer:
        """Give the vocabulary of the model, which is loaded."""
        assert self.tokenizer is not None
        return self.tokenizer

    def templates(self) -> ChatTemplate:
        """Give the chat templates of the model, which is loaded."""
        assert self.template is not None
        return self.template

    def logits(self, index: int = -1) -> npt.NDArray[np.float32]:
        """Copy the logits [n_vocab] of a token of the last step; by default of the last."""
        row = self.row(index)
        if row is None:
            raise RemoeError("llama.cpp has computed no logits yet")
        copied: npt.NDArray[np.float32] = row.copy()
        return copied

    def check_room(self, n_tokens: int) -> None:
        """Raise InputError where a conversation of so many tokens does not fit its context."""
        if n_tokens > self.n_ctx:
            raise InputError(
                f"{n_tokens} tokens do not fit the context of {self.n_ctx}: raise --ctx or shorten the "
                "prompt"
            )

    def row(self, index: int) -> npt.NDArray[np.float32] | None:
        """Give the logits [n_vocab] of a token of the last step, by its index in the batch; -1: the last.

        They are llama.cpp's own memory, until it computes again.
        """
        row = _low.llama_get_logits_ith(self.llama.ctx, index)
        if not row:
            return None
        if self._row_type is None:  # made once: ctypes is slow at it
            self._row_type = ctypes.c_float * int(self.llama.n_vocab())
        there = self._row_type.from_address(ctypes.addressof(row.contents))
        return np.frombuffer(there, np.float32)

    def check_finite(self, index: int = -1) -> None:
        """Raise ModelError where logits of the last step are no numbers; forget the context then."""
        row = self.row(index)
        if row is None:
            return
        try:
            require_finite(row, self.llama.n_tokens, self.path)
        except ModelError:
            self.empty()  # what follows must not be computed from it
            raise

    def facts(self) -> dict[str, Any]:
        """Tell what holds as long as this model is loaded. Times in ms, sizes in bytes."""
        facts: dict[str, Any] = {
            "model": str(self.path),
            "model_bytes": self.path.stat().st_size,
            "architecture": self.llama.metadata.get("general.architecture"),
            "settings": self.settings.to_dict(),
            "streamed": self.streamed,
            **({"lossy": self.lossy} if self.lossy else {}),
            "threads": self.settings.n_cores,
            "n_ctx": self.n_ctx,
            "load_ms": round(self.load_ms, 3),
            "wait_policy": WAIT_POLICY,
            "notes": list(self.notes),
        }
        if self.offload.n_layers:
            facts["gpu"] = {
                "layers": self.offload.n_layers,
                "of": self.offload.n_in_all,
                "experts": self.offload.experts_on is not None,
                "devices": [f"{each.name}: {each.description}" for each in self.offload.gpus],
            }
        if self.native is not None and self.budget is not None:
            facts |= {
                "budget_bytes": self.native.budget_bytes,
                "slots": self.native.n_slots,
                "policy": self.native.policy,
                "expert_bytes": self.native.expert_bytes,
                "dense_bytes": self.native.dense_bytes,
                "io": dict(self.native.io),
            }
        return facts

    # --- running it ---

    @contextlib.contextmanager
    def computing(self, recover: Callable[[], None] | None = None) -> Iterator[None]:
        """Have llama.cpp compute in the block; turn its bare return codes into what went wrong.

        A step that does not end leaves the state of a recurrent layer somewhere between two tokens, from
        where it cannot be taken back: the context is emptied then. recover: does less than that, for
        who knows whose state it was.
        """
        try:
            with interruptible(self.native, lambda: self.life.closing):
                yield
        except BaseException as error:
            (recover or self._empty_if_recurrent)()
            if isinstance(error, RuntimeError) and not isinstance(error, RemoeError):
                self._raise_failure(error)
            raise
        finally:
            self.note_peers()
            if self.elastic is not None:
                self.elastic.between_steps()

    @property
    def asks_peers(self) -> bool:
        """Say whether experts may be computed elsewhere."""
        return bool(self.settings.peers) or self.functions is not None

    def note_peers(self) -> None:
        """Take into the notes what peers have given cause for."""
        if self.native is not None and self.asks_peers:
            for about, text in _core.take_peer_lines(self.native):
                self.notes.renew(about, text)

    def _raise_failure(self, error: RuntimeError) -> None:
        if "llama_decode" not in str(error):
            return
        if self.life.closing:
            raise InputError("the engine is closed") from None
        if self.native is not None:
            if self.native.interrupted:
                raise KeyboardInterrupt from None
            self.native.raise_failure()
        raise RemoeError(f"llama.cpp could not compute: {error}") from error

    def _empty_if_recurrent(self) -> None:
        if self.llama is not None and self.recurrent:
            self.empty()
            self.lost = True

    def empty(self) -> None:
        """Forget the context; the experts stay resident."""
        self.llama.reset()
        if not self.encodes:
            self.llama._ctx.kv_cache_clear()
        self.lost = False

    def evaluate_every(self, tokens: list[int]) -> None:
        """Go on in the context, with outputs for every token, so that the last layer runs them all."""
        llama = self.llama
        step = min(ROUTED_STEP, llama.n_batch)
        for begin in range(0, len(tokens), step):
            some = tokens[begin : begin + step]
            at = llama.n_tokens
            llama._batch.set_batch(batch=some, n_past=at, logits_all=True)
            llama._ctx.decode(llama._batch)
            llama.input_ids[at : at + len(some)] = some
            llama.n_tokens = at + len(some)

    def warm(self) -> None:
        """Begin to read hot experts into what is free of the cache; the next step ends it.

        Never where answers depend on what the cache holds: how far this comes, the clock says.
        """
        if self.profile is None or self.native is None or lossy.by_residents(self.settings):
            return
        self.native.warm(self.profile.hot())

    def tell(
        self, phase: str, n_tokens: int, start_s: float, end_s: float, before: Mapping[str, int]
    ) -> dict[str, int]:
        """Tell the observers of a step; return the counts after it."""
        counts = self.counts()
        spent = Step.between(before, counts)
        self.observers.step(Step(phase, n_tokens, start_s, end_s, **spent))
        return counts

    # --- ending it ---

    def interrupt(self) -> None:
        """Stop the step that another thread computes, at its next layer."""
        if self.native is not None:
            self.native.interrupt()

    def free(self, *, save: bool) -> None:
        """Free the model, its context and the cache; nobody is inside, and nobody will be.

        save: write the files that features keep, too.
        """
        answer = self.answer()
        if self.elastic is not None:
            self.elastic.close()
        try:
            if answer is not None:
                answer.cut_off()
            if self.functions is not None:
                self.functions.close()
            self.observers.close()
            if save:
                self._save()
        finally:
            if self.heads is not None:
                self.heads.close()
            if self.llama is not None:
                self.llama.close()
            # After the llama_model: its buffers lead back to this. Whatever else holds the native model
            # goes, too, or its cache, threads and files would stay as long as the engine is held.
            self.heads = self.elastic = self.keeper = None
            self.profile = self.past_prompts = self.trace = None
            self.llama = self.native = self.tokenizer = self.template = None
            self.last_words = None

    def _save(self) -> None:
        """Write each file, whatever becomes of the others. Raises the last error there was."""
        with contextlib.ExitStack() as stack:
            if self.trace is not None:
                stack.callback(self.trace.close)
            if self.past_prompts is not None:
                stack.callback(self.past_prompts.save)
            self._save_profile()

    def _save_profile(self) -> None:
        native = self.native
        if self.profile is None or native is None:
            return
        uses = native.uses()
        if uses.any():
            steps = self.counts()["events"] / native.n_layers
            self.profile.save(uses, steps, native.n_layers, native.n_experts)


def abandon(loaded: Loaded) -> None:
    """Free a model whose engine was dropped, or is still there as the interpreter ends.

    Features' files are left as they are: they are written when an engine is closed.
    """
    with contextlib.suppress(Exception):
        loaded.life.close(lambda: loaded.free(save=False), loaded.interrupt, timeout_s=5.0)
