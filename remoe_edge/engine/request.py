"""What an answer is asked for: checked before anything is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from remoe_edge.engine.channels import PLAIN, AnswerForm
from remoe_edge.engine.prompt import Prompt
from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.native import llama_cpp

if TYPE_CHECKING:
    from remoe_edge.engine.loaded import Loaded

_INT32_MAX = 2**31 - 1
_NEVER = -100.0  # a bias of this or less bans a token, as OpenAI has it
# Finite: where a grammar allows banned tokens alone, llama.cpp would find none, and end the process.
_BANNED = -1e9
_SEED_END = 2**32 - 1  # llama.cpp takes this one for "any"
MAX_LOGPROBS = 1 << 20
TEMPERATURE, TOP_P = 0.7, 0.95  # unless others are asked for


@dataclass(frozen=True)
class Request:
    """Hold a prompt's token ids and how to answer it; made by `checked`."""

    tokens: list[int]
    max_tokens: int
    sampling: dict[str, Any]
    stop: tuple[str, ...]
    seed: int | None
    logprobs: int | None
    form: AnswerForm


def check_writes(loaded: Loaded) -> None:
    """Raise UnsupportedError for a model that keeps no context, and says nothing of next tokens."""
    if loaded.encodes:
        raise UnsupportedError(f"{loaded.path.name} makes embeddings, and writes no text")


def asked(
    loaded: Loaded,
    prompt: str | Sequence[int],
    *,
    special: bool = False,
    bos: bool = True,
    form: AnswerForm | None = None,
    grammar: Any = None,
    **sampling: Any,
) -> Request:
    """Check all that an answer of a loaded model is asked for; arguments are those of `generate`.

    Raises InputError for an argument that makes no sense, and a prompt that does not fit the context;
    UnsupportedError for a model that writes no text.
    """
    flags(special=special, bos=bos)
    check_writes(loaded)
    check_grammar(grammar, loaded.llama._model.vocab)
    n_vocab = int(loaded.llama.n_vocab())
    if isinstance(prompt, str):
        tokens = loaded.words().encode(prompt, special=special, bos=bos)
    else:
        tokens = token_ids(prompt, n_vocab)
    if not tokens:
        raise InputError("the prompt is empty")
    loaded.check_room(len(tokens) + 1)
    if form is None:
        form = prompt.form if isinstance(prompt, Prompt) else PLAIN
    return checked(tokens, n_vocab=n_vocab, grammar=grammar, form=form, **sampling)


def checked(
    tokens: list[int],
    *,
    n_vocab: int,
    form: AnswerForm,
    grammar: Any = None,
    max_tokens: int | None = 256,
    temperature: float = TEMPERATURE,
    top_k: int = 40,
    top_p: float = TOP_P,
    min_p: float = 0.05,
    repeat_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = (),
    logprobs: int | None = None,
) -> Request:
    """Check every argument of an answer. Raises InputError, which names it and what it may be."""
    sampling = {
        "temp": number("temperature", temperature, 0),
        "top_k": whole("top_k", top_k, 0, _INT32_MAX),
        "top_p": number("top_p", top_p, 0, 1),
        "min_p": number("min_p", min_p, 0, 1),
        "repeat_penalty": number("repeat_penalty", repeat_penalty, 0),
        "frequency_penalty": number("frequency_penalty", frequency_penalty, -math.inf),
        "presence_penalty": number("presence_penalty", presence_penalty, -math.inf),
        "logits_processor": bias(logit_bias, n_vocab),
        "grammar": grammar,
    }
    if sampling["repeat_penalty"] == 0:
        raise InputError("repeat_penalty is above 0, not 0")
    if not isinstance(form, AnswerForm):
        raise InputError(f"form is what `render` returned, not {form!r}")
    return Request(
        tokens,
        _INT32_MAX if max_tokens is None else whole("max_tokens", max_tokens, 0),
        sampling,
        stop_strings(stop),
        None if seed is None else whole("seed", seed, 0, _SEED_END - 1),
        None if logprobs is None else whole("logprobs", logprobs, 0, MAX_LOGPROBS),
        form,
    )


