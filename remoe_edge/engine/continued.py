"""A last message of the assistant, which the answer goes on from.

The template writes it as it writes any turn, with a mark where its text ends. What stands before the mark
is how the model's own turn begins; what ends the turn, behind it, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

from remoe_edge.engine.channels import Channels
from remoe_edge.engine.prompt import unused_character
from remoe_edge.errors import InputError


@dataclass(frozen=True)
class Continued:
    """Hold what the assistant has begun to say, and the character that marks its end. Nothing: ""."""

    text: str = ""
    mark: str = ""

    def cut(self, rendered: str, breaks: Sequence[int]) -> tuple[str, list[int]]:
        """Leave out the end of the turn. Raises InputError where the template writes another text."""
        if not self.mark:
            return rendered, list(breaks)
        begin, *ends = rendered.split(self.mark)
        said = self.text.strip()
        if len(ends) != 1 or not begin.endswith(said):
            raise InputError(
                "the answer cannot go on from the last message: the chat template does not write the "
                "assistant's text as it is; end with a message of the user"
            )
        # Templates may leave out the blanks at a text's end, which are part of what is said.
        blanks = self.text[len(self.text.rstrip()) :]
        return begin + blanks, [at for at in breaks if at < len(begin)]

    def channels(self, channels: Channels | None) -> Channels | None:
        """Give the channels of what follows: reasoning, where that was begun and not ended."""
        if channels is None or channels.pair is None or not self.mark:
            return channels
        opening, closing, _ = channels.pair
        return replace(channels, opened=self.text.rfind(opening) > self.text.rfind(closing))


def is_begun(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the assistant has begun to answer. Raises InputError where it has called tools."""
    last = messages[-1]
    if last.get("role") != "assistant":
        return False
    calls = last.get("tool_calls")
    if isinstance(calls, Sized) and len(calls):
        raise InputError("the last message calls tools: their results have to follow it")
    return True


def begun(
    messages: Sequence[Mapping[str, Any]], *beside: Any
) -> tuple[Sequence[Mapping[str, Any]], Continued]:
    """Mark the last message if it is the assistant's; one without a text is left out.

    beside: what else the template is given. Raises InputError for a message that no answer can go on
    from.
    """
    if not is_begun(messages):
        return messages, Continued()
    last = messages[-1]
    text = last.get("content")
    text = "" if text is None else text
    if not isinstance(text, str):
        raise InputError(
            "the answer goes on from the last message only where its content is a text"
        )
    if not text.strip():
        reasons = (last.get(name) for name in ("reasoning_content", "thinking"))
        if any(isinstance(each, str) and each for each in reasons):
            raise InputError(
                "the last message has reasoning and no text: the answer can go on from a text alone"
            )
        if len(messages) == 1:
            raise InputError("the only message is the assistant's, and has no text")
        return messages[:-1], Continued()
    mark = unused_character((messages, beside))
    marked = {**last, "content": text.rstrip() + mark}
    return [*messages[:-1], marked], Continued(text, mark)
