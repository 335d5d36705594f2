"""Hold an answer to a form, and leave the reasoning before it free: llama.cpp's grammar sees both."""

from __future__ import annotations

from remoe_edge.engine.channels import CHANNEL, MESSAGE, MESSAGE_END, START, AnswerForm
from remoe_edge.serve.schemas import literal

_FREE = '( [^<\\[] | "<" [^/|\\[] | "[" [^/] )*'  # no closing marker begins in it
_BLANK = "[ \\n]? [ \\n]?"  # without a bound, small models write nothing else


def root_of(form: AnswerForm, body: str, *, is_call: bool) -> str:
    """Write the root of a grammar for an answer of `body`, after reasoning where the model has it.

    is_call: `body` writes the channel of its message itself, where there are channels.
    """
    channels = form.channels
    if channels is None:
        return f"( {body} )"
    if channels.pair is None:
        thoughts = (
            f"{literal(CHANNEL + 'analysis' + MESSAGE)} {_FREE} {literal(MESSAGE_END + START)}"
        )
        final = "" if is_call else literal(f"{CHANNEL}final{MESSAGE}")
        return f'( {thoughts} "assistant" )? {final} ( {body} )'
    opening, closing, _ = channels.pair
    rest = f"{_FREE} {literal(closing)} {_BLANK}"
    if channels.opened:
        return f"{rest} ( {body} )"
    return f"( {literal(opening)} {rest} )? ( {body} )"
