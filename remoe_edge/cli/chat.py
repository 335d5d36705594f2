"""`remoe-edge chat`: talk to a model whose experts stream from storage."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.conversation import Conversation
from remoe_edge.cli.engine_options import engine_options, open_engine
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.prompt import questions
from remoe_edge.cli.reasoning import ShownReasoning
from remoe_edge.cli.stats_lines import stats_lines
from remoe_edge.cli.telemetry_options import telemetry_options, watching
from remoe_edge.cli.terminal import as_text, say, stdin_text, write
from remoe_edge.errors import RemoeError

if TYPE_CHECKING:
    from remoe_edge.engine.answer import Answer

HELP = """\
/reset   forget the conversation; the experts stay resident
/stats   what the last answer cost, and how the model is run
/help    this
/exit    leave; so does Ctrl-D
Ctrl-C stops an answer. A line that ends in a backslash goes on in the next."""


@click.command(name="chat")
@option("-p", "--prompt", metavar="TEXT", help="Answer this and end; `-` reads it from stdin.")
@option("--system", metavar="TEXT", help="Instructions for the model, before the conversation.")
@options.raw()
@options.max_tokens(default=512)
@option(
    "--temp",
    "temperature",
    type=Number(min=0),
    default=0.7,
    show_default=True,
    metavar="T",
    help="Sampling temperature; 0 always takes the likeliest token.",
)
@option(
    "--top-k",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    metavar="K",
    help="Choose among the K likeliest tokens; 0 means all.",
)
@option(
    "--top-p",
    type=Number(0, 1),
    default=0.95,
    show_default=True,
    metavar="P",
    help="Choose among the likeliest tokens that together have the probability P.",
)
@option(
    "--min-p",
    type=Number(0, 1),
    default=0.05,
    show_default=True,
    metavar="P",
    help="Drop tokens less likely than P times the likeliest.",
)
@option(
    "--repeat-penalty",
    type=Number(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="X",
    help="Above 1 makes repetition less likely.",
)
@options.seed(default=None)
@engine_options
@telemetry_options
@options.json_flag("Needs -p.")
@click.pass_context
def command(
    context: click.Context,
    /,
    prompt: str | None,
    system: str | None,
    raw: bool,
    as_json: bool,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int | None,
    model: Path,
    telemetry: Path | None,
    telemetry_hz: float,
    metrics: str | None,
    price: str | None,
    **engine_settings: Any,
) -> None:
    """Talk to MODEL, while its experts stream from storage within a budget of memory.

    Without -p it is a conversation; /help lists its commands. Answers go to stdout, everything else
    to stderr.
    """
    if as_json and prompt is None:
        raise click.UsageError("--json needs a prompt: -p TEXT, or -p - for stdin")
    if prompt == "-":
        prompt = stdin_text()
    sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
    }
    with (
        watching(
            model, telemetry, telemetry_hz, metrics, price, engine_settings["deployment"]
        ) as watched,
        open_engine(model, **watched, **engine_settings) as engine,
    ):
        if not raw and engine.chat_template is None:
            raw = True
            say("this model has no chat template: it continues the text")
        chat = Conversation(engine, as_text(system) if system else None, raw)
        if prompt is None:
            _talk(chat, sampling)
        elif not _answer_once(chat, as_text(prompt), sampling, as_json):
            context.exit(130)


def _answer_once(chat: Conversation, prompt: str, sampling: dict[str, Any], as_json: bool) -> bool:
    """Answer one prompt; return whether the answer was left to end."""
    shown = ShownReasoning()
    pieces, _ = chat.ask(prompt, on_reasoning=None if as_json else shown, **sampling)
    text: list[str] = []
    finished = True
    with contextlib.closing(pieces):
        try:
            if as_json:
                text.extend(pieces)
            else:
                write(shown.before(pieces), text)
        except KeyboardInterrupt:
            finished = False
    if as_json:
        result = {"text": "".join(text), **_reasoning(pieces), **chat.engine.stats()}
        click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))
    _report(chat)
    return finished


def _talk(chat: Conversation, sampling: dict[str, Any]) -> None:
    if sys.stdin.isatty():
        say(f"{chat.engine.path.name}: /help lists the commands")
    for text in questions():
        text = as_text(text)
        if text.startswith("/"):
            if text.strip() == "/exit":
                return
            _obey(chat, text.strip())
        elif text.strip():
            _turn(chat, text, sampling)


def _turn(chat: Conversation, text: str, sampling: dict[str, Any]) -> None:
    """Answer, and go on with the conversation whatever happens."""
    answer: list[str] = []
    try:
        shown = ShownReasoning()
        pieces, forgotten = chat.ask(text, on_reasoning=shown, **sampling)
        if forgotten:
            turns = "turn" if forgotten == 1 else f"{forgotten} turns"
            say(f"the context is full: the oldest {turns} forgotten")
        with contextlib.closing(pieces):
            write(shown.before(pieces), answer)
    except KeyboardInterrupt:
        say("stopped")
    except RemoeError as error:
        say(f"Error: {error}")
        return
    chat.keep(text, "".join(answer), pieces.reasoning)
    _report(chat)


def _obey(chat: Conversation, line: str) -> None:
    if line == "/reset":
        chat.clear()
        say("the conversation is forgotten")
    elif line == "/stats":
        for each in stats_lines(chat.engine.path.name, chat.engine.stats().to_dict()):
            say(each)
    elif line == "/help":
        click.echo(HELP, err=True)
    else:
        say(f"no command {line}; /help lists them")


def _reasoning(answer: Answer) -> dict[str, str]:
    return {"reasoning": answer.reasoning} if answer.reasoning else {}


def _report(chat: Conversation) -> None:
    """Say in a line what the answer cost, and in others what happened or ended it early."""
    engine = chat.engine
    say(engine.answer.line(engine.streamed))
    for note in chat.new_notes():
        say(note)
    if engine.answer.stop == "context":
        say(f"the answer ended at the context of {engine.n_ctx} tokens: raise --ctx")
    elif engine.answer.stop == "length":
        say(f"the answer ended at {engine.answer.n_generated} tokens: raise -n for more")
