"""OpenAI's `/v1/completions`: a text is continued, without a chat template."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remoe_edge.engine.tokenizer import Tokenizer
from remoe_edge.serve.asks import MOST_ANSWERS, text_ask
from remoe_edge.serve.conversations import Ask
from remoe_edge.serve.events import Event, Finish, Text, TokenChoice, TokenText
from remoe_edge.serve.fields import BadField, Fields
from remoe_edge.serve.protocols.openai_chat import finish_reason, read_stream
from remoe_edge.serve.protocols.reply import Frame, Gathered, costs, new_id, now
from remoe_edge.serve.protocols.sampling import max_tokens, sampling, top_logprobs

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine

_DEFAULT_TOKENS = 16  # OpenAI's
_MOST_TOP = 5


@dataclass(frozen=True)
class CompletionRequest:
    """Hold what was asked for. prompts: each a text or token ids."""

    prompts: list[str | list[int]]
    sampling: dict[str, Any]
    n: int
    echo: bool
    stream: bool
    include_usage: bool


def read(fields: Fields) -> CompletionRequest:
    """Read a request. Raises BadField."""
    fields.text("model")
    prompts = texts_or_ids(fields.required("prompt"), "prompt", MOST_ANSWERS)
    settings = sampling(fields)
    n_tokens = max_tokens(fields, "max_tokens", least=0)
    settings["max_tokens"] = _DEFAULT_TOKENS if n_tokens is None else n_tokens
    echo = fields.flag("echo")
    if fields.has("logprobs") and echo:
        raise BadField("logprobs", "logprobs: with echo, those of the prompt cannot be had")
    top = top_logprobs(fields, "logprobs", _MOST_TOP)
    if top is not None:
        settings["logprobs"] = top
    stream, include_usage = read_stream(fields)
    n = fields.whole("n", 1, MOST_ANSWERS) or 1
    if n * len(prompts) > MOST_ANSWERS:
        raise BadField("n", f"{n * len(prompts)} answers are more than {MOST_ANSWERS}")
    fields.refuse("suffix", "this server continues a text and fills in none", unless=("",))
    fields.ignore("user")
    fields.end()
    return CompletionRequest(prompts, settings, n, echo, stream, include_usage)


def texts_or_ids(value: Any, param: str, most: int) -> list[str | list[int]]:
    """Read one text or several, each a text or token ids. Raises BadField."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise BadField(param, f"{param} is a text, or a list of texts or of token ids")
    if all(_is_id(each) for each in value):
        return [value]
    if not all(
        isinstance(each, str) or (isinstance(each, list) and all(map(_is_id, each)))
        for each in value
    ):
        raise BadField(param, f"{param} is a text, or a list of texts or of token ids")
    if len(value) > most:
        raise BadField(param, f"{param} has {len(value)} texts, and up to {most} may be")
    return list(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def asks(engine: Engine, asked: CompletionRequest) -> list[Ask]:
    """Tokenize the prompts and make their asks. Raises BadField, InputError."""
    found = []
    for prompt in asked.prompts:
        if isinstance(prompt, str):
            tokens = engine.tokenize(prompt, special=True)
        else:
            check_ids(engine, prompt, "prompt")
            tokens = list(prompt)
        found += text_ask(engine, tokens, asked.sampling, asked.n, "prompt")
    return found


def prompt_texts(engine: Engine, asked: CompletionRequest) -> list[str]:
    """Give the prompts as texts, to be echoed."""
    return [each if isinstance(each, str) else text_of(engine, each) for each in asked.prompts]


def text_of(engine: Engine, tokens: Sequence[int]) -> str:
    """Give the text of tokens."""
    words = Tokenizer(engine.llama)
    return b"".join(words.piece(token, special=True) for token in tokens).decode("utf-8", "replace")


def check_ids(engine: Engine, tokens: Sequence[Any], param: str) -> None:
    """Raise BadField for what is no token of the model."""
    n_vocab = int(engine.llama.n_vocab())
    if not all(_is_id(each) and 0 <= each < n_vocab for each in tokens):
        raise BadField(param, f"{param}: the model has tokens 0 to {n_vocab - 1}")


def _by_text(top: Sequence[TokenText]) -> dict[str, float]:
    """Name tokens by their texts. Parts of characters look alike: the likeliest of those is named."""
    found: dict[str, float] = {}
    for each in top:
        found.setdefault(each.data.decode("utf-8", "replace"), max(each.logprob, -9999.0))
    return found


class _Offset:
    """Say at which character of a text its tokens begin, one after another.

    Tokens may have parts of a character: it counts once, with the token that completes it.
    """

    def __init__(self, begin: int) -> None:
        self._at = begin
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, data: bytes) -> int:
        """Take the next token's bytes, and say where it begins."""
        at = self._at
        self._at += len(self._decoder.decode(data))
        return at


