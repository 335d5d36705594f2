"""Write a conversation as a model's own chat template does.

The template comes out of the model, of any size. It is compiled when a conversation is first written,
so a model whose template is broken still continues plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remoe_edge.engine import metadata
from remoe_edge.engine.channels import MESSAGE_END, AnswerForm, channels_of
from remoe_edge.engine.continued import Continued, begun
from remoe_edge.engine.prompt import Guard, Prompt
from remoe_edge.engine.template_sandbox import Template, TemplateFailed
from remoe_edge.engine.tokenizer import Tokenizer
from remoe_edge.errors import InputError, ModelError, UnsupportedError

Message = Mapping[str, Any]

DEFAULT, TOOL_USE = "default", "tool_use"
# What a template may end a turn with where the vocabulary has no token for it.
_MARKER = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{1,32}\]")
_PROBE = "answer"
# What a template may ask for besides the messages; None where there is none, as transformers has it.
_LISTS = ("tools", "documents", "functions")


def sources(llama: Any) -> dict[str, bytes]:
    """Return a model's chat templates by name; `default` is the one without a name in the file."""
    found = {}
    for key, text in metadata.values(llama._model.model).items():
        if not text.strip():
            continue  # an empty one is none
        if key == metadata.TEMPLATE:
            found[DEFAULT] = text
        elif key.startswith(f"{metadata.TEMPLATE}."):
            found.setdefault(key.removeprefix(f"{metadata.TEMPLATE}."), text)
    return found


def of(llama: Any) -> str | None:
    """Give the chat template of a `llama_cpp.Llama`, None if the model has none."""
    found = sources(llama)
    if not found:
        return None
    return found.get(DEFAULT, next(iter(found.values()))).decode("utf-8", "replace")