def bias(wanted: Mapping[int, float] | None, n_vocab: int) -> Any:
    """Make what adds to the logits of tokens before they are sampled; None where nothing is added.

    Raises InputError for a token the model does not have, and for what is no finite number.
    """
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        raise InputError(f"logit_bias is a mapping from token ids to numbers, not {wanted!r}")
    if not wanted:
        return None
    ids = token_ids(list(wanted), n_vocab)
    added = [number(f"logit_bias of {key}", each, -math.inf) for key, each in wanted.items()]
    values = np.array([_BANNED if each <= _NEVER else each for each in added], np.float32)

    def add(_: Any, logits: Any) -> Any:
        logits[ids] += values
        return logits

    return llama_cpp.LogitsProcessorList([add])


def check_grammar(grammar: Any, vocab: Any) -> None:
    """Raise InputError for what is no grammar or does not parse: llama.cpp would sample from nothing."""
    if grammar is None:
        return
    if not isinstance(grammar, llama_cpp.LlamaGrammar):
        raise InputError(f"grammar is a llama_cpp.LlamaGrammar, not {type(grammar).__name__}")
    low, text = llama_cpp.llama_cpp, grammar._grammar
    made = low.llama_sampler_init_grammar(vocab, text.encode(), grammar._root.encode())
    if not made or not text.strip():
        raise InputError("the grammar does not parse; it is GBNF with a rule named root")
    low.llama_sampler_free(made)


def token_ids(tokens: Sequence[int], n_vocab: int) -> list[int]:
    """Check token ids. Raises InputError for none at all, and for one the model does not have."""
    if isinstance(tokens, str | bytes):
        raise InputError("tokens are numbers, not text: see `tokenize`")
    try:
        ids = [operator.index(each) for each in tokens]
    except TypeError as error:
        raise InputError(f"tokens are whole numbers: {error}") from None
    for each in ids:
        if not 0 <= each < n_vocab:
            raise InputError(f"{each} is no token: the model has tokens 0 to {n_vocab - 1}")
    return ids


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Take one stop string or several. Raises InputError for an empty one, and for what is no text."""
    if stop is None:
        return ()
    if isinstance(stop, str):
        stop = [stop]
    try:
        strings = tuple(stop)
    except TypeError:
        raise InputError(f"stop is a string or several, not {stop!r}") from None
    for each in strings:
        if not isinstance(each, str):
            raise InputError(f"a stop string is text, not {each!r}")
        if not each:
            raise InputError("a stop string is empty: it would end every answer at once")
    return strings


def check_text(text: object, **options: object) -> None:
    """Raise InputError for what is no text, and for an option that is neither True nor False."""
    if not isinstance(text, str):
        raise InputError(f"what is tokenized is text, not {text!r}")
    flags(**options)


def flags(**given: object) -> None:
    """Raise InputError for what is neither True nor False: the text "no" would count as yes."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is True or False, not {value!r}")


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Check a whole number. Raises InputError with the range it may have."""
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise InputError(f"{name} is a whole number, not {value!r}")
    if most is None and found < least:
        raise InputError(f"{name} is below {least}: {found}")
    if most is not None and not least <= found <= most:
        raise InputError(f"{name} is {least} to {most}, not {found}")
    return found


def number(name: str, value: object, least: float, most: float = math.inf) -> float:
    """Check a finite number. Raises InputError with the range it may have."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool | str) or not (math.isfinite(found) and least <= found <= most):
        upper = f" to {most:g}" if math.isfinite(most) else " or more"
        allowed = f"{least:g}{upper}" if math.isfinite(least) else "a finite number"
        raise InputError(f"{name} is {allowed}, not {value!r}")
    return found