class CompletionReply:
    """Write chunks, or one completion. Implements `Reply`. echoed: a text for each prompt."""

    def __init__(self, asked: CompletionRequest, model: str, echoed: Sequence[str]) -> None:
        self._asked = asked
        self._echoed = [text for text in echoed for _ in range(asked.n)]
        self._head = {
            "id": new_id("cmpl-"), "object": "text_completion", "created": now(), "model": model,
        }  # fmt: skip
        self._answers = [Gathered() for _ in range(asked.n * len(asked.prompts))]
        self._offsets = self._at_the_beginning()

    def begin(self) -> Iterable[Frame]:
        """Write the prompts, where they are echoed."""
        for index, text in enumerate(self._echoed):
            yield None, self._of([self._choice(index, text)])

    def take(self, index: int, event: Event) -> Iterable[Frame]:
        """Write what happened."""
        self._answers[index].add(event)
        if isinstance(event, Text):
            yield None, self._of([self._choice(index, event.text, tokens=event.tokens)])
        elif isinstance(event, Finish):
            choice = self._choice(index, "", reason=event.reason, tokens=event.rest)
            yield None, {**self._of([choice]), "remoe_edge": costs(event)}

    def end(self) -> Iterable[Frame]:
        """Write the usage, where it is wanted, and the end."""
        if self._asked.include_usage:
            yield None, {**self._of([]), "usage": self._usage()}
        yield None, "[DONE]"

    def failed(self, status: int, body: dict[str, Any]) -> Iterable[Frame]:
        """Write an error."""
        yield None, body

    def whole(self) -> dict[str, Any]:
        """Write the completion."""
        echoed = self._echoed or [""] * len(self._answers)
        self._offsets = self._at_the_beginning()
        choices = [
            self._choice(
                i, echoed[i] + each.text, reason=finish_reason(each), tokens=each.tokens
            )
            for i, each in enumerate(self._answers)
        ]  # fmt: skip
        made = {**self._of(choices), "usage": self._usage()}
        finish = self._answers[-1].finish
        return made if finish is None else {**made, "remoe_edge": costs(finish)}

    def _usage(self) -> dict[str, int]:
        finished = [each.finish.usage for each in self._answers if each.finish is not None]
        n_in = sum(each.prompt_tokens for each in finished[:: self._asked.n])
        n_out = sum(each.completion_tokens for each in finished)
        return {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}

    def _choice(
        self,
        index: int,
        text: str,
        *,
        reason: str | None = None,
        tokens: Sequence[TokenChoice] = (),
    ) -> dict[str, Any]:
        logprobs = (
            self._logprobs(index, tokens)
            if self._asked.sampling.get("logprobs") is not None
            else None
        )
        reason = "stop" if reason == "cancelled" else reason
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, tokens: Sequence[TokenChoice]) -> dict[str, Any]:
        texts = [each.data.decode("utf-8", "replace") for each in tokens]
        offsets = [self._offsets[index].of(each.data) for each in tokens]
        top = [_by_text(each.top) for each in tokens]
        logprobs = [max(each.logprob, -9999.0) for each in tokens]
        return {
            "tokens": texts, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets,
        }  # fmt: skip

    def _at_the_beginning(self) -> list[_Offset]:
        return [_Offset(len(each)) for each in self._echoed or [""] * len(self._answers)]

    def _of(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices}