class ChatTemplate:
    """Hold a model's chat templates. `path` is named in errors."""

    def __init__(self, llama: Any, tokenizer: Tokenizer, path: Path) -> None:
        self._sources = sources(llama)
        self._compiled: dict[str, Template] = {}
        self._ends: dict[str, tuple[frozenset[int], tuple[str, ...]]] = {}
        self._tokenizer = tokenizer
        self._path = path

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        name: str | None = None,
        variables: Mapping[str, Any] | None = None,
        answering: bool = True,
    ) -> Prompt:
        """Write messages, and what makes the model answer, or go on where the assistant has begun to.

        answering: False writes whole turns and nothing after them.
        tools: given to the template as they are; `tool_use` is then taken where the model has it.
        name: which of several templates. variables: what this template takes besides, as
        `enable_thinking`. What `messages`, `tools` and `variables` spell of special tokens stays text.

        Raises UnsupportedError without a template, ModelError for one that fails, InputError for messages
        that are none.
        """
        _check_messages(messages)
        name = self._chosen(name, tools)
        source = self._source(name)
        continued = Continued()
        if answering:
            messages, continued = begun(messages, tools, variables, source)
        asking = answering and not continued.mark
        given = {"messages": list(messages), "tools": tools, **(variables or {})}
        guard = Guard(
            (each.text for each in self._tokenizer.specials if each.guarded), given, source
        )
        rendered = self._written(name, {"add_generation_prompt": asking, **guard.marked(given)})
        text, breaks = continued.cut(*guard.read(rendered))
        if not text.strip():
            raise self._failed(name, "it writes nothing of these messages")
        channels = channels_of(source, text, self._tokenizer)
        form = AnswerForm(self._turn_end(name)[0], continued.channels(channels))
        return Prompt(text, breaks, form)

    def write(
        self, messages: Sequence[Message], *, name: str | None = None, **settings: Any
    ) -> tuple[Prompt, list[str], bool]:
        """Render, and tell what else to do: (prompt, stop strings, add a BOS token?).

        There are stop strings only where the end of a turn is no token of the model.
        """
        prompt = self.render(messages, name=name, **settings)
        _, stop = self._turn_end(self._chosen(name, settings.get("tools")))
        bos = self._tokenizer.spelling(self._tokenizer.bos)
        return prompt, list(stop), self._tokenizer.adds_bos and not (bos and prompt.startswith(bos))

    def _chosen(self, name: str | None, tools: Sequence[Any] | None) -> str:
        names = sorted(self._sources)
        if not names:
            raise UnsupportedError(
                f"{self._path} has no chat template: it continues text and does not answer"
            )
        if name is None and tools and TOOL_USE in names:
            return TOOL_USE
        if name is None and DEFAULT not in names and len(names) == 1:
            return names[0]
        if (name or DEFAULT) not in names:
            known = ", ".join(names)
            raise UnsupportedError(
                f"{self._path} has no chat template '{name or DEFAULT}'; there are: {known}"
            )
        return name or DEFAULT

    def _source(self, name: str) -> str:
        try:
            return self._sources[name].decode()
        except UnicodeDecodeError as error:
            raise self._failed(name, f"it is no UTF-8: {error}") from error

    def _failed(self, name: str, why: str) -> ModelError:
        which = "" if name == DEFAULT else f" '{name}'"
        return ModelError(
            f"the chat template{which} of {self._path} fails: {why}; --raw needs none"
        )

    def _written(self, name: str, variables: Mapping[str, Any]) -> str:
        spelling, tokenizer = self._tokenizer.spelling, self._tokenizer
        usual = {"bos_token": spelling(tokenizer.bos), "eos_token": spelling(tokenizer.eos)}
        given = {key: each for key, each in variables.items() if each is not None}
        try:
            if name not in self._compiled:
                self._compiled[name] = Template(self._source(name))
            template = self._compiled[name]
            try:
                return template.render({**dict.fromkeys(_LISTS), **usual, **given})
            except TemplateFailed:
                # Some go through the tools without a look whether there are any.
                with suppress(TemplateFailed):
                    return template.render({**{key: [] for key in _LISTS}, **usual, **given})
                raise
        except TemplateFailed as error:
            raise self._failed(name, str(error)) from error

    def _turn_end(self, name: str) -> tuple[frozenset[int], tuple[str, ...]]:
        """Tell how a template ends the assistant's turn: by which token, or else by which text."""
        if name not in self._ends:
            self._ends[name] = self._find_turn_end(name)
        return self._ends[name]

    def _find_turn_end(self, name: str) -> tuple[frozenset[int], tuple[str, ...]]:
        messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": _PROBE},
        ]
        try:
            text = self._written(name, {"messages": messages, "add_generation_prompt": False})
            asks = self._written(name, {"messages": messages[:1], "add_generation_prompt": True})
        except ModelError:
            return frozenset(), ()  # it writes no such conversation; its vocabulary knows the ends
        after = text[text.rfind(_PROBE) + len(_PROBE) :].strip() if _PROBE in text else ""
        for special in self._tokenizer.specials:
            # What stands last ends the turn; tokens before it may end but a part of an answer. Some
            # templates always ask for the next turn: what ends that ends none.
            if special.guarded and after.endswith(special.text):
                if asks.rstrip().endswith(special.text):
                    break
                return frozenset([special.token]) - self._between_messages, ()
        return frozenset(), (after,) if _MARKER.fullmatch(after) else ()

    @property
    def _between_messages(self) -> frozenset[int]:
        """Give tokens that llama.cpp knows to end a message, of which an answer may have several."""
        end = self._tokenizer.special(MESSAGE_END)
        if end is None or self._tokenizer.is_end(end.token):
            return frozenset()
        return frozenset([end.token])


def _check_messages(messages: Any) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError("messages are a list of {role, content}")
    for each in messages:
        if not isinstance(each, Mapping):
            raise InputError(f"a message is {{role, content}}, not {type(each).__name__}")
        if not isinstance(each.get("role", ""), str):
            raise InputError(f"a message's role is a text, not {type(each['role']).__name__}")
    if not messages:
        raise InputError("there are no messages")
