"""From a path and settings to a loaded model with its cache, step by step."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from remoe_edge.engine import attaching, contexts, embedding, lossy, offload, peers
from remoe_edge.engine import budget as budgets
from remoe_edge.engine.chat_template import ChatTemplate
from remoe_edge.engine.draft_governor import MOST_GUESSES
from remoe_edge.engine.elastic import Elastic
from remoe_edge.engine.extensions import (
    FeatureFile,
    Functions,
    Planner,
    Profile,
    PromptMemory,
    StartObservers,
    TraceRecording,
)
from remoe_edge.engine.heads import Heads, check_heads
from remoe_edge.engine.interrupt import held_back
from remoe_edge.engine.lifecycle import check_threads, keep_in_children
from remoe_edge.engine.llama import NativeLoad, listening, make_llama
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.engine.tokenizer import Tokenizer
from remoe_edge.errors import InputError, ModelError, RemoeError, UnsupportedError
from remoe_edge.files.atomic import cut_short
from remoe_edge.files.path_argument import path_argument
from remoe_edge.native import _core, llama_cpp

_low = llama_cpp.llama_cpp

Progress = Callable[[float], bool]


@dataclass(frozen=True)
class Extensions:
    """Hold what features have handed in (engine/extensions.py); None and nothing where they have not."""

    profile: FeatureFile[Profile] | None = None
    past_prompts: FeatureFile[PromptMemory] | None = None
    trace: FeatureFile[TraceRecording] | None = None
    planner: Planner | None = None
    functions: Functions | None = None
    start_observers: StartObservers | None = None


def load(
    path: str | bytes | os.PathLike[str],
    settings: EngineSettings,
    extensions: Extensions,
    progress: Progress | None,
) -> Loaded:
    """Load a model. Raises RemoeError of the kind that says what to do; then nothing is left over."""
    started = time.perf_counter()
    path = path_argument("the model's path", path)
    if not os.path.isfile(path):  # False too where a folder may not be searched
        raise InputError(f"no model at {path}{cut_short(path)}")
    if progress is not None and not callable(progress):
        raise InputError(f"progress is a function of a fraction, not {progress!r}")
    check_threads(settings.n_cores)
    file = _core.ModelFile.open(str(path))
    file.check()
    peers.check(file, settings)
    check_heads(file, settings.draft)
    lossy.refuse_other_features(
        settings, functions=extensions.functions is not None, trace=extensions.trace is not None
    )
    loaded = Loaded(path, settings)
    loaded.last_words = _core.LastWords(str(path))
    loaded.native = _open_native(loaded, file)
    loaded.streamed = loaded.native is not None
    lossy.prepare(loaded)
    if loaded.streamed:
        loaded.functions = extensions.functions
    elif extensions.functions is not None:
        loaded.notes.append("functions are not used: no experts are streamed")
    _open_files(loaded, extensions)
    loaded.pooling = embedding.pooling_of(file)
    trained = file.unsigned(f"{file.architecture}.context_length")
    loaded.n_ctx = settings.context(trained)
    loaded.n_places = settings.parallel or contexts.fitting(loaded, file)
    weight_bytes = file.dense_bytes if loaded.streamed else path.stat().st_size
    loaded.offload = offload.resolve(
        "off" if loaded.lossy else settings.gpu_layers,
        file, weight_bytes, loaded.n_ctx * loaded.n_places,
        experts_on="" if loaded.native is None else loaded.native.experts_on,
    )  # fmt: skip
    loaded.buffers.elsewhere = loaded.offload.names_elsewhere
    contexts.check(loaded, file)
    contexts.note_sizes(loaded)
    cache = _planned(loaded, extensions.planner)
    before = time.perf_counter()
    observers = (extensions.start_observers or _nobody)(loaded.notes.append)
    started += time.perf_counter() - before  # the idle window is no loading
    try:
        with held_back() as pressed, _raising_later(progress) as report:
            loaded.llama = _load_llama(loaded, lambda fraction: not pressed() and report(fraction))
            keep_in_children(loaded.llama)
            loaded.tokenizer = Tokenizer(loaded.llama)
            loaded.template = ChatTemplate(loaded.llama, loaded.tokenizer, path)
            context = loaded.llama._ctx.ctx
            loaded.n_ctx = min(loaded.n_ctx, int(_low.llama_n_ctx_seq(context)))
            _prepare_draft(loaded)
            lossy.verify(loaded)
            attaching.lock(loaded)
            attaching.attach(loaded, cache)
            peers.connect(loaded)
            _begin_features(loaded, extensions)
    except BaseException:
        for observer in observers:
            observer.on_close()
        loaded.free(save=False)
        raise
    loaded.load_ms = (time.perf_counter() - started) * 1000
    for observer in (*observers, *([] if loaded.keeper is None else [loaded.keeper])):
        loaded.observers.add(observer, loaded.facts())
    return loaded


@contextlib.contextmanager
def _raising_later(progress: Progress | None) -> Iterator[Progress]:
    """Give a callback that cancels where `progress` raises; what it raised ends the block.

    An exception would be lost in llama.cpp, or worse, be met by the next line of its log.
    """
    raised: list[BaseException] = []

    def report(fraction: float) -> bool:
        if raised or progress is None:
            return not raised
        try:
            return bool(progress(fraction))
        except BaseException as error:
            raised.append(error)
            return False

    try:
        yield report
    except RemoeError:
        if raised:
            raise raised[0] from None
        raise


def _nobody(note: Callable[[str], None]) -> Sequence[Any]:
    return ()


def _open_native(loaded: Loaded, file: _core.ModelFile) -> _core.StreamedModel | None:
    settings = loaded.settings
    if not settings.stream:
        loaded.notes.append("not streamed: the model is loaded whole")
        if settings.routers is not None:
            raise InputError("tuned routers are applied while streaming: they need it on")
        return None
    if not file.expert_layers:
        loaded.notes.append("a dense model: there is nothing to stream, it is loaded whole")
        if settings.routers is not None:
            raise InputError(f"{loaded.path} has no routers for {settings.routers} to replace")
        return None
    overlay: dict[str, bytes] = {}
    if settings.routers is not None:
        from remoe_edge.files.overlay import load_overlay  # brings the gguf package in

        overlay = load_overlay(settings.routers, file)
    coarse = lossy.coarse_file(loaded.path, settings, file)
    native = _core.StreamedModel.open(
        str(loaded.path),
        backend=settings.io,
        direct=settings.direct,
        depth=settings.depth,
        repack=settings.repack,
        overlay=overlay,
        experts_on=offload.gpu_for_experts(settings.experts_on),
        peers=bool(settings.peers),
        coarse=None if coarse is None else str(coarse),
    )
    keep_in_children(native)
    return native


def _open_files(loaded: Loaded, extensions: Extensions) -> None:
    """Open what profile and past prompts there are, before minutes are spent on loading."""
    native = loaded.native
    profile, past, trace = extensions.profile, extensions.past_prompts, extensions.trace
    if native is None and trace is not None:
        raise InputError(f"{trace.path}: there is nothing to record, the model is not streamed")
    for each in (profile, past):
        if each is not None and native is None:
            loaded.notes.append(f"{each.path} is not used: no experts are streamed")
    if native is None:
        return
    if profile is not None:
        loaded.profile = profile.open(loaded.path, native)
        if loaded.profile.data is None:
            loaded.notes.append(f"no profile at {profile.path} yet: it begins with this run")
        elif lossy.by_residents(loaded.settings):
            loaded.notes.append(
                "the profile's hot experts are not read at first: answers with loss must not depend on "
                "the clock"
            )
    if past is not None:
        loaded.past_prompts = past.open(loaded.path, native)


def _planned(loaded: Loaded, planner: Planner | None) -> str:
    settings = loaded.settings
    if loaded.native is None or not budgets.is_plan(settings.cache):
        return settings.cache
    if planner is None:
        raise InputError(
            f"cache '{settings.cache}' takes a planner, which this engine was not given: "
            "`remoe_edge.Engine` has one"
        )
    choice = planner(loaded.path, settings.replace(n_ctx=loaded.n_ctx))
    loaded.notes.append(choice.why)
    loaded.keeper = choice.keeper
    if loaded.keeper is not None:
        loaded.keeper.says_to(loaded.notes.append)
    return str(choice.cache_bytes)


def _load_llama(loaded: Loaded, progress: Progress) -> Any:
    settings, native, n_ctx = loaded.settings, loaded.native, loaded.n_ctx
    native_load = None
    if native is not None:

        def load_model(params: Any) -> int:
            return int(native.load(ctypes.addressof(params), progress))

        native_load = NativeLoad(load_model, native)
    try:
        return make_llama(
            native_load,
            progress=progress,
            flash_attention=settings.flash_attention,
            repack=settings.repack,
            gpu_layers=loaded.offload.n_layers,
            buffers=loaded.buffers,
            verbose=settings.verbose,
            n_places=loaded.n_places,
            n_step=max(loaded.n_places, 1 if settings.draft == "off" else 1 + MOST_GUESSES),
            nextn=settings.draft == "mtp",
            model_path=str(loaded.path),
            n_ctx=n_ctx,
            n_batch=min(settings.n_batch, n_ctx),
            n_ubatch=min(settings.n_ubatch, n_ctx),
            n_threads=settings.n_cores,
            n_threads_batch=settings.n_cores,
        )
    except (ValueError, RuntimeError) as error:
        why = "; ".join(loaded.buffers.errors) or str(error)
        raise ModelError(f"llama.cpp refused {loaded.path}: {why}") from error


def _prepare_draft(loaded: Loaded) -> None:
    """Make what guesses. Raises UnsupportedError where wrong guesses could not be taken back."""
    draft = loaded.settings.draft
    if draft == "off":
        return
    if loaded.recurrent:
        raise UnsupportedError(
            f"--draft {draft}: {loaded.path} has recurrent layers, from whose state wrong guesses cannot "
            "be taken back: --draft off"
        )
    if draft == "mtp":
        with listening(loaded.buffers, loaded.settings.verbose):
            loaded.heads = Heads(loaded)
    elif n_heads := int(_low.llama_model_n_layer_nextn(loaded.llama.model)):
        loaded.notes.append(
            f"drafts come from the text: the {n_heads} layer{'s' * (n_heads > 1)} of this model that "
            "predict further tokens (MTP) are used with --draft mtp"
        )


def _begin_features(loaded: Loaded, extensions: Extensions) -> None:
    native, trace = loaded.native, extensions.trace
    if native is not None and loaded.past_prompts is not None and not native.expect(None):
        loaded.notes.append(f"policy {loaded.settings.policy} takes no notice of past prompts")
    if trace is not None and native is not None:
        loaded.trace = trace.open(loaded.path, native)
    if native is not None and loaded.budget is not None and loaded.budget.most_slots:
        ceiling = None if loaded.keeper is None else loaded.keeper.wanted
        elastic = Elastic(native, loaded.buffers.n_bytes["compute"], ceiling=ceiling)
        try:
            loaded.elastic = elastic.start()
        except RuntimeError as error:  # no thread is to be had
            elastic.close()
            loaded.notes.append(f"the cache does not follow the memory that is free: {error}")
    loaded.warm()
